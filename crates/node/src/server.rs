//! The server: accepts clients, serves their steps, folds their updates, and tells them what is next.
//!
//! The federation's coordinator decides; this file carries out. `session` is one client's connection.

mod admission;
mod queue;
mod roster;
mod session;

use crate::adapters::{peft_config, starting};
use crate::auto::{Auto, Encodings};
use crate::compute::Compute;
use crate::compute_config::ComputeConfig;
use crate::edge::{Edge, EdgeState};
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::prepare::check_encodings;
use crate::state::{RunAbout, RunState, RunStore};
use crate::stop::Stop;
use crate::turn::Turns;
use cutlayer_durable::remove_leftovers;
use cutlayer_federation::{Action, Contract, Coordinator, CoordinatorConfig, Progress, by_name};
use cutlayer_model::spec::ModelSpec;
use cutlayer_model::{ModelFolder, PeftConfig, PeftFolder, read_spec};
use cutlayer_transport::{AllowList, Identity, LinkConfig, Server};
use cutlayer_wire::{
    AdapterState, BaseHash, Encoding, EvalSums, Message, PeerId, Plan, RefusalCode, RoundId, RunId, ServerAdapters, StepOrder,
};
use queue::StepQueue;
use roster::{Command, Roster};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Messages from sessions that may wait for the coordinator.
const REPORTS_MAX: usize = 1024;
/// How long clients may take to leave after the run.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
/// How long, where some of them are cut off at that moment.
const RETURN_WAIT: Duration = Duration::from_secs(45);

/// Everything a server needs to run a plan.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Address to listen at.
    pub listen: SocketAddr,
    /// Folder of the base model.
    pub model: PathBuf,
    /// Where and how this side computes.
    pub compute: ComputeConfig,
    /// What all clients are told to do.
    pub plan: Plan,
    /// Name of the aggregation strategy.
    pub aggregator: String,
    /// PEFT folder to start from.
    pub starting_adapter: Option<PathBuf>,
    /// Clients to wait for before the first round.
    pub clients_expected: u32,
    /// Clients sampled each round; 0 for all.
    pub clients_per_round: u32,
    /// Updates that are enough for a round once its deadline has passed.
    pub updates_min: u32,
    /// How long to wait for clients.
    pub join_deadline: Duration,
    /// How long a round, or its evaluation, may take.
    pub round_deadline: Duration,
    /// How long a client whose connection is lost keeps its place.
    pub reconnect: Duration,
    /// Folder for each round that is committed, so that a server that was killed goes on from there when it is started again. Without it,
    /// only the adapter is kept.
    pub state: Option<PathBuf>,
    /// Finds each client's encodings in place of the three below.
    pub auto: Option<Auto>,
    /// Encoding of activations.
    pub activations: Encoding,
    /// Encoding of gradients.
    pub gradients: Encoding,
    /// Encoding of updates: f32 sends an adapter whole, any other the difference from the global one.
    pub adapters: Encoding,
    /// Lowest block to hold: clients may not cut below it.
    pub first_block: u16,
    /// Whether to hold the head: without it only U-shaped clients are served.
    pub head: bool,
    /// The network.
    pub link: LinkConfig,
    /// Folder for the global adapter, which is written there at each commit.
    pub out: PathBuf,
    /// Whether to time the phases of each step and tell of them; on a GPU that costs the time to wait for it at each.
    pub phases: bool,
    /// Bytes that the tapes of steps of different clients may take together, to be computed as one; 0 computes one step at a time. Only where
    /// each client has an adapter of its own on the server.
    pub batch_bytes_max: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServeReport {
    /// Rounds committed.
    pub rounds: u32,
    /// Held-out sums of each evaluated round, round 0 first.
    pub evaluations: Vec<(u32, EvalSums)>,
    /// Why it ended.
    pub reason: String,
}

