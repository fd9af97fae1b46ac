//! One authenticated connection: streams for control, steps, adapters and sessions that generate.

use crate::control::Control;
use crate::error::{LinkError, close};
use crate::generate::{DeviceStream, ServerStream};
use crate::line::Line;
use crate::outbox::Outbox;
use crate::step::StepStream;
use cutlayer_wire::{ADAPTER_HEADER_BYTES, AdapterFrame, AdapterHeader, AdapterLimits, PeerId};
use quinn::{Endpoint, RecvStream, SendStream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Control goes before everything else: it is small, and others wait for it.
const CONTROL_PRIORITY: i32 = 2;
/// Steps go before adapters, whose priority is QUIC's 0: a client waits for its gradient, nobody for an adapter alone.
const STEP_PRIORITY: i32 = 1;
/// Sessions that one peer may have open at most: each takes some hundred bytes before it says anything.
pub const SESSION_STREAMS_MAX: u32 = 4096;
/// How long the last words may take to arrive when a link closes.
pub(crate) const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Bytes as UDP carried them, and the round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkStats {
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Smoothed round-trip time, in milliseconds.
    pub rtt_ms: f64,
}

/// An authenticated connection. Clones share it; when the last of them and of their streams is dropped, it closes.
#[derive(Clone, Debug)]
pub struct Link {
    line: Arc<Line>,
    peer: PeerId,
    outbox: Arc<Outbox>,
    /// A client's endpoint lives as long as its link.
    endpoint: Option<Endpoint>,
}

impl Link {
    pub(crate) fn new(line: Arc<Line>, peer: PeerId, endpoint: Option<Endpoint>) -> Self {
        Self { line, peer, outbox: Arc::default(), endpoint }
    }

    /// The peer's key, as TLS proved it.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The peer's address now; it may change under a living connection.
    pub fn remote_address(&self) -> SocketAddr {
        self.line.connection.remote_address()
    }

    /// Opens the control stream: the client's first act. The server sees it when the first message comes.
    pub async fn open_control(&self) -> Result<Control, LinkError> {
        let (send, receive) = self.open("opening the control stream").await?;
        Ok(self.control(send, receive))
    }

    /// Waits for the control stream, as long as the connection lives: a stranger's first bidirectional stream.
    pub async fn accept_control(&self) -> Result<Control, LinkError> {
        let (send, receive) = self.accept("waiting for the control stream").await?;
        Ok(self.control(send, receive))
    }

    fn control(&self, send: SendStream, receive: RecvStream) -> Control {
        // To a stream that was just opened that always succeeds.
        let _ = send.set_priority(CONTROL_PRIORITY);
        Control::new(self.line.clone(), send, receive)
    }

    /// Opens a stream for one step. Waits while the peer allows no more: that is its back-pressure, and lasts at most a step.
    pub async fn open_step(&self) -> Result<StepStream, LinkError> {
        let (send, receive) = self.open("opening a step").await?;
        Ok(self.step(send, receive))
    }

    /// Waits for the peer's next step, as long as the connection lives. Cancel-safe.
    pub async fn accept_step(&self) -> Result<StepStream, LinkError> {
        let (send, receive) = self.accept("waiting for a step").await?;
        Ok(self.step(send, receive))
    }

    fn step(&self, send: SendStream, receive: RecvStream) -> StepStream {
        // To a stream that was just opened that always succeeds.
        let _ = send.set_priority(STEP_PRIORITY);
        StepStream::new(self.line.clone(), send, receive)
    }

    /// Opens a stream for one session of a model that generates. The server sees it when the first record comes. Waits while the server
    /// allows no more, at most as long as a step may take.
    pub async fn open_generate(&self) -> Result<DeviceStream, LinkError> {
        let (send, receive) = self.open("opening a session").await?;
        Ok(DeviceStream::new(self.line.clone(), send, receive))
    }

    /// Waits for the device's next session, as long as the connection lives. Cancel-safe.
    pub async fn accept_generate(&self) -> Result<ServerStream, LinkError> {
        let (send, receive) = self.accept("waiting for a session").await?;
        Ok(ServerStream::new(self.line.clone(), send, receive))
    }

    /// Lets the peer have so many sessions open at once, at most [`SESSION_STREAMS_MAX`], beside its control stream. A connection begins
    /// with what steps need. Unread bytes stay bounded by the connection's window, however many share it.
    pub fn allow_sessions(&self, sessions_max: u32) {
        let streams = sessions_max.min(SESSION_STREAMS_MAX) + 1;
        self.line.connection.set_max_concurrent_bi_streams(streams.into());
    }

    async fn open(&self, during: &'static str) -> Result<(SendStream, RecvStream), LinkError> {
        let line = &self.line;
        let opened = async { line.connection.open_bi().await.map_err(|error| line.place.error(error, during)) };
        line.within(line.config.step_wait, during, opened).await
    }

    async fn accept(&self, during: &'static str) -> Result<(SendStream, RecvStream), LinkError> {
        self.line.connection.accept_bi().await.map_err(|error| self.line.place.error(error, during))
    }

    /// Hands over an adapter, which is sent in the background, on a stream of its own and after everything else.
    ///
    /// Returns at once. An adapter that has not begun to be sent gives way to the next: a peer that is busy gets the newest. An
    /// error is that of the adapter before this one.
    pub async fn send_adapter(&self, frame: &AdapterFrame) -> Result<(), LinkError> {
        self.outbox.offer(&self.line, frame.encode().into())
    }

    /// Waits for the peer's next adapter, as long as the connection lives; once begun, an adapter must come whole. Nothing is
    /// allocated for a header that breaks `limits`.
    ///
    /// Not cancel-safe: an adapter read in part is lost.
    pub async fn recv_adapter(&self, limits: &AdapterLimits) -> Result<AdapterFrame, LinkError> {
        let (line, during) = (&self.line, "reading an adapter");
        let accepted = line.connection.accept_uni().await;
        let mut receive = accepted.map_err(|error| line.place.error(error, "waiting for an adapter"))?;
        let header: [u8; ADAPTER_HEADER_BYTES] = line.read_header(&mut receive, line.config.transfer_wait(0), during).await?;
        let header = AdapterHeader::decode(&header)?;
        header.check(limits)?;
        let manifest = line.read_body(&mut receive, header.manifest_bytes as usize, during).await?;
        // What `check` let pass is far below any usize.
        let payload = line.read_body(&mut receive, header.payload_bytes as usize, during).await?;
        line.read_end(&mut receive, during).await?;
        Ok(AdapterFrame::assemble(&header, &manifest, &payload)?)
    }

    /// What the connection has carried.
    pub fn stats(&self) -> LinkStats {
        let stats = self.line.connection.stats();
        LinkStats {
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            rtt_ms: self.line.connection.rtt().as_secs_f64() * 1e3,
        }
    }

    /// Ends the connection with a reason that the peer reads, and waits until that is on its way. What is still being sent is
    /// thrown away: see [`Control::finish`].
    pub async fn close(&self, reason: &str) {
        self.line.close(close::REASON, reason.as_bytes());
        if let Some(endpoint) = &self.endpoint {
            // Past this wait the peer learns of the end by its idle timeout.
            let _ = tokio::time::timeout(CLOSE_WAIT, endpoint.wait_idle()).await;
        }
    }

    /// Ends the connection because its peer has come back over a newer one.
    pub fn replace(&self) {
        self.line.close(close::REPLACED, b"this key connected again");
    }

    /// Ends the connection at once, as if the network had: its peer may come back over another.
    pub fn break_off(&self) {
        self.line.close(close::BROKEN, b"it was not read from");
    }

    /// Waits until the connection has ended, for whatever reason.
    pub async fn closed(&self) -> LinkError {
        let error = self.line.connection.closed().await;
        self.line.place.error(error, "idle")
    }

    /// The connection itself, for tests that break the rules.
    #[cfg(test)]
    pub(crate) fn raw(&self) -> &quinn::Connection {
        &self.line.connection
    }
}
