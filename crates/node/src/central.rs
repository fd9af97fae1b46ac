//! The same job without a cut, in one process: what a split run is measured against.

use crate::adapters::{peft_config, starting};
use crate::compute_config::ComputeConfig;
use crate::error::NodeError;
use crate::event::{Event, EventSink};
use crate::phases::{Phase, PhaseClock};
use crate::prepare::{ClientData, Prepared, classes, evaluation, prepare, rectangle};
use crate::schedule::StepClock;
use crate::stop::Stop;
use cutlayer_data::{Batch, Record};
use cutlayer_model::{DeviceChoice, Frozen, Input, Mode, ModelFolder, Parts, PeftFolder, Rows, Stage, read_spec, write_logits};
use cutlayer_wire::{BatchSpec, EvalSums, LoraSpec, Plan, StepId, Task};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A run of the uncut model on all clients' data.
#[derive(Clone, Debug)]
pub struct CentralConfig {
    /// Folder of the base model.
    pub model: PathBuf,
    /// Where and how this side computes.
    pub compute: ComputeConfig,
    /// The plan; every step takes one batch of each client, joined, so that it sees what a step of all clients sees.
    pub plan: Plan,
    /// PEFT folder to start from.
    pub starting_adapter: Option<PathBuf>,
    /// The clients' data, in their order.
    pub clients: Vec<ClientData>,
    /// PEFT folder to leave the adapter in.
    pub out: PathBuf,
    /// Whether to time the phases of each step and tell of them; on a GPU that costs the time to wait for it at each.
    pub phases: bool,
}

/// What a central run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CentralReport {
    /// Rounds done.
    pub rounds: u32,
    /// Held-out sums after each evaluated round, round 0 first.
    pub evaluations: Vec<(u32, EvalSums)>,
}

/// The uncut model with an adapter.
struct Whole {
    stage: Stage,
    blocks: usize,
    steps: u64,
    clock: PhaseClock,
}

impl Whole {
    fn run(&mut self, batch: &Batch, mode: Mode) -> Result<EvalSums, NodeError> {
        self.steps += 1;
        let rows = Rows::new(&batch.lengths, self.stage.frozen().spec().positions_max)?;
        self.clock.start();
        self.clock.start_loss(&mut self.stage);
        let (sums, _) = self.stage.loss(StepId(self.steps), 0..self.blocks, Input::Tokens(&batch.ids), &rows, &batch.labels, mode)?;
        self.clock.end_loss(&self.stage);
        Ok(sums)
    }

    fn evaluate(&mut self, batches: &[Batch]) -> Result<EvalSums, NodeError> {
        let mut sums = EvalSums::default();
        for batch in batches {
            sums.add(&self.run(batch, Mode::Evaluate)?);
        }
        Ok(sums)
    }
}

/// Trains the uncut model; blocks the calling thread.
pub fn central(config: CentralConfig, events: &EventSink, stop: &Stop) -> Result<CentralReport, NodeError> {
    let plan = &config.plan;
    plan.validate()?;
    let folder = ModelFolder::open(&config.model)?;
    let spec = read_spec(&folder)?;
    let device = config.compute.device.open()?;
    let start = starting(&spec, &plan.task, &plan.adapter, plan.seed, config.starting_adapter.as_deref())?;
    let frozen = config.compute.load(&folder, &Parts::whole(spec.blocks), classes(&plan.task), &device)?;
    let mut stage = Stage::new(frozen, 0..spec.blocks, true, &plan.adapter, &start)?;
    stage.set_checkpointing(config.compute.checkpointing);
    let clock = PhaseClock::new(config.phases, &device);
    let mut whole = Whole { stage, blocks: spec.blocks, steps: 0, clock };
    let mut clients = (0u32..)
        .zip(&config.clients)
        .map(|(index, data)| prepare(&config.model, data, plan, index))
        .collect::<Result<Vec<Prepared>, NodeError>>()?;
    let held_out: Vec<Batch> = clients.iter().flat_map(|client| client.evaluation.clone()).collect();
    let mut report = CentralReport::default();
    for round in 0..=plan.rounds {
        if round > 0 {
            events(Event::RoundStarted { round, clients: (0..clients.len() as u32).collect() });
            train(&mut whole, &mut clients, plan, round, events)?;
            report.rounds = round;
        }
        if is_evaluated(plan, round) && !held_out.is_empty() {
            let sums = whole.evaluate(&held_out)?;
            if let Some(event) = Event::evaluated(round, &sums) {
                events(event);
            }
            report.evaluations.push((round, sums));
        }
        if stop.is_triggered() {
            break;
        }
    }
    PeftFolder::write(&config.out, &peft_config(plan, &config.model)?, &whole.stage.adapter().state())?;
    let reason = if stop.is_triggered() { "the run was stopped" } else { "all rounds are done" };
    events(Event::Finished { rounds: report.rounds, reason: reason.into() });
    Ok(report)
}

