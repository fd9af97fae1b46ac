//! Goal: clients whose steps share a forward and a backward pass get what each would have got alone. Method: five clients of mixed cuts, ranks,
//! targets, dropout and lengths, over every family; together and one at a time, to the bit where products are our own.
#![allow(clippy::unwrap_used)]

mod common;

use common::{device, random};
use cutlayer_model::spec::HeadSpec;
use cutlayer_model::{Frozen, Input, Joint, Labels, Mode, Rows, Stage, StageError, TapeId, Tensor, lora, losses};
use cutlayer_wire::{AdapterState, EvalSums, LoraSpec, OptimizerKind, OptimizerSpec, Schedule, StepId};
use std::sync::Arc;

const BLOCKS: usize = 3;
const STEPS: u64 = 3;

/// A client, from which its steps follow.
struct Client {
    cut: usize,
    lora: LoraSpec,
    lengths: Vec<u32>,
    evaluates: bool,
    /// Whether it wants the gradient at its cut.
    wants: bool,
    index: u32,
}

fn clients(family: &str) -> Vec<Client> {
    let targets: [&[&str]; 2] = match family {
        "gpt2" => [&["c_attn"], &["c_attn", "c_fc"]],
        "bert" => [&["query", "value"], &["value", "key", "dense"]],
        _ => [&["q_proj", "v_proj"], &["k_proj", "up_proj", "down_proj", "o_proj"]],
    };
    let client = |index, cut, rank, dropout, lengths: &[u32]| Client {
        cut,
        lora: LoraSpec {
            rank,
            alpha: 2.0 * rank as f32,
            rslora: false,
            dropout,
            targets: targets[index as usize % 2].iter().map(|&t| t.into()).collect(),
        },
        lengths: lengths.to_vec(),
        evaluates: index == 3,
        wants: index != 1,
        index,
    };
    vec![
        client(0, 1, 8, 0.0, &[17]),
        client(1, 2, 3, 0.0, &[5, 9, 1]),
        client(2, 0, 1, 0.25, &[33]),
        client(3, 1, 4, 0.25, &[12, 12]),
        client(4, 3, 2, 0.0, &[7]),
        client(5, 0, 5, 0.1, &[2, 11]),
    ]
}

impl Client {
    fn stage(&self, frozen: &Arc<Frozen>) -> Stage {
        let shapes = lora::shapes(frozen.spec(), &self.lora, self.cut..BLOCKS, true, random::CLASSES).unwrap();
        let mut state = lora::initial(&shapes, 5 + u64::from(self.index));
        // B starts at zero; moved, so that A has a gradient.
        for (key, tensor) in &mut state {
            if key.contains("lora_B") {
                tensor.values.iter_mut().enumerate().for_each(|(i, value)| *value = 0.05 * ((i * 13 % 17) as f32 / 17.0 - 0.5));
            }
        }
        Stage::new(frozen.clone(), self.cut..BLOCKS, true, &self.lora, &state).unwrap()
    }

    fn rows(&self) -> Rows {
        Rows::new(&self.lengths, 64).unwrap()
    }

    fn hidden(&self, frozen: &Frozen, step: u64) -> Tensor<2> {
        let (n, d) = (self.rows().tokens(), frozen.spec().hidden);
        let value = |i: usize| ((i * 37 + 11 * step as usize + 101 * self.index as usize) % 97) as f32 / 48.0 - 1.0;
        let values: Vec<f32> = (0..n * d).map(value).collect();
        Tensor::from_data(cutlayer_model::TensorData::new(values, [n, d]), frozen.device())
    }

    fn labels(&self, frozen: &Frozen) -> Vec<i32> {
        let (count, bound) = if classifies(frozen) { (self.lengths.len(), random::CLASSES) } else { (self.rows().tokens(), 96) };
        (0..count).map(|i| if i % 5 == 4 { -100 } else { ((i * 7 + self.index as usize) % bound) as i32 }).collect()
    }

    fn mode(&self, step: u64) -> Mode {
        if self.evaluates { Mode::Evaluate } else { Mode::Train { dropout_seed: 100 * step + u64::from(self.index) } }
    }

    fn id(&self, step: u64) -> TapeId {
        TapeId { client: self.index, step: StepId(step) }
    }
}

fn classifies(frozen: &Frozen) -> bool {
    matches!(frozen.spec().head, HeadSpec::Classifier { .. })
}

fn load(config: &serde_json::Value) -> Arc<Frozen> {
    let folder = tempfile::tempdir().unwrap();
    random::write(config, folder.path());
    random::load(folder.path(), &device())
}

fn optimizer() -> OptimizerSpec {
    OptimizerSpec {
        kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        learning_rate: 5e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: Some(1.0),
        reset_each_round: false,
    }
}

/// What one client saw: the sums and the gradient at the cut of each step, and its adapter at the end.
#[derive(Debug, PartialEq)]
struct Seen {
    steps: Vec<(EvalSums, Option<Vec<f32>>)>,
    adapter: AdapterState,
}

