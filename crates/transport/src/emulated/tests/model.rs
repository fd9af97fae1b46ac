//! One direction in virtual time: rate, delay, loss and order are what the numbers say.

use super::super::conditions::{HEADER_BYTES, Lane, Timetable};
use super::super::model::{Arrival, Cause, Model};
use super::super::units::{Rate, Share, Span};
use proptest::prelude::*;
use std::time::Duration;

/// A datagram as QUIC sends it over Ethernet.
const BYTES: usize = 1452;

/// A link on which nothing goes wrong.
fn plain(mbit: u64, delay_ms: u64) -> Lane {
    Lane {
        rate: (mbit > 0).then(|| Rate::mbit(mbit)),
        delay: Span::ms(delay_ms),
        jitter: Span::default(),
        loss: Share::default(),
        burst: 1.0,
        reorder: Share::default(),
        duplicate: Share::default(),
        queue: Span::ms(100),
        mtu: 1500,
    }
}

fn model(lane: Lane, seed: u64) -> Model {
    Model::new(lane, Timetable::default(), seed)
}

/// Fates of `count` datagrams, `gap` apart.
fn fates(model: &mut Model, count: u32, gap: Duration) -> Vec<Result<Arrival, Cause>> {
    (0..count).map(|index| model.offer(gap * index, BYTES)).collect()
}

fn share(fates: &[Result<Arrival, Cause>], of: impl Fn(&Result<Arrival, Cause>) -> bool) -> f64 {
    fates.iter().filter(|fate| of(fate)).count() as f64 / fates.len() as f64
}

/// Goal: what passes is the rate, headers included, at any rate. Method: offer twice as much for ten seconds, and count.
#[test]
fn throughput_is_the_rate() {
    for mbit in [1, 6, 50, 1000] {
        let seconds = 10;
        let count = (2 * mbit * 1_000_000 * seconds / 8 / BYTES as u64) as u32;
        let mut link = model(plain(mbit, 20), 1);
        let fates = fates(&mut link, count, Duration::from_secs(seconds) / count);
        let passed = fates.iter().flatten().filter(|arrival| arrival.at < Duration::from_secs(seconds)).count() as u64;
        let found = (passed * (BYTES as u64 + HEADER_BYTES) * 8) as f64 / seconds as f64 / 1e6;
        assert!((found / mbit as f64 - 1.0).abs() < 0.005, "{mbit} Mbit/s let {found} pass");
    }
}

/// Goal: a full queue drops, and a packet in it waits as long as its bytes say. Method: a burst into 100 ms of 8 Mbit/s.
#[test]
fn the_queue_is_as_long_as_it_says() {
    let mut link = model(plain(8, 30), 1);
    let fates = fates(&mut link, 200, Duration::ZERO);
    let arrivals: Vec<Duration> = fates.iter().flatten().map(|arrival| arrival.at).collect();
    // 8 Mbit/s are 1000 bytes a millisecond, and a packet is 1480.
    assert_eq!(arrivals.len(), 67, "100,000 bytes hold 67 packets");
    assert_eq!(arrivals[0], Duration::from_micros(30_000 + 1480));
    assert_eq!(arrivals[66], Duration::from_micros(30_000 + 67 * 1480));
    assert!(fates[67..].iter().all(|fate| *fate == Err(Cause::Queue)));
    assert_eq!(link.queue_delay(Duration::ZERO), Duration::from_micros(67 * 1480));
}

/// Goal: a link without a rate keeps nobody waiting. Method: a thousand at once.
#[test]
fn an_unlimited_link_only_delays() {
    let at = Duration::from_millis(7);
    assert!(fates(&mut model(plain(0, 7), 1), 1000, Duration::ZERO).iter().all(|fate| fate.is_ok_and(|arrival| arrival.at == at)));
}

/// Goal: losses are as many as asked, single or in runs. Method: 200,000 packets of each, their share and their mean run.
#[test]
fn losses_are_as_many_as_asked() {
    for (percent, burst) in [(1.0, 1.0), (5.0, 1.0), (1.0, 5.0), (5.0, 20.0)] {
        let lane = Lane { loss: Share::percent(percent), burst, ..plain(0, 0) };
        let fates = fates(&mut model(lane, 3), 200_000, Duration::from_micros(10));
        let lost = share(&fates, |fate| *fate == Err(Cause::Loss));
        assert!((lost / percent * 100.0 - 1.0).abs() < 0.15, "{percent} % in runs of {burst}: {lost}");
        let runs = fates.windows(2).filter(|pair| pair[0].is_ok() && pair[1].is_err()).count() as f64;
        let mean = lost * fates.len() as f64 / runs;
        assert!((mean / burst - 1.0).abs() < 0.15, "runs of {burst} came out at {mean}");
    }
}

