//! Where it is measured: a model folder, two keys that know each other, hosts and devices that are started from them.

use super::GenerateBench;
use crate::bench::step::{BenchOptions, Subject};
use crate::bench::write_shape;
use crate::error::LabError;
use cutlayer_model::spec::ModelSpec;
use cutlayer_model::{ModelFolder, read_spec};
use cutlayer_node::{
    ComputeConfig, Drafting, Event, EventSink, Generator, GeneratorConfig, HostConfig, HostWatch, NodeError, Remote, Stop, host_watched,
    no_events,
};
use cutlayer_transport::{AllowList, Identity, LinkConfig};
use cutlayer_wire::{CutPoint, Encoding};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Memory for keys and values on each side, in MiB: more than any measurement needs.
const CACHE_MIB: u64 = 1024;
/// Sequences open at once, at most.
const SESSIONS_MAX: u32 = 1024;
/// How long a host may load its model.
const LISTEN_WAIT: Duration = Duration::from_secs(120);
/// How long a device looks for a host that is lost.
const RECONNECT: Duration = Duration::from_secs(10);

/// A model, keys, and how both sides compute.
pub(super) struct Place {
    folder: TempDir,
    model: PathBuf,
    pub spec: ModelSpec,
    compute: ComputeConfig,
    host: Arc<Identity>,
    device: Arc<Identity>,
    program: PathBuf,
    threads: usize,
}

/// A host in this process.
pub(super) struct Hosted {
    pub addr: SocketAddr,
    pub watch: HostWatch,
    stop: Stop,
    task: JoinHandle<Result<(), NodeError>>,
}

/// A host in a process of its own; it ends with this.
pub(super) struct HostProcess {
    pub addr: SocketAddr,
    pub id: Option<u32>,
    _child: Child,
}

/// How a device reaches its host, and what it keeps.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    pub addr: SocketAddr,
    pub cut: u16,
    pub tail: Option<u16>,
    pub encoding: Encoding,
    pub rtt_ms: u32,
}

impl Place {
    pub fn new(bench: &GenerateBench, options: &BenchOptions) -> Result<Self, LabError> {
        let folder = tempfile::Builder::new().prefix("cutlayer-bench-").tempdir().map_err(LabError::write(&std::env::temp_dir()))?;
        let model = match &bench.subject {
            Subject::Folder(folder) => folder.clone(),
            Subject::Shape(name) => {
                let model = folder.path().join("model");
                write_shape(name, &model)?;
                model
            }
        };
        let spec = read_spec(&ModelFolder::open(&model).map_err(NodeError::from)?).map_err(NodeError::from)?;
        let wanted = u64::from(bench.prompt) + u64::from(bench.new);
        if wanted > spec.positions_max as u64 {
            let reason = format!("{wanted} tokens exceed the model's {} positions; lower --prompt or --new", spec.positions_max);
            return Err(NodeError::Task(reason).into());
        }
        let (host, device) = (Identity::generate()?, Identity::generate()?);
        let keys = folder.path().join("keys");
        host.save(&keys)?;
        AllowList::open(&keys)?.allow("device", device.peer_id())?;
        let compute = ComputeConfig { device: bench.device, precision: bench.precision, checkpointing: false };
        let (host, device) = (Arc::new(host), Arc::new(device));
        Ok(Self { folder, model, spec, compute, host, device, program: options.program.clone(), threads: options.threads })
    }

    /// Starts a host that holds the blocks from `first_block` on.
    pub async fn host(&self, first_block: u16) -> Result<Hosted, LabError> {
        let config = HostConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            model: self.model.clone(),
            compute: self.compute,
            first_block,
            head: true,
            adapters: vec![],
            cache_bytes: CACHE_MIB << 20,
            sessions_max: SESSIONS_MAX,
            link: LinkConfig::default(),
        };
        let (listening, heard) = oneshot::channel();
        let listening = Mutex::new(Some(listening));
        let events: EventSink = Arc::new(move |event| {
            let Event::Listening { addr, .. } = event else { return };
            if let Some(listening) = listening.lock().expect("no holder of this lock panics").take() {
                // Whoever waits may have given up.
                let _ = listening.send(addr);
            }
        });
        let (stop, watch, allow) = (Stop::new(), HostWatch::default(), Arc::new(AllowList::open(&self.keys())?));
        let (identity, until, seen) = (self.host.clone(), stop.clone(), watch.clone());
        let mut task = tokio::spawn(async move { host_watched(config, &identity, allow, events, until, &seen).await });
        let addr = tokio::select! {
            Ok(addr) = heard => addr.parse().expect("an address, as it was bound"),
            ended = &mut task => {
                let ended = ended.map_err(|_| LabError::Panicked("hosting".into()))?;
                return Err(ended.err().map_or_else(|| LabError::Panicked("the host ended by itself".into()), LabError::from));
            }
        };
        Ok(Hosted { addr, watch, stop, task })
    }

    /// Starts `cutlayer host`.
    pub async fn host_process(&self, first_block: u16) -> Result<HostProcess, LabError> {
        let spawn = |source| LabError::Spawn { name: "cutlayer host".into(), source };
        let mut child = Command::new(&self.program)
            .args(["--threads", &self.threads.to_string(), "host", "--listen", "127.0.0.1:0"])
            .args(["--first-block", &first_block.to_string(), "--sessions-max", &SESSIONS_MAX.to_string()])
            .args(["--cache-mib", &CACHE_MIB.to_string(), "--device", &self.compute.device.to_string()])
            .args(["--precision", &self.compute.precision.to_string(), "--model"])
            .arg(&self.model)
            .arg("--keys")
            .arg(self.keys())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn)?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = String::new();
        let listening = async {
            while let Ok(Some(line)) = lines.next_line().await {
                let addr = line.strip_prefix("listening on ").and_then(|rest| rest.split(' ').next()?.parse().ok());
                if let Some(addr) = addr {
                    return Some(addr);
                }
                said.push_str(&line);
                said.push('\n');
            }
            None
        };
        let addr = tokio::time::timeout(LISTEN_WAIT, listening).await.ok().flatten();
        let Some(addr) = addr else {
            let (name, log, waited_s) = ("cutlayer host".into(), PathBuf::from("standard error"), LISTEN_WAIT.as_secs());
            return Err(LabError::Silent { name, what: "listen", waited_s, log, tail: said });
        };
        // What it says from now on is not wanted, but must be read for it to go on.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(HostProcess { addr, id: child.id(), _child: child })
    }

    /// A device; without `reach`, the whole model on it.
    pub async fn device(&self, reach: Option<Reach>, drafting: Drafting) -> Result<Generator, LabError> {
        let remote = reach.map(|Reach { addr, cut, tail, encoding, rtt_ms }| Remote {
            server: addr,
            server_id: self.host.peer_id(),
            token: None,
            cut: CutPoint(cut),
            tail,
            encoding,
            link: LinkConfig { rtt_ms, ..LinkConfig::default() },
            reconnect: RECONNECT,
        });
        let config = GeneratorConfig {
            model: self.model.clone(),
            compute: self.compute,
            remote,
            adapters: vec![],
            cache_bytes: CACHE_MIB << 20,
            sessions_max: SESSIONS_MAX,
            drafting,
            name: "bench".into(),
        };
        let generator = Generator::open(config, self.device.clone(), no_events()).await?;
        generator.connect().await?;
        Ok(generator)
    }

    fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }
}

impl Hosted {
    pub async fn end(self) -> Result<(), LabError> {
        self.stop.trigger();
        Ok(self.task.await.map_err(|_| LabError::Panicked("hosting".into()))??)
    }
}
