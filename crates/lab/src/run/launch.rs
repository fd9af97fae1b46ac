//! Starts the server and the clients, hears them out, and sees them end.
//!
//! A client's index in the run is its place on the server's allow-list, which is written here in the order of the run
//! file: so clients may start and join in any order.

use super::child::{Child, LINES_MAX, Said, Who};
use super::links::Links;
use super::{Record, RunOptions};
use crate::config::RunConfig;
use crate::error::LabError;
use crate::folder::RunFolder;
use crate::manifest::EmulatedLink;
use crate::threads::Threads;
use cutlayer_node::{Event, Stop};
use cutlayer_transport::{AllowList, Identity};
use cutlayer_wire::PeerId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// How long a process that was asked to stop may finish what it is doing.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// How long clients may take to end once the server has.
const GOODBYE_WAIT: Duration = Duration::from_secs(15);

/// Runs the processes until the server ends.
pub(super) async fn run(
    config: &RunConfig,
    options: &RunOptions,
    folder: &RunFolder,
    record: &mut Record,
    stop: &Stop,
) -> Result<(), LabError> {
    let (server_id, allow) = make_keys(config, folder)?;
    let (said, heard) = mpsc::channel(LINES_MAX);
    let (server, clients, links, state) = (None, BTreeMap::new(), Links::default(), State::default());
    let mut launch = Launch { config, options, folder, record, allow, said, heard, server, clients, links, state };
    let ended = tokio::select! {
        ended = launch.all(server_id) => Some(ended),
        () = stop.triggered() => None,
    };
    let outcome = match ended {
        Some(ended) => ended,
        None => launch.stop().await,
    };
    launch.links.ended().iter().try_for_each(|line| launch.record.link(line))?;
    outcome
}

/// A key for each process, and the server's list of them.
fn make_keys(config: &RunConfig, folder: &RunFolder) -> Result<(PeerId, AllowList), LabError> {
    let server = Identity::generate()?;
    server.save(&folder.keys("server"))?;
    let allow = AllowList::open(&folder.keys("server"))?;
    for client in 0..config.clients.count {
        let identity = Identity::generate()?;
        identity.save(&folder.keys(&format!("client-{client}")))?;
        allow.allow(&config.client_name(client), identity.peer_id())?;
    }
    Ok((server.peer_id(), allow))
}

/// What is known of the processes.
#[derive(Default)]
struct State {
    listening: Option<SocketAddr>,
    joined: BTreeSet<u32>,
    server_exit: Option<std::io::Result<ExitStatus>>,
    /// The first client that died before it had joined.
    died_outside: Option<LabError>,
    /// The first client that died in the run, which is likely why anything after it went wrong.
    first_death: Option<LabError>,
}

struct Launch<'a> {
    config: &'a RunConfig,
    options: &'a RunOptions,
    folder: &'a RunFolder,
    record: &'a mut Record,
    allow: AllowList,
    said: mpsc::Sender<(Who, Said)>,
    heard: mpsc::Receiver<(Who, Said)>,
    server: Option<Child>,
    /// Those still running.
    clients: BTreeMap<u32, Child>,
    links: Links,
    state: State,
}

