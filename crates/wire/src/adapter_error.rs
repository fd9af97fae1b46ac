//! Why an adapter is refused. Every variant but the first two names the round, so that its sender can tell which one failed.

use crate::encoding::{Encoding, EncodingError};
use crate::ids::RoundId;

/// An adapter that is not to be believed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFrameError {
    /// Not an adapter at all.
    #[error("stream opens with {found:02x?}, not a cutlayer adapter: close it")]
    Magic {
        /// The first bytes found.
        found: [u8; 4],
    },
    /// Another protocol.
    #[error("adapter speaks protocol {theirs}, we speak {ours}: install the same cutlayer on both sides")]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// Reserved bits that no sender sets.
    #[error("adapter of round {round} sets reserved bits {found:#06x}")]
    Reserved {
        /// The adapter's round.
        round: RoundId,
        /// The bits found.
        found: u16,
    },
    /// A weight that no count can be.
    #[error("adapter of round {round} weighs {weight}: a weight is finite and not negative")]
    Weight {
        /// The adapter's round.
        round: RoundId,
        /// The weight claimed.
        weight: f64,
    },
    /// Larger than allowed.
    #[error("adapter of round {round}: {part} of {bytes} B exceeds {bytes_max} B: lower the rank or name fewer targets")]
    TooLarge {
        /// The adapter's round.
        round: RoundId,
        /// Manifest or payload.
        part: &'static str,
        /// The size claimed.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A body shorter or longer than its header says.
    #[error("adapter of round {round} is truncated or overlong: {part} has {found} B, the header says {expected} B")]
    Body {
        /// The adapter's round.
        round: RoundId,
        /// Manifest or payload.
        part: &'static str,
        /// Bytes found.
        found: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// A manifest that cannot be read.
    #[error("adapter of round {round}: manifest of {bytes} B cannot be read: {reason}")]
    Manifest {
        /// The adapter's round.
        round: RoundId,
        /// Its size.
        bytes: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that occurs twice.
    #[error("adapter of round {round} holds {name:?} twice")]
    Repeated {
        /// The adapter's round.
        round: RoundId,
        /// The name.
        name: String,
    },
    /// Shapes and payload that disagree.
    #[error("adapter of round {round}: its shapes take {shapes_bytes} B, the payload has {payload_bytes} B")]
    Shapes {
        /// The adapter's round.
        round: RoundId,
        /// Bytes that the shapes take; `u64::MAX` where they overflow.
        shapes_bytes: u64,
        /// Bytes of payload.
        payload_bytes: u64,
    },
    /// A manifest with more or fewer values than the header says.
    #[error("adapter of round {round}: its shapes hold {found} values, the header says {expected}")]
    Values {
        /// The adapter's round.
        round: RoundId,
        /// Values that the shapes hold; `u64::MAX` where they overflow.
        found: u64,
        /// Values promised.
        expected: u64,
    },
    /// An encoding that this build does not know, cannot read, or cannot make of an adapter.
    #[error("adapter of round {round}: {source}")]
    Encoding {
        /// The adapter's round.
        round: RoundId,
        /// What is wrong.
        source: EncodingError,
    },
    /// An encoding other than the one agreed.
    #[error("adapter of round {round} is in {found}, {expected} was agreed")]
    Agreed {
        /// The adapter's round.
        round: RoundId,
        /// Its encoding.
        found: Encoding,
        /// The one agreed.
        expected: Encoding,
    },
    /// A difference from an adapter that the receiver does not hold.
    #[error("adapter of round {round} is a difference from that of round {from}; this side holds {}", held(.have))]
    From {
        /// The adapter's round.
        round: RoundId,
        /// What it is a difference from.
        from: RoundId,
        /// What the receiver holds.
        have: Option<RoundId>,
    },
    /// A difference from an adapter with other tensors.
    #[error("adapter of round {round}: {name:?} is not a tensor of the adapter that it is a difference from, or is of another shape")]
    Foreign {
        /// The adapter's round.
        round: RoundId,
        /// The tensor.
        name: String,
    },
}

fn held(round: &Option<RoundId>) -> String {
    round.map_or("none".into(), |round| format!("that of round {round}"))
}
