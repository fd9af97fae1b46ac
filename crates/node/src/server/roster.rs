//! Who is in: every client's name, index and queue of commands.

use cutlayer_transport::AllowList;
use cutlayer_wire::{AdapterState, Message, PeerId, RoundId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Commands that may wait for a client; one that does not read them for so long is dropped.
const COMMANDS_MAX: usize = 64;

/// What a session is to do next, in the order given.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Send the client its layers of global adapter `round`.
    Adopt { round: RoundId, state: Arc<AdapterState> },
    /// Send this on the control stream.
    Say(Box<Message>),
}

struct Seat {
    client: u32,
    name: String,
    commands: mpsc::Sender<Command>,
}

/// The clients of a run that are connected now.
pub(crate) struct Roster {
    allow: Arc<AllowList>,
    clients_max: u32,
    seats: Mutex<BTreeMap<PeerId, Seat>>,
    /// The index that each peer was given: it gets the same one when it comes back.
    given: Mutex<BTreeMap<PeerId, u32>>,
    left: Notify,
}

impl Roster {
    pub fn new(allow: Arc<AllowList>, clients_max: u32) -> Self {
        Self { allow, clients_max, seats: Mutex::default(), given: Mutex::default(), left: Notify::new() }
    }

    /// Takes a client in, or says why not.
    pub fn enter(&self, peer: PeerId, name: &str) -> Result<(u32, mpsc::Receiver<Command>), String> {
        let mut seats = self.lock();
        if seats.contains_key(&peer) {
            return Err("this key is in the run already; give every client a key of its own".into());
        }
        let taken = |index: u32| seats.values().any(|seat| seat.client == index);
        let client = self.index_for(peer, taken).ok_or_else(|| format!("the run has all its {} clients", self.clients_max))?;
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        seats.insert(peer, Seat { client, name: name.into(), commands });
        Ok((client, queue))
    }

    /// A peer's index: the one it had; else its place among those enrolled, so that a run's clients are numbered alike at every
    /// start; else the first that nobody had; else the first of someone who left.
    fn index_for(&self, peer: PeerId, taken: impl Fn(u32) -> bool) -> Option<u32> {
        let mut given = self.given.lock().expect("no holder of this lock panics");
        let enrolled = self.allow.entries().into_iter().filter(|entry| !entry.revoked);
        let place = enrolled.map(|entry| entry.key).position(|key| key == peer.to_hex()).map(|place| place as u32);
        let unused = |index: &u32| *index < self.clients_max && !given.values().any(|other| other == index);
        let had = given.get(&peer).copied().filter(|index| !taken(*index));
        let index = had
            .or_else(|| place.filter(unused))
            .or_else(|| (0..self.clients_max).find(unused))
            .or_else(|| (0..self.clients_max).find(|index| !taken(*index)))?;
        given.insert(peer, index);
        Some(index)
    }

    /// Whether a peer's key is still on the list.
    pub fn is_allowed(&self, peer: &PeerId) -> bool {
        self.allow.is_allowed(peer)
    }

    /// Takes a client out.
    pub fn leave(&self, peer: &PeerId) {
        self.lock().remove(peer);
        self.left.notify_waiters();
    }

    /// A client's index, if it is in.
    pub fn client(&self, peer: &PeerId) -> Option<u32> {
        self.lock().get(peer).map(|seat| seat.client)
    }

    /// What people call a peer.
    pub fn name(&self, peer: &PeerId) -> String {
        self.lock().get(peer).map_or_else(|| peer.to_string(), |seat| seat.name.clone())
    }

    /// Gives a client something to do. One whose queue is full has stopped reading: it loses its seat, and its session ends.
    pub fn tell(&self, peer: &PeerId, command: Command) {
        let mut seats = self.lock();
        let full = seats.get(peer).is_some_and(|seat| seat.commands.try_send(command).is_err());
        if full {
            tracing::warn!("{peer} does not read what it is told and is dropped");
            seats.remove(peer);
        }
    }

    /// Gives everyone something to do.
    pub fn tell_all(&self, command: &Command) {
        let peers: Vec<PeerId> = self.lock().keys().copied().collect();
        peers.iter().for_each(|peer| self.tell(peer, command.clone()));
    }

    /// Waits until nobody is in, for `at_most`.
    pub async fn wait_until_empty(&self, at_most: Duration) {
        let empty = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.lock().is_empty() {
                    return;
                }
                left.await;
            }
        };
        if tokio::time::timeout(at_most, empty).await.is_err() {
            let names: Vec<String> = self.lock().values().map(|seat| seat.name.clone()).collect();
            tracing::warn!("these clients did not say goodbye: {}", names.join(", "));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Seat>> {
        self.seats.lock().expect("no holder of this lock panics")
    }
}
