//! How far a run has come: what a server that was killed needs, beside the adapter itself, to go on.

use cutlayer_wire::RoundId;
use serde::{Deserialize, Serialize};

/// What to save with every [`crate::Action::Commit`] and [`crate::Action::EvalDone`], and to start from after a restart.
/// The default is a new run.
///
/// Everything else about a run follows from its configuration: sampling depends on seed and round alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The last round that was committed; 0 before the first.
    pub round: RoundId,
    /// Whether that round's adapter was scored.
    pub evaluated: bool,
    /// Rounds that were skipped in a row, that one included. A run that ended for them and is started again has one more round to
    /// do better.
    pub skipped_in_a_row: u32,
}
