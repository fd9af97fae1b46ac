//! Lockstep: step `s` of every client, in client order, before any step `s + 1`.
//!
//! A turn is taken by a step's place, not by a count of what came: a step that comes again takes no second one, and one of another
//! round none at all.

use std::collections::BTreeMap;

use cutlayer_wire::{RoundId, StepId};

#[derive(Default)]
pub struct Turns {
    round: RoundId,
    /// The step that is next, of each client in the round.
    next: BTreeMap<u32, u32>,
}

impl Turns {
    pub fn begin(&mut self, round: RoundId, clients: impl IntoIterator<Item = u32>) {
        (self.round, self.next) = (round, clients.into_iter().map(|client| (client, 0)).collect());
    }

    /// The client has finished the round, or nobody waits for it in that round any more.
    pub fn finish(&mut self, client: u32, round: RoundId) {
        if round == self.round {
            self.next.remove(&client);
        }
    }

    /// The client is gone.
    pub fn leave(&mut self, client: u32) {
        self.next.remove(&client);
    }

    pub fn is_turn(&self, client: u32, step: StepId) -> bool {
        let before = (step.index(), client);
        step.round() != self.round || self.next.iter().all(|(other, next)| *other == client || (*next, *other) > before)
    }

    /// All micro-batches of the step are done.
    pub fn done(&mut self, client: u32, step: StepId) {
        if let Some(next) = self.next.get_mut(&client).filter(|_| step.round() == self.round) {
            *next = (*next).max(step.index() + 1);
        }
    }
}
