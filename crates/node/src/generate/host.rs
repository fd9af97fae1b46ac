//! The edge server of split inference: takes hidden states at the cut from many devices, and gives tokens, or hidden states in a U-shape.
//!
//! A connection is a device, each stream on it a sequence. All sequences share one worker, whatever their adapter and their cut.

use super::adapters::{NamedAdapter, lay};
use super::pages_of;
use super::sequences::WorkerConfig;
use super::worker::{Came, Counts, Job, Leaving, Opening, Outcome, Seat, Work, Worker, ended};
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::stop::Stop;
use cutlayer_generation::History;
use cutlayer_model::spec::{HeadSpec, ModelSpec};
use cutlayer_model::{LaidAdapter, ModelFolder, Parts, page_bytes, read_spec};
use cutlayer_transport::{AllowList, Control, GenerateReceiver, GenerateSender, Identity, Link, LinkConfig, Server, ServerStream};
use cutlayer_wire::{
    BaseHash, DeviceRecord, Encoding, FailureCode, Message, Open, POSITIONS_MAX, PROTOCOL_VERSION, PeerId, RecordLimits, RefusalCode,
    RowsRecord, ServerRecord, Wanted, shorten_reason,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How long a device may take to introduce itself.
const HELLO_WAIT: Duration = Duration::from_secs(30);
/// Answers of one sequence under way: chunks of a prompt come while the ones before are computed.
const UNDER_WAY_MAX: usize = 4;

/// Everything a host needs.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Address to listen at.
    pub listen: SocketAddr,
    /// Folder of the base model.
    pub model: PathBuf,
    /// Where and how this side computes.
    pub compute: ComputeConfig,
    /// Lowest block to hold: devices may not cut below it.
    pub first_block: u16,
    /// Whether to hold the head: without it only U-shaped devices are served.
    pub head: bool,
    /// Adapters that devices may ask for.
    pub adapters: Vec<NamedAdapter>,
    /// Bytes for the keys and values of all sequences.
    pub cache_bytes: u64,
    /// Sequences open at once.
    pub sessions_max: u32,
    /// The network.
    pub link: LinkConfig,
}

/// What every connection sees of the host.
struct Hub {
    base: BaseHash,
    spec: ModelSpec,
    first_block: usize,
    head: bool,
    adapters: BTreeMap<String, LaidAdapter>,
    sessions_max: u32,
    /// Drawn at each start: what a device knew of the cache before is void.
    start: u64,
    worker: Worker,
    events: EventSink,
}

/// A look at a host's work from outside; nothing until its model is loaded.
#[derive(Clone, Debug, Default)]
pub struct HostWatch(Arc<OnceLock<Arc<Counts>>>);

impl HostWatch {
    /// What the host has computed so far.
    pub fn work(&self) -> Work {
        self.0.get().map_or_else(Work::default, |counts| counts.work())
    }
}

/// Serves until `stop` is raised.
pub async fn host(config: HostConfig, identity: &Identity, allow: Arc<AllowList>, events: EventSink, stop: Stop) -> Result<(), NodeError> {
    host_watched(config, identity, allow, events, stop, &HostWatch::default()).await
}

/// As [`host`], for `watch` to see.
pub async fn host_watched(
    config: HostConfig,
    identity: &Identity,
    allow: Arc<AllowList>,
    events: EventSink,
    stop: Stop,
    watch: &HostWatch,
) -> Result<(), NodeError> {
    let link = config.link.clone();
    let listen = config.listen;
    let prepared = tokio::task::spawn_blocking({
        let events = events.clone();
        move || Hub::load(config, events)
    });
    let hub = prepared.await.map_err(|_| NodeError::Panicked { during: "loading the model".into() })??;
    let hub = Arc::new(hub);
    // One that watches two hosts sees the first.
    let _ = watch.0.set(hub.worker.counts().clone());
    let mut server = Server::bind(listen, identity, allow, &link)?;
    let (addr, peer_id) = (server.local_addr().to_string(), identity.peer_id().to_hex());
    events(Event::Listening { addr, peer_id });
    let mut devices = JoinSet::new();
    loop {
        tokio::select! {
            accepted = server.accept() => match accepted {
                Ok(link) => {
                    devices.spawn(serve_device(hub.clone(), link));
                }
                Err(error) => tracing::warn!("not let in: {error}"),
            },
            Some(ended) = devices.join_next() => {
                if let Err(error) = ended {
                    tracing::error!("a device's connection ended by a mistake of ours: {error}");
                }
            }
            () = stop.triggered() => break,
        }
    }
    devices.shutdown().await;
    server.close().await;
    Ok(())
}

