//! Congestion control that tells the losses of a radio from those of a full queue.
//!
//! Cubic takes every loss for a full queue. At a loss of 1 % it keeps no more than some ten packets a round trip in flight, whatever
//! the link: a few Mbit/s of a phone's 50. So here a loss counts where packets also wait: the round trip is well above the shortest. It
//! counts as well where too many are lost, for queues that are too short to be seen. What Cubic then does is Cubic's, so that a full
//! link is still shared with the world's TCP. The idea is Veno's (Fu and Liew, 2003), the share of losses BBR's (draft-ietf-ccwg-bbr).
//!
//! And no window is larger than what the link and one round trip of queue hold, by the fastest delivery seen of late (BBR's bound).
//! Slow start would overrun the queue by as much again, and to send that twice costs more than it won.

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that may be sent before anything is known: 32 packets, as Google's QUIC has it. RFC 9002 says 10; a step is megabytes, and the
/// difference is more than one round trip of every connection.
const INITIAL_WINDOW_BYTES: u64 = 32 * 1200;
/// Waiting that is taken for a queue on any link: below it is the jitter of radios and of computing peers.
const WAITING_MIN: Duration = Duration::from_millis(10);
/// And this part of the shortest round trip on top.
const WAITING_PART: u32 = 4;
/// Share of bytes lost beyond which losses count without a queue. BBR has 2 %, at which a radio that loses 2 % falls off a cliff.
const LOSS_SHARE_MAX: f64 = 0.04;
/// Windows over which that share is taken: with fewer, 2 % is above 4 % too often.
const LOSS_WINDOWS: u64 = 4;
/// Least bytes over which it is taken, for the same reason.
const LOSS_BYTES_MIN: u64 = 512 * 1200;

/// Rounds over which the fastest delivery is remembered: a phone that moves must forget.
const DELIVERY_ROUNDS: usize = 10;
/// Shortest round in which the rate of delivery is taken.
const ROUND_MIN: Duration = Duration::from_millis(2);

/// Makes Cubics that hear of losses only where these mean congestion.
pub(crate) struct TolerantConfig {
    cubic: Arc<CubicConfig>,
}

impl Default for TolerantConfig {
    fn default() -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW_BYTES);
        Self { cubic: Arc::new(cubic) }
    }
}

impl ControllerFactory for TolerantConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = self.cubic.clone().build(now, current_mtu);
        Box::new(Tolerant { cubic, judge: Judge::default(), delivery: Delivery::default(), recovery_start: None })
    }
}

struct Tolerant {
    cubic: Box<dyn Controller>,
    judge: Judge,
    delivery: Delivery,
    /// When Cubic was last told of congestion: losses of what was sent before are the same congestion.
    recovery_start: Option<Instant>,
}

