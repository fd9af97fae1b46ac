//! What a link does to what passes: numbers for each direction, and a timetable of what goes wrong. Plain data.

use super::error::ConditionsError;
use super::profile::Profile;
use super::units::{Rate, Share, Span, as_text};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bytes of IPv4 and UDP headers around each datagram. They count against rate and MTU; IPv6 would add 20.
pub const HEADER_BYTES: u64 = 28;
/// The smallest MTU that can be asked for: QUIC needs datagrams of 1200 bytes (RFC 9000, section 14).
pub const MTU_BYTES_MIN: u16 = 1200 + HEADER_BYTES as u16;
/// Most entries of one kind in a timetable.
const TIMETABLE_MAX: usize = 64;
/// Longest delay, jitter or queue: longer, and a link is better called broken.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Longest run of lost packets on average.
const BURST_MAX: f64 = 10_000.0;

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lane {
    /// How fast it is; nothing, and it takes no time at all.
    pub rate: Option<Rate>,
    /// How long each packet is on its way once it was sent.
    pub delay: Span,
    /// At most this much is added to it; the addition changes every 10 ms, and is half of this on average.
    pub jitter: Span,
    /// Share of packets lost on the way, after they took their time on the link.
    pub loss: Share,
    /// Packets lost in a row on average (Gilbert-Elliott); at most 1, each is lost or not by itself.
    pub burst: f64,
    /// Share of packets that come late, behind some that were sent after them.
    pub reorder: Share,
    /// Share of packets that come twice.
    pub duplicate: Share,
    /// Time that packets may wait for their turn: at the rate, the length of a drop-tail queue.
    pub queue: Span,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

impl Lane {
    /// Bytes that may wait for their turn; nothing where nobody waits. Always room for a handful of packets, as any device has.
    pub fn queue_bytes(&self) -> Option<u64> {
        let packets = 8 * u64::from(self.mtu);
        self.rate.map(|rate| rate.bytes_in(self.queue.duration()).max(packets))
    }
}

/// Nothing passes for a while: `5s@30s` once, `5s@30s/60s` again each minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Outage {
    length: Span,
    at: Span,
    every: Option<Span>,
}

impl Outage {
    /// `length` long, from `at` on, and again every so often.
    pub const fn new(length: Span, at: Span, every: Option<Span>) -> Self {
        Self { length, at, every }
    }

    /// Whether nothing passes at `now`, counted from the start.
    pub fn covers(&self, now: Duration) -> bool {
        let Some(since) = now.checked_sub(self.at.duration()) else { return false };
        let into = match self.every {
            Some(every) => since.as_nanos() % every.duration().as_nanos().max(1),
            None => since.as_nanos(),
        };
        into < self.length.duration().as_nanos()
    }
}

impl FromStr for Outage {
    type Err = ConditionsError;

    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let wrong = || ConditionsError::unit(text, "an outage", "5s@30s, or 5s@30s/60s for one each minute");
        let (length, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (at, every) = rest.split_once('/').map_or((rest, None), |(at, every)| (at, Some(every)));
        let outage = Self { length: length.parse()?, at: at.parse()?, every: every.map(str::parse).transpose()? };
        if outage.every.is_some_and(|every| every <= outage.length) { Err(wrong()) } else { Ok(outage) }
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.length, self.at)?;
        self.every.map_or(Ok(()), |every| write!(out, "/{every}"))
    }
}

/// The MTU falls, as where a route changes: `1280@30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MtuDrop {
    pub(super) mtu: u16,
    pub(super) at: Span,
}

impl FromStr for MtuDrop {
    type Err = ConditionsError;

    fn from_str(text: &str) -> Result<Self, ConditionsError> {
        let wrong = || ConditionsError::unit(text, "an MTU and a time", "1280@30s");
        let (mtu, at) = text.split_once('@').ok_or_else(wrong)?;
        Ok(Self { mtu: mtu.trim().parse().map_err(|_| wrong())?, at: at.parse()? })
    }
}

impl fmt::Display for MtuDrop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.mtu, self.at)
    }
}

as_text!(Outage, MtuDrop);

/// What goes wrong when, counted from the start of the emulator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timetable {
    /// Nothing passes.
    pub partitions: Vec<Outage>,
    /// The address behind which clients are seen changes, as when a NAT forgets them or a phone changes networks.
    pub rebinds: Vec<Span>,
    /// The MTU falls for good.
    pub mtu_drops: Vec<MtuDrop>,
}

