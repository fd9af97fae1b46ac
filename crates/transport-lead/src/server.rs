//! The listening side: handshakes apart from each other, tokens redeemed, revoked peers thrown out.

use crate::allow_list::AllowList;
use crate::config::LinkConfig;
use crate::error::LinkError;
use crate::identity::Identity;
use crate::link::{GREETING, Link};
use crate::tls::{read_certificate, server_config};
use cutlayer_wire::PeerId;
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Links and failures that may wait to be taken.
const ACCEPTED_MAX: usize = 256;
/// Handshakes under way at once; beyond them a stranger must first prove its address.
const HANDSHAKES_MAX: usize = 128;
/// How often the list is looked at for peers that were thrown out.
const REVOCATION_CHECK: Duration = Duration::from_secs(1);
/// How long goodbyes may take when the server ends.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A socket that accepts the peers on a list.
pub struct Server {
    endpoint: Endpoint,
    local: SocketAddr,
    accepted: mpsc::Receiver<Result<Link, LinkError>>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens at `addr` for the peers on `allow`. Must be called in a tokio runtime.
    pub fn bind(addr: SocketAddr, identity: &Identity, allow: Arc<AllowList>, config: &LinkConfig) -> Result<Self, LinkError> {
        let mut server = server_config(identity, allow.clone())?;
        server.transport_config(config.transport());
        let endpoint = Endpoint::server(server, addr).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => LinkError::AddressInUse { addr },
            _ => LinkError::Bind { addr, reason: error.to_string() },
        })?;
        let local = endpoint.local_addr().map_err(|error| LinkError::Bind { addr, reason: error.to_string() })?;
        let (links, accepted) = mpsc::channel(ACCEPTED_MAX);
        let door = Door { own: identity.peer_id(), allow, config: config.clone(), links };
        let accepting = tokio::spawn(door.stand_open(endpoint.clone()));
        Ok(Self { endpoint, local, accepted, accepting })
    }

    /// Where it listens; the port is real even if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits for the next peer that is let in, or for the next one that is not. Cancel-safe.
    pub async fn accept(&mut self) -> Result<Link, LinkError> {
        match self.accepted.recv().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }

    /// Closes every connection and waits a moment for the goodbyes.
    pub async fn close(self) {
        self.accepting.abort();
        self.endpoint.close(VarInt::from_u32(0), b"the server has ended");
        // Past this wait peers learn of the end by their idle timeout.
        let _ = tokio::time::timeout(CLOSE_WAIT, self.endpoint.wait_idle()).await;
    }
}

/// What a handshake needs.
#[derive(Clone)]
struct Door {
    own: PeerId,
    allow: Arc<AllowList>,
    config: LinkConfig,
    links: mpsc::Sender<Result<Link, LinkError>>,
}

impl Door {
    async fn stand_open(self, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            if endpoint.open_connections() > HANDSHAKES_MAX && !incoming.remote_address_validated() && incoming.may_retry() {
                // A stranger that cannot answer at its own address costs us one packet.
                let _ = incoming.retry();
                continue;
            }
            let door = self.clone();
            tokio::spawn(async move {
                if let Some(outcome) = door.receive(incoming).await {
                    // Nobody takes links any more when the server is gone.
                    let _ = door.links.send(outcome).await;
                }
            });
        }
    }

    /// One handshake. `None` for one that was given up quietly.
    async fn receive(&self, incoming: Incoming) -> Option<Result<Link, LinkError>> {
        let addr = incoming.remote_address();
        let refused = |reason: String| LinkError::Lost { addr, during: "its handshake", reason };
        let connection = match tokio::time::timeout(self.config.handshake_wait, incoming).await {
            Err(_) => return Some(Err(refused("it took too long".into()))),
            Ok(Err(error)) => return Some(Err(refused(error.to_string()))),
            Ok(Ok(connection)) => connection,
        };
        Some(self.admit(connection).await.map_err(refused))
    }

    /// Redeems a token where there is one, and greets.
    async fn admit(&self, connection: Connection) -> Result<Link, String> {
        let (peer, token) = peer_of(&connection).ok_or("it has no ed25519 certificate")?;
        if let Some(token) = token
            && self.allow.position(&peer).is_none()
            && !self.allow.redeem(&token, peer).map_err(|error| error.to_string())?
        {
            connection.close(VarInt::from_u32(0), b"this token was used by another key");
            return Err("its token was used by another key".into());
        }
        let mut greeting = connection.open_uni().await.map_err(|error| error.to_string())?;
        greeting.write_all(GREETING).await.map_err(|error| error.to_string())?;
        // Finishing a stream that was not finished cannot fail.
        let _ = greeting.finish();
        tokio::spawn(watch(connection.clone(), peer, self.allow.clone()));
        Ok(Link::accepted(connection, peer, self.own, &self.config))
    }
}

/// Closes the connection of a peer that is thrown out while it is in.
async fn watch(connection: Connection, peer: PeerId, allow: Arc<AllowList>) {
    loop {
        tokio::select! {
            _ = connection.closed() => return,
            () = tokio::time::sleep(REVOCATION_CHECK) => {}
        }
        if !allow.is_allowed(&peer) {
            connection.close(VarInt::from_u32(1), b"this key was revoked: ask the server's operator why, or to enrol it again");
        }
    }
}

fn peer_of(connection: &Connection) -> Option<(PeerId, Option<String>)> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    read_certificate(certificates.first()?)
}