impl Controller for Tolerant {
    fn window(&self) -> u64 {
        self.cubic.window().min(self.delivery.window_max())
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.judge.acknowledged(bytes, self.window(), rtt.get(), rtt.min());
        self.delivery.acknowledged(now, bytes, app_limited, rtt.min());
        // A window that is not used must not grow.
        let is_used = !app_limited && self.cubic.window() <= self.delivery.window_max();
        self.cubic.on_ack(now, sent, bytes, !is_used, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if !is_persistent_congestion && self.recovery_start.is_some_and(|start| sent <= start) {
            return;
        }
        if self.judge.is_congestion(is_persistent_congestion, lost_bytes) {
            self.recovery_start = Some(now);
            self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let (judge, delivery, recovery_start) = (self.judge.clone(), self.delivery.clone(), self.recovery_start);
        Box::new(Self { cubic: self.cubic.clone_box(), judge, delivery, recovery_start })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Whether a loss means congestion; pure.
#[derive(Clone, Debug, Default)]
struct Judge {
    /// Whether the last acknowledgements say that packets wait.
    waits: bool,
    /// Bytes that arrived, of late.
    arrived: u64,
    /// Bytes that were lost, of late.
    lost: u64,
}

impl Judge {
    fn acknowledged(&mut self, bytes: u64, window: u64, rtt: Duration, rtt_min: Duration) {
        self.waits = rtt > rtt_min + rtt_min / WAITING_PART + WAITING_MIN;
        self.arrived += bytes;
        if self.arrived + self.lost > 2 * (LOSS_WINDOWS * window).max(LOSS_BYTES_MIN) {
            self.arrived /= 2;
            self.lost /= 2;
        }
    }

    fn is_congestion(&mut self, is_persistent: bool, lost_bytes: u64) -> bool {
        self.lost += lost_bytes;
        let all = self.arrived + self.lost;
        let many = all >= LOSS_BYTES_MIN && self.lost as f64 > LOSS_SHARE_MAX * all as f64;
        // A mark by the network (ECN) says that there is a queue, and comes without lost bytes.
        let congested = is_persistent || lost_bytes == 0 || self.waits || many;
        if congested {
            // These were answered for.
            (self.arrived, self.lost) = (0, 0);
        }
        congested
    }
}

/// How fast the link delivers; pure.
#[derive(Clone, Debug, Default)]
struct Delivery {
    /// When this round began, and what arrived since.
    round: Option<(Instant, u64)>,
    /// Bytes a second of the last rounds that counted.
    rates: [f64; DELIVERY_ROUNDS],
    next: usize,
    /// The last round delivered a quarter more than any before: the link's rate is not found yet.
    is_rising: bool,
    rtt_min: Duration,
}

impl Delivery {
    fn acknowledged(&mut self, now: Instant, bytes: u64, app_limited: bool, rtt_min: Duration) {
        self.rtt_min = rtt_min;
        // The first acknowledgement begins the clock: its bytes were on their way before.
        let Some((begun, arrived)) = &mut self.round else {
            self.round = Some((now, 0));
            return;
        };
        *arrived += bytes;
        let took = now.saturating_duration_since(*begun);
        // Shorter rounds than this see how acknowledgements are bundled, not how packets arrive.
        if took < rtt_min.max(ROUND_MIN) {
            return;
        }
        let rate = *arrived as f64 / took.as_secs_f64();
        self.round = Some((now, 0));
        // A round that the sender did not fill says nothing against the link.
        if !app_limited || rate > self.rate() {
            self.is_rising = rate > 1.25 * self.rate();
            self.rates[self.next] = rate;
            self.next = (self.next + 1) % DELIVERY_ROUNDS;
        }
    }

    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    /// What the link holds and one round trip of queue, and the jitter of a fast one. While the rate rises, twice that: what is
    /// measured lags a round behind what is sent.
    fn window_max(&self) -> u64 {
        let time = (if self.is_rising { 4 } else { 2 }) * self.rtt_min + WAITING_MIN;
        let bytes = self.rate() * time.as_secs_f64();
        (bytes as u64).max(2 * INITIAL_WINDOW_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 300_000;
    const RTT: Duration = Duration::from_millis(50);

    fn judge(rtt: Duration) -> Judge {
        let mut judge = Judge::default();
        judge.acknowledged(2_000_000, WINDOW, rtt, RTT);
        judge
    }

    /// Goal: losses count where packets wait, and only there. Method: one loss at several round trips.
    #[test]
    fn a_loss_counts_where_packets_wait() {
        for (rtt_ms, counts) in [(50, false), (72, false), (73, true), (200, true)] {
            assert_eq!(judge(Duration::from_millis(rtt_ms)).is_congestion(false, 1452), counts, "{rtt_ms} ms");
        }
    }

    /// Goal: too many losses count without a queue, and the network's own word always. Method: 1 %, 5 %, a mark, and a silence.
    #[test]
    fn many_losses_count_anyway() {
        assert!(!judge(RTT).is_congestion(false, 20_000));
        assert!(judge(RTT).is_congestion(false, 100_000));
        assert!(judge(RTT).is_congestion(false, 0));
        assert!(judge(RTT).is_congestion(true, 1452));
        assert!(!Judge::default().is_congestion(false, 1452), "of ten packets one is no share");
    }

    /// Goal: old losses are forgotten. Method: nearly too many at once, many arrivals, and as many again.
    #[test]
    fn old_losses_are_forgotten() {
        let mut judge = judge(RTT);
        assert!(!judge.is_congestion(false, 75_000));
        for _ in 0..1000 {
            judge.acknowledged(14_520, WINDOW, RTT, RTT);
        }
        assert!(!judge.is_congestion(false, 75_000));
    }

    /// Goal: the window is bound by what arrives, and a sender with nothing to say forgets nothing. Method: a hundred round trips'
    /// packets of 50 Mbit/s, then a trickle, then a tenth of the rate.
    #[test]
    fn the_window_follows_the_delivery() {
        let (mut delivery, mut now) = (Delivery::default(), Instant::now());
        assert_eq!(delivery.window_max(), 2 * INITIAL_WINDOW_BYTES);
        let mut packets = |count: u64, gap: Duration, app_limited: bool| {
            for _ in 0..count {
                now += gap;
                delivery.acknowledged(now, 1452, app_limited, RTT);
            }
            delivery.window_max() as f64
        };
        // 50 Mbit/s for twice 50 ms and 10 ms more.
        let holds = 687_500.0;
        let full = packets(3000, Duration::from_nanos(232_320), false);
        assert!((full / holds - 1.0).abs() < 0.02, "{full}");
        assert_eq!(packets(300, Duration::from_millis(20), true), full);
        let slow = packets(600, Duration::from_nanos(2_323_200), false);
        assert_eq!(slow, 2.0 * INITIAL_WINDOW_BYTES as f64, "a tenth of it is below the least");
    }
}
