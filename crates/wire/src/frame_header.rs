//! The fixed header of a step's frame: its fields and their 84 bytes.
//!
//! A frame is this header, then `segments` u32 lengths, `labels` i32 labels, `samples` u64 numbers and
//! `payload_bytes` of tensor, all little-endian. Decoding believes nothing: [`FrameHeader::check`] does the judging.

use crate::encoding::Encoding;
use crate::frame_error::FrameError;
use crate::ids::{RoundId, StepId};
use crate::message::{EvalSums, PROTOCOL_VERSION};

/// Bytes of an encoded header.
pub const FRAME_HEADER_BYTES: usize = 84;

/// The first bytes of every frame.
const MAGIC: [u8; 4] = *b"CUTL";

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Activations at the cut, client to server: opens a step.
    Forward = 1,
    /// Activations at the start of the client's tail, server to client (U-shaped split).
    Hidden = 2,
    /// Gradient with respect to the activations last sent the other way.
    Gradient = 3,
    /// The step is done and owes no tensor.
    Done = 4,
    /// The step failed; the payload says why.
    Failed = 5,
}

/// Three facts about a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FrameFlags(u16);

/// What stands before a frame's body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameHeader {
    /// What the frame carries.
    pub kind: FrameKind,
    /// How its tensor is encoded.
    pub encoding: Encoding,
    /// The step it belongs to.
    pub step: StepId,
    /// The round it belongs to.
    pub round: RoundId,
    /// Facts about the step.
    pub flags: FrameFlags,
    /// Micro-batches in its step, at least 1: the optimizers step when all are done.
    pub micro_batches: u16,
    /// Sequences whose lengths follow. Only Forward must give them: later frames of a step may leave them out.
    pub segments: u32,
    /// Rows of the tensor: tokens without padding, over all sequences.
    pub tokens: u32,
    /// Columns of the tensor.
    pub hidden: u32,
    /// Labels that follow: none, one a token, or one a sequence.
    pub labels: u32,
    /// Numbers of samples that follow: none, or one a sequence.
    pub samples: u32,
    /// Labels that are scored in the whole step, of which this is a micro-batch; 0 where that is not for the receiver to know.
    pub step_scored: u32,
    /// Bytes of tensor.
    pub payload_bytes: u64,
    /// Sum of the losses, in nats, where the sender computed them.
    pub loss_sum: f64,
    /// How many labels that sum is over.
    pub scored: u32,
    /// How many of those were predicted right.
    pub correct: u32,
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(found: u8) -> Result<Self, FrameError> {
        match found {
            1 => Ok(Self::Forward),
            2 => Ok(Self::Hidden),
            3 => Ok(Self::Gradient),
            4 => Ok(Self::Done),
            5 => Ok(Self::Failed),
            _ => Err(FrameError::Kind { found }),
        }
    }
}

impl FrameFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Train: keep the tape, step the optimizer. Without it the step only scores.
    pub const TRAIN: Self = Self(1);
    /// The client has adapters below the cut and wants the gradient.
    pub const NEEDS_GRADIENT: Self = Self(2);
    /// Every bit with a meaning.
    const KNOWN: u16 = 1 | 2;

    /// These flags and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags and, where `on`, `other`.
    pub const fn with_if(self, other: Self, on: bool) -> Self {
        if on { self.with(other) } else { self }
    }

    /// Whether every flag of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The flags in `bits`, if all are known.
    pub const fn from_bits(bits: u16) -> Result<Self, FrameError> {
        if bits & !Self::KNOWN == 0 { Ok(Self(bits)) } else { Err(FrameError::Flags { found: bits }) }
    }
}

impl FrameHeader {
    /// The sums as an evaluation adds them up.
    pub fn sums(&self) -> EvalSums {
        EvalSums { loss_sum: self.loss_sum, scored: self.scored.into(), correct: self.correct.into() }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, MAGIC);
        put(&mut rest, PROTOCOL_VERSION.to_le_bytes());
        put(&mut rest, [self.kind as u8, 0]);
        put(&mut rest, self.encoding.to_bytes());
        put(&mut rest, self.step.0.to_le_bytes());
        put(&mut rest, self.round.0.to_le_bytes());
        put(&mut rest, self.flags.bits().to_le_bytes());
        put(&mut rest, self.micro_batches.to_le_bytes());
        put(&mut rest, self.segments.to_le_bytes());
        put(&mut rest, self.tokens.to_le_bytes());
        put(&mut rest, self.hidden.to_le_bytes());
        put(&mut rest, self.labels.to_le_bytes());
        put(&mut rest, self.samples.to_le_bytes());
        put(&mut rest, self.step_scored.to_le_bytes());
        put(&mut rest, self.payload_bytes.to_le_bytes());
        put(&mut rest, self.loss_sum.to_le_bytes());
        put(&mut rest, self.scored.to_le_bytes());
        put(&mut rest, self.correct.to_le_bytes());
        assert!(rest.is_empty(), "the fields fill the header");
        bytes
    }

    /// The header in `bytes`: well-formed, not yet believed.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut rest = &bytes[..];
        let magic = take(&mut rest);
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let theirs = u16::from_le_bytes(take(&mut rest));
        if theirs != PROTOCOL_VERSION {
            return Err(FrameError::Version { ours: PROTOCOL_VERSION, theirs });
        }
        let [kind, reserved] = take(&mut rest);
        let kind = FrameKind::try_from(kind)?;
        if reserved != 0 {
            return Err(FrameError::Flags { found: reserved.into() });
        }
        let encoding = Encoding::from_bytes(take(&mut rest))?;
        let step = StepId(u64::from_le_bytes(take(&mut rest)));
        let round = RoundId(u32::from_le_bytes(take(&mut rest)));
        let flags = FrameFlags::from_bits(u16::from_le_bytes(take(&mut rest)))?;
        let micro_batches = u16::from_le_bytes(take(&mut rest));
        Ok(Self {
            kind,
            encoding,
            step,
            round,
            flags,
            micro_batches,
            segments: u32::from_le_bytes(take(&mut rest)),
            tokens: u32::from_le_bytes(take(&mut rest)),
            hidden: u32::from_le_bytes(take(&mut rest)),
            labels: u32::from_le_bytes(take(&mut rest)),
            samples: u32::from_le_bytes(take(&mut rest)),
            step_scored: u32::from_le_bytes(take(&mut rest)),
            payload_bytes: u64::from_le_bytes(take(&mut rest)),
            loss_sum: f64::from_le_bytes(take(&mut rest)),
            scored: u32::from_le_bytes(take(&mut rest)),
            correct: u32::from_le_bytes(take(&mut rest)),
        })
    }
}

/// Writes `bytes` at the front of `rest` and moves past them.
pub(crate) fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    let (front, back) = std::mem::take(rest).split_first_chunk_mut::<N>().expect("a header has room for its own fields");
    *front = bytes;
    *rest = back;
}

/// Reads from the front of `rest` and moves past what was read.
pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (front, back) = rest.split_first_chunk::<N>().expect("a header has room for its own fields");
    *rest = back;
    *front
}
