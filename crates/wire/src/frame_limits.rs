//! What a receiver expects of the next frame, and every check that precedes an allocation.
//!
//! [`FrameHeader::check`] decides from the header alone; nothing is allocated for a frame that it refuses.

use crate::encoding::{Encoding, EncodingError};
use crate::frame::REASON_BYTES_MAX;
use crate::frame_error::{Bound, FrameError};
use crate::frame_header::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::ids::{MICRO_BATCHES_MAX, RoundId, StepId};
use crate::memory::{Differences, MemoryBound};

/// The largest frame any limits may allow: 8 sequences of 4096 tokens at hidden 8192 in f32.
pub const FRAME_BYTES_MAX: u64 = 1 << 30;

const _: () = assert!(FRAME_BYTES_MAX > (FRAME_HEADER_BYTES + REASON_BYTES_MAX) as u64);

/// What a receiver expects of the next frame on a stream.
///
/// Make one with [`FrameLimits::new`] and narrow it: an option left empty is not checked.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameLimits {
    /// The largest whole frame.
    pub frame_bytes_max: u64,
    /// The most tokens.
    pub tokens_max: u32,
    /// The most sequences.
    pub segments_max: u32,
    /// The model's hidden size.
    pub hidden: u32,
    /// The round being served.
    pub round: Option<RoundId>,
    /// The step being answered.
    pub step: Option<StepId>,
    /// The tokens of the frame being answered.
    pub tokens: Option<u32>,
    /// The encoding agreed for Forward and Hidden.
    pub activations: Option<Encoding>,
    /// The encoding agreed for Gradient.
    pub gradients: Option<Encoding>,
}

/// The parts of a frame's body, in order, as [`FrameHeader::check`] allows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyPlan {
    /// Bytes of the sequences' lengths.
    pub lengths_bytes: usize,
    /// Bytes of the labels.
    pub labels_bytes: usize,
    /// Bytes of the samples' numbers.
    pub samples_bytes: usize,
    /// Bytes of tensor or reason.
    pub payload_bytes: usize,
}

impl BodyPlan {
    /// Bytes before the payload.
    pub fn prefix_bytes(&self) -> usize {
        self.lengths_bytes + self.labels_bytes + self.samples_bytes
    }

    /// Bytes of the whole body.
    pub fn total_bytes(&self) -> usize {
        self.prefix_bytes() + self.payload_bytes
    }
}

impl FrameLimits {
    /// The largest frame of up to `segments_max` sequences and `tokens_max` tokens at this hidden size.
    pub fn new(hidden: u32, tokens_max: u32, segments_max: u32) -> Self {
        let limits = Self {
            frame_bytes_max: FRAME_BYTES_MAX,
            tokens_max,
            segments_max,
            hidden,
            round: None,
            step: None,
            tokens: None,
            activations: None,
            gradients: None,
        };
        Self { frame_bytes_max: limits.frame_bytes(&[Encoding::F32]), ..limits }
    }

    /// Bytes of the largest frame in any of these encodings.
    fn frame_bytes(&self, encodings: &[Encoding]) -> u64 {
        // An encoding that does not fit the model has no frames; the check of a header says so.
        let bytes_of = |encoding: &Encoding| payload_bytes_max(*encoding, self.segments_max, self.tokens_max, self.hidden).ok();
        let tensor_bytes = encodings.iter().filter_map(bytes_of);
        let tensor_bytes = tensor_bytes.max().unwrap_or(0).max(REASON_BYTES_MAX as u64);
        let (tokens, segments) = (u64::from(self.tokens_max), u64::from(self.segments_max));
        let lists_bytes = 4 * (tokens.max(segments) + segments) + 8 * segments;
        (FRAME_HEADER_BYTES as u64 + lists_bytes).saturating_add(tensor_bytes).min(FRAME_BYTES_MAX)
    }

    /// Only this round's frames.
    pub fn of_round(mut self, round: RoundId) -> Self {
        self.round = Some(round);
        self
    }

    /// Only these encodings, and no frame larger than theirs.
    pub fn encoded(mut self, activations: Encoding, gradients: Encoding) -> Self {
        self.frame_bytes_max = self.frame_bytes(&[activations, gradients]);
        self.activations = Some(activations);
        self.gradients = Some(gradients);
        self
    }

    /// Only an answer to `asked`: its step, its round and as many tokens.
    pub fn answering(mut self, asked: &FrameHeader) -> Self {
        self.round = Some(asked.round);
        self.step = Some(asked.step);
        self.tokens = Some(asked.tokens);
        self
    }
}

/// The most bytes of a tensor of so many samples.
fn payload_bytes_max(encoding: Encoding, samples: u32, rows: u32, columns: u32) -> Result<u64, EncodingError> {
    // The bound on what is remembered does not matter to what travels.
    match Differences::of(encoding, MemoryBound { values_max: 0 }) {
        Some(differences) => differences.payload_bytes_max(samples, rows, columns),
        None => encoding.payload_bytes_max(rows, columns),
    }
}