impl Hub {
    fn load(config: HostConfig, events: EventSink) -> Result<Self, NodeError> {
        let folder = ModelFolder::open(&config.model)?;
        let spec = read_spec(&folder)?;
        let first_block = usize::from(config.first_block);
        if first_block > spec.blocks {
            return Err(NodeError::Cut { cut: config.first_block, tail: 0, blocks: spec.blocks });
        }
        let device = config.compute.device.open()?;
        // A classifier's head is trained with it; an encoder is served without.
        let head = config.head && matches!(spec.head, HeadSpec::LanguageModel { .. });
        let parts = Parts { embedding: false, blocks: (first_block..spec.blocks).collect(), head };
        let frozen = config.compute.load(&folder, &parts, 0, &device)?;
        let blocks = first_block..spec.blocks;
        let adapters = lay(&config.adapters, &frozen, blocks.clone())?;
        let pages = pages_of(config.cache_bytes, page_bytes(&frozen, blocks.len()));
        let sequences_max = config.sessions_max as usize;
        let worker = Worker::start("host", WorkerConfig { frozen, blocks, pages, sequences_max }).map_err(NodeError::Thread)?;
        let base = folder.base_hash()?;
        let (sessions_max, start) = (config.sessions_max, rand::random());
        Ok(Self { base, spec, first_block, head, adapters, sessions_max, start, worker, events })
    }

    /// What is wrong with a device's first word; else what its sequences have in common.
    fn judge(&self, hello: &Message, peer: PeerId) -> Result<Device, (RefusalCode, String)> {
        let Message::HelloGenerate { version, base, blocks, hidden, cut, tail, encoding, .. } = hello else {
            let reason = "this server generates, it does not train: use `cutlayer generate`, `chat` or `api`, or join a training server";
            return Err((RefusalCode::Purpose, reason.into()));
        };
        if *version != PROTOCOL_VERSION {
            let reason = format!("this server speaks protocol {PROTOCOL_VERSION}, the device {version}; update the older of the two");
            return Err((RefusalCode::Version, reason));
        }
        if (*base, usize::from(*blocks), *hidden as usize) != (self.base, self.spec.blocks, self.spec.hidden) {
            let reason = format!(
                "the device's base model is {base} ({blocks} blocks of {hidden}), the server's is {}; use the server's model folder",
                self.base
            );
            return Err((RefusalCode::BaseModel, reason));
        }
        let (from, tail_blocks) = (usize::from(cut.0), usize::from(tail.unwrap_or(0)));
        if from < self.first_block || from + tail_blocks > self.spec.blocks {
            let (first, all) = (self.first_block, self.spec.blocks);
            let reason = format!("cut {cut} with {tail_blocks} blocks at the end does not fit: this server holds blocks {first}..{all}");
            return Err((RefusalCode::Cut, reason));
        }
        if tail.is_none() && !self.head {
            let reason = "this server holds no head: keep the end of the model on the device (--tail 0 or more)";
            return Err((RefusalCode::Cut, reason.into()));
        }
        let suits = encoding.check_columns(*hidden).and_then(|()| encoding.check_generates());
        suits.map_err(|error| (RefusalCode::Encoding, error.to_string()))?;
        let blocks = from..self.spec.blocks - tail_blocks;
        Ok(Device { peer, blocks, draws: tail.is_none(), encoding: *encoding })
    }
}

/// What the sequences of one connection have in common.
#[derive(Clone)]
struct Device {
    peer: PeerId,
    blocks: Range<usize>,
    /// Whether tokens are drawn here.
    draws: bool,
    encoding: Encoding,
}