/// What every session sees of the server.
pub(crate) struct Hub {
    pub plan: Plan,
    pub base: BaseHash,
    pub spec: ModelSpec,
    pub encodings: Encodings,
    pub auto: Option<Auto>,
    pub first_block: u16,
    pub head: bool,
    pub clients_expected: u32,
    pub id: RunId,
    pub reconnect: Duration,
    pub edge: Compute<Edge>,
    pub steps: StepQueue,
    pub turns: Turns,
    pub roster: Roster,
    pub events: EventSink,
    /// Raised when everyone is told that the run is over.
    pub over: AtomicBool,
    pub reports: mpsc::Sender<cutlayer_federation::Event>,
}

impl Hub {
    /// Training starts for all clients of a round at once: in lockstep they must know of each other.
    async fn begin_round(&self, actions: &[Action]) -> Result<(), NodeError> {
        let train = actions.iter().filter_map(|action| match action {
            Action::Train { peer, round } => Some((self.roster.client(peer)?, *round)),
            _ => None,
        });
        let train: Vec<(u32, RoundId)> = train.collect();
        let Some((_, round)) = train.first() else { return Ok(()) };
        let (clients, round): (Vec<u32>, RoundId) = (train.iter().map(|(client, _)| *client).collect(), *round);
        // Only on a shared adapter does a step depend on those before it.
        if self.plan.step_order == StepOrder::Lockstep && self.plan.server_adapters == ServerAdapters::Shared {
            self.turns.begin(round, clients.iter().copied());
        }
        (self.events)(Event::RoundStarted { round: round.0, clients: clients.clone() });
        self.edge.run("begin", move |edge| clients.into_iter().for_each(|client| edge.begin_round(client, round))).await
    }
}

/// Runs `config.plan` with the clients that `allow` lets in, until it is done or `stop` is raised.
pub async fn serve(
    config: ServeConfig,
    identity: &Identity,
    allow: Arc<AllowList>,
    events: EventSink,
    stop: Stop,
) -> Result<ServeReport, NodeError> {
    config.plan.validate()?;
    let folder = ModelFolder::open(&config.model)?;
    let spec = read_spec(&folder)?;
    check_encodings([config.activations, config.gradients], config.adapters, &spec)?;
    let base = folder.base_hash()?;
    let (task, adapter) = (&config.plan.task, &config.plan.adapter);
    let store = config.state.as_deref().map(RunStore::open).transpose()?;
    if store.is_some() && config.out.is_dir() {
        // What a killed server left half written there.
        remove_leftovers(&config.out).map_err(|source| NodeError::Write { path: config.out.clone(), source })?;
    }
    let digest = digest(&config, &base);
    let begun = store.as_ref().map(|store| store.load(&digest)).transpose()?.flatten();
    let resumed = begun.is_some();
    let RunState { mut about, global, edge: kept } = match begun {
        Some(state) => state,
        None => RunState {
            about: RunAbout {
                run: rand::random(),
                starts: 0,
                plan: digest,
                progress: Progress::default(),
                trained: 0,
                indices: BTreeMap::new(),
                evaluations: vec![],
            },
            global: starting(&spec, task, adapter, config.plan.seed, config.starting_adapter.as_deref())?,
            edge: EdgeState::default(),
        },
    };
    about.starts += 1;
    let peft = peft_config(&config.plan, &config.model)?;
    let contract = Contract::of(base, &global, Contract::weight_max_of(&config.plan));
    let (rules, aggregator) = (coordinator_config(&config, about.progress), by_name(&config.aggregator)?);
    let coordinator = Coordinator::new(0, rules, contract, aggregator, about.progress, global.clone())?;
    let given = about.indices.iter().filter_map(|(peer, client)| Some((peer.parse().ok()?, *client))).collect();

    let device = config.compute.device.open()?;
    let plan = config.plan.clone();
    let (first, head) = (usize::from(config.first_block), config.head);
    let (phases, compute, round, clients) = (config.phases, config.compute, about.progress.round, config.clients_expected);
    let load = move || {
        let edge = Edge::load(&folder, (compute, &device), plan, first, head, global)?;
        edge.timed(phases).shared_by(clients).resumed(round, kept)
    };
    let edge = Compute::start("edge", load).await?;
    // Steps on a shared adapter follow one another, and those whose phases are timed have a time each.
    let alone = config.phases || config.plan.server_adapters == ServerAdapters::Shared;
    let steps = StepQueue::new(edge.clone(), if alone { 0 } else { config.batch_bytes_max });
    let server = Server::bind(config.listen, identity, allow.clone(), &config.link)?;
    events(Event::Listening { addr: server.local_addr().to_string(), peer_id: identity.peer_id().to_hex() });
    if resumed {
        events(Event::Resumed { round: round.0, starts: about.starts });
    }
    let (reports, inbox) = mpsc::channel(REPORTS_MAX);
    let hub = Arc::new(Hub {
        plan: config.plan.clone(),
        base,
        spec,
        encodings: Encodings { activations: config.activations, gradients: config.gradients, adapters: config.adapters },
        auto: config.auto,
        first_block: config.first_block,
        head,
        clients_expected: config.clients_expected,
        id: RunId { run: about.run, start: about.starts },
        reconnect: config.reconnect,
        edge,
        steps,
        turns: Turns::default(),
        roster: Roster::new(allow, config.clients_expected, given),
        events,
        over: AtomicBool::new(false),
        reports,
    });
    let report = ServeReport { rounds: round.0, evaluations: about.evaluations.clone(), reason: String::new() };
    let store = store.map(Arc::new);
    let mut driver =
        Driver { hub, coordinator, peft, out: config.out, store, about, started: Instant::now(), report, accepted: 0, kept_clients: 0 };
    driver.keep().await?;
    driver.run(server, inbox, stop).await
}

