//! Starts the server and the clients, hears them out, and sees them end.
//!
//! A client's index in the run is its place on the server's allow-list, which is written here in the order of the run
//! file: so clients may start and join in any order.

use super::chaos::{ChaosLine, Mishap, Schedule};
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
use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

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
    let mut launch = Launch {
        config,
        options,
        folder,
        record,
        server_id,
        allow,
        said,
        heard,
        server: None,
        clients: BTreeMap::new(),
        links: Links::default(),
        state: State::default(),
        mishaps: None,
    };
    let ended = tokio::select! {
        ended = launch.all() => Some(ended),
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
    /// Killed by chaos; to be started again once they are gone.
    killed: BTreeSet<Who>,
    /// Everyone was asked to stop.
    stopping: bool,
}

/// What is still to go wrong.
struct Mishaps {
    schedule: Peekable<Schedule>,
    started: Instant,
}

impl Mishaps {
    fn next_at(&mut self) -> Option<Instant> {
        self.schedule.peek().map(|(after, _)| self.started + *after)
    }
}

struct Launch<'a> {
    config: &'a RunConfig,
    options: &'a RunOptions,
    folder: &'a RunFolder,
    record: &'a mut Record,
    server_id: PeerId,
    allow: AllowList,
    said: mpsc::Sender<(Who, Said)>,
    heard: mpsc::Receiver<(Who, Said)>,
    server: Option<Child>,
    /// Those still running.
    clients: BTreeMap<u32, Child>,
    links: Links,
    state: State,
    /// From when all were started, if the run asks for it, until one of them has ended by itself.
    mishaps: Option<Mishaps>,
}

