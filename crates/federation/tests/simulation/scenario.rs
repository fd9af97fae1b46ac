//! What a seed stands for: the run's plan, its clients, the network between them, and what goes wrong.

use cutlayer_federation::CoordinatorConfig;
use cutlayer_wire::{
    BatchSpec, Encoding, Layout, LoraSpec, OptimizerKind, OptimizerSpec, PeerId, Pipeline, Plan, Schedule, ServerAdapters, StepOrder, Task,
    Weighting,
};

use crate::client::{ATTEMPTS_MAX, BACKOFF_MS};
use crate::driver::Death;
use crate::network::Link;
use crate::random::Random;
use crate::toy::LAYERS;

/// The most clients of a run.
const CLIENTS_MAX: u64 = 5;
/// When faults happen: within this much of the start.
const FAULTS_WITHIN_MS: u64 = 4000;
/// The same where nobody waits for a deadline, and the run is sooner over.
const LOSSES_WITHIN_MS: u64 = 3000;
/// Beside its deadlines, a round takes a write to the disk and the server's part.
const ROUND_SLACK_MS: u64 = 100;
/// How long a client tries to connect.
const GIVING_UP_MS: u64 = ATTEMPTS_MAX as u64 * BACKOFF_MS;
/// Longer than all that can be lost takes to be found again.
const PATIENCE_MS: u64 = 600_000;

/// What a client is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// Does what it is asked, as fast as it can.
    Honest,
    /// Spoils its updates and says what it should not.
    Nonsense,
    /// Joins and then answers nothing.
    Silent,
    /// Trains a layer that the plan does not know.
    Foreign,
    /// Means well, but each of its processes computes a little differently.
    Fickle,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A client's connection is lost, with all that is under way; the client is not.
    Lose { client: usize },
    /// A client gives its connection up and makes another: what it sent before still arrives, and the server learns of it late.
    Roam { client: usize },
    /// A client's process ends, and starts again with nothing.
    Crash { client: usize, down_ms: u64 },
    /// A client hears and says nothing for a while.
    CutOff { client: usize, ms: u64 },
    /// The server's process ends, and starts again from its disk.
    Restart { down_ms: u64 },
    /// Somebody stops the run.
    Stop,
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub struct ClientPlan {
    pub temper: Temper,
    pub cut: u16,
    /// Hears words while it works, rather than between.
    pub eager: bool,
    pub link: Link,
    /// The most that one half of a step takes.
    pub compute_ms: u64,
    pub start_ms: u64,
}

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing goes wrong and nobody is late.
    Healthy,
    /// Connections, processes and the server are lost, but there is time enough to find everything again: the run must end with the
    /// adapter that it ends with when nothing is lost.
    Exact,
    /// Anything goes wrong, and deadlines pass.
    Wild,
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub kind: Kind,
    pub plan: Plan,
    pub config: CoordinatorConfig,
    pub clients: Vec<ClientPlan>,
    pub faults: Vec<(u64, Fault)>,
    /// Writes of a round that kill the server's process.
    pub deaths: Vec<(u32, Death)>,
    /// How long a seat waits for its client.
    pub reconnect_ms: u64,
    /// How long clients may take to leave after the run.
    pub leave_ms: u64,
    pub activations: Encoding,
    pub gradients: Encoding,
    /// The server does nothing else while it collects its own part, as the node does.
    pub collect_blocks: bool,
    /// No update weighs more than the work that the server saw, as the node has it; else the contract alone judges.
    pub weight_is_bounded: bool,
    /// Steps that an evaluation takes.
    pub eval_steps: u32,
}

