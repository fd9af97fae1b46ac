//! Who is in: a seat for each client, which outlives its connections.
//!
//! A seat remembers what its client was told last, not every word: a client that comes back is told what still matters. Words reach a seat
//! only once the coordinator has heard of its client, and a seat is free again only once it has heard that the client left; so no word is
//! ever meant for another session than the one that hears it.

use crate::auto::Encodings;
use cutlayer_transport::{AllowList, Link};
use cutlayer_wire::{
    AdapterFrame, AdapterFrameError, AdapterState, Ask, BaseHash, EncodingPart, GlobalSender, Message, PeerId, Resume, RoundId, RunId,
    ServerSession,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Commands that may wait for a client; one that does not read them for so long loses its connection.
const COMMANDS_MAX: usize = 64;
/// How long a client that comes back may wait until its last session is cleared away.
const CLEARING_WAIT: Duration = Duration::from_secs(30);

/// What a session is to do next, in the order given.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Send the client its layers of global adapter `round`.
    Adopt { round: RoundId, state: Arc<AdapterState> },
    /// Send this on the control stream.
    Say(Box<Message>),
}

/// What a client said at hello.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hello {
    pub cut: u16,
    pub tail: Option<u16>,
    pub name: String,
    pub samples: u64,
    /// Parts of encodings that it knows.
    pub encodings: Vec<EncodingPart>,
}

/// A client's place in the run.
pub(crate) struct Seat {
    pub peer: PeerId,
    pub client: u32,
    pub hello: Hello,
    /// What its tensors travel in.
    pub encodings: Encodings,
    state: Mutex<State>,
}

struct State {
    order: ServerSession,
    /// Whether the coordinator has heard of it.
    known: bool,
    leaving: bool,
    /// Counts its connections.
    visit: u64,
    /// The number of the last of them among all that were accepted.
    accepted: u64,
    connection: Option<(Link, mpsc::Sender<Command>)>,
    away_since: Option<Instant>,
    adapter: Option<(RoundId, Arc<AdapterState>)>,
    settled: Option<Message>,
    finish: Option<Message>,
    /// The global adapters on their way to it.
    globals: GlobalSender,
}

/// A connection of a seat's client.
pub(crate) struct Visit {
    /// Which one.
    pub number: u64,
    pub commands: mpsc::Receiver<Command>,
    /// Whether the client goes on where it was.
    pub resumed: bool,
    pub awaits: Option<Ask>,
    pub updated: Option<RoundId>,
    /// How long it was away.
    pub away: Option<Duration>,
}

impl Seat {
    /// Asks the session's order; nothing where that visit is not the last.
    pub fn ordered<T>(&self, visit: u64, ask: impl FnOnce(&mut ServerSession) -> T) -> Option<T> {
        let mut state = self.lock();
        (state.visit == visit).then(|| ask(&mut state.order))
    }

    /// The client is here over `link`, in place of whatever connection it had. What it missed is the first that it is told. Nothing, where
    /// a connection that was accepted after this one was here before it: Hellos may overtake one another.
    pub fn connect(&self, (link, accepted): (&Link, u64), resume: Option<Resume>, id: RunId) -> Option<Visit> {
        let mut state = self.lock();
        if state.accepted >= accepted {
            return None;
        }
        state.accepted = accepted;
        if let Some((before, _)) = state.connection.take() {
            before.replace();
        }
        let returns = state.visit > 0;
        state.visit += 1;
        state.order.resume();
        let resume = resume.filter(|resume| returns && resume.id == id && state.order.is_resumable());
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let holds = resume.and_then(|resume| resume.holds);
        state.globals.returned(holds);
        let newest = state.adapter.clone().filter(|(round, _)| holds.is_none_or(|holds| holds < *round));
        let adopt = newest.map(|(round, state)| Command::Adopt { round, state });
        let words = [state.settled.clone(), state.finish.clone()].into_iter().flatten();
        if let Some(finish) = &state.finish.clone() {
            // It was in order before, and the session has just been resumed.
            let _ = state.order.sent(finish);
        }
        for command in adopt.into_iter().chain(words.map(|word| Command::Say(Box::new(word)))) {
            sender.try_send(command).expect("a new queue has room for three");
        }
        state.connection = Some((link.clone(), sender));
        Some(Visit {
            number: state.visit,
            commands,
            resumed: resume.is_some(),
            awaits: state.order.awaits(),
            updated: state.order.updated(),
            away: state.away_since.take().map(|since| since.elapsed()),
        })
    }

