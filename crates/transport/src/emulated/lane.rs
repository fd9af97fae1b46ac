//! One direction with its packets: those on their way, in the order in which they fall due, and the count of all.

use super::conditions::Lane as LaneConditions;
use super::conditions::Timetable;
use super::model::{Cause, Model};
use super::socket::Refused;
use bytes::Bytes;
use quinn_udp::EcnCodepoint;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes on their way in one direction at once: 1 Gbit/s over a satellite and its queue. Beyond it, the queue counts as full.
const HELD_BYTES_MAX: usize = 256 << 20;

/// What passed in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneCounts {
    /// Datagrams that came.
    pub packets_in: u64,
    /// Their bytes, without IP and UDP headers.
    pub bytes_in: u64,
    /// Datagrams that went on, copies included.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Lost on the way.
    pub lost: u64,
    /// Lost because the queue was full.
    pub dropped_queue: u64,
    /// Lost because they were larger than the link takes.
    pub dropped_mtu: u64,
    /// Lost because nothing passed.
    pub dropped_partition: u64,
    /// Lost because there are more peers than the emulator takes, or the system would not send them: no part of the link.
    pub dropped_here: u64,
    /// Came late, behind others.
    pub reordered: u64,
    /// Came twice.
    pub duplicated: u64,
}

impl LaneCounts {
    /// All that did not arrive.
    pub fn dropped(&self) -> u64 {
        self.lost + self.dropped_queue + self.dropped_mtu + self.dropped_partition + self.dropped_here
    }
}

/// What passed so far, and how long the queues are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct EmulatorCounts {
    /// From the clients to the server.
    pub up: LaneCounts,
    /// From the server to the clients.
    pub down: LaneCounts,
    /// How long a packet up would wait for its turn, in milliseconds.
    pub queue_up_ms: f64,
    /// The same down.
    pub queue_down_ms: f64,
    /// Client addresses known now.
    pub peers: usize,
    /// Times that the clients' address changed.
    pub rebinds: u64,
}

/// A datagram on its way: from or to `peer`.
pub(super) struct Passing {
    pub peer: SocketAddr,
    pub ecn: Option<EcnCodepoint>,
    pub bytes: Bytes,
}

/// Its place in the order: time, then who came first.
struct Due {
    at: Duration,
    number: u64,
    passing: Passing,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// One direction.
pub(super) struct Lane {
    model: Model,
    due: BinaryHeap<Reverse<Due>>,
    held_bytes: usize,
    number: u64,
    pub counts: LaneCounts,
}

impl Lane {
    pub fn new(conditions: LaneConditions, timetable: Timetable, seed: u64) -> Self {
        let model = Model::new(conditions, timetable, seed);
        Self { model, due: BinaryHeap::new(), held_bytes: 0, number: 0, counts: LaneCounts::default() }
    }

    /// Lets nothing pass before `until`.
    pub fn cut(&mut self, until: Duration) {
        self.model.cut(until);
    }

    /// Takes a datagram, or drops it.
    pub fn offer(&mut self, now: Duration, passing: Passing) {
        let bytes = passing.bytes.len();
        self.counts.packets_in += 1;
        self.counts.bytes_in += bytes as u64;
        let fate = if self.held_bytes + bytes > HELD_BYTES_MAX { Err(Cause::Queue) } else { self.model.offer(now, bytes) };
        match fate {
            Ok(arrival) => {
                self.counts.reordered += u64::from(arrival.late);
                if arrival.twice {
                    self.counts.duplicated += 1;
                    let Passing { peer, ecn, bytes } = &passing;
                    self.hold(arrival.at, Passing { peer: *peer, ecn: *ecn, bytes: bytes.clone() });
                }
                self.hold(arrival.at, passing);
            }
            Err(Cause::Loss) => self.counts.lost += 1,
            Err(Cause::Queue) => self.counts.dropped_queue += 1,
            Err(Cause::Mtu) => self.counts.dropped_mtu += 1,
            Err(Cause::Partition) => self.counts.dropped_partition += 1,
        }
    }

    fn hold(&mut self, at: Duration, passing: Passing) {
        self.held_bytes += passing.bytes.len();
        self.number += 1;
        self.due.push(Reverse(Due { at, number: self.number, passing }));
    }

    /// When the next one falls due.
    pub fn next_at(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse(due)| due.at)
    }

    /// Takes out, in order, those that are due at `now`.
    pub fn take_due(&mut self, now: Duration) -> impl Iterator<Item = Passing> + '_ {
        std::iter::from_fn(move || {
            let Reverse(next) = self.due.peek()?;
            if next.at > now {
                return None;
            }
            let Reverse(Due { passing, .. }) = self.due.pop()?;
            self.held_bytes -= passing.bytes.len();
            self.counts.packets_out += 1;
            self.counts.bytes_out += passing.bytes.len() as u64;
            Some(passing)
        })
    }

    /// Takes back what was counted as gone on and was not sent.
    pub fn refuse(&mut self, refused: Refused) {
        self.counts.packets_out -= refused.packets;
        self.counts.bytes_out -= refused.bytes;
        self.counts.dropped_here += refused.packets;
    }

    /// A datagram that is not let in.
    pub fn turn_away(&mut self, bytes: usize) {
        self.counts.packets_in += 1;
        self.counts.bytes_in += bytes as u64;
        self.counts.dropped_here += 1;
    }

    pub fn queue_ms(&self, now: Duration) -> f64 {
        self.model.queue_delay(now).as_secs_f64() * 1e3
    }
}
