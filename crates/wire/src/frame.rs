//! One frame of a step: its header, the sequences' lengths, the labels, the samples' numbers and the tensor's bytes.
//!
//! Built by one function per kind, so that a header cannot disagree with its body; taken apart by
//! [`Frame::assemble`], which believes nothing. It must never interpret tensor bytes.

use crate::encoding::Encoding;
use crate::frame_error::{FrameError, LABEL_IGNORED};
use crate::frame_header::{FRAME_HEADER_BYTES, FrameFlags, FrameHeader, FrameKind};
use crate::frame_limits::BodyPlan;
use crate::ids::{RoundId, StepId};
use crate::message::EvalSums;

/// The longest reason a peer may give, in bytes.
pub const REASON_BYTES_MAX: usize = 4096;

/// A whole frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it is.
    pub header: FrameHeader,
    /// Tokens of each sequence.
    pub lengths: Vec<u32>,
    /// Labels, one a token or one a sequence.
    pub labels: Vec<i32>,
    /// Numbers of the sequences' samples, where the receiver remembers something of each: the same number, the same sample.
    pub samples: Vec<u64>,
    /// Encoded tensor, or the reason of a failure.
    pub payload: Vec<u8>,
}

/// The longest prefix of `reason` that a frame or message may carry.
pub fn shorten_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

impl Frame {
    /// Activations at the cut, which open a step.
    ///
    /// # Panics
    /// If the lengths add up to more than `u32::MAX` tokens, or the payload is not `[tokens, hidden]`.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of the header, each a different type")]
    pub fn forward(
        step: StepId,
        round: RoundId,
        flags: FrameFlags,
        encoding: Encoding,
        hidden: u32,
        lengths: Vec<u32>,
        labels: Vec<i32>,
        payload: Vec<u8>,
    ) -> Self {
        let tokens: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        let header = FrameHeader {
            kind: FrameKind::Forward,
            encoding,
            step,
            round,
            flags,
            micro_batches: 1,
            segments: count(lengths.len()),
            tokens: u32::try_from(tokens).expect("a batch of ours counts its tokens in a u32"),
            hidden,
            labels: count(labels.len()),
            samples: 0,
            step_scored: 0,
            payload_bytes: payload.len() as u64,
            loss_sum: 0.0,
            scored: 0,
            correct: 0,
        };
        let frame = Self { header, lengths, labels, samples: Vec::new(), payload };
        frame.assert_tensor();
        frame
    }

    /// The same as one of `micro_batches` of its step, in which `step_scored` labels are scored in all.
    pub fn micro(mut self, micro_batches: u16, step_scored: u32) -> Self {
        (self.header.micro_batches, self.header.step_scored) = (micro_batches, step_scored);
        self
    }

    /// The same with its samples numbered.
    ///
    /// # Panics
    /// If there is not a number for each sequence.
    pub fn numbered(mut self, samples: Vec<u64>) -> Self {
        assert_eq!(samples.len(), self.lengths.len(), "a number for each sequence");
        (self.header.samples, self.samples) = (count(samples.len()), samples);
        self
    }

    /// Activations at the start of the client's tail, in answer to its Forward.
    ///
    /// # Panics
    /// If the payload is not of the same shape as what it answers.
    pub fn hidden(asked: &FrameHeader, encoding: Encoding, payload: Vec<u8>) -> Self {
        Self::tensor_answer(asked, FrameKind::Hidden, encoding, EvalSums::default(), payload)
    }

    /// The gradient with respect to the activations in `asked`, and the loss where the sender computed it.
    ///
    /// # Panics
    /// If the payload is not of the same shape as what it answers.
    pub fn gradient(asked: &FrameHeader, encoding: Encoding, sums: EvalSums, payload: Vec<u8>) -> Self {
        Self::tensor_answer(asked, FrameKind::Gradient, encoding, sums, payload)
    }

    /// The end of a step that owes no tensor.
    pub fn done(asked: &FrameHeader, sums: EvalSums) -> Self {
        let header = answer(asked, FrameKind::Done, asked.encoding, sums, 0);
        let header = FrameHeader { tokens: 0, ..header };
        Self::bare(header, Vec::new())
    }

    /// The end of a step that failed, for a reason that a person can read; cut short at [`REASON_BYTES_MAX`].
    pub fn failed(asked: &FrameHeader, reason: &str) -> Self {
        // The field is never empty on the wire: a failure without a word helps nobody.
        let reason = if reason.is_empty() { "no reason given" } else { shorten_reason(reason) };
        let payload = reason.as_bytes().to_vec();
        let sums = EvalSums::default();
        let header = answer(asked, FrameKind::Failed, asked.encoding, sums, payload.len());
        let header = FrameHeader { tokens: 0, ..header };
        Self::bare(header, payload)
    }

    /// Why the step failed, if it did.
    pub fn reason(&self) -> Option<&str> {
        (self.header.kind == FrameKind::Failed).then(|| std::str::from_utf8(&self.payload).unwrap_or("an unreadable reason"))
    }

