//! Goal: what the server answers, and what it trains, does not depend on whether it computes steps of different clients at once. Method: clients
//! of mixed cuts, one of them U-shaped, one that scores, one that repeats a step and one that sends nonsense; together and one at a time.

use super::Edge;
use crate::auto::Encodings;
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use cutlayer_model::{DeviceChoice, ExportDtype, ModelFolder, Pretrainer, lora, read_spec, write_model};
use cutlayer_wire::{
    AdapterState, BatchSpec, Encoding, Frame, FrameFlags, Layout, LoraSpec, OptimizerKind, OptimizerSpec, PeerId, Pipeline, Plan, RoundId,
    Schedule, ServerAdapters, StepId, StepOrder, Task, Weighting,
};
use std::sync::Arc;

const BLOCKS: usize = 3;
const HIDDEN: u32 = 32;
const ROUND: RoundId = RoundId(1);
/// Cut and tail of each client.
const CLIENTS: [(usize, Option<usize>); 5] = [(1, None), (2, None), (0, None), (1, Some(1)), (3, None)];

fn plan() -> Plan {
    Plan {
        task: Task::CausalLm,
        adapter: LoraSpec { rank: 4, alpha: 8.0, rslora: false, dropout: 0.1, targets: vec!["q_proj".into(), "v_proj".into()] },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            learning_rate: 0.02,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: Some(1.0),
            reset_each_round: false,
        },
        batch: BatchSpec { sequences: 4, tokens_max: 32, layout: Layout::Padded, group_by_length: false },
        rounds: 1,
        local_steps: 3,
        seed: 9,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Arrival,
        weighting: Weighting::Tokens,
        evaluate_every: 1,
        pipeline: Pipeline::SEQUENTIAL,
    }
}

fn peer(client: u32) -> PeerId {
    PeerId([client as u8 + 1; 32])
}

/// A server with all clients in their seats, in a round.
fn edge() -> Edge {
    let folder = tempfile::tempdir().expect("a folder");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": 64,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true
    });
    let device = DeviceChoice::Cpu.open().expect("a CPU");
    let weights = Pretrainer::new(&config, 3, &device).expect("a model").weights();
    write_model(folder.path(), &config, weights.into_iter(), ExportDtype::F32).expect("written");
    let folder = ModelFolder::open(folder.path()).expect("a model");
    let spec = read_spec(&folder).expect("a spec");
    let global = lora::initial(&lora::shapes(&spec, &plan().adapter, 0..BLOCKS, true, 0).expect("targets"), 9);
    let encodings = Encodings { activations: Encoding::F32, gradients: Encoding::F32, adapters: Encoding::F32 };
    let mut edge = Edge::load(&folder, (ComputeConfig::default(), &device), plan(), 0, true, global).expect("an edge");
    for (client, (cut, tail)) in (0..).zip(CLIENTS) {
        edge.seat(client, peer(client), (cut, tail), encodings).expect("a seat");
        edge.begin_round(client, ROUND);
    }
    edge
}

fn opening(client: u32, index: u32) -> Frame {
    // Client 2 scores the adapter that it has, which is of round 0, in place of its second step.
    let train = (client, index) != (2, 1);
    let round = if train { ROUND } else { RoundId(0) };
    let lengths = [vec![7, 4], vec![19], vec![3, 3, 3], vec![5], vec![12]][client as usize].clone();
    let tokens: u32 = lengths.iter().sum();
    let value = |i: u32| ((i * 37 + client * 101 + index * 53) % 97) as f32 / 48.0 - 1.0;
    let payload = (0..tokens * HIDDEN).flat_map(|i| value(i).to_le_bytes()).collect();
    let ends_here = CLIENTS[client as usize].1.is_none();
    let labels = (0..tokens).filter(|_| ends_here).map(|i| if i % 6 == 5 { -100 } else { ((i * 7 + client) % 320) as i32 }).collect();
    let flags = if train { FrameFlags::TRAIN.with_if(FrameFlags::NEEDS_GRADIENT, true) } else { FrameFlags::NONE };
    Frame::forward(StepId::new(round, train, index, 0), round, flags, Encoding::F32, HIDDEN, lengths, labels, payload)
}