/// A digest of all that must be the same when a run is taken up again.
fn digest(config: &ServeConfig, base: &BaseHash) -> String {
    let ServeConfig { plan, aggregator, activations, gradients, adapters, auto, .. } = config;
    let words = serde_json::to_string(&(plan, aggregator, (activations, gradients, adapters), format!("{auto:?}"), base));
    blake3::hash(words.expect("a plan is plain values").as_bytes()).to_hex().to_string()
}

fn coordinator_config(config: &ServeConfig, progress: Progress) -> CoordinatorConfig {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // A server that was killed when all was done waits for those who may not have heard of it; others do not come.
    let over = progress.evaluated && progress.round.0 >= config.plan.rounds;
    let gather = if over { config.join_deadline.min(RETURN_WAIT) } else { config.join_deadline };
    let all = CoordinatorConfig::of_plan(&config.plan, config.clients_expected, millis(config.round_deadline), millis(gather));
    CoordinatorConfig { clients_per_round: config.clients_per_round, min_updates: config.updates_min, ..all }
}

/// Carries out what the coordinator decides.
struct Driver {
    hub: Arc<Hub>,
    coordinator: Coordinator,
    peft: PeftConfig,
    out: PathBuf,
    store: Option<Arc<RunStore>>,
    /// What is kept of the run beside its tensors.
    about: RunAbout,
    started: Instant,
    report: ServeReport,
    /// Connections so far.
    accepted: u64,
    /// Clients whose index is on the disk.
    kept_clients: usize,
}

