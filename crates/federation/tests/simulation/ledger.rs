//! Steps, answers and connections: what must hold of them whatever is lost, and how often it happened.

use std::collections::BTreeMap;

use cutlayer_wire::{RoundId, StepId};

use crate::trace::hash_of;

/// One step of one client, in one process of the server.
type Place = (u32, u32, StepId);

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Lockstep: the last step that was taken, by round, place and client.
    lockstep: bool,
    last: Option<(u32, RoundId, u32, u32, u32)>,
    /// The round whose deadline passed: what stragglers still do in it has no order, and the coordinator does not wait for it.
    overdue: Option<RoundId>,
    applied: std::collections::BTreeSet<Place>,
    /// The hashes of what was asked in each step, and of what was answered.
    answers: BTreeMap<Place, (u64, u64)>,
    pub steps: u64,
    /// Repeated steps that were answered from the memo, that had never been served, and whose bytes were others.
    pub answered_again: u64,
    pub served_late: u64,
    pub other_bytes: u64,
    /// Updates and scores that came again.
    pub answers_again: u64,
    /// Connections that took over from one that still stood.
    pub replaced: u64,
    pub resumed: u64,
    pub begun_anew: u64,
    /// Seats whose client did not come back in time.
    pub given_up: u64,
    pub deaths: u64,
}

impl Ledger {
    pub fn new(lockstep: bool) -> Self {
        Self { lockstep, ..Self::default() }
    }

    /// A step changes the server's layers, which hold what round `installed` left: once, in its own round, and in its turn.
    pub fn applied(&mut self, start: u32, number: u32, step: StepId, installed: RoundId) {
        assert!(self.applied.insert((start, number, step)), "step {step} of client {number} was applied twice");
        assert_eq!(step.round(), installed.next(), "step {step} of client {number} moves the layers of another round");
        let turn = Some((start, step.round(), step.index(), number, step.micro()));
        let ordered = self.lockstep && self.overdue != Some(step.round());
        assert!(!ordered || self.last < turn, "step {step} of client {number} is out of turn: {:?} was before", self.last);
        self.last = turn;
        self.steps += 1;
    }

    /// Nobody waits for the round any more.
    pub fn overdue(&mut self, round: RoundId) {
        self.overdue = Some(round);
    }

    /// A step is answered as it was before, byte for byte, and only to who asks as before.
    pub fn answers(&mut self, start: u32, number: u32, step: StepId, request: u64, answer: &[u8]) {
        let both = (request, hash_of(answer));
        let first = *self.answers.entry((start, number, step)).or_insert(both);
        assert_eq!(first, both, "step {step} of client {number} is answered otherwise than before");
    }

    /// A client is back in its seat.
    pub fn back(&mut self, resumed: bool) {
        if resumed {
            self.resumed += 1;
        } else {
            self.begun_anew += 1;
        }
    }
}
