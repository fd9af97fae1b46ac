//! Goal: the split model is the model that transformers and PEFT run.
//! Method: golden logits, activations, losses, gradients, adapters of `../shared/fixtures`, at every cut and U-shape.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Split, assert_close, case, device, error, splits};
use cutlayer_model::{Input, Mode, ModelFolder, Parts, Rows, Stage, StageError};
use cutlayer_wire::{AdapterState, LoraSpec, OptimizerKind, OptimizerSpec, StepId};

/// Share of a tensor's scale that f32 may differ by.
const TOLERANCE: f32 = 1e-4;

fn check_step0(case: &Case, logit_columns: usize) {
    let golden = case.golden("step0.safetensors");
    let precise = case.golden("step0_f64.safetensors");
    let golden_cut = case.oracle["cut"].as_u64().unwrap() as usize;
    let batch = &case.batches[0];
    for (cut, tail) in splits(case.blocks) {
        let place = format!("cut {cut}, tail {tail:?}");
        let mut split = case.split(cut, tail, &device());
        let logits = split.logits(batch);
        let columns = logits.len() / batch.ids.len();
        let kept: Vec<f32> = logits.chunks(columns).flat_map(|row| row[..logit_columns.min(columns)].to_vec()).collect();
        assert_close(&kept, &golden["logits"].values, TOLERANCE, &format!("{place}: logits"));
        let shown = split.step(batch);
        let loss = f64::from(golden["loss"].values[0]);
        assert!((shown.loss - loss).abs() <= 1e-4 * loss, "{place}: loss {} instead of {loss}", shown.loss);
        if let Some(hidden) = golden.get(&format!("hidden.{cut}")) {
            assert_close(&shown.activation, &hidden.values, TOLERANCE, &format!("{place}: activation"));
        }
        if cut == golden_cut {
            assert_close(&shown.activation, &golden["cut.act"].values, TOLERANCE, &format!("{place}: cut activation"));
            assert_close(&shown.gradient, &golden["cut.grad"].values, TOLERANCE, &format!("{place}: cut gradient"));
        }
        let gradients = split.gradients();
        assert_eq!(gradients.len(), case.initial.len(), "{place}: every adapter tensor has a gradient, no other has");
        for (key, gradient) in &gradients {
            let expected = &precise[&format!("grad.{key}")].values;
            assert_close(&gradient.values, expected, TOLERANCE, &format!("{place}: {key}"));
        }
    }
}

