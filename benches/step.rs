//! What does the cut cost? The uncut LoRA step against the same step cut in two over loopback QUIC, turn by turn in one process.
//!
//! Each split step is followed, before the next may start, by an uncut step and by a cut one without a network, so that whatever
//! else the machine does falls on all three alike. Prints medians and their ratios. See `benches/README.md`.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to print")]

use cutlayer::data::{Record, train_tokenizer};
use cutlayer::model::{Device, Frozen, Input, Mode, ModelFolder, Parts, Rows, Stage, encoding, lora, read_spec};
use cutlayer::node::{ClientData, ComputeConfig, Event, EventSink, JoinConfig, ServeConfig, join, serve};
use cutlayer::transport::{AllowList, Identity};
use cutlayer::wire::{
    BatchSpec, CutPoint, Encoding, Layout, LoraSpec, OptimizerKind, OptimizerSpec, Pipeline, Plan, Schedule, ServerAdapters, StepId,
    StepOrder, Task, Weighting,
};
use cutlayer::{DeviceChoice, LinkConfig, Stop};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The allocator of the `cutlayer` command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Steps before the measured ones.
const WARMUP: usize = 3;
const LEARNING_RATE: f32 = 1e-3;
const SEED: u64 = 1;

const USAGE: &str = "\
cargo bench --bench step -- [--shape llama-tiny|smollm2-135m|gpt2|... | --model DIR] [--cut 2] [--sequences 4] [--tokens 128] [--steps 20]
cargo bench --bench step -- --shape NAME --write DIR     only makes the model folder";

struct Options {
    shape: String,
    model: Option<PathBuf>,
    write: Option<PathBuf>,
    cut: usize,
    sequences: u32,
    tokens: u32,
    steps: usize,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { shape: "llama-tiny".into(), model: None, write: None, cut: 2, sequences: 4, tokens: 128, steps: 20 };
        while let Some(key) = args.next() {
            if key == "--bench" {
                continue; // cargo's own
            }
            let value = args.next().ok_or_else(|| format!("{key} has no value\n{USAGE}"))?;
            let number = || value.parse::<u32>().map_err(|_| format!("{key} {value}: not a number\n{USAGE}"));
            match key.as_str() {
                "--shape" => options.shape = value,
                "--model" => options.model = Some(value.into()),
                "--write" => options.write = Some(value.into()),
                "--cut" => options.cut = number()? as usize,
                "--sequences" => options.sequences = number()?,
                "--tokens" => options.tokens = number()?,
                "--steps" => options.steps = number()?.max(1) as usize,
                _ => return Err(format!("{key} is no option\n{USAGE}")),
            }
        }
        Ok(options)
    }
}

