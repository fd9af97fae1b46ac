//! A run on the bench: clients that are only numbers, and a clock that moves when told.

#![allow(clippy::unwrap_used)]

mod failures;
mod folding;
mod random;
mod rounds;

use cutlayer_wire::{AdapterFrame, AdapterState, BaseHash, EvalSums, HostTensor, PeerId, RoundId, Weighting};

use super::*;
use crate::fedavg::FedAvg;

const BASE: BaseHash = BaseHash([7; 32]);
const DEADLINE_MS: u64 = 1000;
const JOIN_MS: u64 = 5000;
const WEIGHT_MAX: f64 = 1000.0;

/// Peer `n`; its key runs against its index, so that an order by key would show.
fn peer(client: u32) -> PeerId {
    PeerId([200 - u8::try_from(client).unwrap(); 32])
}

fn peers(clients: &[u32]) -> Vec<PeerId> {
    clients.iter().map(|client| peer(*client)).collect()
}

/// An adapter whose listed layers are filled with a value.
fn layers(filled: &[(&str, f32)]) -> AdapterState {
    let tensor = |value| HostTensor::new(vec![2], vec![value; 2]).unwrap();
    filled.iter().map(|(key, value)| ((*key).to_string(), tensor(*value))).collect()
}

fn config(clients: u32, rounds: u32) -> CoordinatorConfig {
    CoordinatorConfig {
        min_clients: clients,
        clients_per_round: 0,
        min_updates: clients,
        rounds,
        evaluate_every: 0,
        round_deadline_ms: DEADLINE_MS,
        join_deadline_ms: JOIN_MS,
        seed: 1,
        weighting: Weighting::Tokens,
    }
}

/// A coordinator and its clock.
struct Bench {
    coordinator: Coordinator,
    now_ms: u64,
}

impl Bench {
    /// A run over three layers that start at zero.
    fn new(config: CoordinatorConfig) -> Self {
        Self::resumed(config, Progress::default())
    }

    /// The same from what a server had saved.
    fn resumed(config: CoordinatorConfig, start: Progress) -> Self {
        let global = layers(&[("0", 0.0), ("1", 0.0), ("2", 0.0)]);
        let contract = Contract::of(BASE, &global, WEIGHT_MAX);
        let coordinator = Coordinator::new(0, config, contract, Box::new(FedAvg), start, global).unwrap();
        Self { coordinator, now_ms: 0 }
    }

    /// The same, with everyone joined, the starting adapter scored and round 1 under way.
    fn training(config: CoordinatorConfig) -> Self {
        let clients = config.min_clients;
        let mut bench = Self::new(config);
        (0..clients).for_each(|client| drop(bench.join(client, &["0"])));
        (0..clients).for_each(|client| drop(bench.score(client, 0)));
        assert!(matches!(bench.coordinator.phase, Phase::Training(_)));
        bench
    }

    fn hear(&mut self, event: Event) -> Vec<Action> {
        self.coordinator.handle(self.now_ms, event)
    }

    fn join(&mut self, client: u32, keys: &[&str]) -> Vec<Action> {
        let keys = keys.iter().map(|key| (*key).to_string()).collect();
        self.hear(Event::Joined { peer: peer(client), client, keys })
    }

    fn leave(&mut self, client: u32) -> Vec<Action> {
        self.hear(Event::Left { peer: peer(client), reason: "gone".into() })
    }

    fn update(&mut self, client: u32, round: u32, weight: f64, state: AdapterState) -> Vec<Action> {
        let frame = AdapterFrame::new(RoundId(round), weight, &BASE, state);
        self.hear(Event::Updated { peer: peer(client), frame })
    }

    /// A good update of layer 0.
    fn good(&mut self, client: u32, round: u32) -> Vec<Action> {
        self.update(client, round, 10.0, layers(&[("0", 1.0)]))
    }

    fn score(&mut self, client: u32, round: u32) -> Vec<Action> {
        let sums = EvalSums { loss_sum: f64::from(client + 1), scored: 2, correct: 1 };
        self.hear(Event::Evaluated { peer: peer(client), round: RoundId(round), sums })
    }

    fn server_part(&mut self, round: u32, updates: Vec<Update>) -> Vec<Action> {
        self.hear(Event::ServerPart { round: RoundId(round), updates })
    }

    fn wait(&mut self, ms: u64) -> Vec<Action> {
        self.now_ms += ms;
        self.hear(Event::Tick)
    }

    fn value_of(&self, key: &str) -> f32 {
        self.coordinator.global().1[key].values[0]
    }
}

/// What the server trained.
fn part(source: Source, filled: &[(&str, f32)]) -> Update {
    // Round and weight are the coordinator's to fill in: these must not survive.
    Update { source, round: RoundId(99), weight: f64::NAN, tensors: layers(filled) }
}

/// Actions in a word each, as the tests spell their order.
fn words(actions: &[Action]) -> Vec<String> {
    let list = |peers: &[PeerId]| peers.iter().map(|peer| (200 - peer.0[0]).to_string()).collect::<Vec<_>>().join(",");
    let one = |peer: &PeerId| list(&[*peer]);
    let word = |action: &Action| match action {
        Action::Broadcast { peers, round } => format!("broadcast {round} to {}", list(peers)),
        Action::Train { peer, round } => format!("train {round} {}", one(peer)),
        Action::Evaluate { peer, round } => format!("evaluate {round} {}", one(peer)),
        Action::Accept { peer, round } => format!("accept {round} {}", one(peer)),
        Action::Refuse { peer, round, .. } => format!("refuse {round} {}", one(peer)),
        Action::Reject { peer, .. } => format!("reject {}", one(peer)),
        Action::CollectServerPart { round, peers } => {
            let peers: Vec<PeerId> = peers.iter().map(|(peer, _)| *peer).collect();
            format!("collect {round} {}", list(&peers))
        }
        Action::Commit { round, summary, .. } if summary.skipped.is_some() => {
            format!("skip {round}")
        }
        Action::Commit { round, .. } => format!("commit {round}"),
        Action::EvalDone { round, per_peer, .. } => {
            format!("scored {round} by {}", per_peer.len())
        }
        Action::Missing { round, wait, peers, .. } => {
            format!("missing {wait} {round} {}", list(peers))
        }
        Action::Finish { .. } => "finish".to_string(),
    };
    actions.iter().map(word).collect()
}

fn check_words(actions: &[Action], expected: &[&str]) {
    assert_eq!(words(actions), expected);
}

fn summary_of(actions: &[Action]) -> RoundSummary {
    let summary = |action: &Action| match action {
        Action::Commit { summary, .. } => Some(summary.clone()),
        _ => None,
    };
    actions.iter().find_map(summary).expect("a commit")
}

fn refusal_in(actions: &[Action]) -> &str {
    let mut reasons = actions.iter().filter_map(|action| match action {
        Action::Refuse { reason, .. } | Action::Reject { reason, .. } => Some(reason),
        _ => None,
    });
    reasons.next().expect("a refusal")
}

fn finish_reason(actions: &[Action]) -> &str {
    match actions.last() {
        Some(Action::Finish { reason }) => reason,
        other => panic!("the run should have ended, not {other:?}"),
    }
}