impl Launch<'_> {
    /// From the first process to the last.
    async fn all(&mut self) -> Result<(), LabError> {
        let address = self.start_server().await?;
        self.start_clients(address).await?;
        self.hear_until(None, |state, _| state.server_exit.is_some()).await?;
        self.end().await
    }

    /// Ends everything with what there is.
    async fn stop(&mut self) -> Result<(), LabError> {
        self.record.progress.note("stopping with what there is; once more to kill");
        (self.state.stopping, self.mishaps) = (true, None);
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
        self.start(Who::Server)?;
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

    async fn start_clients(&mut self, server: SocketAddr) -> Result<(), LabError> {
        self.start_links(server)?;
        (0..self.config.clients.count).try_for_each(|client| self.start(Who::Client(client)))?;
        self.mishaps = self.config.chaos.as_ref().map(|chaos| {
            let schedule = Schedule::new(chaos, self.config.clients.count, self.config.seed);
            Mishaps { schedule: schedule.peekable(), started: Instant::now() }
        });
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

    /// Starts a process, or starts it again: then it goes on from what it kept.
    fn start(&mut self, who: Who) -> Result<(), LabError> {
        let process = who.process();
        let name = match who {
            Who::Server => "the server".into(),
            Who::Client(client) => self.config.client_name(client),
        };
        let (log, said) = (self.folder.log(&process), self.said.clone());
        let child = Child::spawn((who, name), &self.options.program, &self.arguments(who, &process), log, said)?;
        match who {
            Who::Server => self.server = Some(child),
            Who::Client(client) => drop(self.clients.insert(client, child)),
        }
        Ok(())
    }

    fn arguments(&self, who: Who, process: &str) -> Vec<OsString> {
        let command = if who == Who::Server { "serve" } else { "join" };
        let mut all: Vec<OsString> = vec![command.into(), self.folder.resolved().into(), "--supervised".into()];
        let mut give = |flag: &str, value: OsString| all.extend([flag.into(), value]);
        give("--keys", self.folder.keys(process).into());
        let threads = Threads::of(self.config, self.options.cores);
        give("--threads", if who == Who::Server { threads.server } else { threads.client }.to_string().into());
        if self.config.chaos.is_some() {
            give("--state", self.folder.state(process).into());
        }
        match (who, self.state.listening) {
            (Who::Server, listening) => {
                give("--out", self.folder.adapter().into());
                // Where the clients know it, when it comes back.
                listening.into_iter().for_each(|address| give("--listen", address.to_string().into()));
            }
            (Who::Client(client), listening) => {
                let server = reachable(listening.expect("clients start when the server listens"));
                give("--client", client.to_string().into());
                give("--server", self.links.address_for(client, server).to_string().into());
                give("--server-id", self.server_id.to_hex().into());
            }
        }
        all.extend(self.options.phases.then(|| OsString::from("--phases")));
        all
    }

    /// Hears what the processes say until `done`, or until `limit` has passed; says whether it was done. Meanwhile, things go wrong.
    async fn hear_until(
        &mut self,
        limit: Option<Duration>,
        done: impl Fn(&State, &BTreeMap<u32, Child>) -> bool,
    ) -> Result<bool, LabError> {
        let end = limit.map(|limit| Instant::now() + limit);
        while !done(&self.state, &self.clients) {
            let mishap_at = self.mishaps.as_mut().and_then(Mishaps::next_at);
            tokio::select! {
                heard = self.heard.recv() => match heard.expect("this struct holds a sender") {
                    (who, Said::Line(line)) => self.line(who, &line)?,
                    (who, Said::Exited(status)) => self.exited(who, status)?,
                },
                () = at(mishap_at) => self.go_wrong()?,
                () = at(end) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Lets the next mishap happen.
    fn go_wrong(&mut self) -> Result<(), LabError> {
        let Some((_, mishap)) = self.mishaps.as_mut().and_then(|mishaps| mishaps.schedule.next()) else { return Ok(()) };
        let round = self.record.tally.rounds_done() + 1;
        let (victim, line) = match mishap {
            Mishap::Kill(who) => {
                // One that is not back yet cannot die again.
                let Some(child) = self.child(who).filter(|_| !self.state.killed.contains(&who)) else { return Ok(()) };
                child.kill();
                self.state.killed.insert(who);
                (Some(who), ChaosLine::Killed { process: self.name(who), round })
            }
            Mishap::Cut(client, length) => {
                let clients = self.links.cut(client, length);
                (None, ChaosLine::Cut { clients, seconds: length.as_secs_f64(), round })
            }
        };
        self.record.tally.mishap(victim);
        self.record.chaos(&line)
    }

    fn child(&self, who: Who) -> Option<&Child> {
        match who {
            Who::Server => self.server.as_ref(),
            Who::Client(client) => self.clients.get(&client),
        }
    }

    /// What the records call a process.
    fn name(&self, who: Who) -> String {
        match who {
            Who::Server => "server".into(),
            Who::Client(client) => self.config.client_name(client),
        }
    }

    fn line(&mut self, who: Who, line: &str) -> Result<(), LabError> {
        let event: Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!("{who:?} said {line:?}, which is no event: {error}");
                return Ok(());
            }
        };
        let peak = self.child(who).and_then(Child::peak_bytes);
        self.record.tally.peak(who, peak);
        match &event {
            Event::Listening { addr, .. } => self.state.listening = addr.parse().ok(),
            Event::Joined { client, .. } if who == Who::Server => {
                self.state.joined.insert(*client);
            }
            Event::Finished { .. } if who == Who::Server => self.mishaps = None,
            _ => {}
        }
        let from = self.name(who);
        self.record.event(who, &from, &event)
    }

    fn exited(&mut self, who: Who, status: std::io::Result<ExitStatus>) -> Result<(), LabError> {
        let killed = self.state.killed.remove(&who) && status.as_ref().is_ok_and(|status| status.code().is_none());
        // A client that the server has done with need not come back; a server may have somebody left to tell.
        if killed && (who == Who::Server || !self.record.tally.is_finished()) {
            return self.start_again(who);
        }
        match who {
            Who::Server => self.state.server_exit = Some(status),
            Who::Client(client) => {
                let Some(child) = self.clients.remove(&client) else { return Ok(()) };
                if status.as_ref().is_ok_and(ExitStatus::success) {
                    // It has heard that the run is over, and does not come back.
                    self.mishaps = None;
                }
                // Once the server is done with it, how a client ends changes nothing.
                if status.as_ref().is_ok_and(ExitStatus::success) || self.record.tally.is_finished() {
                    return Ok(());
                }
                let death = child.death(&status);
                if !self.state.joined.contains(&client) {
                    self.state.died_outside.get_or_insert(death);
                    return Ok(());
                }
                self.record.progress.note(&format!("{death}\nthe run goes on if enough clients are left"));
                // The server would wait for the silence of a lost peer; thrown out, this one is gone within seconds.
                if let Err(error) = self.allow.revoke(&self.config.client_name(client)) {
                    tracing::warn!("the server learns of it by silence alone: {error}");
                }
                self.state.first_death.get_or_insert(death);
            }
        }
        Ok(())
    }

    /// Brings back a process that was killed, with the arguments that it had.
    fn start_again(&mut self, who: Who) -> Result<(), LabError> {
        self.start(who)?;
        if let Some(server) = self.server.as_mut().filter(|_| who == Who::Server && self.state.stopping) {
            server.ask_to_stop();
        }
        let round = self.record.tally.rounds_done() + 1;
        self.record.chaos(&ChaosLine::Restarted { process: self.name(who), round })
    }
}

/// Waits for that time; for ever, where there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// An address that a client on this machine can reach: one that listens everywhere is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(if address.ip().is_unspecified() { loopback } else { address.ip() }, address.port())
}
