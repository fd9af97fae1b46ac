//! Whose step is next: with `lockstep` order, step `s` of every client in client order, then step `s + 1`.
//!
//! A run with one shared server adapter is reproducible only so; with `arrival` order nobody waits.

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

    /// Waits until it is `client`'s turn. A client outside the round waits for nobody.
    pub async fn wait(&self, client: u32) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_turn(client) {
                return;
            }
            changed.await;
        }
    }

    /// Ends `client`'s turn.
    pub fn done(&self, client: u32) {
        if let Some(steps) = self.lock().get_mut(&client) {
            *steps += 1;
        }
        self.changed.notify_waiters();
    }

    fn is_turn(&self, client: u32) -> bool {
        let done = self.lock();
        let Some(own) = done.get(&client) else { return true };
        done.iter().map(|(other, steps)| (steps, other)).min() == Some((own, &client))
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
        assert!(turns.is_turn(0) && !turns.is_turn(1));
        turns.done(0);
        assert!(turns.is_turn(1) && !turns.is_turn(0));
        turns.leave(1);
        assert!(turns.is_turn(2));
        turns.done(2);
        assert!(turns.is_turn(0));
        assert!(turns.is_turn(9), "outside the round");
    }
}
