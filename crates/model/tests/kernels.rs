//! Goal: however a step is computed, it is the same step. Method: the loss curve and the trained adapter of one model by fused kernels,
//! from burn's own operations, with checkpointing, and in bf16; and what a device lacks is refused.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, case, device};
use cutlayer_model::{DeviceChoice, Frozen, Input, Kernels, Mode, ModelFolder, Parts, Precision, Rows, Stage};
use cutlayer_wire::{AdapterState, OptimizerKind, OptimizerSpec, Schedule, StepId};
use std::sync::Arc;

const STEPS: u64 = 40;

/// Losses of each step, and the adapter at the end. Sequences are of many lengths, and some features are dropped.
fn curve(case: &Case, frozen: Frozen, checkpointing: bool) -> (Vec<f64>, AdapterState) {
    let lora = cutlayer_wire::LoraSpec { dropout: 0.05, ..case.lora.clone() };
    let blocks = case.blocks;
    let mut stage = Stage::new(Arc::new(frozen), 0..blocks, true, &lora, &case.initial).unwrap();
    stage.set_checkpointing(checkpointing);
    let optimizer = OptimizerSpec {
        kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        learning_rate: 5e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: Some(1.0),
        reset_each_round: false,
    };
    let lengths = [40u32, 7, 1, 33];
    let ids: Vec<u32> = (0..81u32).map(|i| (i * i * 37 + i * 11) % 96).collect();
    let labels: Vec<i32> = ids.iter().enumerate().map(|(i, id)| if i % 9 == 8 { -100 } else { (id * 5 % 96) as i32 }).collect();
    let rows = Rows::new(&lengths, 256).unwrap();
    let losses = (0..STEPS)
        .map(|step| {
            let mode = Mode::Train { dropout_seed: step };
            let (sums, _) = stage.loss(StepId(step), 0..blocks, Input::Tokens(&ids), &rows, &labels, mode).unwrap();
            stage.update(StepId(step)..=StepId(step), &optimizer, f64::from(optimizer.learning_rate));
            sums.loss_sum / sums.scored as f64
        })
        .collect();
    (losses, stage.adapter().state())
}

fn load(case: &Case, precision: Precision) -> Frozen {
    let folder = ModelFolder::open(&case.model).unwrap();
    Frozen::load_as(precision, &folder, &Parts::whole(case.blocks), 0, &device()).unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn one_loss_curve_whatever_computes_it() {
    for model in ["llama-nano", "gpt2-nano"] {
        let Some(case) = case(model, "lora") else { continue };
        let (fused, adapter) = curve(&case, load(&case, Precision::F32), false);
        assert!(fused[STEPS as usize - 1] < fused[0] - 0.05, "{model} learns: {fused:?}");
        let (composed, _) = curve(&case, load(&case, Precision::F32).with_kernels(Kernels::Composed), false);
        let apart = largest_difference(&fused, &composed);
        println!("{model}: fused and composed losses are at most {apart:e} apart over {STEPS} steps");
        assert!(apart <= 1e-4, "{model}: {fused:?}\nbut composed\n{composed:?}");
        let (again, same) = curve(&case, load(&case, Precision::F32), true);
        assert_eq!((&fused, &adapter), (&again, &same), "{model}: checkpointing changes nothing, to the bit");
    }
}

#[test]
fn bf16_follows_f32_closely() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let (wide, _) = curve(&case, load(&case, Precision::F32), false);
    let (narrow, _) = curve(&case, load(&case, Precision::Bf16), false);
    let apart = largest_difference(&wide, &narrow);
    println!("bf16 and f32 losses are at most {apart:e} apart over {STEPS} steps");
    assert!(apart > 0.0 && apart < 0.03, "{wide:?}\nbut in bf16\n{narrow:?}");
}

#[test]
fn a_precision_that_the_device_lacks_is_refused() {
    let Some(case) = case("llama-nano", "lora") else { return };
    let folder = ModelFolder::open(&case.model).unwrap();
    let cpu = DeviceChoice::Cpu.open().unwrap();
    let error = Frozen::load_as(Precision::F16, &folder, &Parts::whole(case.blocks), 0, &cpu).unwrap_err().to_string();
    assert!(error.contains("precision f16 cannot be had here") && error.contains("use f32"), "{error}");
}
