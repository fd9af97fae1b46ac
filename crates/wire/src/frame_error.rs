//! Why a frame is refused. Every variant names the step, so that the sender can tell which one failed.

use crate::encoding::{Encoding, EncodingError};
use crate::frame_header::FrameKind;
use crate::ids::{RoundId, StepId};

/// The label of a token or sequence that is not scored, as in PyTorch.
pub const LABEL_IGNORED: i32 = -100;

/// A frame that is not to be believed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not a frame at all.
    #[error("stream opens with {found:02x?}, not a cutlayer frame: close it")]
    Magic {
        /// The first bytes found.
        found: [u8; 4],
    },
    /// Another protocol.
    #[error("frame speaks protocol {theirs}, we speak {ours}: install the same cutlayer on both sides")]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// A kind of frame we do not know.
    #[error("frame kind {found} is unknown")]
    Kind {
        /// The number found.
        found: u8,
    },
    /// An encoding we do not know.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// A payload that its encoding never has, or a width that it cannot do.
    #[error("step {step}: {kind:?} frame: {source}")]
    Payload {
        /// The frame's step.
        step: StepId,
        /// Its kind.
        kind: FrameKind,
        /// What is wrong with it.
        source: EncodingError,
    },
    /// Flags, or reserved bytes, that no sender sets.
    #[error("frame sets unknown bits {found:#06x}")]
    Flags {
        /// The bits found.
        found: u16,
    },
    /// A frame of another round.
    #[error("step {step} is of round {found}, we are in round {expected}: drop the step")]
    Round {
        /// The frame's step.
        step: StepId,
        /// Its round.
        found: RoundId,
        /// Ours.
        expected: RoundId,
    },
    /// An answer to another step.
    #[error("frame answers step {found}, we asked about step {expected}")]
    Step {
        /// The frame's step.
        found: StepId,
        /// Ours.
        expected: StepId,
    },
    /// A count that the limits or the kind of frame forbid.
    #[error("step {step}: {kind:?} frame has {field} {found}, {expected}")]
    Count {
        /// The frame's step.
        step: StepId,
        /// Its kind.
        kind: FrameKind,
        /// The header's field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: Bound,
    },
    /// An encoding other than the one agreed at Welcome.
    #[error("step {step}: {kind:?} frame is in {found}, {expected} was agreed")]
    Agreed {
        /// The frame's step.
        step: StepId,
        /// Its kind.
        kind: FrameKind,
        /// Its encoding.
        found: Encoding,
        /// The one agreed.
        expected: Encoding,
    },
    /// Larger than a frame may be.
    #[error("step {step}: frame of {bytes} B exceeds {bytes_max} B: send smaller batches")]
    TooLarge {
        /// The frame's step.
        step: StepId,
        /// The size claimed.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Sums that no loss can give.
    #[error(
        "step {step}: loss {loss_sum} over {scored} with {correct} right: the loss diverged (lower the learning rate) or the peer is at fault"
    )]
    Sums {
        /// The frame's step.
        step: StepId,
        /// The loss claimed.
        loss_sum: f64,
        /// How many were scored.
        scored: u32,
        /// How many were right.
        correct: u32,
    },
    /// A body shorter or longer than its header says.
    #[error("step {step}: body has {found} B, the header says {expected} B")]
    Body {
        /// The frame's step.
        step: StepId,
        /// Bytes found.
        found: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// Lengths that do not add up to the tokens, or an empty sequence.
    #[error("step {step}: sequence lengths add up to {found} with {empty} empty, expected {expected} with none")]
    Lengths {
        /// The frame's step.
        step: StepId,
        /// Their sum.
        found: u64,
        /// How many are zero.
        empty: usize,
        /// The tokens claimed.
        expected: u32,
    },
    /// A label that is no class.
    #[error("step {step}: label {found} is not {LABEL_IGNORED} or below {classes}")]
    Label {
        /// The frame's step.
        step: StepId,
        /// The label.
        found: i32,
        /// Classes, or words of the vocabulary.
        classes: u32,
    },
    /// A reason that is not text.
    #[error("step {step}: reason is not UTF-8")]
    Reason {
        /// The frame's step.
        step: StepId,
    },
}

/// What a count may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// This alone.
    Exactly(u64),
    /// From one up to this.
    UpTo(u64),
    /// No labels, one a token or one a sequence.
    Labels {
        /// Tokens in the frame.
        tokens: u32,
        /// Sequences in the frame.
        segments: u32,
    },
}

impl std::fmt::Display for Bound {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(count) => write!(out, "it must be {count}"),
            Self::UpTo(count) => write!(out, "it must be 1 to {count}"),
            Self::Labels { tokens, segments } => {
                write!(out, "it must be 0, {tokens} (one a token) or {segments} (one a sequence)")
            }
        }
    }
}