impl FrameHeader {
    /// Everything that can be refused before the body is read or allocated for.
    pub fn check(&self, limits: &FrameLimits) -> Result<BodyPlan, FrameError> {
        self.check_belonging(limits)?;
        // A step of no micro-batches would never end.
        self.up_to("micro_batches", self.micro_batches.into(), MICRO_BATCHES_MAX.into())?;
        if !self.loss_sum.is_finite() || self.correct > self.scored {
            let Self { step, loss_sum, scored, correct, .. } = *self;
            return Err(FrameError::Sums { step, loss_sum, scored, correct });
        }
        match self.kind {
            FrameKind::Forward | FrameKind::Hidden | FrameKind::Gradient => self.check_tensor(limits)?,
            FrameKind::Done => {
                self.check_no_tensor()?;
                self.exactly("payload_bytes", self.payload_bytes, 0)?;
            }
            FrameKind::Failed => {
                self.check_no_tensor()?;
                self.up_to("payload_bytes", self.payload_bytes, REASON_BYTES_MAX as u64)?;
            }
        }
        // Saturating: check_tensor bounds the payload only by what two u32 of rows and columns take.
        let bytes = self.payload_bytes.saturating_add(FRAME_HEADER_BYTES as u64 + self.lists_bytes());
        let bytes_max = limits.frame_bytes_max.min(FRAME_BYTES_MAX);
        if bytes > bytes_max {
            return Err(FrameError::TooLarge { step: self.step, bytes, bytes_max });
        }
        // Every part is below FRAME_BYTES_MAX, which any usize holds.
        Ok(BodyPlan {
            lengths_bytes: self.segments as usize * 4,
            labels_bytes: self.labels as usize * 4,
            samples_bytes: self.samples as usize * 8,
            payload_bytes: self.payload_bytes as usize,
        })
    }

    /// Bytes of everything between the header and the payload.
    pub(crate) fn lists_bytes(&self) -> u64 {
        4 * (u64::from(self.segments) + u64::from(self.labels)) + 8 * u64::from(self.samples)
    }

    /// The frame is of the round, the step and the encoding that the receiver waits for.
    fn check_belonging(&self, limits: &FrameLimits) -> Result<(), FrameError> {
        if let Some(expected) = limits.round.filter(|round| *round != self.round) {
            return Err(FrameError::Round { step: self.step, found: self.round, expected });
        }
        if let Some(expected) = limits.step.filter(|step| *step != self.step) {
            return Err(FrameError::Step { found: self.step, expected });
        }
        let agreed = match self.kind {
            FrameKind::Forward => limits.activations,
            // What the server sends back is of no sample that it knows again.
            FrameKind::Hidden => limits.activations.map(Encoding::forgetful),
            FrameKind::Gradient => limits.gradients,
            FrameKind::Done | FrameKind::Failed => None,
        };
        match agreed.filter(|encoding| *encoding != self.encoding) {
            None => Ok(()),
            Some(expected) => Err(FrameError::Agreed { step: self.step, kind: self.kind, found: self.encoding, expected }),
        }
    }

    /// A tensor of the model's width, of an allowed number of rows, of a number of bytes that its encoding can have.
    fn check_tensor(&self, limits: &FrameLimits) -> Result<(), FrameError> {
        self.exactly("hidden", self.hidden.into(), limits.hidden.into())?;
        self.up_to("tokens", self.tokens.into(), limits.tokens_max.into())?;
        if let Some(tokens) = limits.tokens {
            self.exactly("tokens", self.tokens.into(), tokens.into())?;
        }
        if self.kind == FrameKind::Forward || self.segments > 0 {
            let segments_max = limits.segments_max.min(self.tokens);
            self.up_to("segments", self.segments.into(), segments_max.into())?;
        }
        let labels_expected = Bound::Labels { tokens: self.tokens, segments: self.segments };
        let labels_fit = match self.kind {
            FrameKind::Forward => [0, self.tokens, self.segments].contains(&self.labels),
            _ => self.labels == 0,
        };
        if !labels_fit {
            return Err(self.count("labels", self.labels.into(), labels_expected));
        }
        if self.samples != 0 {
            let samples_max = if self.kind == FrameKind::Forward { self.segments } else { 0 };
            self.exactly("samples", self.samples.into(), samples_max.into())?;
        }
        self.check_payload().map_err(|source| FrameError::Payload { step: self.step, kind: self.kind, source })
    }

    /// The payload is of a size that the encoding can have, before any of it is read.
    pub(crate) fn check_payload(&self) -> Result<(), EncodingError> {
        let Self { encoding, segments, tokens, hidden, payload_bytes: bytes, .. } = *self;
        if encoding.differences().is_none() {
            return encoding.check_bytes(bytes, tokens, hidden);
        }
        let bytes_max = payload_bytes_max(encoding, segments, tokens, hidden)?;
        if (1..=bytes_max).contains(&bytes) {
            return Ok(());
        }
        Err(EncodingError::Length { encoding, rows: tokens.into(), columns: hidden.into(), bytes, bytes_max })
    }

    /// Nothing but a payload of text, or nothing at all.
    fn check_no_tensor(&self) -> Result<(), FrameError> {
        self.exactly("tokens", self.tokens.into(), 0)?;
        self.exactly("segments", self.segments.into(), 0)?;
        self.exactly("labels", self.labels.into(), 0)?;
        self.exactly("samples", self.samples.into(), 0)
    }

    fn exactly(&self, field: &'static str, found: u64, expected: u64) -> Result<(), FrameError> {
        if found == expected {
            return Ok(());
        }
        Err(self.count(field, found, Bound::Exactly(expected)))
    }

    fn up_to(&self, field: &'static str, found: u64, most: u64) -> Result<(), FrameError> {
        if (1..=most).contains(&found) {
            return Ok(());
        }
        Err(self.count(field, found, Bound::UpTo(most)))
    }

    fn count(&self, field: &'static str, found: u64, expected: Bound) -> FrameError {
        FrameError::Count { step: self.step, kind: self.kind, field, found, expected }
    }
}