impl Launch<'_> {
    /// From the first process to the last.
    async fn all(&mut self, server_id: PeerId) -> Result<(), LabError> {
        let address = self.start_server().await?;
        self.start_clients(address, server_id).await?;
        self.hear_until(None, |state, _| state.server_exit.is_some()).await?;
        self.end().await
    }

    /// Ends everything with what there is.
    async fn stop(&mut self) -> Result<(), LabError> {
        self.record.progress.note("stopping with what there is; once more to kill");
        if self.state.listening.is_none() {
            return Ok(());
        }
        if let Some(server) = &mut self.server {
            server.ask_to_stop();
        }
        let in_time = self.hear_until(Some(STOP_WAIT), |state, _| state.server_exit.is_some()).await?;
        if !in_time {
            let server = self.server.as_ref().expect("it was listening");
            return Err(server.silence("stop when asked", STOP_WAIT.as_secs()));
        }
        self.end().await
    }

    async fn start_server(&mut self) -> Result<SocketAddr, LabError> {
        let arguments = self.arguments("serve", "server", &["--out".into(), self.folder.adapter().into()]);
        self.server = Some(self.spawn(Who::Server, "server", &arguments)?);
        let limit = Duration::from_secs(self.config.server.join_deadline_s);
        let done = |state: &State, _: &_| state.listening.is_some() || state.server_exit.is_some();
        let in_time = self.hear_until(Some(limit), done).await?;
        let server = self.server.as_ref().expect("just started");
        match (&self.state.listening, &self.state.server_exit) {
            (_, Some(status)) => Err(server.death(status)),
            (Some(address), None) => Ok(reachable(*address)),
            (None, None) => {
                assert!(!in_time, "one of the three happened");
                Err(server.silence("listen", limit.as_secs()))
            }
        }
    }

    /// The emulated links, for whoever has one.
    fn start_links(&mut self, server: SocketAddr) -> Result<(), LabError> {
        let links = EmulatedLink::of(self.config);
        for link in &links {
            self.record.progress.note(&format!("{} is behind an emulated link, {}", link.name, link.conditions));
        }
        self.links = Links::start(links, server, self.config.seed)?;
        self.links.begun().iter().try_for_each(|line| self.record.link(line))
    }

    async fn start_clients(&mut self, server: SocketAddr, server_id: PeerId) -> Result<(), LabError> {
        self.start_links(server)?;
        for client in 0..self.config.clients.count {
            let own: [OsString; 6] = [
                "--client".into(),
                client.to_string().into(),
                "--server".into(),
                self.links.address_for(client, server).to_string().into(),
                "--server-id".into(),
                server_id.to_hex().into(),
            ];
            let process = format!("client-{client}");
            let arguments = self.arguments("join", &process, &own);
            let child = self.spawn(Who::Client(client), &process, &arguments)?;
            self.clients.insert(client, child);
        }
        // The server says itself when it has waited too long. A client that dies before it was ever in is a mistake in the
        // run file or on this machine, and there is no sense in starting without it.
        let count = self.config.clients.count as usize;
        let done = move |state: &State, _: &_| state.joined.len() == count || state.server_exit.is_some() || state.died_outside.is_some();
        self.hear_until(None, done).await?;
        match self.state.died_outside.take() {
            Some(death) => Err(death),
            None => Ok(()),
        }
    }

    /// After the server: the clients, and the verdict.
    async fn end(&mut self) -> Result<(), LabError> {
        let server = self.server.take().expect("it ran");
        let status = self.state.server_exit.take().expect("it ended");
        self.hear_until(Some(GOODBYE_WAIT), |_, running| running.is_empty()).await?;
        // Whoever is still there is killed.
        self.clients.clear();
        if status.as_ref().is_ok_and(ExitStatus::success) {
            return Ok(());
        }
        Err(self.state.first_death.take().unwrap_or_else(|| server.death(&status)))
    }

    fn arguments(&self, command: &str, process: &str, more: &[OsString]) -> Vec<OsString> {
        let keys = self.folder.keys(process);
        let common: [OsString; 5] = [command.into(), self.folder.resolved().into(), "--keys".into(), keys.into(), "--supervised".into()];
        let phases = self.options.phases.then(|| OsString::from("--phases"));
        let threads = Threads::of(self.config, self.options.cores);
        let own = if command == "serve" { threads.server } else { threads.client };
        let threads: [OsString; 2] = ["--threads".into(), own.to_string().into()];
        common.into_iter().chain(threads).chain(phases).chain(more.iter().cloned()).collect()
    }

    fn spawn(&self, who: Who, process: &str, arguments: &[OsString]) -> Result<Child, LabError> {
        let name = match who {
            Who::Server => "the server".into(),
            Who::Client(client) => self.config.client_name(client),
        };
        Child::spawn((who, name), &self.options.program, arguments, self.folder.log(process), self.said.clone())
    }

    /// Hears what the processes say until `done`, or until `limit` has passed; says whether it was done.
    async fn hear_until(
        &mut self,
        limit: Option<Duration>,
        done: impl Fn(&State, &BTreeMap<u32, Child>) -> bool,
    ) -> Result<bool, LabError> {
        let end = limit.map(|limit| Instant::now() + limit);
        while !done(&self.state, &self.clients) {
            let heard = match end {
                None => self.heard.recv().await,
                Some(end) => match timeout_at(end, self.heard.recv()).await {
                    Ok(heard) => heard,
                    Err(_) => return Ok(false),
                },
            };
            let (who, said) = heard.expect("this struct holds a sender");
            match said {
                Said::Line(line) => self.line(who, &line)?,
                Said::Exited(status) => self.exited(who, status),
            }
        }
        Ok(true)
    }

    fn line(&mut self, who: Who, line: &str) -> Result<(), LabError> {
        let event: Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!("{who:?} said {line:?}, which is no event: {error}");
                return Ok(());
            }
        };
        let child = match who {
            Who::Server => self.server.as_ref(),
            Who::Client(client) => self.clients.get(&client),
        };
        self.record.tally.peak(who, child.and_then(Child::peak_bytes));
        match &event {
            Event::Listening { addr, .. } => self.state.listening = addr.parse().ok(),
            Event::Joined { client, .. } if who == Who::Server => {
                self.state.joined.insert(*client);
            }
            _ => {}
        }
        let from = match who {
            Who::Server => "server".to_owned(),
            Who::Client(client) => self.config.client_name(client),
        };
        self.record.event(who, &from, &event)
    }

    fn exited(&mut self, who: Who, status: std::io::Result<ExitStatus>) {
        match who {
            Who::Server => self.state.server_exit = Some(status),
            Who::Client(client) => {
                let Some(child) = self.clients.remove(&client) else { return };
                // Once the server is done with it, how a client ends changes nothing.
                if status.as_ref().is_ok_and(ExitStatus::success) || self.record.tally.is_finished() {
                    return;
                }
                let death = child.death(&status);
                if !self.state.joined.contains(&client) {
                    self.state.died_outside.get_or_insert(death);
                    return;
                }
                self.record.progress.note(&format!("{death}\nthe run goes on if enough clients are left"));
                // The server would wait for the silence of a lost peer; thrown out, this one is gone within seconds.
                if let Err(error) = self.allow.revoke(&self.config.client_name(client)) {
                    tracing::warn!("the server learns of it by silence alone: {error}");
                }
                self.state.first_death.get_or_insert(death);
            }
        }
    }
}

/// An address that a client on this machine can reach: one that listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(if address.ip().is_unspecified() { loopback } else { address.ip() }, address.port())
}
