//! The same run without a network: what every run must come to in which nothing is lost for good.

use cutlayer_wire::{AdapterState, Encoding, HostTensor, ServerAdapters, Weighting};

use crate::scenario::Scenario;
use crate::toy::{self, At, Moment};

/// What both sides keep of a client from round to round.
#[derive(Clone, Copy, Default)]
struct Kept {
    drawn: u64,
    client: Moment,
    server: Moment,
}

/// A client's round.
struct Round {
    own: AdapterState,
    /// The server's layers for this client alone, or as the shared ones stand.
    servers: AdapterState,
    tokens: u32,
    sequences: u32,
}

/// Federated averaging: every step of every client, in lockstep, and the mean of each round.
pub fn average(scenario: &Scenario, trained: &[Vec<usize>]) -> AdapterState {
    let shares = scenario.plan.server_adapters == ServerAdapters::Shared;
    let mut global = toy::start();
    let mut kept = vec![Kept::default(); scenario.clients.len()];
    let mut shared_moment = 0.0;
    for clients in trained {
        let mut shared = global.clone();
        let begin = |client: &usize| {
            let cut = scenario.clients[*client].cut;
            let (own, servers) = (toy::part(&global, 0..cut), toy::part(&global, cut..toy::LAYERS));
            Round { own, servers, tokens: 0, sequences: 0 }
        };
        let mut rounds: Vec<Round> = clients.iter().map(begin).collect();
        for _ in 0..scenario.plan.local_steps {
            for (client, round) in clients.iter().zip(&mut rounds) {
                let kept = &mut kept[*client];
                if shares {
                    round.servers = toy::part(&shared, scenario.clients[*client].cut..toy::LAYERS);
                    kept.server = shared_moment;
                }
                step(scenario, *client, round, kept);
                if shares {
                    shared.extend(round.servers.clone());
                    shared_moment = kept.server;
                }
            }
        }
        global = mean(scenario, &global, &rounds, shares.then_some(&shared));
    }
    global
}

/// One step of one client, both halves of it.
fn step(scenario: &Scenario, client: usize, round: &mut Round, kept: &mut Kept) {
    let (mut activations, mut gradients) = (Vec::new(), Vec::new());
    for _ in 0..scenario.plan.pipeline.micro_batches {
        let at = At { seed: scenario.seed, client: client as u32, draw: kept.drawn };
        kept.drawn += 1;
        let lengths = toy::lengths(at);
        round.tokens += lengths.iter().sum::<u32>();
        round.sequences += lengths.len() as u32;
        let values = through(scenario.activations, &toy::activations(&round.own, at));
        gradients.push(through(scenario.gradients, &toy::gradient(&round.servers, &values)));
        activations.push(values);
    }
    toy::optimize(&mut round.servers, &mut kept.server, &activations);
    toy::optimize(&mut round.own, &mut kept.client, &gradients);
}

fn through(encoding: Encoding, values: &[f32]) -> Vec<f32> {
    let hidden = toy::HIDDEN as usize;
    let bytes = encoding.encode(values, hidden, 0).expect("rows of the hidden size");
    encoding.decode(&bytes, values.len() / hidden, hidden).expect("what was just encoded")
}

/// Tensor by tensor over whoever trained it: the clients in their order, then the layers that all of the others shared.
fn mean(scenario: &Scenario, global: &AdapterState, rounds: &[Round], shared: Option<&AdapterState>) -> AdapterState {
    let weight = |round: &Round| match scenario.plan.weighting {
        Weighting::Tokens => f64::from(round.tokens),
        Weighting::Samples => f64::from(round.sequences),
        Weighting::Uniform => 1.0,
    };
    let of_key = |(key, current): (&String, &HostTensor)| {
        let mut weighed = Vec::new();
        let mut left_to_shared = 0.0;
        for round in rounds {
            let own = round.own.get(key).or(round.servers.get(key).filter(|_| shared.is_none()));
            weighed.extend(own.map(|tensor| (weight(round), tensor)));
            left_to_shared += if own.is_none() { weight(round) } else { 0.0 };
        }
        let shared = shared.and_then(|shared| shared.get(key)).filter(|_| left_to_shared > 0.0);
        weighed.extend(shared.map(|tensor| (left_to_shared, tensor)));
        (key.clone(), toy::mean(&weighed).unwrap_or_else(|| current.clone()))
    };
    global.iter().map(of_key).collect()
}
