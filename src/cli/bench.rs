//! `cutlayer bench`: what cutlayer takes on this machine.

mod generate;

use super::block_on;
use super::console::stop_on_interrupt;
use super::exit::{Exit, Failure};
use super::output::Output;
use anyhow::Context;
use clap::{Args, Subcommand};
use cutlayer_lab::{BatchBench, BenchOptions, LabError, SHAPES, StepBench, Subject, batch_table, bench_batch, bench_step, step_table};
use cutlayer_model::{DeviceChoice, Precision};
use cutlayer_node::Stop;
use std::path::{Path, PathBuf};

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Where the time of a training step goes: a real server and a real client over loopback, or the uncut model
    Step(StepArgs),
    /// What a server gains by computing the steps of waiting clients as one: tokens a second, one at a time and in batches
    Batch(BatchArgs),
    /// What generating takes: prefill and decode, the cut, many sequences, drafts, memory, prompts seen before
    Generate(Box<generate::GenerateBenchArgs>),
}

/// Arguments of `bench step`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cutlayer bench step --shape smollm2-135m --cut 2
  cutlayer bench step models/smollm --uncut --sequences 1 --tokens 512 --json step.json

GFLOP/s counts what a LoRA step cannot do without: every frozen projection forward, the gradient with respect to its input,
attention, the head over the scored labels and the adapters. It stands against a matrix multiplication measured in the same run.")]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["model", "shape"]))]
struct StepArgs {
    /// Model folder as Hugging Face lays it out; without a tokenizer, one is made up beside it
    #[arg(value_name = "DIR")]
    model: Option<PathBuf>,
    /// A named shape with random weights
    #[arg(long, value_name = "NAME", value_parser = SHAPES)]
    shape: Option<String>,
    /// Blocks on the client
    #[arg(long, value_name = "BLOCKS", default_value_t = 2, conflicts_with = "uncut")]
    cut: u16,
    /// The whole model in one process, without a network
    #[arg(long)]
    uncut: bool,
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    sequences: u32,
    /// Tokens in each sequence
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=65536))]
    tokens: u32,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Steps before those
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    warmup: u32,
    /// Where to compute: cpu, wgpu[:n], cuda[:n] or auto
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// What frozen layers are held and multiplied in: f32, bf16 or, on a GPU, f16
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
    /// Keep only each block's input and run the block again on the way back
    #[arg(long)]
    checkpointing: bool,
    /// Rank of the adapter; its alpha is twice that
    #[arg(long, value_name = "N", default_value_t = 8)]
    rank: u32,
    /// Projections with an adapter, separated by commas; without it, the two or one that PEFT takes for the family
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Vec<String>,
    /// Change a key of the run file that this makes: a link, an encoding, a pipeline (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also write the result here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `bench batch`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cutlayer bench batch --shape smollm2-135m --cut 2 --clients 16 --tokens 45
  cutlayer bench batch models/smollm --tokens 128 --ranks 4,8,16,32")]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["model", "shape"]))]
struct BatchArgs {
    /// Model folder as Hugging Face lays it out
    #[arg(value_name = "DIR")]
    model: Option<PathBuf>,
    /// A named shape with random weights
    #[arg(long, value_name = "NAME", value_parser = SHAPES)]
    shape: Option<String>,
    /// Blocks on the clients
    #[arg(long, value_name = "BLOCKS", default_value_t = 2)]
    cut: u16,
    /// Clients, of one sequence each
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// Tokens in each sequence
    #[arg(long, value_name = "N", default_value_t = 45, value_parser = clap::value_parser!(u32).range(1..=65536))]
    tokens: u32,
    /// Ranks of the adapters, separated by commas and given out in turn
    #[arg(long, value_name = "RANKS", value_delimiter = ',', default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1024))]
    ranks: Vec<u32>,
    /// Projections with an adapter, separated by commas; without it, the two or one that PEFT takes for the family
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    targets: Vec<String>,
    /// Rounds to measure, each with a step of every client both ways
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Rounds before those
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    warmup: u32,
    /// Memory for the tapes of one batch, in MiB, as `server.batch_memory_mib`
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    batch_memory_mib: u64,
    /// Where to compute: cpu, wgpu[:n], cuda[:n] or auto
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// What frozen layers are held and multiplied in: f32, bf16 or, on a GPU, f16
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
    /// Also write the result here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures.
pub(crate) fn run(args: BenchArgs, output: &Output, threads: usize) -> anyhow::Result<Exit> {
    match args.command {
        BenchCommand::Step(args) => step(args, output, threads),
        BenchCommand::Batch(args) => batch(args, output, threads),
        BenchCommand::Generate(args) => generate::run(*args, output, threads),
    }
}

fn step(args: StepArgs, output: &Output, threads: usize) -> anyhow::Result<Exit> {
    let bench = StepBench {
        subject: subject(args.model, args.shape)?,
        cut: (!args.uncut).then_some(args.cut),
        sequences: args.sequences,
        tokens: args.tokens,
        steps: args.steps,
        warmup: args.warmup,
        device: args.device,
        precision: args.precision,
        checkpointing: args.checkpointing,
        rank: args.rank,
        targets: args.targets,
        overrides: args.set,
    };
    let program = std::env::current_exe().context("cannot find the cutlayer binary that children are started from")?;
    let options = BenchOptions { program, show: output.show(), threads };
    let report = block_on(async {
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        bench_step(&bench, &options, &stop).await.map_err(|error| match error {
            LabError::NotMeasured { .. } if stop.is_triggered() => Failure::because(Exit::Interrupted, error.to_string()),
            other => other.into(),
        })
    })?;
    write_json(args.json.as_deref(), &report)?;
    output.result(&report, &step_table(&report));
    Ok(Exit::Success)
}

fn batch(args: BatchArgs, output: &Output, threads: usize) -> anyhow::Result<Exit> {
    let bench = BatchBench {
        subject: subject(args.model, args.shape)?,
        cut: args.cut,
        clients: args.clients,
        tokens: args.tokens,
        ranks: args.ranks,
        targets: args.targets,
        rounds: args.rounds,
        warmup: args.warmup,
        batch_bytes_max: args.batch_memory_mib << 20,
        device: args.device,
        precision: args.precision,
    };
    let report = bench_batch(&bench, threads)?;
    write_json(args.json.as_deref(), &report)?;
    output.result(&report, &batch_table(&report));
    Ok(Exit::Success)
}

fn subject(model: Option<PathBuf>, shape: Option<String>) -> anyhow::Result<Subject> {
    match (model, shape) {
        (Some(folder), _) => Ok(Subject::Folder(folder)),
        (None, Some(name)) => Ok(Subject::Shape(name)),
        (None, None) => Err(Failure::because(Exit::Usage, "give a model folder or --shape NAME")),
    }
}

fn write_json(file: Option<&Path>, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(file, text).map_err(|error| Failure::because(Exit::Usage, format!("cannot write {}: {error}", file.display())))
}