async fn serve_device(hub: Arc<Hub>, link: Link) {
    let peer = link.peer().to_hex();
    let ended = match greet(&hub, &link).await {
        Ok(Some((device, control, name))) => {
            (hub.events)(Event::DeviceJoined { peer: peer.clone(), name });
            attend(&hub, &link, device, control).await
        }
        Ok(None) => return,
        Err(error) => error,
    };
    tracing::debug!("{peer} left: {ended}");
    (hub.events)(Event::DeviceLeft { peer, reason: ended.to_string() });
}

/// Hello and its answer. `None` where the device was refused, and told why.
async fn greet(hub: &Hub, link: &Link) -> Result<Option<(Device, Control, String)>, NodeError> {
    let introduced = async {
        let mut control = link.accept_control().await?;
        let hello = control.recv().await?;
        Ok::<_, NodeError>((control, hello))
    };
    let silent = || NodeError::Ended { reason: format!("it did not say hello within {} s", HELLO_WAIT.as_secs()) };
    let (mut control, hello) = tokio::time::timeout(HELLO_WAIT, introduced).await.map_err(|_| silent())??;
    match hub.judge(&hello, link.peer()) {
        Ok(device) => {
            let adapters = hub.adapters.keys().cloned().collect();
            link.allow_sessions(hub.sessions_max);
            let positions_max = positions_max(&hub.spec);
            control.send(&Message::WelcomeGenerate { start: hub.start, adapters, positions_max, sessions_max: hub.sessions_max }).await?;
            let Message::HelloGenerate { name, .. } = hello else { unreachable!("judged above") };
            Ok(Some((device, control, name)))
        }
        Err((code, reason)) => {
            (hub.events)(Event::Refused { peer: link.peer().to_hex(), reason: reason.clone() });
            control.send(&Message::Refused { code, reason: shorten_reason(&reason).into() }).await?;
            control.finish().await;
            link.close(&reason).await;
            Ok(None)
        }
    }
}

/// Serves a device's sequences until it goes.
async fn attend(hub: &Arc<Hub>, link: &Link, device: Device, mut control: Control) -> NodeError {
    let mut sequences = JoinSet::new();
    loop {
        tokio::select! {
            accepted = link.accept_generate() => match accepted {
                Ok(stream) => {
                    sequences.spawn(serve_sequence(hub.clone(), device.clone(), stream));
                }
                Err(error) => return error.into(),
            },
            said = control.recv() => match said {
                Ok(Message::Goodbye { reason }) => return NodeError::Ended { reason },
                Ok(other) => return NodeError::Ended { reason: format!("it said {}, which means nothing here", other.name()) },
                Err(error) => return error.into(),
            },
            Some(_) = sequences.join_next() => {}
        }
    }
}

async fn serve_sequence(hub: Arc<Hub>, device: Device, stream: ServerStream) {
    let limits = RecordLimits { hidden: hub.spec.hidden as u32, encoding: device.encoding, positions_max: positions_max(&hub.spec) };
    let (mut sender, mut receiver) = stream.split();
    let opened = match receiver.recv(&limits).await {
        Ok(Some(DeviceRecord::Open(open))) => open_seat(&hub, &device, open).await,
        Ok(Some(DeviceRecord::Rows(_))) => Err((FailureCode::Malformed, "a sequence starts with Open".into())),
        Ok(None) => return,
        Err(error) => return tracing::debug!("a sequence that did not begin: {error}"),
    };
    let answered = match opened {
        Ok(seat) => {
            let held = sender.send(ServerRecord::Held(seat.held)).await;
            match held {
                Ok(()) => converse(seat, device.encoding, &mut sender, receiver, limits).await,
                Err(error) => Err(error.into()),
            }
        }
        Err((code, reason)) => fail(&mut sender, code, reason).await,
    };
    match answered {
        // A reason, too, is delivered whole: dropped, it could be lost.
        Ok(()) => sender.finish(),
        // The device cancelled, or its connection is gone: what its sequence held is free again.
        Err(error) => tracing::debug!("a sequence ended: {error}"),
    }
}

