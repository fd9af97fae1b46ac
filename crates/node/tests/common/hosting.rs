//! Hosts and devices of split inference in one process, over real sockets.
#![allow(clippy::unwrap_used, dead_code)]

use cutlayer_node::{ComputeConfig, Drafting, Event, EventSink, GeneratorConfig, HostConfig, NodeError, Remote, Stop, host};
use cutlayer_transport::{AllowList, Identity, LinkConfig};
use cutlayer_wire::{CutPoint, Encoding, PeerId};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

pub const CACHE_BYTES: u64 = 64 << 20;

/// A host in this process.
pub struct Hosted {
    pub addr: SocketAddr,
    pub id: PeerId,
    stop: Stop,
    task: JoinHandle<Result<(), NodeError>>,
}

impl Hosted {
    pub async fn end(self) {
        self.stop.trigger();
        self.task.await.unwrap().unwrap();
    }
}

/// Keys of both sides, which know each other.
pub struct Keys {
    pub host: Arc<Identity>,
    pub device: Arc<Identity>,
    folder: tempfile::TempDir,
}

impl Keys {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (host, device) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        AllowList::open(folder.path()).unwrap().allow("device", device.peer_id()).unwrap();
        Self { host: Arc::new(host), device: Arc::new(device), folder }
    }
}

pub fn host_config(model: &Path) -> HostConfig {
    HostConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        model: model.into(),
        compute: ComputeConfig::default(),
        first_block: 0,
        head: true,
        adapters: vec![],
        cache_bytes: CACHE_BYTES,
        sessions_max: 64,
        link: link(),
    }
}

pub fn link() -> LinkConfig {
    LinkConfig { idle_timeout: Duration::from_secs(2), ..LinkConfig::default() }
}

pub async fn start(config: HostConfig, keys: &Keys) -> Hosted {
    let (listening, heard) = tokio::sync::oneshot::channel();
    let listening = Mutex::new(Some(listening));
    let events: EventSink = Arc::new(move |event| {
        if let (Event::Listening { addr, .. }, Some(listening)) = (&event, listening.lock().unwrap().take()) {
            listening.send(addr.parse().unwrap()).unwrap();
        }
    });
    let (stop, allow) = (Stop::new(), Arc::new(AllowList::open(keys.folder.path()).unwrap()));
    let (identity, until) = (keys.host.clone(), stop.clone());
    let task = tokio::spawn(async move { host(config, &identity, allow, events, until).await });
    Hosted { addr: heard.await.unwrap(), id: keys.host.peer_id(), stop, task }
}

pub fn alone(model: &Path) -> GeneratorConfig {
    GeneratorConfig {
        model: model.into(),
        compute: ComputeConfig::default(),
        remote: None,
        adapters: vec![],
        cache_bytes: CACHE_BYTES,
        sessions_max: 64,
        drafting: Drafting::Off,
        name: "device".into(),
    }
}

pub fn split(model: &Path, addr: SocketAddr, id: PeerId, cut: u16, tail: Option<u16>) -> GeneratorConfig {
    let remote = Remote {
        server: addr,
        server_id: id,
        token: None,
        cut: CutPoint(cut),
        tail,
        encoding: Encoding::F32,
        link: link(),
        reconnect: Duration::from_secs(60),
    };
    GeneratorConfig { remote: Some(remote), ..alone(model) }
}