/// Runs `STEPS` steps of the clients `chosen`, in batches or one at a time.
fn run(family: &str, frozen: &Arc<Frozen>, chosen: &[usize], together: bool) -> Vec<Seen> {
    let all = clients(family);
    let clients: Vec<&Client> = chosen.iter().map(|&index| &all[index]).collect();
    let mut stages: Vec<Stage> = clients.iter().map(|client| client.stage(frozen)).collect();
    let mut seen: Vec<Seen> = clients.iter().map(|_| Seen { steps: vec![], adapter: AdapterState::new() }).collect();
    for step in 0..STEPS {
        let inputs: Vec<_> = clients.iter().map(|client| (client.rows(), client.labels(frozen))).collect();
        let joint = clients.iter().zip(&mut stages).zip(&inputs).map(|((client, stage), (rows, labels))| Joint {
            id: client.id(step),
            blocks: client.cut..BLOCKS,
            input: Input::Hidden(client.hidden(frozen, step), client.wants),
            rows,
            labels: Labels { values: labels, share: 0.75 },
            mode: client.mode(step),
            stage,
        });
        let outcomes = if together { losses(joint.collect()) } else { joint.map(alone).collect() };
        for ((seen, outcome), (stage, client)) in seen.iter_mut().zip(outcomes).zip(stages.iter_mut().zip(&clients)) {
            let (sums, gradient) = outcome.unwrap();
            assert_eq!(gradient.is_some(), client.wants && !client.evaluates);
            seen.steps.push((sums, gradient.map(common::values)));
            stage.update(client.id(step)..=client.id(step), &optimizer(), 5e-3);
        }
    }
    seen.iter_mut().zip(stages).for_each(|(seen, stage)| seen.adapter = stage.adapter().state());
    seen
}

fn alone(step: Joint) -> Result<(EvalSums, Option<Tensor<2>>), StageError> {
    let Joint { stage, id, blocks, input, rows, labels, mode } = step;
    stage.loss(id, blocks, input, rows, labels, mode)
}

/// Whether the machine has products of our own: the same bits are then promised.
fn has_own_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::env::var("CUTLAYER_TEST_DEVICE").is_err() && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn assert_same(what: &str, found: &[Seen], expected: &[Seen]) {
    if has_own_products() {
        for (client, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(found == expected, "{what}: client {client} differs");
        }
        return;
    }
    for (found, expected) in found.iter().zip(expected) {
        for ((sums, gradient), (expected_sums, expected_gradient)) in found.steps.iter().zip(&expected.steps) {
            assert!((sums.loss_sum - expected_sums.loss_sum).abs() <= 1e-4 * expected_sums.loss_sum.abs(), "{what}");
            assert_eq!(sums.scored, expected_sums.scored);
            if let (Some(found), Some(expected)) = (gradient, expected_gradient) {
                common::assert_close(found, expected, 1e-3, what);
            }
        }
    }
}

#[test]
fn together_is_alone() {
    for (family, config) in random::configs() {
        let frozen = load(&config);
        let all: Vec<usize> = (0..6).collect();
        let expected = run(family, &frozen, &all, false);
        for (client, seen) in clients(family).iter().zip(&expected) {
            assert!(seen.steps.iter().all(|(sums, _)| sums.scored > 0 && sums.loss_sum > 0.0));
            let moved = seen.adapter != client.stage(&frozen).adapter().state();
            assert_eq!(moved, !client.evaluates && (client.cut < BLOCKS || classifies(&frozen)), "{family}: client {}", client.index);
        }
        assert_same(family, &run(family, &frozen, &all, true), &expected);
        // With others beside them, or fewer.
        for some in [&[0, 2][..], &[4, 1, 5], &[3]] {
            let expected: Vec<Seen> = run(family, &frozen, some, false);
            assert_same(family, &run(family, &frozen, some, true), &expected);
        }
    }
}

/// A client whose step cannot be taken, whose loss is not a number or who scores nothing changes nothing for the others.
#[test]
fn a_bad_step_harms_no_other() {
    let (family, config) = random::configs().remove(0);
    let frozen = load(&config);
    let all = clients(family);
    let expected = run(family, &frozen, &[0, 1], false);
    let mut stages: Vec<Stage> = all[..5].iter().map(|client| client.stage(&frozen)).collect();
    let rows: Vec<Rows> = all.iter().map(Client::rows).collect();
    let mut labels: Vec<Vec<i32>> = all.iter().map(|client| client.labels(&frozen)).collect();
    labels[2].fill(-100);
    labels[3][0] = 9999;
    let joint = all.iter().zip(&mut stages).zip(rows.iter().zip(&labels)).map(|((client, stage), (rows, labels))| {
        let hidden = client.hidden(&frozen, 0);
        let hidden = if client.index == 4 { hidden * f32::NAN } else { hidden };
        let mode = Mode::Train { dropout_seed: u64::from(client.index) };
        let labels = Labels { values: labels, share: 0.75 };
        Joint { id: client.id(0), blocks: client.cut..BLOCKS, input: Input::Hidden(hidden, client.wants), rows, labels, mode, stage }
    });
    let mut outcomes = losses(joint.collect());
    assert!(matches!(outcomes.remove(4), Err(StageError::Diverged { .. })));
    assert!(matches!(outcomes.remove(3), Err(StageError::OutOfRange { id: 9999, .. })));
    let (sums, gradient) = outcomes.remove(2).unwrap();
    assert_eq!(sums.scored, 0);
    assert!(common::values(gradient.unwrap()).iter().all(|&value| value == 0.0), "nothing is owed to who scores nothing");
    assert!(stages[2].gradients().is_empty() && stages[3].gradients().is_empty() && stages[4].gradients().is_empty());
    for (outcome, expected) in outcomes.into_iter().zip(&expected) {
        let (sums, gradient) = outcome.unwrap();
        assert_eq!((sums, gradient.map(common::values)), expected.steps[0]);
    }
}
