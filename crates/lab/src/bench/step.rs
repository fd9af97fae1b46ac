//! `bench step`: one training step, taken as a run takes it, and where its time goes.
//!
//! Split, a real server and a real client run as processes over loopback QUIC; uncut, this process trains the whole model.

use super::flops::{self, Load};
use super::ground::{Ground, device_name, prepare};
use super::report::{Peaks, StepReport};
use super::split::{Step, read_steps, rows};
use crate::error::LabError;
use crate::folder::METRICS_FILE;
use crate::manifest::Machine;
use crate::run::{RunOptions, Show, Summary, run};
use cutlayer_model::DeviceChoice;
use cutlayer_node::{NodeError, Stop};
use std::path::PathBuf;

/// Whose step is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A model folder as Hugging Face lays it out; a tokenizer is made up where it has none.
    Folder(PathBuf),
    /// One of [`super::SHAPES`] with random weights.
    Shape(String),
}

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct StepBench {
    /// The model.
    pub subject: Subject,
    /// Blocks on the client; `None` for the uncut model.
    pub cut: Option<u16>,
    /// Sequences in a batch.
    pub sequences: u32,
    /// Tokens in each of them.
    pub tokens: u32,
    /// Steps to measure.
    pub steps: u32,
    /// Steps before those.
    pub warmup: u32,
    /// Where both sides compute.
    pub device: DeviceChoice,
    /// What both sides hold and multiply frozen layers in.
    pub precision: cutlayer_model::Precision,
    /// Whether both sides run blocks again on the way back, to save memory.
    pub checkpointing: bool,
    /// Rank of the adapter.
    pub rank: u32,
    /// Projections with an adapter; empty for those that PEFT takes for the family.
    pub targets: Vec<String>,
    /// Keys of the run file that differ from what the above makes of it, as `--set` has them: a link, an encoding, a pipeline.
    pub overrides: Vec<String>,
}

/// How it is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The `cutlayer` binary that children are started from.
    pub program: PathBuf,
    /// What a person sees.
    pub show: Show,
    /// Threads that each side computes with: one waits while the other computes.
    pub threads: usize,
}

/// Runs the steps and reports. `stop` ends it with what it has, if that is enough.
pub async fn bench_step(bench: &StepBench, options: &BenchOptions, stop: &Stop) -> Result<StepReport, LabError> {
    let ground = prepare(bench)?;
    let running = RunOptions {
        program: options.program.clone(),
        runs: ground.folder.path().join("runs"),
        show: options.show,
        phases: true,
        cores: options.threads,
    };
    let summary = run(ground.config.clone(), &running, stop).await?;
    let steps = measured(bench, read_steps(&summary.folder.join(METRICS_FILE))?)?;
    // Last, so that it disturbs neither the steps nor the memory that they are said to take.
    let device = bench.device.open().map_err(NodeError::from)?;
    let gemm_gflops = cutlayer_model::gemm_gflops(&device);
    Ok(report(bench, options.threads, &ground, &summary, &steps, gemm_gflops))
}

/// The steps with a whole batch, without the first.
fn measured(bench: &StepBench, steps: Vec<Step>) -> Result<Vec<Step>, LabError> {
    let (whole, wanted) = (bench.sequences * bench.tokens, bench.steps as usize);
    let seen = steps.len();
    let whole: Vec<Step> = steps.into_iter().filter(|step| step.tokens == whole).skip(bench.warmup as usize).take(wanted).collect();
    if whole.len() < wanted {
        let reason = format!("of {seen} steps too few had a batch of {} x {} tokens", bench.sequences, bench.tokens);
        return Err(LabError::NotMeasured { measured: whole.len(), wanted, reason });
    }
    Ok(whole)
}

fn report(bench: &StepBench, threads: usize, ground: &Ground, summary: &Summary, steps: &[Step], gemm_gflops: f64) -> StepReport {
    let first = steps.first().expect("as many as were wanted, which is at least one");
    let last = steps.last().expect("as above");
    let times: Vec<f64> = steps.iter().map(Step::total_ms).collect();
    let step_ms = median(times.iter().copied());
    let tokens = u64::from(bench.sequences) * u64::from(bench.tokens);
    let load = Load { sequences: u64::from(bench.sequences), tokens_each: u64::from(bench.tokens), scored: u64::from(first.scored) };
    let flops = flops::of_step(&ground.spec, bench.rank, &ground.targets, load);
    let machine = Machine::here();
    let client = summary.clients.first();
    StepReport {
        model: match &bench.subject {
            Subject::Folder(path) => path.display().to_string(),
            Subject::Shape(name) => format!("{name} (random weights)"),
        },
        family: ground.spec.family,
        blocks: ground.spec.blocks,
        cut: bench.cut,
        sequences: bench.sequences,
        tokens: bench.tokens,
        rank: bench.rank,
        targets: ground.targets.clone(),
        warmup: bench.warmup,
        steps: steps.len(),
        device: bench.device.to_string(),
        device_name: device_name(bench.device, machine.cpu.as_deref()),
        cores: machine.threads,
        threads,
        machine,
        step_ms,
        step_ms_best: times.iter().copied().fold(f64::INFINITY, f64::min),
        tokens_per_s: tokens as f64 / step_ms * 1e3,
        rows: rows(steps, bench.cut.is_none()),
        gflop: flops / 1e9,
        gflops: flops / step_ms / 1e6,
        gemm_gflops,
        bytes_up: first.bytes.0,
        bytes_down: first.bytes.1,
        peak_bytes: Peaks {
            client: client.and_then(|row| row.peak_bytes).filter(|_| bench.cut.is_some()),
            server: summary.server_peak_bytes.filter(|_| bench.cut.is_some()),
            uncut: summary.server_peak_bytes.filter(|_| bench.cut.is_none()),
        },
        loss_first: first.loss,
        loss_last: last.loss,
    }
}

/// The middle, or the mean of the two.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    assert!(!values.is_empty(), "nothing has no middle");
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(steps: u32, warmup: u32) -> StepBench {
        let (subject, targets) = (Subject::Shape("llama-tiny".into()), vec![]);
        StepBench {
            subject,
            cut: None,
            sequences: 2,
            tokens: 8,
            steps,
            warmup,
            device: DeviceChoice::Cpu,
            precision: cutlayer_model::Precision::F32,
            checkpointing: false,
            rank: 8,
            targets,
            overrides: vec![],
        }
    }

    /// Goal: only whole batches count, and none of the warm-up. Method: a short batch among whole ones.
    #[test]
    fn short_batches_and_the_warmup_do_not_count() {
        let steps = || (0..6u32).map(|at| Step { tokens: if at == 2 { 9 } else { 16 }, scored: at, ..Step::default() }).collect();
        let kept = measured(&bench(3, 2), steps()).expect("enough");
        assert_eq!(kept.iter().map(|step| step.scored).collect::<Vec<_>>(), [3, 4, 5]);
        let refused = measured(&bench(4, 2), steps()).expect_err("too few");
        assert!(matches!(refused, LabError::NotMeasured { measured: 3, wanted: 4, .. }), "{refused}");
    }

    /// Goal: a median is the middle. Method: odd and even counts.
    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
