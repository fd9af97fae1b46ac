//! Two peers and real UDP sockets on loopback.

mod doors;
mod emulated;
mod generate;
mod hostile;
mod restart;
mod revocation;
mod tokens;
mod traffic;

use crate::*;
use cutlayer_wire::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub const ROUND: RoundId = RoundId(3);
pub const HIDDEN: u32 = 64;
/// Whatever a test waits for comes well within this.
pub const SOON: Duration = Duration::from_secs(20);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server, and the folder of its list.
pub struct House {
    pub folder: TempDir,
    pub identity: Identity,
    pub allow: Arc<AllowList>,
    pub server: Server,
    pub addr: SocketAddr,
}

/// Patience for tests: dead peers are noticed within a second or two.
pub fn config() -> LinkConfig {
    LinkConfig {
        idle_timeout: Duration::from_millis(1500),
        handshake_wait: Duration::from_secs(5),
        step_wait: Duration::from_secs(5),
        ..LinkConfig::default()
    }
}

pub fn identity() -> Identity {
    Identity::generate().expect("randomness")
}

impl House {
    pub fn open() -> Self {
        Self::open_with(&config())
    }

    pub fn open_with(config: &LinkConfig) -> Self {
        let (folder, identity) = (tempfile::tempdir().expect("a temporary folder"), identity());
        let allow = Arc::new(AllowList::open(folder.path()).expect("an empty list"));
        let server = Server::bind(LOOPBACK, &identity, allow.clone(), config).expect("a free port");
        let addr = server.local_addr();
        Self { folder, identity, allow, server, addr }
    }

    pub fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// A list of the same folder in another process, as `cutlayer keys` has it.
    pub fn operator(&self) -> AllowList {
        AllowList::open(self.folder.path()).expect("the server's list")
    }

    /// A client that is enrolled.
    pub fn enrol(&self, name: &str) -> Identity {
        let client = identity();
        self.allow.allow(name, client.peer_id()).expect("a free name");
        client
    }

    pub async fn call(&self, client: &Identity, token: Option<&str>) -> Result<Link, LinkError> {
        connect(self.addr, client, self.id(), token, &config()).await
    }

    /// Both ends of a connection: the client's, the server's.
    pub async fn connected(&mut self) -> (Link, Link) {
        let client = self.enrol(&format!("client-{}", self.allow.entries().len()));
        let client = self.call(&client, None).await.expect("it is enrolled");
        let server = self.server.accept().await.expect("the same connection");
        (client, server)
    }

    /// What the server says of a caller that it turned away, and what that caller is told.
    pub async fn turned_away(&mut self, client: &Identity, token: Option<&str>) -> (LinkError, String) {
        let told = self.call(client, token).await.expect_err("it is not to be let in");
        (told, soon(self.server.accept()).await.expect_err("the same caller").to_string())
    }
}

/// `work`, which ends soon.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("soon")
}

pub fn limits(tokens_max: u32) -> FrameLimits {
    FrameLimits::new(HIDDEN, tokens_max, tokens_max)
}

/// A step of `tokens` tokens in sequences of 64, each byte told from its neighbours.
pub fn frame(tokens: u32) -> Frame {
    let payload: Vec<u8> = (0..tokens * HIDDEN * 4).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let lengths = vec![64; tokens as usize / 64];
    let labels = (0..tokens as i32).collect();
    Frame::forward(StepId(7), ROUND, FrameFlags::TRAIN, Encoding::F32, HIDDEN, lengths, labels, payload)
}

/// An adapter of `values` values.
pub fn adapter(round: RoundId, values: usize) -> AdapterFrame {
    let values: Vec<f32> = (0..values).map(|index| index as f32).collect();
    let tensor = HostTensor::new(vec![values.len()], values).expect("one axis");
    AdapterFrame::new(round, 12.0, &BaseHash([5; 32]), [("lora_A.weight".to_string(), tensor)].into())
}
