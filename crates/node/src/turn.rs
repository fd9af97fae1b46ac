//! Whose step is next: with `lockstep` order, step `s` of every client in client order, then step `s + 1`.
//!
//! A run with one shared server adapter is reproducible only so; with `arrival` order nobody waits. A step's turn is counted by its place
//! in the round, so that one that comes again does not take a second.

use cutlayer_wire::{RoundId, StepId};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::Notify;

/// The clients of a round and the steps each has done.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    round: RoundId,
    done: BTreeMap<u32, u32>,
}

impl Turns {
    /// Starts a round of these clients.
    pub fn begin(&self, round: RoundId, clients: impl IntoIterator<Item = u32>) {
        *self.lock() = State { round, done: clients.into_iter().map(|client| (client, 0)).collect() };
        self.changed.notify_waiters();
    }

    /// Takes a client out of a round: it has finished it, or nobody waits for it any more.
    pub fn leave(&self, round: RoundId, client: u32) {
        let mut state = self.lock();
        if state.round == round {
            state.done.remove(&client);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes a client out, whatever the round: it is gone.
    pub fn go(&self, client: u32) {
        self.lock().done.remove(&client);
        self.changed.notify_waiters();
    }

    /// Waits until it is the turn of `client`'s step. A client outside the round waits for nobody, and neither does a step of another
    /// round or one that had its turn.
    pub async fn wait(&self, client: u32, step: StepId) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_turn(client, step) {
                return;
            }
            changed.await;
        }
    }

    /// Ends the turn of `client`'s step.
    pub fn done(&self, client: u32, step: StepId) {
        let mut state = self.lock();
        if state.round == step.round()
            && let Some(steps) = state.done.get_mut(&client)
        {
            *steps = (*steps).max(step.index() + 1);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn is_turn(&self, client: u32, step: StepId) -> bool {
        let state = self.lock();
        if state.round != step.round() {
            return true;
        }
        let Some(own) = state.done.get(&client).filter(|own| **own <= step.index()) else { return true };
        // A client may run ahead of its own answers: its later steps wait for the earlier ones.
        *own == step.index() && state.done.iter().map(|(other, steps)| (steps, other)).min() == Some((own, &client))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_step_in_order_and_a_lost_one_is_not_waited_for() {
        let (turns, round) = (Turns::default(), RoundId(3));
        let at = |index| StepId::new(round, true, index, 0);
        turns.begin(round, [0, 1, 2]);
        assert!(turns.is_turn(0, at(0)) && !turns.is_turn(1, at(0)) && !turns.is_turn(0, at(1)));
        turns.done(0, at(0));
        turns.done(0, at(0));
        assert!(turns.is_turn(1, at(0)) && !turns.is_turn(0, at(1)));
        assert!(turns.is_turn(0, at(0)), "a step that had its turn is only answered again");
        turns.leave(round, 1);
        assert!(turns.is_turn(2, at(0)));
        turns.done(2, at(0));
        assert!(turns.is_turn(0, at(1)));
        assert!(turns.is_turn(9, at(0)), "outside the round");
    }

    /// Goal: what is late changes nothing in the round under way. Method: the end of a turn and a farewell of the round before.
    #[test]
    fn another_round_counts_nothing() {
        let (turns, old, new) = (Turns::default(), RoundId(1), RoundId(2));
        turns.begin(new, [0, 1]);
        turns.done(0, StepId::new(old, true, 0, 0));
        turns.leave(old, 0);
        assert!(turns.is_turn(0, StepId::new(new, true, 0, 0)) && !turns.is_turn(1, StepId::new(new, true, 0, 0)));
        assert!(turns.is_turn(1, StepId::new(old, true, 5, 0)), "it waits for nobody");
        turns.go(0);
        assert!(turns.is_turn(1, StepId::new(new, true, 0, 0)));
    }
}
