//! A round's answers to one client: a step that comes again is answered as it was, byte for byte, and changes nothing.

use std::collections::BTreeMap;

use cutlayer_wire::StepId;

use crate::bytes::Packet;

#[derive(Default)]
pub struct Memo {
    /// The hash of what was asked, and what was answered.
    answers: BTreeMap<StepId, (u64, Packet)>,
}

/// What a memo knows of a step.
pub enum Known {
    New,
    Answered(Packet),
    /// The client is not what it was: it computes otherwise than before.
    OtherBytes,
    /// Steps after it were taken without it.
    PassedOver,
}

impl Memo {
    pub fn find(&self, step: StepId, request: u64) -> Known {
        match self.answers.get(&step) {
            Some((asked, answer)) if *asked == request => Known::Answered(answer.clone()),
            Some(_) => Known::OtherBytes,
            None if self.answers.keys().next_back().is_some_and(|newest| *newest > step) => Known::PassedOver,
            None => Known::New,
        }
    }

    pub fn keep(&mut self, step: StepId, request: u64, answer: Packet) {
        self.answers.insert(step, (request, answer));
    }

    /// A new round begins.
    pub fn clear(&mut self) {
        self.answers.clear();
    }
}