fn check_curve(case: &Case) {
    let curve: Vec<f64> = case.oracle["loss_curve"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let golden = case.golden("adapter_final/adapter_model.safetensors");
    for (cut, tail) in splits(case.blocks) {
        let mut split = case.split(cut, tail, &device());
        for (step, expected) in curve.iter().enumerate() {
            let loss = split.step(&case.batches[step % case.batches.len()]).loss;
            split.update(&case.optimizer);
            assert!((loss - expected).abs() <= 1e-4 * expected, "cut {cut}, tail {tail:?}, step {step}: {loss} instead of {expected}");
        }
        check_adapter(&split.state(), &golden, &format!("cut {cut}, tail {tail:?}: final adapter"));
    }
}

/// AdamW divides by the root of a tiny second moment, so that single weights may differ more than losses do.
fn check_adapter(found: &AdapterState, golden: &AdapterState, what: &str) {
    for (key, expected) in golden {
        let off = error(&found[key].values, &expected.values);
        assert!(off < 2e-3, "{what}: {key} is off by {off:e} of its scale");
    }
}

macro_rules! golden {
    ($($name:ident: $model:literal / $case:literal, $check:expr;)*) => {
        $(#[test]
        fn $name() {
            if let Some(case) = case($model, $case) {
                $check(&case);
            }
        })*
    };
}

golden! {
    llama_step: "llama-nano" / "lora", |case: &Case| check_step0(case, usize::MAX);
    llama_all_targets_step: "llama-nano" / "lora-all", |case: &Case| check_step0(case, usize::MAX);
    llama_odd_shape_step: "llama-nano" / "lora-odd", |case: &Case| check_step0(case, usize::MAX);
    llama_zero_start_step: "llama-nano" / "lora-zero", |case: &Case| check_step0(case, usize::MAX);
    gpt2_step: "gpt2-nano" / "lora", |case: &Case| check_step0(case, usize::MAX);
    llama_curve: "llama-nano" / "lora", check_curve;
    llama_all_targets_curve: "llama-nano" / "lora-all", check_curve;
    llama_odd_shape_curve: "llama-nano" / "lora-odd", check_curve;
    llama_zero_start_curve: "llama-nano" / "lora-zero", check_curve;
    gpt2_curve: "gpt2-nano" / "lora", check_curve;
    llama_fedavg_rounds: "llama-nano" / "lora", check_fedavg;
    llama_all_targets_fedavg_rounds: "llama-nano" / "lora-all", check_fedavg;
    gpt2_fedavg_rounds: "gpt2-nano" / "lora", check_fedavg;
    llama_splitfed_rounds: "llama-nano" / "lora", check_splitfed;
    llama_all_targets_splitfed_rounds: "llama-nano" / "lora-all", check_splitfed;
    gpt2_splitfed_rounds: "gpt2-nano" / "lora", check_splitfed;
    one_sgd_step_each_is_one_on_the_joined_batch: "llama-nano" / "lora", check_joined_sgd;
    two_runs_give_the_same_bytes: "llama-nano" / "lora", check_same_bytes;
    bad_steps_are_refused: "llama-nano" / "lora", check_refusals;
}

fn rounds(case: &Case, of: &str) -> (usize, usize, Vec<f64>) {
    let fed = &case.oracle[of];
    let fed = if fed["rounds"].is_null() { &case.oracle["fedavg"] } else { fed };
    let weights = fed["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
    (fed["rounds"].as_u64().unwrap() as usize, fed["local_steps"].as_u64().unwrap() as usize, weights)
}

/// The batch of client `client` in round `round`, local step `step`: even batches are client 0's, odd ones client 1's.
fn batch_of(case: &Case, client: usize, round: usize, step: usize, local_steps: usize) -> usize {
    let owned: Vec<usize> = (client..case.batches.len()).step_by(2).collect();
    owned[(round * local_steps + step) % owned.len()]
}

fn mean(parts: &[AdapterState], weights: &[f64]) -> AdapterState {
    let total: f64 = weights.iter().sum();
    let mut all = parts[0].clone();
    for (key, tensor) in &mut all {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = (parts.iter().zip(weights).map(|(part, w)| w * f64::from(part[key].values[i])).sum::<f64>() / total) as f32;
        }
    }
    all
}

fn load(split: &mut Split, state: &AdapterState) {
    for stage in split.stages() {
        let own = stage.adapter().keys().filter_map(|key| Some((key.clone(), state.get(key)?.clone()))).collect();
        stage.adapter_mut().load(&own).unwrap();
        stage.adapter_mut().reset_optimizer();
    }
}

/// `per_client` server adapters: every client trains the whole depth of its own adapter, then all are averaged.
fn check_fedavg(case: &Case) {
    let (rounds, local_steps, weights) = rounds(case, "fedavg");
    for (cut, tail) in [(0, None), (1, None), (2, Some(1)), (case.blocks, None)] {
        let mut split = case.split(cut, tail, &device());
        let mut global = case.initial.clone();
        for round in 0..rounds {
            let parts: Vec<AdapterState> = (0..weights.len())
                .map(|client| {
                    load(&mut split, &global);
                    for step in 0..local_steps {
                        split.step(&case.batches[batch_of(case, client, round, step, local_steps)]);
                        split.update(&case.optimizer);
                    }
                    split.state()
                })
                .collect();
            global = mean(&parts, &weights);
            let golden = case.golden(&format!("fedavg/round_{round}.safetensors"));
            check_adapter(&global, &golden, &format!("cut {cut}, tail {tail:?}, round {round}"));
        }
    }
}

/// `shared` server adapters: one server part, stepped for each client in turn; only the clients' parts are averaged.
fn check_splitfed(case: &Case) {
    let (rounds, local_steps, weights) = rounds(case, "splitfed");
    let cut = case.oracle["cut"].as_u64().unwrap() as usize;
    let mut clients: Vec<Split> = weights.iter().map(|_| case.split(cut, None, &device())).collect();
    let mut server = case.split(cut, None, &device()).middle;
    for round in 0..rounds {
        for step in 0..local_steps {
            for (client, split) in clients.iter_mut().enumerate() {
                std::mem::swap(&mut split.middle, &mut server);
                split.step(&case.batches[batch_of(case, client, round, step, local_steps)]);
                split.update(&case.optimizer);
                std::mem::swap(&mut split.middle, &mut server);
            }
        }
        let fronts: Vec<AdapterState> = clients.iter().map(|split| split.front.adapter().state()).collect();
        let front = mean(&fronts, &weights);
        for split in &mut clients {
            split.front.adapter_mut().load(&front).unwrap();
            split.front.adapter_mut().reset_optimizer();
        }
        let mut global = front;
        global.extend(server.adapter().state());
        let golden = case.golden(&format!("splitfed/round_{round}.safetensors"));
        check_adapter(&global, &golden, &format!("round {round}"));
    }
}

/// Averaging one SGD step of each client by its scored tokens is one SGD step on all their data.
fn check_joined_sgd(case: &Case) {
    let sgd = OptimizerSpec { kind: OptimizerKind::Sgd, learning_rate: 0.5, ..case.optimizer.clone() };
    let mut joined = case.split(0, None, &device());
    joined.step(&common::Batch::joined(&[&case.batches[0], &case.batches[1], &case.batches[2]]));
    joined.update(&sgd);
    let mut weights = vec![];
    let parts: Vec<AdapterState> = [(1, None), (2, Some(1)), (4, None)]
        .into_iter()
        .enumerate()
        .map(|(client, (cut, tail))| {
            let mut split = case.split(cut, tail, &device());
            split.step(&case.batches[client]);
            split.update(&sgd);
            weights.push(case.batches[client].scored() as f64);
            split.state()
        })
        .collect();
    let expected = joined.state();
    for (key, tensor) in mean(&parts, &weights) {
        let change = |values: &[f32]| -> Vec<f32> { values.iter().zip(&case.initial[&key].values).map(|(v, i)| v - i).collect() };
        assert_close(&change(&tensor.values), &change(&expected[&key].values), 1e-4, &key);
    }
}

fn check_same_bytes(case: &Case) {
    let run = || {
        let mut split = case.split(2, Some(1), &device());
        for batch in &case.batches {
            split.step(batch);
            split.update(&case.optimizer);
        }
        split.state()
    };
    assert_eq!(run(), run());
}

fn check_refusals(case: &Case) {
    let mut split = case.split(2, None, &device());
    let batch = &case.batches[0];
    let (rows, mode) = (batch.rows(), Mode::Train { dropout_seed: 0 });
    let hidden = split.front.forward(StepId(7), 0..2, Input::Tokens(&batch.ids), &rows, mode).unwrap();
    assert_eq!(split.front.backward(StepId(8), hidden.clone()).unwrap_err(), StageError::NoTape { step: StepId(8) });
    split.front.backward(StepId(7), hidden.clone()).unwrap();
    assert_eq!(split.front.backward(StepId(7), hidden.clone()).unwrap_err(), StageError::NoTape { step: StepId(7) });
    let narrow = hidden.narrow(1, 0, 3);
    let refused = split.middle.forward(StepId(9), 2..4, Input::Hidden(narrow, true), &rows, mode).unwrap_err();
    assert!(matches!(refused, StageError::Shape { .. }), "{refused}");
    let mut ids = batch.ids.clone();
    ids[3] = 9_999;
    let refused = split.front.forward(StepId(9), 0..2, Input::Tokens(&ids), &rows, mode).unwrap_err();
    assert!(refused.to_string().contains("9999"), "{refused}");
    let mut labels = batch.labels.clone();
    labels[3] = 256;
    let hidden = split.front.forward(StepId(10), 0..2, Input::Tokens(&batch.ids), &rows, mode).unwrap();
    let refused = split.middle.loss(StepId(10), 2..4, Input::Hidden(hidden, true), &rows, &labels, mode).unwrap_err();
    assert!(matches!(refused, StageError::OutOfRange { id: 256, .. }), "{refused}");
}

/// Together and one at a time, every sequence has the same loss.
#[test]
fn neighbours_in_a_batch_do_not_change_the_loss() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let frozen = case.load(&Parts::whole(case.blocks), &device());
    let mut stage = Stage::new(frozen, 0..case.blocks, true, &case.lora, &case.initial).unwrap();
    let lengths = [5u32, 16, 1, 9];
    let ids: Vec<u32> = (0..31u32).map(|i| (i * 37 + 11) % 256).collect();
    let labels: Vec<i32> = ids.iter().map(|id| (id * 3 % 256) as i32).collect();
    let mut loss = |lengths: &[u32], ids: &[u32], labels: &[i32]| {
        let rows = Rows::new(lengths, 256).unwrap();
        stage.loss(StepId(1), 0..4, Input::Tokens(ids), &rows, labels, Mode::Evaluate).unwrap().0.loss_sum
    };
    let mut from = 0;
    let mut alone = 0.0;
    for length in lengths {
        let range = from..from + length as usize;
        alone += loss(&[length], &ids[range.clone()], &labels[range.clone()]);
        from = range.end;
    }
    let together = loss(&lengths, &ids, &labels);
    assert!((together - alone).abs() < 1e-4 * alone, "{together} instead of {alone}");
}