impl Timetable {
    /// Whether nothing passes at `now`.
    pub fn is_partitioned(&self, now: Duration) -> bool {
        self.partitions.iter().any(|outage| outage.covers(now))
    }

    /// The MTU at `now` where it is `mtu` by itself.
    pub fn mtu(&self, now: Duration, mtu: u16) -> u16 {
        let fallen = self.mtu_drops.iter().filter(|drop| drop.at.duration() <= now).map(|drop| drop.mtu);
        fallen.fold(mtu, u16::min)
    }
}

/// A whole link: both directions, seen from the client, and its timetable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Conditions {
    /// The profile it started from.
    pub profile: Profile,
    /// From the client to the server.
    pub up: Lane,
    /// From the server to the client.
    pub down: Lane,
    /// What goes wrong when.
    #[serde(flatten)]
    pub timetable: Timetable,
}

/// What is changed of a profile: explicit numbers. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Changes {
    /// Rate of both directions.
    pub rate: Option<Rate>,
    /// Rate from the client to the server.
    pub rate_up: Option<Rate>,
    /// Rate from the server to the client.
    pub rate_down: Option<Rate>,
    /// Delay in each direction: half of the round trip.
    pub delay: Option<Span>,
    /// At most this much more, each way.
    pub jitter: Option<Span>,
    /// Share lost, each way.
    pub loss: Option<Share>,
    /// Packets lost in a row on average.
    pub burst: Option<f64>,
    /// Share that comes late.
    pub reorder: Option<Share>,
    /// Share that comes twice.
    pub duplicate: Option<Share>,
    /// Time that packets may wait for their turn.
    pub queue: Option<Span>,
    /// Largest IP packet, in bytes.
    pub mtu: Option<u16>,
    /// Nothing passes for a while: `5s@30s`, or `5s@30s/60s`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partition: Vec<Outage>,
    /// The clients' address changes: `60s`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rebind: Vec<Span>,
    /// The MTU falls: `1280@30s`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mtu_drop: Vec<MtuDrop>,
}

impl Changes {
    /// The link that is `profile` with these changes, checked.
    pub fn apply(&self, profile: Profile) -> Result<Conditions, ConditionsError> {
        let mut link = profile.conditions();
        self.change(&mut link.up, self.rate_up);
        self.change(&mut link.down, self.rate_down);
        link.timetable.partitions.extend(&self.partition);
        link.timetable.rebinds.extend(&self.rebind);
        link.timetable.rebinds.sort_unstable();
        link.timetable.mtu_drops.extend(&self.mtu_drop);
        link.check()?;
        Ok(link)
    }

    fn change(&self, lane: &mut Lane, own_rate: Option<Rate>) {
        fn set<T: Copy>(value: &mut T, change: Option<T>) {
            *value = change.unwrap_or(*value);
        }
        lane.rate = own_rate.or(self.rate).or(lane.rate);
        set(&mut lane.delay, self.delay);
        set(&mut lane.jitter, self.jitter);
        set(&mut lane.loss, self.loss);
        set(&mut lane.burst, self.burst);
        set(&mut lane.reorder, self.reorder);
        set(&mut lane.duplicate, self.duplicate);
        set(&mut lane.queue, self.queue);
        set(&mut lane.mtu, self.mtu);
    }
}

impl Conditions {
    /// Round trip without queue and jitter.
    pub fn rtt(&self) -> Duration {
        self.up.delay.duration() + self.down.delay.duration()
    }

    fn check(&self) -> Result<(), ConditionsError> {
        for lane in [&self.up, &self.down] {
            for (what, span) in [("the delay", lane.delay), ("the jitter", lane.jitter), ("the queue", lane.queue)] {
                require(span.duration() <= DELAY_MAX, what, span, "give at most a minute")?;
            }
            require((0.0..=BURST_MAX).contains(&lane.burst), "the mean burst", lane.burst, "give 1 for single losses, at most 10000")?;
            let bursts = lane.burst <= 1.0 || lane.loss.get() < 1.0;
            require(bursts, "the loss", lane.loss, "in bursts it must be less than 100%; nothing at all passes in a partition")?;
            require(lane.mtu >= MTU_BYTES_MIN, "the MTU", lane.mtu, "give at least 1228: QUIC needs datagrams of 1200 B")?;
        }
        let table = &self.timetable;
        let entries = table.partitions.len().max(table.rebinds.len()).max(table.mtu_drops.len());
        require(entries <= TIMETABLE_MAX, "the timetable", entries, "give at most 64 entries of a kind")?;
        let lowest = table.mtu_drops.iter().map(|drop| drop.mtu).min().unwrap_or(MTU_BYTES_MIN);
        require(lowest >= MTU_BYTES_MIN, "the MTU", lowest, "give at least 1228: QUIC needs datagrams of 1200 B")
    }
}

