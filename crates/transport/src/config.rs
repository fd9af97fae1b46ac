//! How a QUIC connection is set up for tensors: every bound with its reason.

use crate::closing::{Closing, UntilClosing};
use crate::congestion::TolerantConfig;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Smallest stream window, in bytes: loopback and LAN frames of a few MiB should not wait for credit.
const WINDOW_BYTES_MIN: u64 = 8 << 20;
/// Largest stream window, in bytes: what one stream may make its receiver hold.
const WINDOW_BYTES_MAX: u64 = 256 << 20;
/// Streams' windows that one connection may fill. An adapter that its receiver does not read yet fills one of them, and steps
/// must go on beside it.
const WINDOWS_PER_LINK: u64 = 2;
/// Step streams that one peer may have open: more than a client ever pipelines, few enough to bound memory.
const STEP_STREAMS_MAX: u32 = 64;
/// Adapter streams that one peer may have open, unread ones included: with a second one, two unread adapters would fill
/// the connection's window, and its steps would starve.
const ADAPTER_STREAMS_MAX: u32 = 1;
/// Often enough to hold a NAT's UDP mapping, of which many last 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Keep-alives in one idle timeout: two may be lost.
const KEEP_ALIVES_PER_TIMEOUT: u32 = 3;
/// Shortest idle timeout: below it a busy machine looks like a dead one.
const IDLE_TIMEOUT_MIN: Duration = Duration::from_millis(300);
/// Longest idle timeout: a dead peer must be noticed on the same day.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The rate below which a transfer is given up, in bytes per second. A step would take minutes on such a link.
const TRANSFER_BYTES_PER_S_MIN: u64 = 16 << 10;
/// Largest UDP payload tried, in bytes. Discovery starts from QUIC's 1200 and finds what the path takes: 1466 where packets are
/// Ethernet's, more on loopback and in clusters. 4 MB there and back over loopback take 12.2 ms at 1452, 4.9 ms at 6500.
const MTU_BYTES_MAX: u16 = 6500;
/// Packets that quinn hands the kernel at once (its `MAX_TRANSMIT_SEGMENTS`).
const PACKETS_PER_SEND: usize = 10;
/// What the kernel takes at once. It refuses more with EMSGSIZE, which quinn takes for a lost probe: all ten are lost.
const SEND_BYTES_MAX: usize = 65_507;

/// Least round trip assumed before one was measured. A first packet that is lost is sent again after three of them: 300 ms, where RFC
/// 9002's 333 ms, meant for strangers, make it a second. On a link that takes longer it costs a packet or two sent twice.
const INITIAL_RTT_MIN: Duration = Duration::from_millis(100);
/// Largest round trip assumed, which is RFC 9002's.
const INITIAL_RTT_MAX: Duration = Duration::from_millis(333);

const _: () = assert!(MTU_BYTES_MAX as usize * PACKETS_PER_SEND <= SEND_BYTES_MAX);
// Unread adapters leave a window for steps.
const _: () = assert!((ADAPTER_STREAMS_MAX as u64) < WINDOWS_PER_LINK);

/// The network as the operator knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Bandwidth of the link, in Mbit/s.
    pub bandwidth_mbit: u32,
    /// Round-trip time, in milliseconds.
    pub rtt_ms: u32,
    /// Silence after which the peer is given up. Keep-alives fill pauses, so that a slow step is no silence.
    pub idle_timeout: Duration,
    /// How long a handshake may take.
    pub handshake_wait: Duration,
    /// How long the peer may compute on one step.
    pub step_wait: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            bandwidth_mbit: 1000,
            rtt_ms: 20,
            // A phone in a tunnel keeps its connection for so long; after that it connects again and resumes.
            idle_timeout: Duration::from_secs(30),
            handshake_wait: Duration::from_secs(10),
            step_wait: Duration::from_secs(600),
        }
    }
}

