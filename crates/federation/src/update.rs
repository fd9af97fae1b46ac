//! One contribution to a round.

use std::fmt;

use cutlayer_wire::{AdapterState, PeerId, RoundId};

/// Who trained the tensors of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// One client: its own layers, or the server's layers trained for it alone.
    Client(PeerId),
    /// The server's one set of layers, stepped for every client.
    SharedServer,
}

/// Trained tensors and what they weigh in the round's mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Who trained them.
    pub source: Source,
    /// The round they were trained in.
    pub round: RoundId,
    /// Tokens, examples or clients behind them, as the plan weighs updates.
    pub weight: f64,
    /// The tensors by name; any part of the global adapter.
    pub tensors: AdapterState,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(peer) => write!(out, "client {peer}"),
            Self::SharedServer => out.write_str("the shared server"),
        }
    }
}
