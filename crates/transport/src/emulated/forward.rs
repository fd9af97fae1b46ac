//! The emulator at work: a socket towards the clients, one for each of them towards the server, and a clock.

use super::conditions::Conditions;
use super::lane::{EmulatorCounts, Lane, Passing};
use super::socket::{Inbox, Parcel, Socket, send_all};
use crate::error::LinkError;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Client addresses at once; datagrams of others are dropped and counted. Each costs a socket and half a MiB.
const PEERS_MAX: usize = 64;
/// Silence after which a client's address may be given up for another.
const PEER_IDLE: Duration = Duration::from_secs(60);
/// Pause after a socket's error, so that one that repeats does not eat a core.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// What tells the dice of the two directions apart.
const DOWN_SEED: u64 = 0xd0_4d;

/// A link emulated in front of a server. Dropping it closes its sockets: those who are connected through it are cut off.
#[derive(Debug)]
pub struct Emulator {
    local: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Emulator {
    /// Listens at `listen` and forwards to `to`, under `conditions`. Must be called in a tokio runtime.
    pub fn start(listen: SocketAddr, to: SocketAddr, conditions: &Conditions, seed: u64) -> Result<Self, LinkError> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrInUse => LinkError::AddressInUse { addr: listen },
            _ => LinkError::Bind { addr: listen, reason: error.to_string() },
        };
        let front = Socket::bind(listen).map_err(failed)?;
        let local = front.local_addr().map_err(failed)?;
        let timetable = &conditions.timetable;
        let state = State {
            up: Lane::new(conditions.up, timetable.clone(), seed),
            down: Lane::new(conditions.down, timetable.clone(), seed ^ DOWN_SEED),
            peers: BTreeMap::new(),
            rebinds: timetable.rebinds.iter().map(|at| at.duration()).collect(),
            rebound: 0,
            closed: false,
            planned: None,
            parcel: Parcel::default(),
        };
        let shared = Arc::new(Shared { front, to, started: Instant::now(), state: Mutex::new(state), wake: Notify::new() });
        let tasks = [tokio::spawn(read_clients(shared.clone())), tokio::spawn(keep_time(shared.clone()))];
        Ok(Self { local, shared, tasks })
    }

    /// Where clients find it; the port is real even if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Lets nothing pass for so long from now on, whatever the timetable says.
    pub fn cut(&self, length: Duration) {
        let (mut state, until) = (self.shared.lock(), self.shared.now() + length);
        state.up.cut(until);
        state.down.cut(until);
    }

    /// What passed so far.
    pub fn counts(&self) -> EmulatorCounts {
        let (state, now) = (self.shared.lock(), self.shared.now());
        EmulatorCounts {
            up: state.up.counts,
            down: state.down.counts,
            queue_up_ms: state.up.queue_ms(now),
            queue_down_ms: state.down.queue_ms(now),
            peers: state.peers.len(),
            rebinds: state.rebound,
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // The peers' readers hold the rest of it.
        let mut state = self.shared.lock();
        state.closed = true;
        state.peers.clear();
    }
}

struct Shared {
    front: Socket,
    to: SocketAddr,
    started: Instant,
    state: Mutex<State>,
    /// Something falls due before what the clock waits for.
    wake: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "to {}", self.to)
    }
}

struct State {
    up: Lane,
    down: Lane,
    peers: BTreeMap<SocketAddr, Peer>,
    /// Address changes to come.
    rebinds: VecDeque<Duration>,
    rebound: u64,
    /// The emulator is gone: nobody is let in any more.
    closed: bool,
    /// What the clock waits for.
    planned: Option<Duration>,
    parcel: Parcel,
}

