//! One authenticated connection: streams for control, steps and adapters.

use crate::config::LinkConfig;
use crate::error::{LinkError, Place};
use crate::identity::Identity;
use crate::stream::{Control, ControlReceiver, ControlSender, StepStream, read_body, read_exactly};
use crate::tls::client_config;
use cutlayer_wire::{ADAPTER_HEADER_BYTES, AdapterFrame, AdapterHeader, AdapterLimits, PeerId};
use quinn::{Connection, Endpoint, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What a server sends first on a stream of its own, once the client is in: a client whose key is refused learns it here.
pub(crate) const GREETING: &[u8; 8] = b"cutlayer";
/// Steps go before adapters where both have something to send.
const STEP_PRIORITY: i32 = 1;
/// How long the last words may take to arrive when a link closes.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

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

/// An authenticated connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Link {
    connection: Connection,
    peer: PeerId,
    place: Arc<Place>,
    step_wait: Duration,
    /// A client's endpoint lives as long as its link.
    endpoint: Option<Endpoint>,
}

/// Connects to the server at `addr` whose key is `server`; `token` enrols a key that it does not know yet.
pub async fn connect(
    addr: SocketAddr,
    identity: &Identity,
    server: PeerId,
    token: Option<&str>,
    config: &LinkConfig,
) -> Result<Link, LinkError> {
    let place = Place { addr, own: identity.peer_id(), pinned: Some(server) };
    let any: SocketAddr = if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let bind = |error: std::io::Error| LinkError::Bind { addr: any, reason: error.to_string() };
    let endpoint = Endpoint::client(any).map_err(bind)?;
    let mut client = client_config(identity, server, token)?;
    client.transport_config(config.transport());
    let unreachable = || LinkError::Unreachable { addr, seconds: config.handshake_wait.as_secs() };
    let connecting = endpoint
        .connect_with(client, addr, crate::identity::CERTIFICATE_NAME)
        .map_err(|error| LinkError::Lost { addr, during: "connecting", reason: error.to_string() })?;
    let greeted = async {
        let connection = connecting.await.map_err(|error| match error {
            quinn::ConnectionError::TimedOut => unreachable(),
            other => place.error(other, "connecting"),
        })?;
        let mut greeting = connection.accept_uni().await.map_err(|error| place.error(error, "connecting"))?;
        let mut bytes = [0; GREETING.len()];
        read_exactly(&mut greeting, &mut bytes, "greeting", &place, &connection).await?;
        if &bytes == GREETING { Ok(connection) } else { Err(LinkError::Protocol { addr }) }
    };
    let connection = tokio::time::timeout(config.handshake_wait, greeted).await.map_err(|_| unreachable())??;
    Ok(Link { connection, peer: server, place: Arc::new(place), step_wait: config.step_wait, endpoint: Some(endpoint) })
}

impl Link {
    pub(crate) fn accepted(connection: Connection, peer: PeerId, own: PeerId, config: &LinkConfig) -> Self {
        let place = Place { addr: connection.remote_address(), own, pinned: None };
        Self { connection, peer, place: Arc::new(place), step_wait: config.step_wait, endpoint: None }
    }

    /// The peer's key, as TLS proved it.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// The peer's address now; it may change under a living connection.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Opens the control stream: the client's first act.
    pub async fn open_control(&self) -> Result<Control, LinkError> {
        let (send, receive) = self.connection.open_bi().await.map_err(|error| self.place.error(error, "opening the control stream"))?;
        Ok(self.control(send, receive))
    }

    /// Waits for the control stream.
    pub async fn accept_control(&self) -> Result<Control, LinkError> {
        let (send, receive) = self.connection.accept_bi().await.map_err(|error| self.place.error(error, "waiting for the control stream"))?;
        Ok(self.control(send, receive))
    }

    fn control(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> Control {
        // Control goes before everything else; to a stream of ours that always succeeds.
        let _ = send.set_priority(STEP_PRIORITY + 1);
        let (connection, place) = (self.connection.clone(), self.place.clone());
        Control {
            sender: ControlSender { send, connection: connection.clone(), place: place.clone() },
            receiver: ControlReceiver { receive, connection, place },
        }
    }

    /// Opens a stream for one step. Waits while the peer allows no more: that is its back-pressure.
    pub async fn open_step(&self) -> Result<StepStream, LinkError> {
        let (send, receive) = self.connection.open_bi().await.map_err(|error| self.place.error(error, "opening a step"))?;
        Ok(self.step(send, receive))
    }

    /// Waits for the peer's next step.
    pub async fn accept_step(&self) -> Result<StepStream, LinkError> {
        let (send, receive) = self.connection.accept_bi().await.map_err(|error| self.place.error(error, "waiting for a step"))?;
        Ok(self.step(send, receive))
    }

    fn step(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> StepStream {
        let _ = send.set_priority(STEP_PRIORITY);
        StepStream { send, receive, connection: self.connection.clone(), place: self.place.clone(), wait: self.step_wait }
    }

    /// Sends an adapter on a stream of its own, and waits until the peer has it.
    pub async fn send_adapter(&self, frame: &AdapterFrame) -> Result<(), LinkError> {
        let during = "sending an adapter";
        let mut send = self.connection.open_uni().await.map_err(|error| self.place.error(error, during))?;
        let written = send.write_all(&frame.encode()).await;
        written.map_err(|error| self.place.write_error(error, during, &self.connection))?;
        // Finishing a stream that was not finished cannot fail.
        let _ = send.finish();
        match tokio::time::timeout(self.step_wait, send.stopped()).await {
            Err(_) => Err(LinkError::TimedOut { addr: self.place.addr, during, seconds: self.step_wait.as_secs() }),
            Ok(_) => Ok(()),
        }
    }

    /// Waits for the peer's next adapter; its header is checked against `limits` before anything is allocated.
    pub async fn recv_adapter(&self, limits: &AdapterLimits) -> Result<AdapterFrame, LinkError> {
        let mut receive = self.connection.accept_uni().await.map_err(|error| self.place.error(error, "waiting for an adapter"))?;
        let mut header = [0; ADAPTER_HEADER_BYTES];
        read_exactly(&mut receive, &mut header, "an adapter's header", &self.place, &self.connection).await?;
        let header = AdapterHeader::decode(&header)?;
        header.check(limits)?;
        let manifest = read_body(&mut receive, header.manifest_bytes as usize, "an adapter's manifest", &self.place, &self.connection).await?;
        let payload = read_body(&mut receive, header.payload_bytes as usize, "an adapter", &self.place, &self.connection).await?;
        Ok(AdapterFrame::assemble(&header, &manifest, &payload)?)
    }

    /// What the connection has carried.
    pub fn stats(&self) -> LinkStats {
        let stats = self.connection.stats();
        LinkStats {
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            rtt_ms: self.connection.rtt().as_secs_f64() * 1e3,
        }
    }

    /// Ends the connection with a reason that the peer reads, and waits until that is on its way.
    pub async fn close(&self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
        if let Some(endpoint) = &self.endpoint {
            // Past this wait the peer learns of the end by its idle timeout.
            let _ = tokio::time::timeout(CLOSE_WAIT, endpoint.wait_idle()).await;
        }
    }

    /// Waits until the connection has ended, for whatever reason.
    pub async fn closed(&self) -> LinkError {
        let error = self.connection.closed().await;
        self.place.error(error, "idle")
    }
}
