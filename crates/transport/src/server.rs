//! The listening side: handshakes apart from each other, tokens redeemed, peers thrown out when they are revoked.

use crate::allow_list::{AllowList, Verdict};
use crate::closing::Closing;
use crate::config::LinkConfig;
use crate::error::{LinkError, Place, close};
use crate::identity::Identity;
use crate::line::Line;
use crate::link::{CLOSE_WAIT, Link};
use crate::socket;
use crate::tls::{Judged, Judgement, ServerTls, read_certificate};
use cutlayer_wire::PeerId;
use quinn::{Connection, Endpoint, Incoming};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// What a server sends first, on a stream of its own, to a client that is in: one whose key is refused learns of it instead.
pub(crate) const GREETING: &[u8; 8] = b"cutlayer";
/// Links and refusals that may wait to be taken.
const ACCEPTED_MAX: usize = 256;
/// Handshakes under way at once; a client beyond them is told to come back.
const HANDSHAKES_MAX: usize = 128;
/// Handshakes under way from which on a stranger must first prove its address, at the price of a round trip.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;
/// Connections at once; a client beyond them is told to come back.
const CONNECTIONS_MAX: usize = 4096;
/// What peers are told when a server ends.
const ENDED: &[u8] = b"the server has ended";
/// How often the list is looked at for peers that were thrown out.
const REVOCATION_CHECK: Duration = Duration::from_secs(1);

const _: () = assert!(HANDSHAKES_UNPROVEN_MAX < HANDSHAKES_MAX && HANDSHAKES_MAX < CONNECTIONS_MAX);

/// A socket that accepts the peers on a list. Dropping it closes the socket and all its connections.
pub struct Server {
    endpoint: Endpoint,
    local: SocketAddr,
    accepted: mpsc::Receiver<Result<Link, LinkError>>,
    live: Live,
    tasks: [JoinHandle<()>; 2],
}

impl Server {
    /// Listens at `addr` for the peers on `allow`. Must be called in a tokio runtime.
    pub fn bind(addr: SocketAddr, identity: &Identity, allow: Arc<AllowList>, config: &LinkConfig) -> Result<Self, LinkError> {
        let tls = ServerTls::new(identity, allow.clone())?;
        let mut base = quinn::ServerConfig::with_crypto(tls.config(Judgement::default())?);
        base.transport_config(config.transport(Closing::default()));
        // A phone that leaves the house keeps its connection and the step under way: the new address must answer a challenge first, and
        // the key is still the same. quinn's default, said here because a run depends on it.
        base.migration(true);
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrInUse => LinkError::AddressInUse { addr },
            _ => LinkError::Bind { addr, reason: error.to_string() },
        };
        let endpoint = socket::open(addr, Some((base.clone(), identity.secret()))).map_err(failed)?;
        let local = endpoint.local_addr().map_err(failed)?;
        let (links, accepted) = mpsc::channel(ACCEPTED_MAX);
        let live = Live::default();
        let (handshakes, config) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), config.clone());
        let door = Door { own: identity.peer_id(), tls, base, allow: allow.clone(), config, links, live: live.clone(), handshakes };
        let tasks = [tokio::spawn(Arc::new(door).stand_open(endpoint.clone())), tokio::spawn(watch(allow, live.clone()))];
        Ok(Self { endpoint, local, accepted, live, tasks })
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
        self.shut();
        // Past this wait peers learn of the end by their idle timeout.
        let _ = tokio::time::timeout(CLOSE_WAIT, self.endpoint.wait_idle()).await;
    }

    fn shut(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.live.close_all(ENDED);
        // Those that are still in their handshakes.
        self.endpoint.close(close::REASON, ENDED);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut();
    }
}

/// The connections that are in, for as long as somebody uses them.
#[derive(Clone, Default)]
struct Live(Arc<Mutex<Lines>>);

/// Peers and their connections, as long as these live.
type Lines = Vec<(PeerId, Weak<Line>)>;

impl Live {
    fn add(&self, peer: PeerId, line: &Arc<Line>) {
        self.0.lock().expect("no holder of this lock panics").push((peer, Arc::downgrade(line)));
    }

    fn close_all(&self, reason: &[u8]) {
        for (_, line) in self.0.lock().expect("no holder of this lock panics").drain(..) {
            if let Some(line) = line.upgrade() {
                line.close(close::REASON, reason);
            }
        }
    }

    /// Closes the connections of peers that may not stay, and forgets those that have ended.
    fn sweep(&self, allow: &AllowList) {
        self.0.lock().expect("no holder of this lock panics").retain(|(peer, line)| match line.upgrade() {
            Some(line) if allow.is_allowed(peer) => line.connection.close_reason().is_none(),
            Some(line) => {
                line.close(close::REVOKED, b"this key was revoked");
                false
            }
            None => false,
        });
    }
}

async fn watch(allow: Arc<AllowList>, live: Live) {
    loop {
        tokio::time::sleep(REVOCATION_CHECK).await;
        live.sweep(&allow);
    }
}

