//! Whose step is next: with `lockstep` order, step `s` of every client in client order, then step `s + 1`.
//!
//! A run with one shared server adapter is reproducible only so; with `arrival` order nobody waits. A step's turn is counted by its place
//! in the round, so that one that comes again does not take a second.

use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::sync::Notify;

/// The clients of a round and the steps each has done.
#[derive(Default)]
pub(crate) struct Turns {
    done: Mutex<BTreeMap<u32, u32>>,
    changed: Notify,
}

impl Turns {
    /// Starts a round of these clients.
    pub fn begin(&self, clients: impl IntoIterator<Item = u32>) {
        *self.lock() = clients.into_iter().map(|client| (client, 0)).collect();
        self.changed.notify_waiters();
    }

    /// Takes a client out: it has finished its round, or it is gone.
    pub fn leave(&self, client: u32) {
        self.lock().remove(&client);
        self.changed.notify_waiters();
    }

    /// Waits until it is the turn of `client`'s step `index`. A client outside the round waits for nobody, and neither does a step that
    /// had its turn.
    pub async fn wait(&self, client: u32, index: u32) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_turn(client, index) {
                return;
            }
            changed.await;
        }
    }

    /// Ends the turn of `client`'s step `index`.
    pub fn done(&self, client: u32, index: u32) {
        if let Some(steps) = self.lock().get_mut(&client) {
            *steps = (*steps).max(index + 1);
        }
        self.changed.notify_waiters();
    }

    fn is_turn(&self, client: u32, index: u32) -> bool {
        let done = self.lock();
        let Some(own) = done.get(&client).filter(|own| **own <= index) else { return true };
        // A client may run ahead of its own answers: its later steps wait for the earlier ones.
        *own == index && done.iter().map(|(other, steps)| (steps, other)).min() == Some((own, &client))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, u32>> {
        self.done.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_step_in_order_and_a_lost_one_is_not_waited_for() {
        let turns = Turns::default();
        turns.begin([0, 1, 2]);
        assert!(turns.is_turn(0, 0) && !turns.is_turn(1, 0) && !turns.is_turn(0, 1));
        turns.done(0, 0);
        turns.done(0, 0);
        assert!(turns.is_turn(1, 0) && !turns.is_turn(0, 1));
        assert!(turns.is_turn(0, 0), "a step that had its turn is only answered again");
        turns.leave(1);
        assert!(turns.is_turn(2, 0));
        turns.done(2, 0);
        assert!(turns.is_turn(0, 1));
        assert!(turns.is_turn(9, 0), "outside the round");
    }
}