/// A client's address, and the socket by which the server sees it.
struct Peer {
    socket: Arc<Socket>,
    reader: JoinHandle<()>,
    seen: Duration,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Peer {
    fn new(shared: &Arc<Shared>, addr: SocketAddr) -> std::io::Result<Self> {
        let own = match shared.to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = Arc::new(Socket::bind(own)?);
        let reader = tokio::spawn(read_server(shared.clone(), socket.clone(), addr));
        Ok(Self { socket, reader, seen: shared.now() })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl State {
    /// Sends what is due; returns when something next is.
    fn send_due(&mut self, shared: &Shared, now: Duration) -> Option<Duration> {
        let peers = &self.peers;
        let to_server = |peer: SocketAddr| peers.get(&peer).map(|peer| (&*peer.socket, shared.to));
        let refused = send_all(self.up.take_due(now), &mut self.parcel, to_server);
        self.up.refuse(refused);
        let to_client = |peer: SocketAddr| Some((&shared.front, peer));
        let refused = send_all(self.down.take_due(now), &mut self.parcel, to_client);
        self.down.refuse(refused);
        [self.up.next_at(), self.down.next_at(), self.rebinds.front().copied()].into_iter().flatten().min()
    }

    /// Sends what is due, and wakes the clock where it would sleep too long.
    fn send_due_and_plan(&mut self, shared: &Shared) {
        let next = self.send_due(shared, shared.now());
        if next.is_some_and(|next| self.planned.is_none_or(|planned| next < planned)) {
            self.planned = next;
            shared.wake.notify_one();
        }
    }

    /// Whether datagrams of this client pass: it is known, or there is room for it.
    fn admit(&mut self, shared: &Arc<Shared>, addr: SocketAddr, now: Duration) -> bool {
        if let Some(peer) = self.peers.get_mut(&addr) {
            peer.seen = now;
            return true;
        }
        if self.closed {
            return false;
        }
        if self.peers.len() >= PEERS_MAX {
            let idle = self.peers.iter().min_by_key(|(_, peer)| peer.seen);
            let Some(idle) = idle.filter(|(_, peer)| now.saturating_sub(peer.seen) > PEER_IDLE).map(|(addr, _)| *addr) else {
                return false;
            };
            self.peers.remove(&idle);
        }
        match Peer::new(shared, addr) {
            Ok(peer) => {
                self.peers.insert(addr, peer);
                true
            }
            Err(error) => {
                tracing::warn!("{addr} is not forwarded: no socket can be had for it: {error}");
                false
            }
        }
    }

    /// Gives every client another address towards the server. What comes to the old one is lost, as behind a NAT that forgot it.
    fn rebind(&mut self, shared: &Arc<Shared>, now: Duration) {
        while self.rebinds.front().is_some_and(|at| *at <= now) {
            self.rebinds.pop_front();
            self.rebound += 1;
            for (addr, peer) in &mut self.peers {
                match Peer::new(shared, *addr) {
                    Ok(renewed) => *peer = renewed,
                    Err(error) => tracing::warn!("{addr} keeps its address: no socket can be had for it: {error}"),
                }
            }
        }
    }
}

/// What clients send.
async fn read_clients(shared: Arc<Shared>) {
    let mut inbox = Inbox::new();
    loop {
        let mut came = VecDeque::new();
        let read = shared.front.receive(&mut inbox, |peer, ecn, bytes| came.push_back(Passing { peer, ecn, bytes })).await;
        pause_after(read).await;
        let (mut state, now) = (shared.lock(), shared.now());
        for passing in came {
            if state.admit(&shared, passing.peer, now) {
                state.up.offer(now, passing);
            } else {
                state.up.turn_away(passing.bytes.len());
            }
        }
        state.send_due_and_plan(&shared);
    }
}

/// What the server sends to one client.
async fn read_server(shared: Arc<Shared>, socket: Arc<Socket>, peer: SocketAddr) {
    let mut inbox = Inbox::new();
    loop {
        let mut came = VecDeque::new();
        let read = socket.receive(&mut inbox, |from, ecn, bytes| {
            // Anybody may send to a port; only the server is on this link.
            if from == shared.to {
                came.push_back(Passing { peer, ecn, bytes });
            }
        });
        pause_after(read.await).await;
        let (mut state, now) = (shared.lock(), shared.now());
        for passing in came {
            state.down.offer(now, passing);
        }
        state.send_due_and_plan(&shared);
    }
}

/// A port that is closed for a moment answers with an error on some systems: no reason to end.
async fn pause_after(read: std::io::Result<()>) {
    if let Err(error) = read {
        tracing::debug!("the emulator could not read: {error}");
        tokio::time::sleep(ERROR_PAUSE).await;
    }
}

/// Sends what falls due while nothing comes, and changes addresses.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let next = {
            let (mut state, now) = (shared.lock(), shared.now());
            state.rebind(&shared, now);
            let next = state.send_due(&shared, now);
            state.planned = next;
            next
        };
        match next {
            Some(next) => {
                tokio::select! {
                    () = tokio::time::sleep_until(shared.started + next) => {}
                    () = shared.wake.notified() => {}
                }
            }
            None => shared.wake.notified().await,
        }
    }
}
