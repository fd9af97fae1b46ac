//! The answers to a client's steps of a round: a step that comes again is answered as it was, and counts once.
//!
//! A client that lost its connection sends again what was under way; one that was started again takes its round from the first step.
//! Both ask what they asked before, byte for byte, because a step follows from the seed and its place. Where it does not, nothing that
//! was answered before would be right.

use cutlayer_wire::{Frame, StepId};
use std::collections::BTreeMap;

/// The most that is kept of all clients' answers, beside those in flight: enough for a round of a few dozen clients with small encodings.
const BYTES_MAX: u64 = 1 << 30;
/// The most that is kept of one client's.
const CLIENT_BYTES_MAX: u64 = 64 << 20;

/// What is known of a step that came.
#[derive(Debug, PartialEq)]
pub(crate) enum Known {
    /// It never came.
    New,
    /// It came, and this was its answer.
    Answer(Frame),
    /// It came with other contents, or its answer is not kept any more.
    Refused(&'static str),
}

struct Kept {
    asked: blake3::Hash,
    first: Option<Frame>,
    last: Option<Frame>,
}

/// A client's answers. Of those that are dropped, the oldest first, only that they were given is known.
pub(crate) struct Answers {
    kept: BTreeMap<StepId, Kept>,
    bytes: u64,
    bytes_max: u64,
    /// Steps that may be under way, whose answers are kept whatever their bytes.
    in_flight: usize,
}

impl Answers {
    /// Those of one of `clients`, which has up to `in_flight` micro-batches under way.
    pub fn new(clients: u32, in_flight: usize) -> Self {
        let bytes_max = CLIENT_BYTES_MAX.min(BYTES_MAX / u64::from(clients.max(1)));
        Self { kept: BTreeMap::new(), bytes: 0, bytes_max, in_flight }
    }

    /// What is known of a step that opens with `opening`; `remembered` where its payload depends on what the two sides remember, so that
    /// a sender that forgot says the same in other bytes.
    pub fn opened(&self, opening: &Frame, remembered: bool) -> Known {
        let step = opening.header.step;
        let Some(kept) = self.kept.get(&step) else {
            let passed = self.kept.last_key_value().is_some_and(|(newest, _)| step < *newest);
            return if passed { Known::Refused("a later step of this client came before it") } else { Known::New };
        };
        if kept.asked != asked(opening, remembered) {
            return Known::Refused("this step came before with other contents: the client did not resume where it was");
        }
        match &kept.first {
            Some(answer) => Known::Answer(answer.clone()),
            None => Known::Refused("this step's answer is not kept any more: the client was away for too long"),
        }
    }

    /// What is known of the second half of a U-shaped step.
    pub fn closed(&self, step: StepId) -> Known {
        match self.kept.get(&step).and_then(|kept| kept.last.clone()) {
            Some(answer) => Known::Answer(answer),
            None => Known::New,
        }
    }

    /// Keeps the answer to `opening`.
    pub fn keep(&mut self, opening: &Frame, remembered: bool, answer: &Frame) {
        self.bytes += size(answer);
        let kept = Kept { asked: asked(opening, remembered), first: Some(answer.clone()), last: None };
        self.kept.insert(opening.header.step, kept);
        self.drop_oldest();
    }

    /// Keeps the last answer of a U-shaped step.
    pub fn keep_last(&mut self, step: StepId, answer: &Frame) {
        if let Some(kept) = self.kept.get_mut(&step) {
            self.bytes += size(answer);
            kept.last = Some(answer.clone());
        }
        self.drop_oldest();
    }

    /// A new round: nobody asks for the last one's any more.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.bytes = 0;
    }

    fn drop_oldest(&mut self) {
        let droppable = self.kept.len().saturating_sub(self.in_flight);
        let mut steps = self.kept.values_mut().take(droppable);
        while self.bytes > self.bytes_max {
            let Some(kept) = steps.next() else { return };
            let dropped = [kept.first.take(), kept.last.take()];
            self.bytes -= dropped.iter().flatten().map(size).sum::<u64>();
        }
    }
}

fn size(frame: &Frame) -> u64 {
    frame.payload.len() as u64
}

/// A digest of everything that decides the answer.
fn asked(opening: &Frame, remembered: bool) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for length in &opening.lengths {
        hasher.update(&length.to_le_bytes());
    }
    for label in &opening.labels {
        hasher.update(&label.to_le_bytes());
    }
    hasher.update(&opening.header.step_scored.to_le_bytes());
    if !remembered {
        hasher.update(&opening.payload);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cutlayer_wire::{Encoding, EvalSums, FrameFlags, RoundId};

    fn opening(index: u32, fill: u8, tokens: u32) -> Frame {
        let step = StepId::new(RoundId(1), true, index, 0);
        let payload = vec![fill; tokens as usize * 4];
        Frame::forward(step, RoundId(1), FrameFlags::TRAIN, Encoding::F32, 1, vec![tokens], vec![], payload)
    }

    fn answer(opening: &Frame) -> Frame {
        Frame::gradient(&opening.header, Encoding::F32, EvalSums::default(), vec![7; opening.payload.len()])
    }

    /// Goal: the same question has the same answer, another one none. Method: a step again, with other contents, another step.
    #[test]
    fn a_step_is_answered_as_it_was() {
        let mut answers = Answers::new(1, 1);
        let first = opening(0, 1, 4);
        answers.keep(&first, false, &answer(&first));
        assert_eq!(answers.opened(&first, false), Known::Answer(answer(&first)));
        assert!(matches!(answers.opened(&opening(0, 2, 4), false), Known::Refused(_)));
        assert_eq!(answers.opened(&opening(1, 1, 4), false), Known::New);
        assert_eq!(answers.closed(first.header.step), Known::New);
        answers.keep_last(first.header.step, &answer(&first));
        assert_eq!(answers.closed(first.header.step), Known::Answer(answer(&first)));
        answers.clear();
        assert_eq!(answers.opened(&first, false), Known::New);
    }

    /// Goal: where samples are remembered, a sender that forgot is known by its samples. Method: other bytes of the same lengths.
    #[test]
    fn remembered_samples_may_travel_otherwise() {
        let mut answers = Answers::new(1, 1);
        let first = opening(0, 1, 4);
        answers.keep(&first, true, &answer(&first));
        assert_eq!(answers.opened(&opening(0, 2, 4), true), Known::Answer(answer(&first)));
        assert!(matches!(answers.opened(&opening(0, 2, 5), true), Known::Refused(_)));
    }

    /// Goal: memory is bounded, what was dropped is never computed twice, and what is under way never dropped. Method: more answers than
    /// fit, for one client and for one of a thousand.
    #[test]
    fn old_answers_are_dropped_and_not_forgotten() {
        let mut crowded = Answers::new(1000, 2);
        for index in 0..4 {
            let opening = opening(index, 0, 1 << 20);
            crowded.keep(&opening, false, &answer(&opening));
        }
        let known = |index| crowded.opened(&opening(index, 0, 1 << 20), false);
        assert!(matches!((known(1), known(2), known(3)), (Known::Refused(_), Known::Answer(_), Known::Answer(_))));
        let mut answers = Answers::new(1, 1);
        let large = 5 << 20;
        for index in 0..5 {
            let opening = opening(index, 0, large);
            answers.keep(&opening, false, &answer(&opening));
        }
        assert!(answers.bytes <= CLIENT_BYTES_MAX);
        assert!(matches!(answers.opened(&opening(0, 0, large), false), Known::Refused(_)));
        assert!(matches!(answers.opened(&opening(4, 0, large), false), Known::Answer(_)));
    }
}
