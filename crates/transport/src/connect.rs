//! The client's side of a handshake: in, or a sentence that says why not.

use crate::closing::Closing;
use crate::config::LinkConfig;
use crate::error::{LinkError, Place};
use crate::identity::{CERTIFICATE_NAME, Identity};
use crate::line::Line;
use crate::link::Link;
use crate::server::GREETING;
use crate::socket;
use crate::tls::{FoundServer, client_config};
use cutlayer_wire::PeerId;
use quinn::{ConnectionError, Endpoint};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Connects to the server at `addr` whose key is `server`; `token` enrols a key that it does not know yet.
pub async fn connect(
    addr: SocketAddr,
    identity: &Identity,
    server: PeerId,
    token: Option<&str>,
    config: &LinkConfig,
) -> Result<Link, LinkError> {
    let token = token.map(str::trim);
    if token.is_some_and(|token| token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        // No server issues such a token, and no certificate can carry it.
        return Err(LinkError::BadToken { addr });
    }
    let own = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let endpoint = socket::open(own, None).map_err(|error| LinkError::Bind { addr: own, reason: error.to_string() })?;
    let found = FoundServer::default();
    let mut tls = client_config(identity, server, token, found.clone())?;
    let closing = Closing::default();
    tls.transport_config(config.transport(closing.clone()));
    let caller = Caller { place: Place { addr, own: identity.peer_id() }, server, found, config, closing };
    let line = tokio::time::timeout(config.handshake_wait, caller.shake_hands(&endpoint, tls)).await;
    let line = line.map_err(|_| caller.unreachable())??;
    Ok(Link::new(Arc::new(line), server, Some(endpoint)))
}

/// A client at a server's door.
struct Caller<'a> {
    place: Place,
    server: PeerId,
    found: FoundServer,
    config: &'a LinkConfig,
    closing: Closing,
}

impl Caller<'_> {
    async fn shake_hands(&self, endpoint: &Endpoint, tls: quinn::ClientConfig) -> Result<Line, LinkError> {
        let (addr, during) = (self.place.addr, "connecting");
        let connecting = endpoint.connect_with(tls, addr, CERTIFICATE_NAME);
        let connecting = connecting.map_err(|error| LinkError::Address { addr, reason: error.to_string() })?;
        let connection = connecting.await.map_err(|error| self.error(error))?;
        let line = Line { connection, place: self.place, config: self.config.clone(), closing: self.closing.clone() };
        // In TLS 1.3 a client is done before the server has judged its certificate: only this says that we are in.
        let mut greeting = line.connection.accept_uni().await.map_err(|error| self.error(error))?;
        let bytes: [u8; GREETING.len()] = line.read_header(&mut greeting, self.config.handshake_wait, during).await?;
        line.read_end(&mut greeting, during).await?;
        if &bytes == GREETING { Ok(line) } else { Err(LinkError::Protocol { addr }) }
    }

    fn error(&self, error: ConnectionError) -> LinkError {
        if let Some(found) = self.found.get() {
            return LinkError::WrongServer { addr: self.place.addr, found: *found, expected: self.server };
        }
        match error {
            ConnectionError::TimedOut => self.unreachable(),
            other => self.place.error(other, "connecting"),
        }
    }

    fn unreachable(&self) -> LinkError {
        let waited = self.config.handshake_wait.min(self.config.idle_timeout);
        LinkError::Unreachable { addr: self.place.addr, seconds: waited.as_secs_f64() }
    }
}