impl Scenario {
    /// One seed in five is healthy, two in five are exact.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let kind = match random.between(0, 4) {
            0 => Kind::Healthy,
            1 | 2 => Kind::Exact,
            _ => Kind::Wild,
        };
        Self::with(seed, kind, &mut random)
    }

    fn with(seed: u64, kind: Kind, random: &mut Random) -> Self {
        let wild = kind == Kind::Wild;
        let clients: Vec<ClientPlan> = (0..random.between(1, CLIENTS_MAX)).map(|_| client(wild, random)).collect();
        let plan = plan(seed, wild, random);
        let count = clients.len() as u32;
        let min_clients = if wild { random.between(1, count.into()) as u32 } else { count };
        let clients_per_round = if random.chance(25) { random.between(1, min_clients.into()) as u32 } else { 0 };
        let needed_max = if clients_per_round == 0 { min_clients } else { clients_per_round };
        let config = CoordinatorConfig {
            clients_per_round,
            min_clients,
            min_updates: if wild { random.between(1, needed_max.into()) as u32 } else { needed_max },
            round_deadline_ms: if wild { random.between(200, 3000) } else { PATIENCE_MS },
            join_deadline_ms: if wild { random.between(500, 6000) } else { PATIENCE_MS },
            ..CoordinatorConfig::of_plan(&plan, count, 1, 1)
        };
        let count = clients.len();
        let faults = match kind {
            Kind::Healthy => Vec::new(),
            Kind::Exact => (0..random.between(1, 12)).map(|_| loss(count, random)).collect(),
            Kind::Wild => (0..random.between(0, 12)).map(|_| fault(count, random)).collect(),
        };
        let storm = if kind != Kind::Healthy && random.chance(30) { storm(count, random) } else { Vec::new() };
        let deaths = if kind == Kind::Healthy { 0 } else { random.between(0, 2) };
        let death = |random: &mut Random| (random.between(1, 5) as u32, random.pick(&[Death::BeforeWrite, Death::AfterWrite]));
        let reconnect_max_ms = random.pick(&[0, 100, 300, 3000]);
        let reconnect_ms = random.between(0, reconnect_max_ms);
        Self {
            seed,
            kind,
            plan,
            config,
            clients,
            faults: faults.into_iter().chain(storm).collect(),
            deaths: (0..deaths).map(|_| death(random)).collect(),
            reconnect_ms: if wild { reconnect_ms } else { PATIENCE_MS },
            leave_ms: if wild { 5000 } else { PATIENCE_MS },
            activations: random.pick(&[Encoding::F32, Encoding::BF16, Encoding::F16]),
            gradients: random.pick(&[Encoding::F32, Encoding::BF16, Encoding::F16]),
            collect_blocks: random.chance(50),
            weight_is_bounded: random.chance(50),
            eval_steps: random.between(0, 2) as u32,
        }
    }

    /// The same run, and nothing is lost.
    pub fn undisturbed(&self) -> Self {
        Self { kind: Kind::Healthy, faults: Vec::new(), deaths: Vec::new(), ..self.clone() }
    }

    /// When all must be over, whatever happens: each process of the server waits, for each round that is left, for enough clients, for
    /// updates and for scores; then everyone leaves or gives up.
    pub fn longest_ms(&self, processes: u32) -> u64 {
        let CoordinatorConfig { rounds, join_deadline_ms, round_deadline_ms, .. } = self.config;
        let round_ms = join_deadline_ms + 2 * round_deadline_ms + ROUND_SLACK_MS;
        let faults_ms = self.faults.iter().map(|(at_ms, _)| at_ms).max().unwrap_or(&0) + FAULTS_WITHIN_MS;
        faults_ms + u64::from(processes) * (u64::from(rounds) + 1) * round_ms + self.leave_ms + self.reconnect_ms + GIVING_UP_MS
    }

    /// Who a client is. Keys run against indices, so that an order by key would show.
    pub fn peer(client: usize) -> PeerId {
        PeerId([200 - client as u8; 32])
    }

    /// Whose key it is.
    pub fn client_of(peer: PeerId) -> usize {
        usize::from(200 - peer.0[0])
    }
}

