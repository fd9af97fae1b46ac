//! What a seed stands for: the run's plan, its clients, the network between them, and what goes wrong.

use cutlayer_federation::CoordinatorConfig;
use cutlayer_wire::{
    BatchSpec, Encoding, Layout, LoraSpec, OptimizerKind, OptimizerSpec, PeerId, Pipeline, Plan, Schedule, ServerAdapters, StepOrder, Task,
    Weighting,
};

use crate::network::Link;
use crate::random::Random;
use crate::toy::LAYERS;

/// The most clients of a run.
const CLIENTS_MAX: u64 = 5;
/// When faults happen: within this much of the start.
const FAULTS_WITHIN_MS: u64 = 6000;

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
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A client's connection is lost; the client is not.
    Lose { client: usize },
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

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    /// Nothing goes wrong and nobody is late.
    pub healthy: bool,
    pub plan: Plan,
    pub config: CoordinatorConfig,
    pub clients: Vec<ClientPlan>,
    pub faults: Vec<(u64, Fault)>,
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
    /// One seed in four is healthy.
    pub fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let healthy = random.chance(25);
        Self::with(seed, healthy, &mut random)
    }

    fn with(seed: u64, healthy: bool, random: &mut Random) -> Self {
        let clients: Vec<ClientPlan> = (0..random.between(1, CLIENTS_MAX)).map(|_| client(healthy, random)).collect();
        let plan = plan(seed, healthy, random);
        let count = clients.len() as u32;
        let min_clients = if healthy { count } else { random.between(1, count.into()) as u32 };
        let clients_per_round = if random.chance(25) { random.between(1, min_clients.into()) as u32 } else { 0 };
        let needed_max = if clients_per_round == 0 { min_clients } else { clients_per_round };
        let config = CoordinatorConfig {
            clients_per_round,
            min_clients,
            min_updates: if healthy { needed_max } else { random.between(1, needed_max.into()) as u32 },
            round_deadline_ms: if healthy { 60_000 } else { random.between(200, 3000) },
            join_deadline_ms: if healthy { 60_000 } else { random.between(500, 6000) },
            ..CoordinatorConfig::of_plan(&plan, count, 1, 1)
        };
        let count = clients.len();
        let faults = if healthy { Vec::new() } else { (0..random.between(0, 6)).map(|_| fault(count, random)).collect() };
        Self {
            seed,
            healthy,
            plan,
            config,
            clients,
            faults,
            activations: random.pick(&[Encoding::F32, Encoding::BF16, Encoding::F16]),
            gradients: random.pick(&[Encoding::F32, Encoding::BF16, Encoding::F16]),
            collect_blocks: random.chance(50),
            weight_is_bounded: random.chance(50),
            eval_steps: random.between(0, 2) as u32,
        }
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

fn plan(seed: u64, healthy: bool, random: &mut Random) -> Plan {
    let server_adapters = if healthy || random.chance(60) { ServerAdapters::PerClient } else { ServerAdapters::Shared };
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
        batch: BatchSpec { sequences: 3, tokens_max: 3, layout: Layout::Padded, group_by_length: false },
        rounds: random.between(0, 5) as u32,
        local_steps: random.between(1, 4) as u32,
        seed,
        server_adapters,
        step_order: StepOrder::Arrival,
        weighting: random.pick(&[Weighting::Tokens, Weighting::Samples, Weighting::Uniform]),
        evaluate_every: random.between(0, 2) as u32,
        pipeline: Pipeline::SEQUENTIAL,
    }
}

fn client(healthy: bool, random: &mut Random) -> ClientPlan {
    let temper = match random.between(0, 99) {
        _ if healthy => Temper::Honest,
        0..=69 => Temper::Honest,
        70..=91 => Temper::Nonsense,
        92..=96 => Temper::Silent,
        _ => Temper::Foreign,
    };
    let slow = !healthy && random.chance(15);
    let start_within_ms = if healthy || random.chance(80) { 300 } else { 4000 };
    let start_ms = random.between(0, start_within_ms);
    let link = Link {
        latency_ms: random.between(0, 60),
        jitter_ms: random.between(0, 20),
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

fn fault(clients: usize, random: &mut Random) -> (u64, Fault) {
    let client = random.between(0, clients as u64 - 1) as usize;
    let fault = match random.between(0, 99) {
        0..=34 => Fault::Lose { client },
        35..=59 => Fault::Crash { client, down_ms: random.between(0, 2000) },
        60..=79 => Fault::CutOff { client, ms: random.between(10, 3000) },
        80..=95 => Fault::Restart { down_ms: random.between(0, 2000) },
        _ => Fault::Stop,
    };
    (random.between(0, FAULTS_WITHIN_MS), fault)
}
