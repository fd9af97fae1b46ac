//! How a QUIC connection is set up for tensors: every bound with its reason.

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;
use std::time::Duration;

/// Smallest stream window, in bytes: loopback and LAN frames of a few MiB should not wait for credit.
const WINDOW_BYTES_MIN: u64 = 8 << 20;
/// Largest stream window, in bytes: what one stream may make its receiver hold.
const WINDOW_BYTES_MAX: u64 = 256 << 20;
/// Step streams that one peer may have open: more than a client ever pipelines, few enough to bound memory.
const STEP_STREAMS_MAX: u32 = 64;
/// Adapter streams that one peer may have open: they are rare and large.
const ADAPTER_STREAMS_MAX: u32 = 4;
/// Often enough to hold a NAT's UDP mapping, of which many last 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

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
            idle_timeout: Duration::from_secs(30),
            handshake_wait: Duration::from_secs(10),
            step_wait: Duration::from_secs(600),
        }
    }
}

impl LinkConfig {
    /// Bytes that a stream may have in flight: twice bandwidth x round trip, within bounds.
    pub fn window_bytes(&self) -> u64 {
        let in_flight = u64::from(self.bandwidth_mbit) * 125 * u64::from(self.rtt_ms);
        (2 * in_flight).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }

    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        let window = VarInt::from_u64(self.window_bytes()).unwrap_or(VarInt::MAX);
        let mut config = TransportConfig::default();
        config
            // A frame must not stall on credit: the window covers what the link holds.
            .stream_receive_window(window)
            // All streams together: steps in both directions and one adapter. Unlimited by default.
            .receive_window(VarInt::from_u64(2 * self.window_bytes()).unwrap_or(VarInt::MAX))
            .send_window(2 * self.window_bytes())
            .max_concurrent_bidi_streams(STEP_STREAMS_MAX.into())
            .max_concurrent_uni_streams(ADAPTER_STREAMS_MAX.into())
            // Off by default in quinn, so that a long computation would end the connection.
            .keep_alive_interval(Some(KEEP_ALIVE.min(self.idle_timeout / 3)))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            // Cubic, quinn's default: BBR is marked experimental there, and was slower on loopback.
            .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
            .datagram_receive_buffer_size(None);
        Arc::new(config)
    }
}