/// The two real models of the shared data, against transformers.
#[test]
fn real_models_match_transformers() {
    for name in ["stories260k-hf", "tinystories-656k-hf"] {
        let folder = common::shared_data().join(name);
        if !folder.exists() {
            eprintln!("SKIPPED {name}: {} is not there; set CUTLAYER_DATA", folder.display());
            continue;
        }
        let golden = common::tensors(&common::shared_data().join(format!("reference/{name}.safetensors")));
        let ids: Vec<u32> = golden["input_ids"].values.iter().map(|&id| id as u32).collect();
        let folder = ModelFolder::open(&folder).unwrap();
        let blocks = cutlayer_model::read_spec(&folder).unwrap().blocks;
        let frozen = std::sync::Arc::new(cutlayer_model::Frozen::load(&folder, &Parts::whole(blocks), 0, &device()).unwrap());
        let none = LoraSpec { rank: 1, alpha: 1.0, rslora: false, dropout: 0.0, targets: vec![] };
        let mut stage = Stage::new(frozen, 0..blocks, true, &none, &AdapterState::new()).unwrap();
        let rows = Rows::new(&[ids.len() as u32], 512).unwrap();
        for cut in 0..blocks {
            let hidden = stage.forward(StepId(1), 0..cut, Input::Tokens(&ids), &rows, Mode::Evaluate).unwrap();
            assert_close(
                &common::values(hidden.clone()),
                &golden[&format!("hidden_{cut}")].values,
                TOLERANCE,
                &format!("{name} hidden {cut}"),
            );
            let logits = stage.logits(cut..blocks, Input::Hidden(hidden, false), &rows).unwrap();
            assert_close(&logits, &golden["logits"].values, TOLERANCE, &format!("{name} logits from cut {cut}"));
        }
    }
}
