//! The checks, each of which looks at one thing.

use super::Check;
use crate::cli::block_on;
use crate::cli::config_args::ConfigArgs;
use crate::cli::exit::{Exit, of};
use cutlayer_data::Tokenizer;
use cutlayer_lab::{DATA_VARIABLE, Machine, RunConfig, client_data, data_folder, resolve_labels};
use cutlayer_model::{DeviceChoice, DeviceError, ModelFolder, read_spec};
use cutlayer_transport::{AllowList, Identity, LinkConfig, Server, connect};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No clock is right that shows a time before this program was written (1 January 2025).
const CLOCK_MIN_UNIX_S: u64 = 1_735_689_600;
/// Nor, for a while, one that shows 2100: certificates and tokens would be long expired elsewhere.
const CLOCK_MAX_UNIX_S: u64 = 4_102_444_800;
/// Files a server of some dozens of clients has open at once.
const OPEN_FILES_MIN: u64 = 1024;
/// How long a handshake with oneself may take.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// What the tokenizer is tried on.
const SAMPLE: &str = "Once upon a time, 2 + 2 = 4.";

/// What does not depend on any run.
pub(super) fn machine() -> Vec<Check> {
    let machine = Machine::here();
    let memory = machine.memory_bytes.map_or("unknown memory".into(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9));
    let cpu = machine.cpu.unwrap_or_else(|| machine.arch.into());
    let mut checks = vec![Check::ok("machine", format!("{cpu}, {} threads, {memory}, {}", machine.threads, machine.os))];
    for choice in [DeviceChoice::Cpu, DeviceChoice::Wgpu(0), DeviceChoice::Cuda(0)] {
        checks.push(device(choice));
    }
    checks.push(clock());
    checks.extend(open_files());
    checks
}

fn device(choice: DeviceChoice) -> Check {
    let what = format!("device {choice}");
    match choice.open() {
        Ok(_) => Check::ok(what, "computes"),
        Err(DeviceError::NotBuilt { feature, .. }) => {
            let mend = format!("if this machine has such a GPU: cargo install --features {feature}");
            Check::warn(what, "not in this build", &mend)
        }
        Err(error) => Check::warn(what, error.to_string(), "the CPU works without it"),
    }
}

fn clock() -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if (CLOCK_MIN_UNIX_S..CLOCK_MAX_UNIX_S).contains(&now) {
        return Check::ok("clock", format!("{now} s since 1970"));
    }
    let mend = "set it (`timedatectl set-ntp true`): tokens expire by it, and logs of several machines are compared by it";
    Check::fail("clock", format!("{now} s since 1970 cannot be now"), mend, Exit::Usage)
}

/// Only where the system tells.
fn open_files() -> Option<Check> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let limit = line.split_whitespace().next()?;
    let enough = limit == "unlimited" || limit.parse().is_ok_and(|limit: u64| limit >= OPEN_FILES_MIN);
    Some(if enough {
        Check::ok("open files", format!("up to {limit}"))
    } else {
        Check::warn("open files", format!("up to {limit}"), "raise it for runs of many clients: ulimit -n 4096")
    })
}

/// A free UDP port, and a whole handshake over it.
pub(super) fn network() -> Check {
    let what = "QUIC on loopback";
    match block_on(handshake()) {
        Ok(port) => Check::ok(what, format!("handshake on UDP port {port}")),
        Err(error) => {
            let mend = "allow UDP on 127.0.0.1: a firewall, a container without network, or a security module is in the way";
            Check::fail(what, format!("{error:#}"), mend, Exit::Network)
        }
    }
}

async fn handshake() -> anyhow::Result<u16> {
    let folder = std::env::temp_dir().join(format!("cutlayer-doctor-{}", std::process::id()));
    let outcome = tokio::time::timeout(HANDSHAKE_WAIT, handshake_in(&folder)).await;
    // Nothing of worth is in there: a list with one key that is forgotten now.
    let _ = std::fs::remove_dir_all(&folder);
    outcome.map_err(|_| anyhow::anyhow!("no handshake within {} s", HANDSHAKE_WAIT.as_secs()))?
}