async fn open_seat(hub: &Hub, device: &Device, open: Open) -> Result<Seat, (FailureCode, String)> {
    let Open { adapter, sampling, tokens_max, prefix, generated: (from, ids) } = open;
    let laid = match &adapter {
        None => None,
        Some(name) => Some(hub.adapters.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = hub.adapters.keys().map(String::as_str).collect();
            (FailureCode::Adapter, format!("this server has no adapter {name}; it has {}", known.join(", ")))
        })?),
    };
    let leaving = match (device.draws, sampling) {
        (true, Some(sampling)) => {
            let mut history = History::unseen(from);
            ids.into_iter().for_each(|id| history.push(id));
            Leaving::Drawn(sampling, history)
        }
        (false, None) => Leaving::Encoded(device.encoding),
        (draws, _) => {
            let who = if draws { "the server draws tokens here, and must know how" } else { "the device draws its tokens itself" };
            return Err((FailureCode::Malformed, who.into()));
        }
    };
    let scope = scope(device, adapter.as_deref());
    let owner = u64::from_le_bytes(device.peer.0[..8].try_into().expect("a key has 32 bytes"));
    let (adapter, blocks) = (laid, device.blocks.clone());
    hub.worker.open(Opening { owner, scope, adapter, blocks, leaving, tokens_max, prefix }).await
}

/// Longest sequence: the model's, within what records can say.
fn positions_max(spec: &ModelSpec) -> u32 {
    u32::try_from(spec.positions_max).unwrap_or(u32::MAX).min(POSITIONS_MAX)
}

/// A cache is shared by sequences of one device that compute alike, and by nobody else.
fn scope(device: &Device, adapter: Option<&str>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&device.peer.0);
    hasher.update(format!("{:?} {} {adapter:?}", device.blocks, device.encoding).as_bytes());
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// A job under way, and what is said of it.
struct Asked {
    position: u32,
    rows: u32,
    wanted: Wanted,
    outcome: oneshot::Receiver<Outcome>,
}

/// Takes rows and answers them in order, until the device has said its last.
async fn converse(
    seat: Seat,
    encoding: Encoding,
    sender: &mut GenerateSender<ServerRecord>,
    mut receiver: GenerateReceiver<DeviceRecord>,
    limits: RecordLimits,
) -> Result<(), NodeError> {
    let (asked, mut answers) = mpsc::channel::<Asked>(UNDER_WAY_MAX);
    let reading = async {
        loop {
            match receiver.recv(&limits).await {
                Ok(Some(DeviceRecord::Rows(RowsRecord { position, rows, wanted, digests, payload }))) => {
                    let rows = u32::from(rows);
                    let outcome = seat.send(Job { position, came: Came::Encoded(encoding, payload, rows), wanted, digests });
                    if asked.send(Asked { position, rows, wanted, outcome }).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Some(DeviceRecord::Open(_))) => return Err(NodeError::Ended { reason: "it opened a sequence that was open".into() }),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    };
    let answering = async {
        while let Some(Asked { position, rows, wanted, outcome }) = answers.recv().await {
            let first = if wanted == Wanted::Last { position + rows - 1 } else { position };
            match ended(outcome.await) {
                Outcome::Done => {}
                Outcome::Drawn(drawn) => sender.send(ServerRecord::Tokens { position: first, drawn }).await?,
                Outcome::Encoded(rows, payload) => {
                    sender.send(ServerRecord::Rows { position: first, rows, payload }).await?;
                }
                Outcome::Held(held) => sender.send(ServerRecord::Held(held)).await?,
                Outcome::Failed(code, reason) => return fail(sender, code, reason).await,
            }
        }
        Ok(())
    };
    // Whichever ends by an error ends both; a device that has said its last still gets its answers.
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        read = reading => {
            read?;
            drop(asked);
            answering.await
        }
        answered = &mut answering => answered,
    }
}

async fn fail(sender: &mut GenerateSender<ServerRecord>, code: FailureCode, reason: String) -> Result<(), NodeError> {
    let reason = shorten_reason(&reason).to_owned();
    Ok(sender.send(ServerRecord::Failed { code, reason }).await?)
}