    fn bare(header: FrameHeader, payload: Vec<u8>) -> Self {
        Self { header, lengths: Vec::new(), labels: Vec::new(), samples: Vec::new(), payload }
    }

    /// Header, lengths, labels and numbers: everything to write before the payload.
    pub fn encode_prefix(&self) -> Vec<u8> {
        let lists_bytes = (self.lengths.len() + self.labels.len()) * 4 + self.samples.len() * 8;
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + lists_bytes);
        bytes.extend_from_slice(&self.header.encode());
        bytes.extend(self.lengths.iter().flat_map(|length| length.to_le_bytes()));
        bytes.extend(self.labels.iter().flat_map(|label| label.to_le_bytes()));
        bytes.extend(self.samples.iter().flat_map(|sample| sample.to_le_bytes()));
        bytes
    }

    /// The whole frame in one buffer.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.encode_prefix();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Joins a header that [`FrameHeader::check`] let pass with the body that followed it.
    ///
    /// `lists` is the body's first [`BodyPlan::prefix_bytes`], the payload is the rest; read apart, the
    /// payload is never copied.
    pub fn assemble(header: FrameHeader, lists: &[u8], payload: Vec<u8>) -> Result<Self, FrameError> {
        let step = header.step;
        let lists_expected = header.lists_bytes();
        let found = (lists.len() as u64, payload.len() as u64);
        if found != (lists_expected, header.payload_bytes) {
            return Err(FrameError::Body { step, found: found.0 + found.1, expected: lists_expected.saturating_add(header.payload_bytes) });
        }
        let (lengths, rest) = lists.split_at(header.segments as usize * 4);
        let (labels, samples) = rest.split_at(header.labels as usize * 4);
        let frame = Self {
            header,
            lengths: words(lengths).map(u32::from_le_bytes).collect(),
            labels: words(labels).map(i32::from_le_bytes).collect(),
            samples: words(samples).map(u64::from_le_bytes).collect(),
            payload,
        };
        frame.check_lengths()?;
        if header.kind == FrameKind::Failed && std::str::from_utf8(&frame.payload).is_err() {
            return Err(FrameError::Reason { step });
        }
        Ok(frame)
    }

    /// [`Frame::assemble`] for a body that came in one piece.
    pub fn assemble_whole(header: FrameHeader, plan: &BodyPlan, mut body: Vec<u8>) -> Result<Self, FrameError> {
        if body.len() != plan.total_bytes() {
            return Err(FrameError::Body { step: header.step, found: body.len() as u64, expected: plan.total_bytes() as u64 });
        }
        let payload = body.split_off(plan.prefix_bytes());
        Self::assemble(header, &body, payload)
    }

    /// Every label is ignored or one of `classes`: to be asked before a loss indexes by them.
    pub fn check_labels(&self, classes: u32) -> Result<(), FrameError> {
        let is_class = |label: &i32| u32::try_from(*label).is_ok_and(|label| label < classes);
        match self.labels.iter().find(|label| **label != LABEL_IGNORED && !is_class(label)) {
            None => Ok(()),
            Some(label) => Err(FrameError::Label { step: self.header.step, found: *label, classes }),
        }
    }

    fn check_lengths(&self) -> Result<(), FrameError> {
        if self.lengths.is_empty() {
            return Ok(());
        }
        let found = self.lengths.iter().map(|length| u64::from(*length)).sum();
        let empty = self.lengths.iter().filter(|length| **length == 0).count();
        let FrameHeader { step, tokens: expected, .. } = self.header;
        if found == u64::from(expected) && empty == 0 { Ok(()) } else { Err(FrameError::Lengths { step, found, empty, expected }) }
    }

    fn tensor_answer(asked: &FrameHeader, kind: FrameKind, encoding: Encoding, sums: EvalSums, payload: Vec<u8>) -> Self {
        let header = answer(asked, kind, encoding, sums, payload.len());
        let frame = Self::bare(header, payload);
        frame.assert_tensor();
        frame
    }

    fn assert_tensor(&self) {
        let FrameHeader { encoding, tokens, hidden, .. } = self.header;
        let fits = self.header.check_payload();
        assert_eq!(fits, Ok(()), "our payload is [{tokens}, {hidden}] in {encoding}");
    }
}

/// The header of an answer: the same step, without lists.
fn answer(asked: &FrameHeader, kind: FrameKind, encoding: Encoding, sums: EvalSums, payload_bytes: usize) -> FrameHeader {
    FrameHeader {
        kind,
        encoding,
        segments: 0,
        labels: 0,
        samples: 0,
        step_scored: 0,
        payload_bytes: payload_bytes as u64,
        loss_sum: sums.loss_sum,
        scored: u32::try_from(sums.scored).expect("a frame scores at most its u32 of tokens"),
        correct: u32::try_from(sums.correct).expect("no more are right than were scored"),
        ..*asked
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).expect("a batch of ours counts its items in a u32")
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}