impl LinkConfig {
    /// Bytes that a stream may have in flight: twice bandwidth x round trip, within bounds.
    pub fn window_bytes(&self) -> u64 {
        // A Mbit/s is 125 bytes a millisecond.
        let in_flight = u64::from(self.bandwidth_mbit) * 125 * u64::from(self.rtt_ms);
        in_flight.saturating_mul(2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }

    /// How long `bytes` that have begun to flow may take: the slowest link that is of any use, and one silence.
    pub fn transfer_wait(&self, bytes: usize) -> Duration {
        self.idle() + Duration::from_secs(bytes as u64 / TRANSFER_BYTES_PER_S_MIN)
    }

    /// The round trip until one is measured: twice what the operator says, within bounds.
    fn initial_rtt(&self) -> Duration {
        Duration::from_millis(u64::from(self.rtt_ms) * 2).clamp(INITIAL_RTT_MIN, INITIAL_RTT_MAX)
    }

    fn idle(&self) -> Duration {
        self.idle_timeout.clamp(IDLE_TIMEOUT_MIN, IDLE_TIMEOUT_MAX)
    }

    /// One connection's side of it; `closing` is that connection's.
    pub(crate) fn transport(&self, closing: Closing) -> Arc<TransportConfig> {
        let bytes = |bytes: u64| VarInt::from_u64(bytes).expect("a few windows are far below 2^62 bytes");
        let idle = IdleTimeout::try_from(self.idle()).expect("a day is far below 2^62 ms");
        let link_bytes = self.window_bytes() * WINDOWS_PER_LINK;
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(MTU_BYTES_MAX);
        let mut config = TransportConfig::default();
        config
            // A frame must not stall on credit: the window covers what the link holds, twice.
            .stream_receive_window(bytes(self.window_bytes()))
            // All streams together; unlimited by default, which is no back-pressure at all.
            .receive_window(bytes(link_bytes))
            .send_window(link_bytes)
            .max_concurrent_bidi_streams(STEP_STREAMS_MAX.into())
            .max_concurrent_uni_streams(ADAPTER_STREAMS_MAX.into())
            // A step is of use only when it is whole: finish the older before the next, where they are of one priority.
            .send_fairness(false)
            // Off by default in quinn, so that a long computation would end the connection.
            .keep_alive_interval(Some(KEEP_ALIVE.min(self.idle() / KEEP_ALIVES_PER_TIMEOUT)))
            .max_idle_timeout(Some(idle))
            // Of use in the handshake alone: the first answer is a measurement.
            .initial_rtt(self.initial_rtt())
            // Cubic that hears of losses only where they mean congestion (congestion.rs). With 1 % of loss on 50 Mbit/s x 50 ms, a step of
            // 16 MiB gets 91 % of the rate with it, 91 % with quinn's BBR and less than half of it with plain Cubic; without loss on 1 Gbit/s x 50 ms
            // 69, 55 and 70 %, a round trip of waiting included.
            .congestion_controller_factory(Arc::new(UntilClosing { inner: Arc::new(TolerantConfig::default()), closing }))
            // On for larger packets where the path takes them, and for the black hole where a new route takes only smaller ones.
            .mtu_discovery_config(Some(mtu))
            // Nothing of ours may be lost: no datagrams.
            .datagram_receive_buffer_size(None);
        Arc::new(config)
    }

    /// One socket's side of it.
    pub(crate) fn endpoint() -> EndpointConfig {
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(MTU_BYTES_MAX).expect("it is above QUIC's 1200 B");
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bandwidth_mbit: u32, rtt_ms: u32) -> LinkConfig {
        LinkConfig { bandwidth_mbit, rtt_ms, ..LinkConfig::default() }
    }

    /// Goal: windows are twice what the link holds, within bounds. Method: a long fat link and both ends.
    #[test]
    fn windows_follow_the_link() {
        assert_eq!(config(1000, 100).window_bytes(), 25_000_000);
        assert_eq!(config(0, 0).window_bytes(), WINDOW_BYTES_MIN);
        assert_eq!(config(u32::MAX, u32::MAX).window_bytes(), WINDOW_BYTES_MAX);
    }

    /// Goal: no configuration makes a connection that cannot live, or that never dies. Method: the ends of the range.
    #[test]
    fn silly_timeouts_are_bounded() {
        for idle_timeout in [Duration::ZERO, Duration::MAX] {
            let config = LinkConfig { idle_timeout, ..LinkConfig::default() };
            let _ = config.transport(Closing::default());
            assert!((IDLE_TIMEOUT_MIN..=IDLE_TIMEOUT_MAX).contains(&config.idle()));
        }
    }

    /// Goal: a large adapter gets time on a slow link. Method: 100 MB, and nothing.
    #[test]
    fn transfers_get_time_by_their_size() {
        let config = LinkConfig::default();
        assert_eq!(config.transfer_wait(0), config.idle_timeout);
        assert!(config.transfer_wait(100 << 20) > Duration::from_secs(3600));
    }
}