    /// The frame of a global adapter for the connection of a visit; `None` where that is not the client's any more.
    pub fn pack(&self, visit: u64, round: RoundId, base: &BaseHash, part: AdapterState) -> Result<Option<AdapterFrame>, AdapterFrameError> {
        let mut state = self.lock();
        if state.visit != visit {
            return Ok(None);
        }
        state.globals.pack(round, base, part).map(Some)
    }

    /// The client's update itself, where it came as a difference.
    pub fn restored(&self, frame: AdapterFrame) -> Result<AdapterFrame, AdapterFrameError> {
        frame.restored(self.lock().globals.held())
    }

    /// The connection of a visit is lost. Says whether it was the client's last one.
    pub fn lost(&self, visit: u64) -> bool {
        let mut state = self.lock();
        if state.visit != visit || state.leaving {
            return false;
        }
        state.connection = None;
        state.away_since = Some(Instant::now());
        true
    }

    /// Whether the client has not come back since that visit; if so, it leaves.
    pub fn expired(&self, visit: u64) -> bool {
        let mut state = self.lock();
        let expired = state.visit == visit && state.connection.is_none() && !state.leaving;
        state.leaving |= expired;
        expired
    }

    /// The client leaves, unless it has come back since that visit.
    pub fn leave(&self, visit: u64) -> bool {
        let mut state = self.lock();
        let leaves = state.visit == visit && !state.leaving;
        state.leaving |= leaves;
        leaves
    }

