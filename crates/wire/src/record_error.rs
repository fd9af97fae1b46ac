//! Why a record is refused, by who reads it or by who was about to send it.

use crate::encoding::EncodingError;
use crate::record::RecordKind;

/// A record that is not to be believed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A kind of record we do not know.
    #[error("record kind {found} is unknown: close the session")]
    Kind {
        /// The number found.
        found: u8,
    },
    /// What only this side says.
    #[error("a peer of this side says no {kind:?} record: close the session")]
    Side {
        /// The record's kind.
        kind: RecordKind,
    },
    /// Flags that no sender sets.
    #[error("{kind:?} record sets unknown flags {found:#04x}")]
    Flags {
        /// The record's kind.
        kind: RecordKind,
        /// The flags found.
        found: u8,
    },
    /// A count that the limits or the kind of record forbid.
    #[error("{kind:?} record has {field} {found}, it must be {least} to {most}")]
    Count {
        /// The record's kind.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Rows beyond the longest sequence.
    #[error("{kind:?} record reaches position {end}, and sequences end at {positions_max}: ask for fewer tokens or shorten the prompt")]
    TooLong {
        /// The record's kind.
        kind: RecordKind,
        /// The position after its last row.
        end: u32,
        /// The longest sequence.
        positions_max: u32,
    },
    /// A payload that the agreed encoding never has.
    #[error("{kind:?} record: {source}")]
    Payload {
        /// The record's kind.
        kind: RecordKind,
        /// What is wrong with it.
        source: EncodingError,
    },
    /// A body shorter or longer than its header says.
    #[error("{kind:?} record: body has {found} B, the header says {expected} B")]
    Body {
        /// The record's kind.
        kind: RecordKind,
        /// Bytes found.
        found: usize,
        /// Bytes promised.
        expected: usize,
    },
    /// A body that cannot be read.
    #[error("{kind:?} record cannot be read: {reason}")]
    Malformed {
        /// The record's kind.
        kind: RecordKind,
        /// What is wrong with it.
        reason: String,
    },
    /// Probabilities that are none.
    #[error("token {id} comes with a logarithm of {logprob}: the logits are no numbers, or the peer is at fault")]
    Logprob {
        /// The token.
        id: u32,
        /// What was said of it.
        logprob: f32,
    },
    /// A field of `Open` that cannot be.
    #[error("a session that opens with {field} {found}: {remedy}")]
    Open {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
}
