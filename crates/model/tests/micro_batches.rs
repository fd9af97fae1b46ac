//! Goal: a step may go in micro-batches, in any order. Method: the gradients of a batch whole against those of three uneven parts of it, and
//! the adapter after the parts in every order, beside another client's gradients on the same stage.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Batch, Case, case, device};
use cutlayer_model::{Input, Labels, Mode, Parts, Stage, StageError, TAPES_MAX, TapeId, Tensor};
use cutlayer_wire::{AdapterState, StepId};
use std::collections::BTreeMap;

const MODE: Mode = Mode::Train { dropout_seed: 3 };

fn stage(case: &Case) -> Stage {
    let frozen = case.load(&Parts::whole(case.blocks), &device());
    Stage::new(frozen, 0..case.blocks, false, &case.lora, &case.initial).unwrap()
}

/// Three parts of a batch: one sequence, another, and the rest, of which only some labels are scored.
fn parts(case: &Case) -> Vec<Batch> {
    let batch = Batch::joined(&[&case.batches[0], &case.batches[1]]);
    let width = batch.lengths[0] as usize;
    let part = |sequences: std::ops::Range<usize>| {
        let tokens = sequences.start * width..sequences.end * width;
        Batch { ids: batch.ids[tokens.clone()].to_vec(), labels: batch.labels[tokens].to_vec(), lengths: batch.lengths[sequences].to_vec() }
    };
    let mut parts = vec![part(0..1), part(1..2), part(2..batch.lengths.len())];
    parts[1].labels.iter_mut().step_by(3).for_each(|label| *label = -100);
    parts
}

fn run(stage: &mut Stage, case: &Case, id: TapeId, batch: &Batch, share: f64) {
    let labels = Labels { values: &batch.labels, share };
    stage.loss(id, 0..case.blocks, Input::Tokens(&batch.ids), &batch.rows(), labels, MODE).unwrap();
}

fn id(client: u32, step: u64) -> TapeId {
    TapeId { client, step: StepId(step) }
}

fn values(gradients: BTreeMap<String, Tensor<2>>) -> BTreeMap<String, Vec<f32>> {
    gradients.into_iter().map(|(key, gradient)| (key, common::values(gradient))).collect()
}

#[test]
fn gradients_of_micro_batches_add_up_to_the_batch() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let parts = parts(&case);
    let whole = Batch::joined(&parts.iter().collect::<Vec<_>>());
    let mut at_once = stage(&case);
    run(&mut at_once, &case, id(0, 1), &whole, 1.0);
    let mut in_parts = stage(&case);
    for (micro, part) in parts.iter().enumerate() {
        run(&mut in_parts, &case, id(0, micro as u64), part, part.scored() as f64 / whole.scored() as f64);
    }
    let (expected, found) = (values(at_once.gradients()), values(in_parts.gradients()));
    assert_eq!(found.len(), case.initial.len());
    for (key, expected) in &expected {
        common::assert_close(&found[key], expected, 1e-5, key);
    }
}

/// The adapter after the parts of one step, in `order`; a step of another client waits before and after, untouched.
fn after(case: &Case, order: [usize; 3]) -> (AdapterState, usize) {
    let parts = parts(case);
    let mut stage = stage(case);
    run(&mut stage, case, id(1, 8), &parts[0], 1.0);
    for micro in order {
        run(&mut stage, case, id(2, micro as u64), &parts[micro], 0.4);
    }
    stage.update(id(2, 0)..=id(2, 2), &case.optimizer, 0.01);
    let updated = stage.adapter().state();
    let left = stage.gradients().len();
    stage.forget(id(1, 8));
    assert!(stage.gradients().is_empty());
    (updated, left)
}

#[test]
fn the_order_of_arrival_does_not_matter_to_the_bit() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let (expected, left) = after(&case, [0, 1, 2]);
    assert_eq!(left, case.initial.len(), "the other client's step still waits");
    assert_ne!(expected, case.initial, "the step counted");
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(after(&case, order).0, expected, "{order:?}");
    }
}

#[test]
fn gradients_that_nobody_takes_are_bounded() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let (mut stage, batch) = (stage(&case), &parts(&case)[0]);
    (0..TAPES_MAX as u64).for_each(|step| run(&mut stage, &case, id(0, step), batch, 1.0));
    let more = stage.loss(id(1, 0), 0..case.blocks, Input::Tokens(&batch.ids), &batch.rows(), &batch.labels, MODE);
    assert_eq!(more.unwrap_err(), StageError::TooManyTapes { step: StepId(0) });
    stage.forget_tapes();
    run(&mut stage, &case, id(1, 0), batch, 1.0);
}