    fn tell(&self, command: Command) {
        let mut state = self.lock();
        if !state.known {
            return;
        }
        match &command {
            Command::Adopt { round, state: adapter } => state.adapter = Some((*round, adapter.clone())),
            Command::Say(message) => {
                if let Err(error) = state.order.sent(message) {
                    return tracing::error!("{}: {error}", self.peer);
                }
                match **message {
                    Message::Settled { .. } => state.settled = Some((**message).clone()),
                    Message::Finish { .. } => state.finish = Some((**message).clone()),
                    _ => {}
                }
            }
        }
        let full = state.connection.as_ref().is_some_and(|(_, commands)| commands.try_send(command).is_err());
        if full {
            tracing::warn!("{} does not read what it is told and loses its connection", self.peer);
            if let Some((link, _)) = state.connection.take() {
                link.break_off();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

/// The clients of a run.
pub(crate) struct Roster {
    allow: Arc<AllowList>,
    clients_max: u32,
    seats: Mutex<BTreeMap<PeerId, Arc<Seat>>>,
    /// The index that each peer was given: it gets the same one when it comes back.
    given: Mutex<BTreeMap<PeerId, u32>>,
    left: Notify,
}

impl Roster {
    /// A run of so many clients, of which some were given their index before.
    pub fn new(allow: Arc<AllowList>, clients_max: u32, given: BTreeMap<PeerId, u32>) -> Self {
        Self { allow, clients_max, seats: Mutex::default(), given: Mutex::new(given), left: Notify::new() }
    }

    /// The seat of a client, and whether it is a new one; or why it has none. `order` is that of its session, which has said Hello.
    /// What its tensors travel in is asked for when it has an index.
    pub async fn enter(
        &self,
        peer: PeerId,
        hello: &Hello,
        order: ServerSession,
        encodings: impl FnOnce(u32) -> Encodings,
    ) -> Result<(Arc<Seat>, bool), String> {
        let cleared = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                match self.seat(&peer) {
                    Some(seat) if seat.lock().leaving => left.await,
                    other => return other,
                }
            }
        };
        let seat = tokio::time::timeout(CLEARING_WAIT, cleared).await.map_err(|_| "its last session still ends: try again".to_owned())?;
        if let Some(seat) = seat {
            if (seat.hello.cut, seat.hello.tail) != (hello.cut, hello.tail) {
                return Err(format!("this key is in the run at cut {}: come back with that cut, or say goodbye first", seat.hello.cut));
            }
            return Ok((seat, false));
        }
        let mut seats = self.lock();
        let taken = |index: u32| seats.values().any(|seat| seat.client == index);
        let client = self.index_for(peer, taken).ok_or_else(|| format!("the run has all its {} clients", self.clients_max))?;
        let encodings = encodings(client);
        let state = State {
            order,
            known: false,
            leaving: false,
            visit: 0,
            accepted: 0,
            connection: None,
            away_since: None,
            adapter: None,
            settled: None,
            finish: None,
            globals: GlobalSender::new(encodings.adapters),
        };
        let seat = Arc::new(Seat { peer, client, hello: hello.clone(), encodings, state: Mutex::new(state) });
        seats.insert(peer, seat.clone());
        Ok((seat, true))
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

    /// Tells a client that it cannot take part, and frees its seat: what it says from here on is heard by nobody.
    pub fn reject(&self, peer: &PeerId, message: Message) -> Option<u32> {
        let seat = self.seat(peer)?;
        seat.tell(Command::Say(Box::new(message)));
        seat.lock().leaving = true;
        Some(seat.client)
    }

    /// Every peer's index.
    pub fn given(&self) -> BTreeMap<PeerId, u32> {
        self.given.lock().expect("no holder of this lock panics").clone()
    }

    /// Whether a peer's key is still on the list.
    pub fn is_allowed(&self, peer: &PeerId) -> bool {
        self.allow.is_allowed(peer)
    }

    /// Whether a client that says this has a seat to come back to.
    pub fn holds(&self, peer: &PeerId, hello: &Hello) -> bool {
        self.seat(peer).is_some_and(|seat| (seat.hello.cut, seat.hello.tail) == (hello.cut, hello.tail) && !seat.lock().leaving)
    }

    /// Whether everyone who is in has a connection.
    pub fn is_complete(&self) -> bool {
        self.lock().values().all(|seat| seat.lock().connection.is_some())
    }

    /// The coordinator hears of a client: from here on it may be told things.
    pub fn confirm(&self, peer: &PeerId) {
        if let Some(seat) = self.seat(peer) {
            seat.lock().known = true;
        }
    }

    /// Frees a client's seat.
    pub fn remove(&self, peer: &PeerId) {
        self.lock().remove(peer);
        self.left.notify_waiters();
    }

    /// Somebody has begun to leave: who waits for that looks again.
    pub fn stir(&self) {
        self.left.notify_waiters();
    }

    /// A client's index, if it is in and the coordinator knows it.
    pub fn client(&self, peer: &PeerId) -> Option<u32> {
        self.seat(peer).filter(|seat| seat.lock().known).map(|seat| seat.client)
    }

    /// What people call a peer.
    pub fn name(&self, peer: &PeerId) -> String {
        self.seat(peer).map_or_else(|| peer.to_string(), |seat| seat.hello.name.clone())
    }

    /// Gives a client something to do.
    pub fn tell(&self, peer: &PeerId, command: Command) {
        if let Some(seat) = self.seat(peer) {
            seat.tell(command);
        }
    }

    /// Tells everyone that the run is over, and from which adapter: also who came too late for the coordinator to hear of.
    pub fn finish(&self, (round, adapter): (RoundId, &Arc<AdapterState>), reason: &str) {
        let seats: Vec<Arc<Seat>> = self.lock().values().cloned().collect();
        for seat in seats {
            if !std::mem::replace(&mut seat.lock().known, true) {
                seat.tell(Command::Adopt { round, state: adapter.clone() });
            }
            let reason = cutlayer_wire::shorten_reason(reason).into();
            seat.tell(Command::Say(Box::new(Message::Finish { adapter: round, reason })));
        }
    }

    /// Waits until nobody is in, for `at_most`.
    pub async fn wait_until_empty(&self, at_most: Duration) {
        let empty = async {
            loop {
                let left = self.left.notified();
                tokio::pin!(left);
                left.as_mut().enable();
                if self.lock().values().all(|seat| seat.lock().leaving) {
                    return;
                }
                left.await;
            }
        };
        if tokio::time::timeout(at_most, empty).await.is_err() {
            let names: Vec<String> = self.lock().values().map(|seat| seat.hello.name.clone()).collect();
            tracing::warn!("these clients did not say goodbye: {}", names.join(", "));
        }
    }

    fn seat(&self, peer: &PeerId) -> Option<Arc<Seat>> {
        self.lock().get(peer).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerId, Arc<Seat>>> {
        self.seats.lock().expect("no holder of this lock panics")
    }
}