/// What a handshake needs.
struct Door {
    own: PeerId,
    tls: ServerTls,
    base: quinn::ServerConfig,
    allow: Arc<AllowList>,
    config: LinkConfig,
    links: mpsc::Sender<Result<Link, LinkError>>,
    live: Live,
    handshakes: Arc<Semaphore>,
}

impl Door {
    async fn stand_open(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let under_way = HANDSHAKES_MAX - self.handshakes.available_permits();
            if under_way >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() && !incoming.remote_address_validated() {
                // A stranger that cannot answer at its own address costs us one packet. Retrying what may be retried cannot fail.
                let _ = incoming.retry();
                continue;
            }
            let permit = self.handshakes.clone().try_acquire_owned();
            let Ok(permit) = permit else {
                incoming.refuse();
                continue;
            };
            if endpoint.open_connections() >= CONNECTIONS_MAX {
                incoming.refuse();
                continue;
            }
            let door = self.clone();
            tokio::spawn(async move {
                let outcome = door.receive(incoming).await;
                drop(permit);
                door.announce(outcome).await;
            });
        }
    }

    /// Passes on who came. A flood of refusals is not worth waiting for: the overflow is only logged.
    async fn announce(&self, outcome: Result<Link, LinkError>) {
        let full = match outcome {
            // Fails only where the server is gone, and with it whoever took links.
            Ok(link) => return drop(self.links.send(Ok(link)).await),
            Err(error) => self.links.try_send(Err(error)),
        };
        if let Err(mpsc::error::TrySendError::Full(Err(error))) = full {
            tracing::warn!("{error}");
        }
    }

    /// One handshake.
    async fn receive(&self, incoming: Incoming) -> Result<Link, LinkError> {
        let (addr, judgement) = (incoming.remote_address(), Judgement::default());
        let refused = |reason: String| match judgement.get() {
            Some(judged) => judged.refusal(addr, reason),
            None => LinkError::Refused { addr, key: None, reason },
        };
        let outcome = tokio::time::timeout(self.config.handshake_wait, self.shake_hands(incoming, &judgement)).await;
        outcome.unwrap_or_else(|_| Err("its handshake took too long".into())).map_err(refused)
    }

    async fn shake_hands(&self, incoming: Incoming, judgement: &Judgement) -> Result<Link, String> {
        let (mut config, closing) = (self.base.clone(), Closing::default());
        config.transport_config(self.config.transport(closing.clone()));
        config.crypto = self.tls.config(judgement.clone()).map_err(|error| error.to_string())?;
        let failed = |error: quinn::ConnectionError| format!("its handshake failed: {error}");
        let connection = incoming.accept_with(Arc::new(config)).map_err(failed)?.await.map_err(failed)?;
        let (peer, token) = peer_of(&connection).ok_or("it has no ed25519 certificate")?;
        if let Some(token) = token {
            self.redeem(&connection, peer, token).await?;
        }
        let mut greeting = connection.open_uni().await.map_err(failed)?;
        greeting.write_all(GREETING).await.map_err(|error| error.to_string())?;
        // Finishing a stream that was not finished cannot fail.
        let _ = greeting.finish();
        let place = Place { addr: connection.remote_address(), own: self.own };
        let line = Arc::new(Line { connection, place, config: self.config.clone(), closing });
        self.live.add(peer, &line);
        Ok(Link::new(line, peer, None))
    }

    /// Spends the token of a peer that has by now proved to hold its key; one that is enrolled keeps coming with it.
    async fn redeem(&self, connection: &Connection, peer: PeerId, token: String) -> Result<(), String> {
        let allow = self.allow.clone();
        // The file is synced to disk: not on a thread that serves others.
        let outcome = tokio::task::spawn_blocking(move || match allow.judge(&peer, None) {
            Verdict::Enrolled => Ok(true),
            _ => allow.redeem(&token, peer),
        });
        match outcome.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                connection.close(close::BAD_TOKEN, b"this token was used by another key");
                Err("its token was used by another key at the same moment".into())
            }
            Ok(Err(error)) => {
                connection.close(close::REASON, b"the server could not write its list of keys; tell its operator");
                Err(format!("it could not be enrolled: {error}"))
            }
            Err(error) => Err(format!("it could not be enrolled: {error}")),
        }
    }
}

impl Judged {
    /// Why a handshake failed, and what the operator can do about it.
    fn refusal(self, addr: SocketAddr, otherwise: String) -> LinkError {
        let (key, hex) = (self.peer, self.peer.to_hex());
        let reason = match self.verdict {
            Verdict::Unknown => format!("its key {key} is not enrolled; `cutlayer keys enrol NAME --key {hex}` lets it in"),
            Verdict::Revoked => format!("its key {key} was revoked; `cutlayer keys enrol NAME --key {hex}` lets it in again"),
            Verdict::BadToken => format!(
                "the token of key {key} was used before, is too old, or was never issued; `cutlayer keys token NAME` makes a new one"
            ),
            Verdict::Enrolled | Verdict::WithToken => otherwise,
        };
        LinkError::Refused { addr, key: Some(key), reason }
    }
}

fn peer_of(connection: &Connection) -> Option<(PeerId, Option<String>)> {
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    read_certificate(certificates.first()?)
}
