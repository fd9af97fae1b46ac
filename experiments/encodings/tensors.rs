//! What each encoding keeps of real activations and gradients, in how many bytes, and how long the device takes over them.
//!
//! `cargo run --release --example encodings_of_run -- ADAPTER RUN_FILE [KEY=VALUE ..]`: the first batch of client 0 of the run file,
//! with a trained adapter of that run (`-` for none), at its first cut. One line of JSON an encoding; `compute_ms` is what both sides
//! compute on that batch in the same process, and what encoding is to be held against.

use cutlayer::data::{BatchShape, Batcher, Layout, Objective, Tokenizer, tokenise};
use cutlayer::lab::{RunConfig, client_data, resolve_labels};
use cutlayer::model::{DeviceChoice, Frozen, Input, Mode, ModelFolder, Parts, PeftFolder, Rows, Stage, Tensor, encoding, lora, read_spec};
use cutlayer::wire::{BatchSpec, Encoding, StepId, Task};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

/// Timed runs of each encoding; the median counts.
const RUNS: usize = 15;

/// Timed steps; the median counts.
const STEPS: usize = 7;

const NAMES: &[&str] = &[
    "f32",
    "f32+zstd",
    "bf16",
    "bf16+zstd",
    "f16",
    "int8",
    "int8/64",
    "int6/64+hadamard",
    "int5/64+hadamard",
    "int5/64+hadamard+zstd",
    "int4",
    "int4/64",
    "int4/64+hadamard",
    "int4/32+hadamard",
    "int4/64+hadamard+stochastic",
    "int4/64+hadamard+zstd",
    "int3/64+hadamard",
    "int3/64+hadamard+zstd",
    "int3/64+hadamard+stochastic",
    "int2/32+hadamard",
    "int2/32+hadamard+stochastic",
    "int8+topk=0.1",
    "int8+topk=0.25",
];

/// A tensor of the step, on the device.
struct Subject {
    tensor: Tensor<2>,
    values: Vec<f32>,
    width: usize,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [adapter, file, changes @ ..] = arguments.as_slice() else {
        return Err("usage: encodings ADAPTER RUN_FILE [KEY=VALUE ..]; write - for no adapter".into());
    };
    let mut config = RunConfig::load(Path::new(file), changes)?;
    resolve_labels(&mut config)?;
    let ([activations, gradient], compute_ms) = step(&config, adapter)?;
    let width = activations.width;
    let projections = [width / 2, width / 4].map(|kept| format!("int8/{}+proj={kept}", kept.min(32)));
    for name in NAMES.iter().map(|name| (*name).to_owned()).chain(projections) {
        let encoding: Encoding = name.parse()?;
        let found = [&activations, &gradient].map(|subject| measure(encoding, subject));
        let [up, down] = found;
        let (up, down) = (up?, down?);
        println!(
            "{{\"run\": \"{}\", \"encoding\": \"{name}\", \"tokens\": {}, \"hidden\": {width}, \"compute_ms\": {compute_ms:.2}, \"bytes\": [{}, {}], \"error\": [{:.6}, {:.6}], \
             \"encode_ms\": [{:.4}, {:.4}], \"decode_ms\": [{:.4}, {:.4}]}}",
            config.name,
            activations.values.len() / width,
            up.bytes,
            down.bytes,
            up.error,
            down.error,
            up.encode_ms,
            down.encode_ms,
            up.decode_ms,
            down.decode_ms
        );
    }
    Ok(())
}

/// The activations at the cut and their gradient, of the first batch of client 0, and the median time that the step computes.
fn step(config: &RunConfig, adapter: &str) -> Result<([Subject; 2], f64), Failure> {
    let plan = config.plan()?;
    let path = config.model.path.as_deref().ok_or("the run file names no model")?;
    let (folder, device) = (ModelFolder::open(path)?, DeviceChoice::Cpu.open()?);
    let spec = read_spec(&folder)?;
    let cut = usize::from(config.split.cut.of(0).ok_or("the run file cuts nowhere")?);
    let (objective, labels) = match &plan.task {
        Task::CausalLm => (Objective::CausalLm, 0),
        Task::Classify { labels } => (Objective::Classify { labels }, labels.len()),
    };
    let BatchSpec { sequences, tokens_max, group_by_length, .. } = plan.batch;
    let data = client_data(config)?.swap_remove(0);
    let examples = tokenise(&Tokenizer::open(path)?, &data.train, objective, tokens_max as usize)?.examples;
    let batch =
        Batcher::new(examples, BatchShape { sequences, tokens_max, layout: Layout::Padded, group_by_length }, plan.seed)?.next_batch();
    let shapes = lora::shapes(&spec, &plan.adapter, 0..spec.blocks, true, labels)?;
    let state = if adapter == "-" { lora::initial(&shapes, plan.seed) } else { PeftFolder::read(Path::new(adapter))?.1 };
    let frozen = Arc::new(Frozen::load(&folder, &Parts::whole(spec.blocks), labels, &device)?);
    let mut stage = Stage::new(frozen, 0..spec.blocks, true, &plan.adapter, &state)?;
    let rows = Rows::new(&batch.lengths, spec.positions_max)?;
    let mode = Mode::Train { dropout_seed: 1 };
    let (mut compute_ms, mut kept) = (Vec::new(), None);
    for _ in 0..STEPS {
        let started = Instant::now();
        let hidden = stage.forward(StepId(1), 0..cut, Input::Tokens(&batch.ids), &rows, mode)?;
        let upper = Input::Hidden(hidden.clone(), true);
        let (_, gradient) = stage.loss(StepId(2), cut..spec.blocks, upper, &rows, &batch.labels, mode)?;
        let gradient = gradient.ok_or("a step with an adapter above the cut has a gradient")?;
        stage.backward(StepId(1), gradient.clone())?;
        compute_ms.push(started.elapsed().as_secs_f64() * 1e3);
        kept = Some((hidden, gradient));
    }
    let (hidden, gradient) = kept.expect("there is at least one step");
    let subject = |tensor: Tensor<2>| Subject { values: encoding::values(tensor.clone()), tensor, width: spec.hidden };
    Ok(([subject(hidden), subject(gradient)], median(compute_ms)))
}

struct Measured {
    bytes: usize,
    error: f64,
    encode_ms: f64,
    decode_ms: f64,
}

/// Bytes, relative error, and the median times from the device to bytes and back.
fn measure(name: Encoding, subject: &Subject) -> Result<Measured, Failure> {
    let (device, tokens) = (subject.tensor.device(), subject.values.len() / subject.width);
    let (mut encode_ms, mut decode_ms, mut bytes, mut found) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for seed in 0..RUNS as u64 {
        let started = Instant::now();
        bytes = encoding::encode(name, subject.tensor.clone(), seed)?;
        encode_ms.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        let tensor = encoding::decode(name, &bytes, tokens, subject.width, &device)?;
        device.sync()?;
        decode_ms.push(started.elapsed().as_secs_f64() * 1e3);
        found = encoding::values(tensor);
    }
    let square = |value: f32| f64::from(value).powi(2);
    let off: f64 = subject.values.iter().zip(&found).map(|(value, found)| square(value - found)).sum();
    let error = (off / subject.values.iter().map(|value| square(*value)).sum::<f64>()).sqrt();
    Ok(Measured { bytes: bytes.len(), error, encode_ms: median(encode_ms), decode_ms: median(decode_ms) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
