//! `manifest.json`: what another person needs to know to trust a rerun, or to see why it differs.

use crate::config::{Mode, RunConfig};
use crate::threads::Threads;
use cutlayer_data::{DataSpec, HeldOut};
use cutlayer_model::ModelFolder;
use cutlayer_transport::Conditions;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a run ran, and on what.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// Name of the run's folder.
    pub name: String,
    /// Version of cutlayer.
    pub version: &'static str,
    /// Protocol its peers spoke.
    pub protocol: u16,
    /// Revision of the folder it was started in, and whether files differed from it.
    pub git: Option<GitState>,
    /// The command line.
    pub command: Vec<String>,
    /// When it started, in seconds since 1970.
    pub started_unix_s: u64,
    /// Where all randomness came from.
    pub seed: u64,
    /// Fingerprint of the frozen base.
    pub base: Option<String>,
    /// The data files.
    pub data: Vec<DataFile>,
    /// The machine.
    pub machine: Machine,
    /// How its cores were shared.
    pub threads: Threads,
    /// The links that were emulated in front of clients.
    pub links: Vec<EmulatedLink>,
}

/// A client's emulated link.
#[derive(Clone, Debug, Serialize)]
pub struct EmulatedLink {
    /// Index of the client.
    pub client: u32,
    /// Its name.
    pub name: String,
    /// The link in numbers, its profile's name among them.
    #[serde(flatten)]
    pub conditions: Conditions,
}

impl EmulatedLink {
    /// Those of a run, which was checked.
    pub(crate) fn of(config: &RunConfig) -> Vec<Self> {
        let clients = if config.split.mode == Mode::Central { 0 } else { config.clients.count };
        let link = |client: u32| {
            let conditions = config.client_link(client).ok().flatten()?;
            Some(Self { client, name: config.client_name(client), conditions })
        };
        (0..clients).filter_map(link).collect()
    }
}

/// The state of a git checkout.
#[derive(Clone, Debug, Serialize)]
pub struct GitState {
    /// The commit.
    pub revision: String,
    /// Whether tracked files were changed.
    pub changed: bool,
}

/// A data file and its fingerprint.
#[derive(Clone, Debug, Serialize)]
pub struct DataFile {
    /// Where.
    pub path: PathBuf,
    /// How long.
    pub bytes: u64,
    /// blake3 over all of it.
    pub blake3: String,
}

/// What a run ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Operating system.
    pub os: &'static str,
    /// Processor architecture.
    pub arch: &'static str,
    /// Processor model, where the system says.
    pub cpu: Option<String>,
    /// Threads that this process may use.
    pub threads: usize,
    /// Memory, where the system says.
    pub memory_bytes: Option<u64>,
}

impl Manifest {
    /// Of a run about to start.
    pub fn of(config: &RunConfig, name: &str, threads: Threads) -> Self {
        let base = config.model.path.as_deref().and_then(|path| ModelFolder::open(path).and_then(|folder| folder.base_hash()).ok());
        Self {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION"),
            protocol: cutlayer_wire::PROTOCOL_VERSION,
            git: git_state(),
            command: std::env::args().collect(),
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            seed: config.seed,
            base: base.map(|hash| hash.to_hex()),
            data: data_files(config),
            machine: Machine::here(),
            threads,
            links: EmulatedLink::of(config),
        }
    }
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpu: peek(Path::new("/proc/cpuinfo"), "model name"),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: peek(Path::new("/proc/meminfo"), "MemTotal").and_then(|text| kibibytes(&text)),
        }
    }
}

/// The value after `name` and a colon in one of Linux's text files.
pub(crate) fn peek(file: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn git_state() -> Option<GitState> {
    let revision = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|lines| !lines.is_empty());
    Some(GitState { revision, changed })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn data_files(config: &RunConfig) -> Vec<DataFile> {
    let specs = config.data.iter().chain(config.client.iter().filter_map(|client| client.data.as_ref()));
    let mut paths: Vec<&Path> = specs.flat_map(files_of).collect();
    paths.sort();
    paths.dedup();
    // A file that cannot be read ends the run soon, with a better message than could be given here.
    paths.into_iter().filter_map(|path| fingerprint(path).ok()).collect()
}

fn files_of(spec: &DataSpec) -> Vec<&Path> {
    let held_out = match &spec.held_out {
        Some(HeldOut::Source(source)) => Some(source),
        _ => None,
    };
    let sources = std::iter::once(&spec.source).chain(held_out);
    sources.flat_map(|source| std::iter::once(source.path.as_path()).chain(source.key_map.as_deref())).collect()
}

fn fingerprint(path: &Path) -> std::io::Result<DataFile> {
    let mut hasher = blake3::Hasher::new();
    let bytes = std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(DataFile { path: path.into(), bytes, blake3: hasher.finalize().to_hex().to_string() })
}