async fn handshake_in(folder: &Path) -> anyhow::Result<u16> {
    let (here, there, link) = (Identity::generate()?, Identity::generate()?, LinkConfig::default());
    std::fs::create_dir_all(folder)?;
    let allow = AllowList::open(folder)?;
    allow.allow("doctor", there.peer_id())?;
    let mut server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &here, allow.into(), &link)?;
    let address = server.local_addr();
    let (accepted, connected) = tokio::join!(server.accept(), connect(address, &there, here.peer_id(), None, &link));
    accepted?;
    connected?;
    Ok(address.port())
}

/// The run file and what it names; without one, the folder of shared data.
pub(super) fn run_file(args: &ConfigArgs) -> Vec<Check> {
    if args.file.is_none() && args.model.is_none() {
        return vec![shared_data()];
    }
    let mut config = match args.load(&[]) {
        Ok(config) => config,
        Err(error) => return vec![Check::fail("run file", error.to_string(), "", Exit::Usage)],
    };
    let mut checks = vec![];
    if let Some(file) = &args.file {
        checks.push(Check::ok("run file", file.display().to_string()));
    }
    checks.push(model(&config));
    if config.data.is_some() || !config.client.is_empty() {
        checks.push(data(&mut config));
    }
    checks.push(port(config.server.listen));
    checks
}

fn shared_data() -> Check {
    let folder = data_folder();
    let shown = folder.display().to_string();
    if folder.is_dir() {
        return Check::ok("shared data", shown);
    }
    let mend = format!("needed only by the experiments on it: set {DATA_VARIABLE} to its folder");
    Check::warn("shared data", format!("{shown} is not there"), &mend)
}

fn model(config: &RunConfig) -> Check {
    let look = || -> anyhow::Result<String> {
        let path = config.model_path()?;
        let folder = ModelFolder::open(&path)?;
        let spec = read_spec(&folder)?;
        let tokens = Tokenizer::open(&path)?.encode(SAMPLE, true)?.len();
        folder.check_tokenizer(spec.vocab)?;
        Ok(format!(
            "{}: {} of {} blocks, hidden {}; tokenizer agrees ({tokens} tokens)",
            path.display(),
            spec.family,
            spec.blocks,
            spec.hidden
        ))
    };
    match look() {
        Ok(found) => Check::ok("model", found),
        Err(error) => Check::fail("model", format!("{error:#}"), "", of(&error)),
    }
}

fn data(config: &mut RunConfig) -> Check {
    let look = |config: &mut RunConfig| -> anyhow::Result<String> {
        resolve_labels(config)?;
        let clients = client_data(config)?;
        let counts: Vec<usize> = clients.iter().map(|client| client.train.len()).collect();
        let held_out: usize = clients.iter().map(|client| client.eval.len()).sum();
        let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
        let total: usize = counts.iter().sum();
        Ok(format!("{total} records for {} clients ({least} to {most} each), {held_out} held out", clients.len()))
    };
    match look(config) {
        Ok(found) if found.ends_with(" 0 held out") => {
            Check::warn("data", found, "nothing will be evaluated: set data.held_out, such as held_out = { fraction = 0.1 }")
        }
        Ok(found) => Check::ok("data", found),
        Err(error) => Check::fail("data", format!("{error:#}"), "", of(&error)),
    }
}

fn port(listen: SocketAddr) -> Check {
    match std::net::UdpSocket::bind(listen) {
        Ok(_) if listen.port() == 0 => Check::ok("server address", format!("{} with any free port", listen.ip())),
        Ok(_) => Check::ok("server address", format!("{listen} is free")),
        Err(error) => {
            let mend = "stop what listens there, or change server.listen (port 0 picks a free one)";
            Check::fail("server address", format!("{listen}: {error}"), mend, Exit::Network)
        }
    }
}

/// Whether a run could leave its folder there.
pub(super) fn runs_folder(runs: &Path) -> Check {
    // The nearest folder that exists is the one that must be writable.
    let absolute = std::path::absolute(runs).unwrap_or_else(|_| runs.into());
    let nearest = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let probe = nearest.join(format!(".cutlayer-doctor-{}", std::process::id()));
    let outcome = std::fs::write(&probe, b"probe");
    let _ = std::fs::remove_file(&probe);
    match outcome {
        Ok(()) => Check::ok("runs folder", format!("{} can be written", absolute.display())),
        Err(error) => {
            Check::fail("runs folder", format!("{}: {error}", nearest.display()), "change its permissions, or give --runs DIR", Exit::Usage)
        }
    }
}