/// The answers to three steps of every client, and the adapters after them; the outcome of nonsense from client 4 comes last.
fn run(together: bool) -> (Vec<Frame>, Vec<AdapterState>, Vec<String>) {
    let mut edge = edge();
    let (mut answers, mut refused) = (vec![], vec![]);
    for index in 0..3 {
        let mut steps: Vec<(u32, Arc<Frame>)> = (0..5).map(|client| (client, Arc::new(opening(client, index)))).collect();
        if index == 1 {
            // A label that no vocabulary has.
            let mut nonsense = opening(4, index);
            nonsense.labels[0] = 5000;
            steps[4].1 = Arc::new(nonsense);
        }
        if index == 2 {
            // A step that was answered before.
            steps[0].1 = Arc::new(opening(0, 1));
        }
        let opened = match together {
            true => edge.open_many(steps),
            false => steps.into_iter().flat_map(|step| edge.open_many(vec![step])).collect(),
        };
        for (client, outcome) in opened.into_iter().enumerate() {
            match outcome {
                Ok(opened) => answers.push(opened.answer),
                Err(error) => refused.push(format!("{index} {client}: {error}")),
            }
        }
    }
    let stages = edge.seats.values().map(|seat| seat.own.as_ref().expect("its own").adapter().state());
    (answers, stages.collect(), refused)
}

#[test]
fn steps_at_once_are_steps_one_at_a_time() {
    let (expected, adapters, refused) = run(false);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("1 4:") && refused[0].contains("5000"), "{refused:?}");
    // After five answers and four, client 0 asks its second step again.
    assert_eq!(expected[9], expected[5], "it is answered as before");
    let start = edge();
    let fresh = start.seats[&0].own.as_ref().expect("its own").adapter().state();
    assert_ne!(adapters[0], fresh, "it trains");
    if std::env::var_os("CUTLAYER_TEST_DEVICE").is_none() && has_own_products() {
        assert_eq!(run(true), (expected, adapters, refused));
    } else {
        let (answers, ..) = run(true);
        for (answer, expected) in answers.iter().zip(&expected) {
            let apart = (answer.header.sums().loss_sum - expected.header.sums().loss_sum).abs();
            assert!(apart <= 1e-4 * expected.header.sums().loss_sum.abs(), "{apart}");
        }
    }
}

/// Goal: a step is over with its last micro-batch, however often another one is sent. Method: the first of two, again, then the second, again.
#[test]
fn a_step_is_over_with_its_last_micro_batch() {
    let mut edge = edge();
    let part = |micro| {
        let mut frame = opening(0, 0).micro(2, 20);
        frame.header.step = StepId::new(ROUND, true, 0, micro);
        Arc::new(frame)
    };
    let over: Vec<bool> = [0, 0, 1, 1].map(|micro| edge.open_many(vec![(0, part(micro))]).remove(0).expect("a step").over).to_vec();
    assert_eq!(over, [false, false, true, true]);
}

/// Goal: a step whose client left while it waited is an error of its own. Method: no seat.
#[test]
fn a_step_of_a_client_that_left_harms_no_other() {
    let mut edge = edge();
    let opened = edge.open_many(vec![(9, Arc::new(opening(0, 0))), (1, Arc::new(opening(1, 0)))]);
    assert!(matches!(opened[0], Err(NodeError::Ended { .. })));
    assert!(opened[1].is_ok());
    assert_eq!(edge.step_bytes(9, &opening(0, 0)), 0);
    assert!(edge.step_bytes(2, &opening(2, 0)) > 2 * edge.step_bytes(1, &opening(2, 0)), "three blocks keep more than one");
}

/// With products of our own the same bits are promised; elsewhere the same numbers to rounding.
fn has_own_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