impl Driver {
    async fn run(
        mut self,
        mut server: Server,
        mut inbox: mpsc::Receiver<cutlayer_federation::Event>,
        stop: Stop,
    ) -> Result<ServeReport, NodeError> {
        let mut stopped = false;
        while !self.coordinator.is_finished() {
            let deadline = self.coordinator.next_deadline_ms().map(|ms| self.started + Duration::from_millis(ms));
            let tick = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = inbox.recv() => self.handle(event).await?,
                () = tick => self.handle(cutlayer_federation::Event::Tick).await?,
                link = server.accept() => self.greet(link),
                () = stop.triggered(), if !stopped => {
                    stopped = true;
                    self.handle(cutlayer_federation::Event::Stop { reason: "the server was stopped".into() }).await?;
                }
            }
        }
        // Who lost its connection around the end comes back to hear of it.
        let wait = if self.hub.roster.is_complete() { LEAVE_WAIT } else { RETURN_WAIT };
        let leaving = self.hub.clone();
        let empty = leaving.roster.wait_until_empty(wait);
        tokio::pin!(empty);
        loop {
            tokio::select! {
                () = &mut empty => break,
                link = server.accept() => self.greet(link),
            }
        }
        server.close().await;
        (self.hub.events)(Event::Finished { rounds: self.report.rounds, reason: self.report.reason.clone() });
        if self.about.trained == 0 && self.hub.plan.rounds > 0 && !stopped {
            return Err(NodeError::Ended { reason: format!("nothing was trained: {}", self.report.reason) });
        }
        Ok(self.report)
    }

    fn greet(&mut self, link: Result<cutlayer_transport::Link, cutlayer_transport::LinkError>) {
        self.accepted += 1;
        match link {
            Ok(link) => drop(tokio::spawn(session::serve_client(self.hub.clone(), link, self.accepted))),
            Err(error) => (self.hub.events)(Event::Refused { peer: String::new(), reason: error.to_string() }),
        }
    }

    async fn handle(&mut self, event: cutlayer_federation::Event) -> Result<(), NodeError> {
        let mut waiting = vec![event];
        while let Some(event) = waiting.pop() {
            let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let left = match &event {
                cutlayer_federation::Event::Joined { peer, .. } => {
                    self.hub.roster.confirm(peer);
                    None
                }
                cutlayer_federation::Event::Left { peer, .. } => Some(*peer),
                _ => None,
            };
            let actions = self.coordinator.handle(now_ms, event);
            if let Some(peer) = left {
                if let Some(client) = self.hub.roster.client(&peer) {
                    self.hub.edge.run("unseat", move |edge| edge.unseat(client)).await?;
                }
                self.hub.roster.remove(&peer);
            }
            // What ends a round may come with what begins the next, where that one is not scored.
            let trains = |action: &Action| matches!(action, Action::Train { .. });
            let mut ending = actions;
            let beginning = ending.split_off(ending.iter().position(trains).unwrap_or(ending.len()));
            for action in ending {
                waiting.extend(self.perform(action).await?);
            }
            if !beginning.is_empty() && self.kept_clients != self.hub.roster.given().len() {
                // A server that is killed in the first round has to number its clients alike in the next start.
                self.keep().await?;
            }
            self.hub.begin_round(&beginning).await?;
            for action in beginning {
                waiting.extend(self.perform(action).await?);
            }
        }
        Ok(())
    }

    /// Does one thing; returns what the coordinator is to be told of it.
    async fn perform(&mut self, action: Action) -> Result<Option<cutlayer_federation::Event>, NodeError> {
        let roster = &self.hub.roster;
        match action {
            Action::Broadcast { peers, round } => {
                let state = self.coordinator.global().1.clone();
                peers.iter().for_each(|peer| roster.tell(peer, Command::Adopt { round, state: state.clone() }));
            }
            Action::Train { peer, round } => roster.tell(&peer, Command::Say(Box::new(Message::Train { round }))),
            Action::Evaluate { peer, round } => roster.tell(&peer, Command::Say(Box::new(Message::Evaluate { round }))),
            Action::Accept { peer, round } => self.settle(&peer, round, true, String::new()),
            Action::Refuse { peer, round, reason } => self.settle(&peer, round, false, reason),
            Action::Reject { peer, reason } => {
                let reason = cutlayer_wire::shorten_reason(&reason).into();
                if let Some(client) = roster.reject(&peer, Message::Refused { code: RefusalCode::Plan, reason }) {
                    self.hub.edge.run("unseat", move |edge| edge.unseat(client)).await?;
                    self.hub.roster.remove(&peer);
                }
            }
            Action::CollectServerPart { round, peers } => {
                let peers: Vec<PeerId> = peers.into_iter().map(|(peer, _)| peer).collect();
                let updates = self.hub.edge.run("collect", move |edge| edge.parts(round, &peers)).await?;
                return Ok(Some(cutlayer_federation::Event::ServerPart { round, updates }));
            }
            Action::Commit { round, state, summary } => self.commit(round, state, &summary).await?,
            Action::EvalDone { round, sums, .. } => {
                if let Some(event) = Event::evaluated(round.0, &sums) {
                    (self.hub.events)(event);
                }
                // A round that was scored before the server was killed is scored again.
                self.report.evaluations.retain(|(scored, _)| *scored != round.0);
                self.report.evaluations.push((round.0, sums));
            }
            Action::Missing { round, peers, waited_ms, .. } => {
                // In lockstep nobody waits for a step that may never come.
                peers.iter().filter_map(|peer| roster.client(peer)).for_each(|client| self.hub.turns.leave(round, client));
                let missing = peers.iter().map(|peer| roster.name(peer)).collect();
                (self.hub.events)(Event::Late { round: round.0, missing, waited_ms });
            }
            Action::Finish { reason } => {
                if self.coordinator.progress().round.0 >= self.hub.plan.rounds {
                    // Before anybody leaves: a server that comes back must not wait for them to score that round.
                    self.about.evaluations.clone_from(&self.report.evaluations);
                    self.keep().await?;
                }
                self.report.reason.clone_from(&reason);
                self.hub.over.store(true, Ordering::Relaxed);
                self.hub.roster.finish(self.coordinator.global(), &reason);
            }
        }
        Ok(None)
    }

    /// Puts the run on the disk as it stands between two rounds.
    async fn keep(&mut self) -> Result<(), NodeError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let (progress, given) = (self.coordinator.progress(), self.hub.roster.given());
        self.kept_clients = given.len();
        let indices = given.into_iter().map(|(peer, client)| (peer.to_hex(), client)).collect();
        let about = RunAbout { progress, indices, ..self.about.clone() };
        let global = self.coordinator.global().1.as_ref().clone();
        let edge = self.hub.edge.run("read the optimizers", |edge| edge.state()).await?;
        let saved = tokio::task::spawn_blocking(move || store.save(RunState { about, global, edge })).await;
        saved.map_err(|_| NodeError::Panicked { during: "keeping the run".into() })?
    }

    fn settle(&self, peer: &PeerId, round: RoundId, accepted: bool, reason: String) {
        if let Some(client) = self.hub.roster.client(peer) {
            (self.hub.events)(Event::Updated { client, round: round.0, accepted, reason: reason.clone() });
        }
        let reason = cutlayer_wire::shorten_reason(&reason).into();
        self.hub.roster.tell(peer, Command::Say(Box::new(Message::Settled { round, accepted, reason })));
    }

    /// Durable first, then in force: no client hears of a round that a power cut could take back.
    async fn commit(
        &mut self,
        round: RoundId,
        state: Arc<AdapterState>,
        summary: &cutlayer_federation::RoundSummary,
    ) -> Result<(), NodeError> {
        let (out, peft, saved) = (self.out.clone(), self.peft.clone(), state.clone());
        let written = tokio::task::spawn_blocking(move || PeftFolder::write(&out, &peft, &saved)).await;
        written.map_err(|_| NodeError::Panicked { during: "saving the adapter".into() })??;
        let adapter_bytes = state.values().map(|tensor| 4 * tensor.values.len() as u64).sum();
        self.hub.edge.run("install", move |edge| edge.install(round, state.as_ref().clone())).await??;
        self.report.rounds = round.0;
        self.about.trained += u32::from(!summary.accepted.is_empty());
        self.about.evaluations.clone_from(&self.report.evaluations);
        self.keep().await?;
        for (peer, reason) in &summary.refused {
            tracing::warn!("round {round}: the update of {peer} does not count: {reason}");
        }
        if let Some(reason) = &summary.skipped {
            tracing::warn!("round {round} changed nothing: {reason}");
        }
        (self.hub.events)(Event::Committed {
            round: round.0,
            updates: summary.accepted.len() as u32,
            adapter_bytes,
            seconds: summary.took_ms as f64 / 1e3,
        });
        Ok(())
    }
}