fn plan(seed: u64, wild: bool, random: &mut Random) -> Plan {
    let lockstep = random.chance(40);
    // Who came first would show in one adapter for all.
    let per_client = random.chance(50) || (!wild && !lockstep);
    let server_adapters = if per_client { ServerAdapters::PerClient } else { ServerAdapters::Shared };
    Plan {
        task: Task::CausalLm,
        adapter: LoraSpec { rank: 2, alpha: 4.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::Sgd,
            learning_rate: 0.1,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: None,
            reset_each_round: true,
        },
        batch: BatchSpec { sequences: 9, tokens_max: 3, layout: Layout::Padded, group_by_length: false },
        rounds: random.between(0, 5) as u32,
        local_steps: random.between(1, 4) as u32,
        seed,
        server_adapters,
        step_order: if lockstep { StepOrder::Lockstep } else { StepOrder::Arrival },
        weighting: random.pick(&[Weighting::Tokens, Weighting::Samples, Weighting::Uniform]),
        evaluate_every: random.between(0, 2) as u32,
        pipeline: Pipeline { micro_batches: random.between(1, 3) as u16, staleness: 0 },
    }
}

fn client(wild: bool, random: &mut Random) -> ClientPlan {
    let temper = match random.between(0, 99) {
        _ if !wild => Temper::Honest,
        0..=54 => Temper::Honest,
        55..=72 => Temper::Nonsense,
        73..=92 => Temper::Fickle,
        93..=96 => Temper::Silent,
        _ => Temper::Foreign,
    };
    let slow = wild && random.chance(15);
    let start_within_ms = if !wild || random.chance(80) { 300 } else { 4000 };
    let start_ms = random.between(0, start_within_ms);
    let jitter_max_ms = random.pick(&[20, 150]);
    let link = Link {
        latency_ms: random.between(0, 60),
        jitter_ms: random.between(0, jitter_max_ms),
        bytes_per_ms: if slow { random.between(1, 4) } else { random.between(10, 10_000) },
    };
    ClientPlan {
        temper,
        cut: random.between(0, LAYERS.into()) as u16,
        eager: random.chance(30),
        link,
        compute_ms: if slow { random.between(50, 400) } else { random.between(0, 20) },
        start_ms,
    }
}

/// Something is lost that can be found again.
fn loss(clients: usize, random: &mut Random) -> (u64, Fault) {
    let client = random.between(0, clients as u64 - 1) as usize;
    let fault = match random.between(0, 99) {
        0..=24 => Fault::Lose { client },
        25..=44 => Fault::Roam { client },
        45..=69 => Fault::Crash { client, down_ms: random.between(0, 500) },
        70..=84 => Fault::CutOff { client, ms: random.between(10, 3000) },
        _ => Fault::Restart { down_ms: random.between(0, 500) },
    };
    (random.between(0, LOSSES_WITHIN_MS), fault)
}

/// One client's connections are lost again and again, sooner than it is welcomed.
fn storm(clients: usize, random: &mut Random) -> Vec<(u64, Fault)> {
    let client = random.between(0, clients as u64 - 1) as usize;
    let mut at_ms = random.between(0, LOSSES_WITHIN_MS);
    let mut gust = |_| {
        at_ms += random.between(5, 200);
        (at_ms, if random.chance(50) { Fault::Roam { client } } else { Fault::Lose { client } })
    };
    (0..20).map(&mut gust).collect()
}

fn fault(clients: usize, random: &mut Random) -> (u64, Fault) {
    let fault = match loss(clients, random).1 {
        _ if random.chance(4) => Fault::Stop,
        Fault::Crash { client, .. } => {
            let down_max_ms = random.pick(&[100, 2000]);
            Fault::Crash { client, down_ms: random.between(0, down_max_ms) }
        }
        Fault::Restart { .. } => Fault::Restart { down_ms: random.between(0, 2000) },
        fault => fault,
    };
    (random.between(0, FAULTS_WITHIN_MS), fault)
}
