//! `bench batch`: what a server gains by computing the steps of waiting clients as one.
//!
//! The steps are the server's as it computes them, in this process and without a network: blocks after the cut, head, loss, backward and
//! update, for each client's own adapter. One round takes a step of every client one at a time, and the same steps in batches; the two
//! take turns, which goes first too.

use super::ground::{device_name, usual_targets};
use super::step::{Subject, median};
use super::write_shape;
use crate::error::LabError;
use crate::manifest::Machine;
use crate::memory::peak_bytes;
use crate::run::{bytes, table};
use cutlayer_model::{
    AdapterError, DeviceChoice, Frozen, Input, Joint, Labels, Mode, ModelFolder, Parts, Precision, Rows, Stage, TapeId, Tensor, TensorData,
    lora, losses, read_spec, tape_bytes,
};
use cutlayer_node::NodeError;
use cutlayer_wire::{AdapterState, LoraSpec, OptimizerKind, OptimizerSpec, RoundId, Schedule, StepId};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

const SEED: u64 = 1;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchBench {
    /// The model; no tokenizer is needed.
    pub subject: Subject,
    /// Blocks on the clients.
    pub cut: u16,
    /// Clients, of one sequence each.
    pub clients: u32,
    /// Tokens in each sequence.
    pub tokens: u32,
    /// Ranks of the adapters, given out in turn.
    pub ranks: Vec<u32>,
    /// Projections with an adapter; empty for those that PEFT takes for the family.
    pub targets: Vec<String>,
    /// Rounds to measure.
    pub rounds: u32,
    /// Rounds before those.
    pub warmup: u32,
    /// Bytes that the tapes of a batch may take.
    pub batch_bytes_max: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// What frozen layers are held and multiplied in.
    pub precision: Precision,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct BatchReport {
    /// The model's folder, or the name of its shape.
    pub model: String,
    /// Blocks on the clients.
    pub cut: u16,
    /// Clients, of one sequence each.
    pub clients: u32,
    /// Tokens in each sequence.
    pub tokens: u32,
    /// Ranks of the adapters, given out in turn.
    pub ranks: Vec<u32>,
    /// Clients in each batch of a round.
    pub batches: Vec<usize>,
    /// Rounds measured.
    pub rounds: u32,
    /// The device, as it was asked for.
    pub device: String,
    /// The device, as its maker calls it.
    pub device_name: String,
    /// The machine.
    pub machine: Machine,
    /// Threads that computed.
    pub threads: usize,
    /// Median of the rounds, one step at a time.
    pub alone_ms: f64,
    /// Median of the rounds, in batches.
    pub together_ms: f64,
    /// Median of the rounds' own ratios.
    pub ratio: f64,
    /// Whether both left the same bits in every adapter.
    pub same_bits: bool,
    /// Bytes that the largest batch's tapes take, by the formula that admits them.
    pub tape_bytes: u64,
    /// The most memory that this process held.
    pub peak_bytes: Option<u64>,
}

/// Measures on this thread, and those that the device has.
pub fn bench_batch(bench: &BatchBench, threads: usize) -> Result<BatchReport, LabError> {
    let ground = tempfile::Builder::new().prefix("cutlayer-bench-").tempdir().map_err(LabError::write(&std::env::temp_dir()))?;
    let model = match &bench.subject {
        Subject::Folder(folder) => folder.clone(),
        Subject::Shape(name) => {
            write_shape(name, ground.path())?;
            ground.path().to_path_buf()
        }
    };
    let folder = ModelFolder::open(&model).map_err(NodeError::from)?;
    let spec = read_spec(&folder).map_err(NodeError::from)?;
    let (cut, end) = (usize::from(bench.cut), spec.blocks);
    if cut > end {
        return Err(NodeError::Cut { cut: bench.cut, tail: 0, blocks: end }.into());
    }
    let device = bench.device.open().map_err(NodeError::from)?;
    let parts = Parts { embedding: false, blocks: (cut..end).collect(), head: true };
    let frozen = Arc::new(Frozen::load_as(bench.precision, &folder, &parts, 2, &device).map_err(NodeError::from)?);
    let targets = if bench.targets.is_empty() { usual_targets(&spec) } else { bench.targets.clone() };
    let mut alone = Side::new(bench, &frozen, &targets)?;
    let mut together = Side::new(bench, &frozen, &targets)?;
    let bytes = tape_bytes(&spec, end - cut, bench.tokens as usize);
    let size = usize::try_from(bench.batch_bytes_max / bytes.max(1)).unwrap_or(usize::MAX).clamp(1, bench.clients as usize);
    let (mut alone_ms, mut together_ms) = (vec![], vec![]);
    for round in 0..bench.warmup + bench.rounds {
        let measure = |side: &mut Side, size: usize| side.round(round, size);
        let (first, second) = if round % 2 == 0 {
            let first = measure(&mut alone, 1)?;
            (first, measure(&mut together, size)?)
        } else {
            let second = measure(&mut together, size)?;
            (measure(&mut alone, 1)?, second)
        };
        if round >= bench.warmup {
            alone_ms.push(first);
            together_ms.push(second);
        }
    }
    let machine = Machine::here();
    Ok(BatchReport {
        model: match &bench.subject {
            Subject::Folder(path) => path.display().to_string(),
            Subject::Shape(name) => format!("{name} (random weights)"),
        },
        cut: bench.cut,
        clients: bench.clients,
        tokens: bench.tokens,
        ranks: bench.ranks.clone(),
        batches: (0..bench.clients as usize).step_by(size).map(|from| size.min(bench.clients as usize - from)).collect(),
        rounds: bench.rounds,
        device: bench.device.to_string(),
        device_name: device_name(bench.device, machine.cpu.as_deref()),
        threads,
        machine,
        alone_ms: median(alone_ms.iter().copied()),
        together_ms: median(together_ms.iter().copied()),
        ratio: median(alone_ms.iter().zip(&together_ms).map(|(alone, together)| alone / together)),
        same_bits: alone.states() == together.states(),
        tape_bytes: bytes * size as u64,
        peak_bytes: peak_bytes(None),
    })
}

/// The server's part of every client, and what each client sends.
struct Side {
    frozen: Arc<Frozen>,
    stages: Vec<Stage>,
    inputs: Vec<Tensor<2>>,
    rows: Rows,
    labels: Vec<i32>,
    cut: usize,
}

impl Side {
    fn new(bench: &BatchBench, frozen: &Arc<Frozen>, targets: &[String]) -> Result<Self, LabError> {
        let (spec, cut) = (frozen.spec(), usize::from(bench.cut));
        let stage = |client: usize| -> Result<Stage, AdapterError> {
            let rank = bench.ranks[client % bench.ranks.len()];
            let lora = LoraSpec { rank, alpha: 2.0 * rank as f32, rslora: false, dropout: 0.0, targets: targets.to_vec() };
            let shapes = lora::shapes(spec, &lora, cut..spec.blocks, true, frozen.labels())?;
            Stage::new(frozen.clone(), cut..spec.blocks, true, &lora, &lora::initial(&shapes, SEED + client as u64))
        };
        let (n, d) = (bench.tokens as usize, spec.hidden);
        let input = |client: usize| {
            let value = |i: usize| ((i * 7919 + client * 104_729) % 2003) as f32 / 1001.0 - 1.0;
            Tensor::from_data(TensorData::new((0..n * d).map(value).collect::<Vec<f32>>(), [n, d]), frozen.device())
        };
        let clients = 0..bench.clients as usize;
        let is_classifier = matches!(spec.head, cutlayer_model::spec::HeadSpec::Classifier { .. });
        let labels = if is_classifier { vec![1] } else { (0..n).map(|i| ((i * 7919) % spec.vocab) as i32).collect() };
        Ok(Self {
            stages: clients.clone().map(stage).collect::<Result<_, _>>().map_err(NodeError::from)?,
            inputs: clients.map(input).collect(),
            rows: Rows::new(&[bench.tokens], spec.positions_max).map_err(NodeError::from)?,
            labels,
            cut,
            frozen: frozen.clone(),
        })
    }

    /// A step of every client, `size` at once; how long they took, in ms.
    fn round(&mut self, round: u32, size: usize) -> Result<f64, LabError> {
        let end = self.frozen.spec().blocks;
        let id = |client: usize| TapeId { client: client as u32, step: StepId::new(RoundId(round), true, 0, 0) };
        let started = Instant::now();
        for (batch, (stages, inputs)) in self.stages.chunks_mut(size).zip(self.inputs.chunks(size)).enumerate() {
            let joint = stages.iter_mut().zip(inputs).enumerate().map(|(place, (stage, input))| Joint {
                stage,
                id: id(batch * size + place),
                blocks: self.cut..end,
                input: Input::Hidden(input.clone(), true),
                rows: &self.rows,
                labels: Labels::from(&self.labels),
                mode: Mode::Train { dropout_seed: u64::from(round) },
            });
            let outcomes = losses(joint.collect());
            for (place, (stage, outcome)) in stages.iter_mut().zip(outcomes).enumerate() {
                outcome.map_err(NodeError::from)?;
                stage.update(id(batch * size + place)..=id(batch * size + place), &optimizer(), 1e-4);
            }
        }
        // A device that cannot be waited for fails at its next operation, and says more there.
        let _ = self.frozen.device().sync();
        Ok(started.elapsed().as_secs_f64() * 1e3)
    }

    fn states(&self) -> Vec<AdapterState> {
        self.stages.iter().map(|stage| stage.adapter().state()).collect()
    }
}

fn optimizer() -> OptimizerSpec {
    OptimizerSpec {
        kind: OptimizerKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        clip_norm: None,
        reset_each_round: false,
    }
}

/// The report for people.
pub fn batch_table(report: &BatchReport) -> String {
    let BatchReport { model, cut, clients, tokens, ranks, batches, rounds, device, device_name, threads, .. } = report;
    let tokens_per_s = |ms: f64| format!("{:.0}", f64::from(clients * tokens) / ms * 1e3);
    let line = |how: &str, ms: f64| vec![how.to_owned(), format!("{ms:.1}"), format!("{:.1}", ms / f64::from(*clients)), tokens_per_s(ms)];
    let list = |all: &[String]| all.join(", ");
    let ranks: Vec<String> = ranks.iter().map(u32::to_string).collect();
    let sizes: Vec<String> = batches.iter().map(usize::to_string).collect();
    let rows = vec![line("one at a time", report.alone_ms), line("in batches", report.together_ms)];
    format!(
        "{model}: the server's steps at cut {cut}, {clients} clients of 1 x {tokens}, LoRA rank {}, batches of {}\n\
         {rounds} rounds, each taken both ways in turn; device {device}: {device_name}, {threads} threads\n{}\n\
         ratio:  {:.2} (median of the rounds' own); adapters afterwards {}\n\
         memory: peak {}; tapes of the largest batch by the formula {}",
        list(&ranks),
        list(&sizes),
        table(&["steps", "round ms", "step ms", "tokens/s"], rows),
        report.ratio,
        if report.same_bits { "the same to the bit" } else { "not the same to the bit" },
        report.peak_bytes.map_or("unknown".into(), bytes),
        bytes(report.tape_bytes),
    )
}