fn main() {
    let options = Options::parse(std::env::args().skip(1)).unwrap_or_else(|usage| {
        eprintln!("{usage}");
        std::process::exit(2)
    });
    if let Some(folder) = &options.write {
        return write_shape(&options.shape, folder);
    }
    let made = tempfile::tempdir().unwrap();
    let model = options.model.clone().unwrap_or_else(|| {
        write_shape(&options.shape, made.path());
        made.path().into()
    });
    let name = options.model.as_ref().map_or(options.shape.clone(), |model| model.display().to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let times = runtime.block_on(measure(&options, &model));
    println!("{name}, cut {}, batch {} x {}, f32, {} steps of each", options.cut, options.sequences, options.tokens, times.len());
    let tokens = f64::from(options.sequences * options.tokens);
    let uncut = median(times.iter().map(|times| times.uncut));
    for (what, each) in [
        ("uncut", times.iter().map(|times| times.uncut).collect::<Vec<_>>()),
        ("cut, no network", times.iter().map(|times| times.halves).collect()),
        ("cut, QUIC", times.iter().map(|times| times.split).collect()),
    ] {
        let (middle, best) = (median(each.iter().copied()), each.iter().copied().fold(f64::INFINITY, f64::min));
        println!("{what:16} {middle:9.1} ms median {best:9.1} ms best {:8.0} tok/s {:6.3} of uncut", tokens / middle * 1e3, middle / uncut);
    }
    println!(
        "median of the ratios of neighbours, cut by QUIC to uncut: {:.3}",
        median(times.iter().map(|times| times.split / times.uncut))
    );
}

/// One round of turns, in milliseconds.
#[derive(Clone, Copy)]
struct Times {
    split: f64,
    uncut: f64,
    halves: f64,
}

/// Runs a server and a client over loopback; the client's every step is followed by the steps it is measured against.
async fn measure(options: &Options, model: &Path) -> Vec<Times> {
    let run = tempfile::tempdir().unwrap();
    let (server, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let allow = Arc::new(AllowList::open(&run.path().join("keys")).unwrap());
    allow.allow("bench", client.peer_id()).unwrap();
    let (listening, address) = oneshot::channel();
    let listening = Mutex::new(Some(listening));
    let heard: EventSink = Arc::new(move |event| {
        if let (Event::Listening { addr, .. }, Some(listening)) = (event, listening.lock().unwrap().take()) {
            listening.send(addr.parse::<SocketAddr>().unwrap()).unwrap();
        }
    });
    let (serving, server_id) = (serve_config(options, model, &run.path().join("adapter")), server.peer_id());
    let served = tokio::spawn(async move { serve(serving, &server, allow, heard, Stop::new()).await });

    let joining = JoinConfig {
        server: address.await.unwrap(),
        server_id,
        token: None,
        model: model.into(),
        compute: ComputeConfig::default(),
        cut: CutPoint(options.cut as u16),
        tail: None,
        name: "bench".into(),
        link: LinkConfig::default(),
        reconnect: Duration::from_secs(60),
        state: None,
        out: None,
        phases: false,
    };
    let times = Arc::new(Mutex::new(vec![]));
    let (kept, rival) = (times.clone(), Mutex::new(Rival::load(options, model)));
    let whole = options.sequences * options.tokens;
    let watch: EventSink = Arc::new(move |event| {
        if let Event::Step { tokens, wait_ms, compute_ms, .. } = event {
            // The client waits for its sink: neither side computes meanwhile.
            let mut rival = rival.lock().unwrap();
            let (uncut, halves) = (rival.uncut(), rival.halves());
            if tokens == whole {
                kept.lock().unwrap().push(Times { split: wait_ms + compute_ms, uncut, halves });
            }
        }
    });
    // One long text, in windows: every batch but the last of an epoch is full.
    let data = ClientData { train: vec![Record::text(text(options.tokens as usize * 400))], eval: vec![] };
    join(joining, &client, data, watch, Stop::new()).await.unwrap();
    served.await.unwrap().unwrap();
    let mut times = std::mem::take(&mut *times.lock().unwrap());
    times.split_off(WARMUP.min(times.len() - 1))
}

fn serve_config(options: &Options, model: &Path, out: &Path) -> ServeConfig {
    let hour = Duration::from_secs(3600);
    ServeConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        model: model.into(),
        compute: ComputeConfig::default(),
        plan: plan(options),
        aggregator: "fedavg".into(),
        starting_adapter: None,
        clients_expected: 1,
        clients_per_round: 0,
        updates_min: 1,
        join_deadline: hour,
        round_deadline: hour,
        reconnect: hour,
        state: None,
        auto: None,
        activations: Encoding::F32,
        gradients: Encoding::F32,
        adapters: Encoding::F32,
        first_block: options.cut as u16,
        head: true,
        link: LinkConfig::default(),
        out: out.into(),
        phases: false,
        batch_bytes_max: 1 << 30,
    }
}

fn plan(options: &Options) -> Plan {
    Plan {
        task: Task::CausalLm,
        adapter: lora_spec(),
        optimizer: optimizer(),
        batch: BatchSpec { sequences: options.sequences, tokens_max: options.tokens, layout: Layout::Padded, group_by_length: false },
        rounds: 1,
        local_steps: (WARMUP + options.steps) as u32,
        seed: SEED,
        server_adapters: ServerAdapters::PerClient,
        step_order: StepOrder::Arrival,
        weighting: Weighting::Tokens,
        pipeline: Pipeline::SEQUENTIAL,
        evaluate_every: 0,
    }
}

fn lora_spec() -> LoraSpec {
    LoraSpec { rank: 8, alpha: 16.0, rslora: false, dropout: 0.0, targets: vec!["q_proj".into(), "v_proj".into()] }
}

fn optimizer() -> OptimizerSpec {
    OptimizerSpec {
        kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        learning_rate: LEARNING_RATE,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: None,
        reset_each_round: false,
    }
}

/// The same step without a network: on the uncut model, and on its two halves with the tensors encoded and decoded between them.
struct Rival {
    whole: Stage,
    front: Stage,
    back: Stage,
    rows: Rows,
    ids: Vec<u32>,
    labels: Vec<i32>,
    cut: usize,
    blocks: usize,
    device: Device,
    steps: u64,
}

impl Rival {
    fn load(options: &Options, model: &Path) -> Self {
        let folder = ModelFolder::open(model).unwrap();
        let spec = read_spec(&folder).unwrap();
        let device = DeviceChoice::Cpu.open().unwrap();
        let frozen = Arc::new(Frozen::load(&folder, &Parts::whole(spec.blocks), 0, &device).unwrap());
        let stage = |range: std::ops::Range<usize>, head| {
            let shapes = lora::shapes(&spec, &lora_spec(), range.clone(), head, 0).unwrap();
            Stage::new(frozen.clone(), range, head, &lora_spec(), &lora::initial(&shapes, SEED)).unwrap()
        };
        let (sequences, tokens, vocab) = (options.sequences as usize, options.tokens as usize, spec.vocab as u64);
        let ids: Vec<u32> = (0..(sequences * tokens) as u64).map(|i| (i.wrapping_mul(2_654_435_761) % vocab) as u32).collect();
        let is_last = |at: usize| (at + 1).is_multiple_of(tokens);
        let labels = (0..ids.len()).map(|at| if is_last(at) { cutlayer::model::IGNORED } else { ids[at + 1] as i32 }).collect();
        let cut = options.cut;
        Self {
            whole: stage(0..spec.blocks, true),
            front: stage(0..cut, false),
            back: stage(cut..spec.blocks, true),
            rows: Rows::new(&vec![options.tokens; sequences], spec.positions_max).unwrap(),
            ids,
            labels,
            cut,
            blocks: spec.blocks,
            device,
            steps: 0,
        }
    }

    fn uncut(&mut self) -> f64 {
        let started = Instant::now();
        let (step, mode) = self.next();
        self.whole.loss(step, 0..self.blocks, Input::Tokens(&self.ids), &self.rows, &self.labels, mode).unwrap();
        self.whole.update(step..=step, &optimizer(), LEARNING_RATE.into());
        millis(started)
    }

    fn halves(&mut self) -> f64 {
        let started = Instant::now();
        let (step, mode) = self.next();
        let rows = &self.rows;
        let carry = |tensor: cutlayer::model::Tensor<2>| {
            let hidden = tensor.dims()[1];
            let bytes = encoding::encode(Encoding::F32, tensor, 0).unwrap();
            encoding::decode(Encoding::F32, &bytes, rows.tokens(), hidden, &self.device).unwrap()
        };
        let hidden = carry(self.front.forward(step, 0..self.cut, Input::Tokens(&self.ids), rows, mode).unwrap());
        let (_, gradient) =
            self.back.loss(step, self.cut..self.blocks, Input::Hidden(hidden, self.cut > 0), rows, &self.labels, mode).unwrap();
        self.back.update(step..=step, &optimizer(), LEARNING_RATE.into());
        if let Some(gradient) = gradient {
            self.front.backward(step, carry(gradient)).unwrap();
            self.front.update(step..=step, &optimizer(), LEARNING_RATE.into());
        }
        millis(started)
    }

    fn next(&mut self) -> (StepId, Mode) {
        self.steps += 1;
        (StepId(self.steps), Mode::Train { dropout_seed: self.steps })
    }
}

/// A random model of a named shape, with a tokenizer.
fn write_shape(name: &str, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    if let Err(error) = cutlayer::lab::write_shape(name, folder) {
        eprintln!("{error}\n{USAGE}");
        std::process::exit(2)
    }
    train_tokenizer([text(4096).as_str()].into_iter(), 512, folder).unwrap();
}

/// About `words` words.
fn text(words: usize) -> String {
    (0..words).map(|i| format!("{} ", ["river", "sheep", "counts", "house", "by", "night"][i * i % 97 % 6])).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