/// Round 0 and the last are scored, and every `evaluate_every`-th.
fn is_evaluated(plan: &Plan, round: u32) -> bool {
    round == plan.rounds || round.checked_rem(plan.evaluate_every).map_or(round == 0, |rest| rest == 0)
}

fn train(whole: &mut Whole, clients: &mut [Prepared], plan: &Plan, round: u32, events: &EventSink) -> Result<(), NodeError> {
    for index in 0..plan.local_steps {
        let started = Instant::now();
        let batch = join(clients.iter_mut().map(|client| client.batches.next_batch()));
        let clock = StepClock { round: cutlayer_wire::RoundId(round), index, micro: 0 };
        whole.clock.take();
        let sums = whole.run(&batch, Mode::Train { dropout_seed: clock.dropout_seed(plan, 0) })?;
        whole.clock.start();
        let step = StepId(whole.steps);
        whole.stage.update(step..=step, &plan.optimizer, clock.learning_rate(plan));
        whole.clock.end(Phase::Optimizer);
        events(Event::Step {
            client: 0,
            round,
            step: index + 1,
            loss: sums.mean_loss(),
            tokens: batch.tokens() as u32,
            rectangle: rectangle(&plan.batch, &batch.lengths),
            scored: sums.scored as u32,
            bytes_up: 0,
            bytes_down: 0,
            wait_ms: 0.0,
            compute_ms: started.elapsed().as_secs_f64() * 1e3,
            phases: whole.clock.take(),
        });
    }
    Ok(())
}

fn join(batches: impl Iterator<Item = Batch>) -> Batch {
    batches
        .reduce(|mut all, next| {
            all.lengths.extend(next.lengths);
            all.ids.extend(next.ids);
            all.labels.extend(next.labels);
            all.samples += next.samples;
            all
        })
        .expect("a run has at least one client")
}

/// A model, with or without an adapter, to score records on.
///
/// Where the task is a classification, the adapter must bring its classifier.
pub struct Scorer {
    whole: Whole,
    model: PathBuf,
    batch: BatchSpec,
    task: Task,
}

impl Scorer {
    /// Loads the model and the PEFT folder.
    pub fn load(model: &Path, adapter: Option<&Path>, device: DeviceChoice, batch: &BatchSpec, task: &Task) -> Result<Self, NodeError> {
        let folder = ModelFolder::open(model)?;
        let spec = read_spec(&folder)?;
        let lora = match adapter {
            Some(adapter) => PeftFolder::read(adapter)?.0.lora,
            None => LoraSpec { rank: 1, alpha: 1.0, rslora: false, dropout: 0.0, targets: vec![] },
        };
        let state = starting(&spec, task, &lora, 0, adapter)?;
        let device = device.open()?;
        let frozen = Arc::new(Frozen::load(&folder, &Parts::whole(spec.blocks), classes(task), &device)?);
        let stage = Stage::new(frozen, 0..spec.blocks, true, &lora, &state)?;
        let clock = PhaseClock::new(false, &device);
        let whole = Whole { stage, blocks: spec.blocks, steps: 0, clock };
        Ok(Self { whole, model: model.into(), batch: *batch, task: task.clone() })
    }

    /// Sums over `records`.
    pub fn score(&mut self, records: &[Record]) -> Result<EvalSums, NodeError> {
        self.whole.evaluate(&evaluation(&self.model, records, &self.task, &self.batch)?)
    }

    /// Writes ids and logits of the first of `records` that can be scored, as [`write_logits`] does, for other frameworks to be
    /// held against.
    pub fn write_logits(&self, records: &[Record], file: &Path) -> Result<(), NodeError> {
        let batch = BatchSpec { sequences: 1, ..self.batch };
        let batches = evaluation(&self.model, records, &self.task, &batch)?;
        let Some(first) = batches.last() else {
            return Err(NodeError::Task("none of the records can be scored, so that there are no logits to write".into()));
        };
        let rows = Rows::new(&first.lengths, self.whole.stage.frozen().spec().positions_max)?;
        let logits = self.whole.stage.logits(0..self.whole.blocks, Input::Tokens(&first.ids), &rows)?;
        write_logits(file, &first.ids, &logits, self.task == Task::CausalLm).map_err(cutlayer_model::PeftError::from)?;
        Ok(())
    }
}
