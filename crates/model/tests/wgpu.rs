//! Goal: a GPU through wgpu computes what the CPU computes, values and gradients, in every family and on both sides of a cut.
//! Method: models drawn from a seed, one training step and one evaluation on each device. One test, so that the software
//! driver compiles each kernel once.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_close, random, values};
use cutlayer_model::{Device, DeviceChoice, Input, Mode, Rows, Stage, lora};
use cutlayer_wire::{AdapterState, LoraSpec, OptimizerKind, OptimizerSpec, Schedule, StepId};
use std::path::Path;

/// f32 on another machine sums in another order: gradients agree to this share of their scale.
const TOLERANCE: f32 = 1e-3;

/// What one side of a step shows.
#[derive(Default)]
struct Shown {
    loss: f64,
    activation: Vec<f32>,
    gradient: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
    updated: AdapterState,
}

fn step(folder: &Path, name: &str, targets: &[&str], device: &Device) -> Shown {
    let cut = 1;
    let frozen = random::load(folder, device);
    let spec = LoraSpec { rank: 4, alpha: 8.0, rslora: false, dropout: 0.1, targets: targets.iter().map(|&t| t.into()).collect() };
    let classes = if name == "bert" { random::CLASSES } else { 0 };
    let state = |blocks: std::ops::Range<usize>, head: bool| {
        let mut state = lora::initial(&lora::shapes(frozen.spec(), &spec, blocks, head, classes).unwrap(), 5);
        // B starts at zero; moved, so that A has a gradient.
        for (key, tensor) in &mut state {
            if key.contains("lora_B") {
                tensor.values.iter_mut().enumerate().for_each(|(i, value)| *value = 0.05 * ((i * 13 % 17) as f32 / 17.0 - 0.5));
            }
        }
        state
    };
    let mut client = Stage::new(frozen.clone(), 0..cut, false, &spec, &state(0..cut, false)).unwrap();
    let mut server = Stage::new(frozen.clone(), cut..3, true, &spec, &state(cut..3, true)).unwrap();
    let (ids, lengths) = random::ids();
    let labels: Vec<i32> = if name == "bert" {
        vec![3, 1]
    } else {
        ids.iter().enumerate().map(|(i, &id)| if i % 5 == 0 { -100 } else { (id as i32 * 7) % 96 }).collect()
    };
    let rows = Rows::new(&lengths, 64).unwrap();
    let mode = Mode::Train { dropout_seed: 3 };
    let activation = client.forward(StepId(1), 0..cut, Input::Tokens(&ids), &rows, mode).unwrap();
    let (sums, gradient) = server.loss(StepId(1), cut..3, Input::Hidden(activation.clone(), true), &rows, &labels, mode).unwrap();
    let gradient = gradient.unwrap();
    client.backward(StepId(1), gradient.clone()).unwrap();
    let gradients = [&client, &server].into_iter().flat_map(|s| s.gradients()).map(|(key, g)| (key, values(g))).collect();
    // The first step of AdamW moves by a gradient's sign, even one of almost nothing; a large ε keeps that out of the comparison.
    let kind = OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-2, weight_decay: 0.01 };
    let optimizer = OptimizerSpec {
        kind,
        learning_rate: 0.01,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: Some(1.0),
        reset_each_round: true,
    };
    server.update(StepId(1)..=StepId(1), &optimizer, 0.01);
    client.update(StepId(1)..=StepId(1), &optimizer, 0.01);
    let updated = client.adapter().state().into_iter().chain(server.adapter().state()).collect();
    // Padding is not compared: nothing reads it.
    let real = |tensor| values(tensor);
    Shown { loss: sums.loss_sum / sums.scored as f64, activation: real(activation), gradient: real(gradient), gradients, updated }
}

#[test]
fn wgpu_agrees_with_the_cpu() {
    let gpu = match DeviceChoice::Wgpu(0).open() {
        Ok(gpu) => gpu,
        Err(error) if std::env::var_os("CI").is_none() => return eprintln!("SKIPPED: {error}"),
        Err(error) => panic!("CI has a software Vulkan driver: {error}"),
    };
    for (name, config) in random::configs() {
        let folder = tempfile::tempdir().unwrap();
        random::write(&config, folder.path());
        let targets: &[&str] = match name {
            "gpt2" => &["c_attn", "c_fc"],
            "bert" => &["query", "value", "intermediate.dense"],
            _ => &["q_proj", "v_proj", "down_proj"],
        };
        let started = std::time::Instant::now();
        let cpu = step(folder.path(), name, targets, &Device::flex());
        let gpu = step(folder.path(), name, targets, &gpu);
        eprintln!("{name}: loss {} on the CPU, {} on wgpu, {:.0} s", cpu.loss, gpu.loss, started.elapsed().as_secs_f64());
        assert!((cpu.loss - gpu.loss).abs() < 1e-4 * cpu.loss.abs(), "{name}: loss");
        assert_close(&gpu.activation, &cpu.activation, TOLERANCE, &format!("{name}: activation"));
        assert_close(&gpu.gradient, &cpu.gradient, TOLERANCE, &format!("{name}: gradient at the cut"));
        assert_eq!(gpu.gradients.len(), cpu.gradients.len());
        for ((key, found), (_, expected)) in gpu.gradients.iter().zip(&cpu.gradients) {
            assert_close(found, expected, TOLERANCE, &format!("{name}: {key}"));
        }
        for (key, expected) in &cpu.updated {
            assert_close(&gpu.updated[key].values, &expected.values, TOLERANCE, &format!("{name}: updated {key}"));
        }
    }
}
