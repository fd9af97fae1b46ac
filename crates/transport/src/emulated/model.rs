//! One direction of a link as a machine of pure time: when a packet arrives, if it does.
//!
//! It knows no clock, socket or byte of content: the same offers and the same seed give the same fates, on every machine.

use super::conditions::{HEADER_BYTES, Lane, Timetable};
use std::time::Duration;

/// How often the jitter changes: a radio frame of LTE. Were it drawn for each packet, many packets a second would all be as late as the
/// latest.
const JITTER_EVERY_NS: u64 = 10_000_000;
/// How late a packet out of order comes: several packets behind its place from about 10 Mbit/s on.
const REORDER_NS: u64 = 5_000_000;

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Lost on the way.
    Loss,
    /// The queue was full.
    Queue,
    /// It was larger than the link takes.
    Mtu,
    /// Nothing passed.
    Partition,
}

/// When a packet arrives, counted from the start; and its copy, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Duration,
    /// Whether it comes twice.
    pub twice: bool,
    /// Whether it was held back behind others.
    pub late: bool,
}

/// One direction at work.
#[derive(Clone, Debug)]
pub struct Model {
    lane: Lane,
    timetable: Timetable,
    queue_bytes: Option<u64>,
    random: Random,
    /// When the link has sent all that it was given.
    free_at_ns: u64,
    /// What integer nanoseconds left of the last packet's time, in bits times 10^9.
    carry: u64,
    /// Packets arrive in order: none before this.
    last_at_ns: u64,
    jitter_ns: u64,
    jitter_until_ns: u64,
    in_burst: bool,
    /// Nothing passes before this, beside what the timetable says.
    cut_until: Duration,
}

impl Model {
    /// A link that has been idle.
    pub fn new(lane: Lane, timetable: Timetable, seed: u64) -> Self {
        let queue_bytes = lane.queue_bytes();
        let random = Random(seed);
        Self {
            lane,
            timetable,
            queue_bytes,
            random,
            free_at_ns: 0,
            carry: 0,
            last_at_ns: 0,
            jitter_ns: 0,
            jitter_until_ns: 0,
            in_burst: false,
            cut_until: Duration::ZERO,
        }
    }

    /// Lets nothing pass before `until`. What is on its way already arrives.
    pub fn cut(&mut self, until: Duration) {
        self.cut_until = self.cut_until.max(until);
    }

    /// What becomes of a datagram of `bytes` that is sent at `now`, which never goes back.
    pub fn offer(&mut self, now: Duration, bytes: usize) -> Result<Arrival, Cause> {
        let packet_bytes = bytes as u64 + HEADER_BYTES;
        if self.is_cut(now) {
            return Err(Cause::Partition);
        }
        if packet_bytes > u64::from(self.timetable.mtu(now, self.lane.mtu)) {
            return Err(Cause::Mtu);
        }
        let now_ns = nanoseconds(now);
        let sent_at_ns = self.send(now_ns, packet_bytes)?;
        // One draw for each packet and question, so that one share does not shift the dice of another.
        let (lost, late, twice) = (self.draw_loss(), self.random.is(self.lane.reorder.get()), self.random.is(self.lane.duplicate.get()));
        if lost {
            return Err(Cause::Loss);
        }
        let on_its_way_ns = sent_at_ns + nanoseconds(self.lane.delay.duration()) + self.jitter(sent_at_ns);
        let at_ns = if late {
            on_its_way_ns.max(self.last_at_ns) + REORDER_NS
        } else {
            self.last_at_ns = on_its_way_ns.max(self.last_at_ns);
            self.last_at_ns
        };
        let at = Duration::from_nanos(at_ns);
        if self.is_cut(at) {
            return Err(Cause::Partition);
        }
        Ok(Arrival { at, twice, late })
    }

    fn is_cut(&self, at: Duration) -> bool {
        at < self.cut_until || self.timetable.is_partitioned(at)
    }

    /// How long a packet that is offered at `now` would wait for its turn.
    pub fn queue_delay(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.free_at_ns.saturating_sub(nanoseconds(now)))
    }

    /// Puts a packet on the link behind those that wait; says when its last bit is sent.
    fn send(&mut self, now_ns: u64, packet_bytes: u64) -> Result<u64, Cause> {
        let (Some(rate), Some(queue_bytes)) = (self.lane.rate, self.queue_bytes) else { return Ok(now_ns) };
        let wait = Duration::from_nanos(self.free_at_ns.saturating_sub(now_ns));
        if rate.bytes_in(wait) + packet_bytes > queue_bytes {
            return Err(Cause::Queue);
        }
        if self.free_at_ns < now_ns {
            (self.free_at_ns, self.carry) = (now_ns, 0);
        }
        let work = packet_bytes * 8_000_000_000 + self.carry;
        self.free_at_ns += work / rate.bps();
        self.carry = work % rate.bps();
        Ok(self.free_at_ns)
    }

    /// Gilbert-Elliott with all lost in the bad state; its two probabilities follow from the share and the mean burst.
    fn draw_loss(&mut self) -> bool {
        let (share, burst) = (self.lane.loss.get(), self.lane.burst);
        if burst <= 1.0 {
            return self.random.is(share);
        }
        let ends = 1.0 / burst;
        let begins = (share * ends / (1.0 - share)).min(1.0);
        self.in_burst = if self.in_burst { !self.random.is(ends) } else { self.random.is(begins) };
        self.in_burst
    }

    fn jitter(&mut self, at_ns: u64) -> u64 {
        if at_ns >= self.jitter_until_ns {
            self.jitter_until_ns = at_ns + JITTER_EVERY_NS;
            self.jitter_ns = (self.random.unit() * nanoseconds(self.lane.jitter.duration()) as f64) as u64;
        }
        self.jitter_ns
    }
}

/// Delays are at most minutes, and 2^64 ns are centuries.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// SplitMix64 (Steele, Lea and Flood, 2014). By hand, because a trace must not change with the version of a crate.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn is(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}