/// Goal: reordered and doubled packets are as many as asked, and the late ones come behind later ones. Method: shares of 2 %.
#[test]
fn packets_come_late_and_twice_as_asked() {
    let lane = Lane { reorder: Share::percent(2.0), duplicate: Share::percent(2.0), ..plain(50, 10) };
    let fates = fates(&mut model(lane, 9), 50_000, Duration::from_micros(300));
    for found in [share(&fates, |fate| fate.is_ok_and(|one| one.late)), share(&fates, |fate| fate.is_ok_and(|one| one.twice))] {
        assert!((found / 0.02 - 1.0).abs() < 0.15, "{found}");
    }
    let arrivals: Vec<Arrival> = fates.into_iter().flatten().collect();
    let overtaken = arrivals.windows(4).filter(|run| run[0].late && run[3].at < run[0].at).count();
    let late = arrivals.iter().filter(|arrival| arrival.late).count();
    assert!(overtaken as f64 > 0.9 * late as f64, "{overtaken} of {late} were overtaken by the third after them");
}

/// Goal: what is too large, and what is sent into a partition, is dropped under its name. Method: an MTU that falls, an outage.
#[test]
fn the_timetable_is_kept() {
    let timetable = Timetable {
        partitions: vec!["2s@10s".parse().expect("an outage")],
        mtu_drops: vec!["1300@20s".parse().expect("an MTU")],
        ..Timetable::default()
    };
    let mut link = Model::new(plain(0, 100), timetable, 1);
    let mut at = |ms: u64, bytes: usize| link.offer(Duration::from_millis(ms), bytes).err();
    assert_eq!(at(0, 1473), Some(Cause::Mtu), "an IP packet of 1501 bytes");
    assert_eq!(at(0, 1472), None);
    assert_eq!([9_850, 9_950, 10_000, 11_999, 12_000].map(|ms| at(ms, 1000)), {
        let lost = Some(Cause::Partition);
        [None, lost, lost, lost, None]
    });
    assert_eq!((at(20_000, 1272), at(20_000, 1273)), (None, Some(Cause::Mtu)));
}

/// Goal: a cut from outside holds as long as it is asked to, and a shorter one does not end it. Method: two cuts that overlap.
#[test]
fn a_cut_is_kept() {
    let mut link = Model::new(plain(0, 100), Timetable::default(), 1);
    let mut at = |ms: u64, cut_ms: Option<u64>| {
        cut_ms.into_iter().for_each(|until| link.cut(Duration::from_millis(until)));
        link.offer(Duration::from_millis(ms), 100).err()
    };
    assert_eq!(at(1000, None), None, "on its way, and arrives");
    assert_eq!(at(1050, Some(3000)), Some(Cause::Partition));
    assert_eq!(at(2000, Some(2500)), Some(Cause::Partition));
    assert_eq!(at(2850, None), Some(Cause::Partition), "it would arrive within the cut");
    assert_eq!(at(3000, None), None);
}

proptest! {
    /// Goal: on any link and for any traffic: nothing is early, the jitter is bounded, order is kept but for those that are late on
    /// purpose, the rate is not exceeded, and the same seed gives the same trace.
    #[test]
    fn any_link_keeps_its_word(
        mbit in 0u64..2000,
        delay_ms in 0u64..300,
        jitter_ms in 0u64..100,
        loss in 0.0f64..60.0,
        burst in 0.0f64..10.0,
        reorder in 0.0f64..20.0,
        seed: u64,
        traffic in prop::collection::vec((0u64..5_000_000, 1usize..1472), 1..300),
    ) {
        let lane = Lane {
            jitter: Span::ms(jitter_ms), loss: Share::percent(loss), burst, reorder: Share::percent(reorder), ..plain(mbit, delay_ms)
        };
        let (mut link, mut again) = (model(lane, seed), model(lane, seed));
        let (mut now, mut last, mut sent) = (Duration::ZERO, Duration::ZERO, 0);
        for (gap_ns, bytes) in traffic {
            now += Duration::from_nanos(gap_ns);
            let waited = link.queue_delay(now);
            let fate = link.offer(now, bytes);
            prop_assert_eq!(fate, again.offer(now, bytes));
            // A byte at 1 Mbit/s takes 8 us, and the queue is counted in whole ones.
            prop_assert!(link.queue_delay(now) <= lane.queue.duration() + Duration::from_micros(8));
            if fate != Err(Cause::Queue) {
                sent += (bytes as u64 + HEADER_BYTES) * 8;
            }
            let Ok(arrival) = fate else { continue };
            let soonest = now + waited + lane.delay.duration();
            prop_assert!(arrival.at >= soonest, "{:?} before {:?}", arrival.at, soonest);
            if !arrival.late {
                prop_assert!(arrival.at >= last);
                last = arrival.at;
            }
            if mbit > 0 {
                let busy = link.queue_delay(now) + now;
                prop_assert!(sent <= mbit * busy.as_nanos() as u64 / 1000 + 1000, "{} bits in {:?} at {} Mbit/s", sent, busy, mbit);
            }
        }
    }
}
