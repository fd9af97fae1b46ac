//! A network of seeded delays. Lanes keep their order; a lost connection delivers nothing more, and each
//! end learns of it in its own time.

use std::collections::{BTreeMap, VecDeque};

use crate::bytes::{Lane, Packet};
use crate::random::Random;

/// How long an end may wait for a silent peer before it takes the connection for lost.
pub const IDLE_MS: u64 = 1500;

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Client,
    Server,
}

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(pub usize);

/// What lies between a client and the server.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub latency_ms: u64,
    pub jitter_ms: u64,
    pub bytes_per_ms: u64,
}

struct Open {
    client: usize,
    lost: bool,
    /// Packets under way, in order.
    under_way: BTreeMap<(End, Lane), VecDeque<Packet>>,
    /// When the last packet of a lane arrives.
    last_ms: BTreeMap<(End, Lane), u64>,
}

/// Every connection there ever was.
pub struct Network {
    random: Random,
    links: Vec<Link>,
    open: Vec<Open>,
    /// Until when a client hears and says nothing.
    cut_off_until_ms: Vec<u64>,
}

impl Network {
    pub fn new(random: Random, links: Vec<Link>) -> Self {
        let cut_off_until_ms = vec![0; links.len()];
        Self { random, links, open: Vec::new(), cut_off_until_ms }
    }

    pub fn connect(&mut self, client: usize) -> Connection {
        self.open.push(Open { client, lost: false, under_way: BTreeMap::new(), last_ms: BTreeMap::new() });
        Connection(self.open.len() - 1)
    }

    pub fn client_of(&self, connection: Connection) -> usize {
        self.open[connection.0].client
    }

    /// Takes a packet; says when something arrives on its lane.
    pub fn send(&mut self, now_ms: u64, connection: Connection, to: End, packet: Packet) -> Option<u64> {
        let open = &mut self.open[connection.0];
        if open.lost {
            return None;
        }
        let link = self.links[open.client];
        let travel_ms = link.latency_ms + self.random.between(0, link.jitter_ms) + packet.bytes.len() as u64 / link.bytes_per_ms;
        let lane = (to, packet.lane);
        let last_ms = open.last_ms.entry(lane).or_default();
        *last_ms = (now_ms + travel_ms).max(*last_ms);
        open.under_way.entry(lane).or_default().push_back(packet);
        Some(*last_ms)
    }

    /// When the client is cut off just now: until when.
    pub fn cut_off(&self, now_ms: u64, connection: Connection) -> Option<u64> {
        Some(self.cut_off_until_ms[self.open[connection.0].client]).filter(|until_ms| now_ms < *until_ms)
    }

    /// The next packet on a lane, unless the connection is lost.
    pub fn arrive(&mut self, connection: Connection, to: End, lane: Lane) -> Option<Packet> {
        let open = &mut self.open[connection.0];
        let packet = open.under_way.get_mut(&(to, lane))?.pop_front();
        packet.filter(|_| !open.lost)
    }

    /// Nothing more arrives on this connection.
    pub fn lose(&mut self, connection: Connection) {
        self.open[connection.0].lost = true;
    }

    /// A client hears and says nothing until then.
    pub fn partition(&mut self, client: usize, until_ms: u64) {
        self.cut_off_until_ms[client] = self.cut_off_until_ms[client].max(until_ms);
    }

    /// When the other end learns of a close: after all that was sent before, or as soon as it can.
    pub fn close_arrives(&mut self, now_ms: u64, connection: Connection, to: End, graceful: bool) -> u64 {
        let open = &self.open[connection.0];
        let soonest_ms = now_ms + self.links[open.client].latency_ms;
        let lanes = [Lane::Control, Lane::Adapter, Lane::Step];
        let drained_ms = lanes.iter().filter_map(|lane| open.last_ms.get(&(to, *lane))).max().copied().unwrap_or(0);
        if graceful { soonest_ms.max(drained_ms) } else { soonest_ms }
    }

    /// How long an end takes to learn that a connection was lost.
    pub fn notice_ms(&mut self) -> u64 {
        self.random.between(0, IDLE_MS)
    }
}