impl fmt::Display for Conditions {
    /// `lte: up 6mbit, down 13mbit, round trip 50ms, jitter 10ms, loss 0.1%`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |rate: Option<Rate>| rate.map_or("unlimited".into(), |rate| rate.to_string());
        let (up, down) = (&self.up, &self.down);
        write!(out, "{}: up {}, down {}", self.profile, rate(up.rate), rate(down.rate))?;
        write!(out, ", round trip {} ms", self.rtt().as_secs_f64() * 1e3)?;
        for (name, span) in [("jitter", up.jitter.max(down.jitter))] {
            if span > Span::default() {
                write!(out, ", {name} {span}")?;
            }
        }
        for (name, up, down) in
            [("loss", up.loss, down.loss), ("reorder", up.reorder, down.reorder), ("duplicate", up.duplicate, down.duplicate)]
        {
            let share = if up > down { up } else { down };
            if share > Share::default() {
                write!(out, ", {name} {share}")?;
            }
        }
        self.timetable.partitions.iter().try_for_each(|outage| write!(out, ", partition {outage}"))?;
        self.timetable.rebinds.iter().try_for_each(|at| write!(out, ", rebind @{at}"))?;
        self.timetable.mtu_drops.iter().try_for_each(|drop| write!(out, ", MTU {drop}"))
    }
}

fn require(holds: bool, what: &'static str, found: impl fmt::Display, remedy: &'static str) -> Result<(), ConditionsError> {
    if holds { Ok(()) } else { Err(ConditionsError::Impossible { what, found: found.to_string(), remedy }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an outage is where it says. Method: both ends, once and again.
    #[test]
    fn outages_cover_their_time() {
        let ms = Duration::from_millis;
        let once: Outage = "5s@30s".parse().expect("an outage");
        assert_eq!([29_999, 30_000, 34_999, 35_000].map(|at| once.covers(ms(at))), [false, true, true, false]);
        let again: Outage = "5s@30s/1m".parse().expect("an outage");
        assert_eq!([89_999, 90_000, 94_999, 95_000].map(|at| again.covers(ms(at))), [false, true, true, false]);
        assert_eq!((once.to_string(), again.to_string()), ("5s@30s".into(), "5s@30s/60s".into()));
    }

    /// Goal: explicit numbers go over a profile's, and what no link has is refused. Method: one of each.
    #[test]
    fn changes_are_applied_and_checked() {
        let changes = Changes { rate: Some(Rate::mbit(50)), rate_up: Some(Rate::mbit(5)), delay: Some(Span::ms(25)), ..Changes::default() };
        let link = changes.apply(Profile::Lte).expect("a link");
        assert_eq!((link.up.rate, link.down.rate), (Some(Rate::mbit(5)), Some(Rate::mbit(50))));
        assert_eq!(link.rtt(), Duration::from_millis(50));
        assert_eq!(link.up.loss, Profile::Lte.conditions().up.loss, "what is absent stays");
        for (wrong, word) in [
            (Changes { mtu: Some(1000), ..Changes::default() }, "1228"),
            (Changes { mtu_drop: vec!["576@3s".parse().expect("an MTU")], ..Changes::default() }, "1228"),
            (Changes { delay: Some(Span::ms(61_000)), ..Changes::default() }, "a minute"),
            (Changes { burst: Some(f64::NAN), ..Changes::default() }, "single losses"),
            (Changes { rebind: vec![Span::ms(1); 65], ..Changes::default() }, "64"),
        ] {
            let error = wrong.apply(Profile::Loopback).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    /// Goal: a slip in a timetable is explained. Method: halves of each.
    #[test]
    fn timetables_are_explained() {
        for text in ["5s", "@5s", "5s@", "5s@1s/4s"] {
            assert!(text.parse::<Outage>().is_err(), "{text}");
        }
        assert!("1280".parse::<MtuDrop>().expect_err("no time").to_string().contains("1280@30s"));
    }
}
