//! A goodbye that gets through: congestion control that steps aside when a connection closes.
//!
//! quinn-proto up to 0.11.19 holds back its closing packet while the congestion window is full, for good, and the peer then
//! waits for its idle timeout (quinn issue 2785, mended after 0.11.19 by pull request 2787). A client that is stopped in the
//! middle of a step is such a case. With a quinn that has that change, this file can go.

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A window that is never full. quinn does not pace one beyond `u32::MAX`.
const WINDOW_BYTES_OPEN: u64 = 1 << 40;

/// Whether a connection is closing. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing(Arc<AtomicBool>);

impl Closing {
    /// To be called before the connection is closed.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Makes what `inner` makes, until its connection closes.
pub(crate) struct UntilClosing {
    pub inner: Arc<dyn ControllerFactory + Send + Sync>,
    pub closing: Closing,
}

impl ControllerFactory for UntilClosing {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Yielding { inner: self.inner.clone().build(now, current_mtu), closing: self.closing.clone() })
    }
}

struct Yielding {
    inner: Box<dyn Controller>,
    closing: Closing,
}

impl Controller for Yielding {
    fn window(&self) -> u64 {
        if self.closing.0.load(Ordering::Acquire) { WINDOW_BYTES_OPEN } else { self.inner.window() }
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), closing: self.closing.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
