//! `cutlayer bench generate`: its arguments.

use super::{subject, write_json};
use crate::cli::block_on;
use crate::cli::exit::{Exit, Failure};
use crate::cli::generator_args::drafting;
use crate::cli::output::Output;
use anyhow::Context;
use clap::{Args, ValueEnum};
use cutlayer_lab::{BenchOptions, GenerateBench, GenerateWhat, SHAPES, bench_generate, generate_table};
use cutlayer_model::{DeviceChoice, Precision};
use std::path::{Path, PathBuf};

/// Arguments of `bench generate`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cutlayer bench generate uncut --shape smollm2-135m --precision bf16
  cutlayer bench generate split --shape smollm2-135m --cut 8
  cutlayer bench generate drafts models/quickstart --prompts models/quickstart/corpus/heldout.jsonl --draft ngram --draft exit:2 --cut 2

What is compared in one run is measured in turn. Times are of a host and a device in this process, over loopback QUIC.")]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["model", "shape"]))]
pub(super) struct GenerateBenchArgs {
    /// What to measure
    #[arg(value_enum, value_name = "WHAT")]
    what: What,
    /// Model folder as Hugging Face lays it out
    #[arg(value_name = "DIR")]
    model: Option<PathBuf>,
    /// A named shape with random weights
    #[arg(long, value_name = "NAME", value_parser = SHAPES)]
    shape: Option<String>,
    /// Blocks on the device
    #[arg(long, value_name = "BLOCKS", default_value_t = 2)]
    cut: u16,
    /// Blocks on the device from the top, where `split` keeps the end there
    #[arg(long, value_name = "BLOCKS", default_value_t = 1)]
    tail: u16,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    prompt: u32,
    /// Tokens to generate after it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=65536))]
    new: u32,
    /// Times to measure each thing, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeats: u32,
    /// Sequences at once, for `sessions` and `memory`
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    sessions: u32,
    /// Tokens to generate in all, for `memory`
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000_000))]
    tokens: u32,
    /// Round trip of the emulated link, for `drafts`, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    rtt_ms: u32,
    /// What guesses tokens ahead, for `drafts`: ngram, exit:BLOCKS or a small model's folder (repeatable) [default: ngram]
    #[arg(long = "draft", value_name = "HOW")]
    drafts: Vec<String>,
    /// Most tokens to guess ahead
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    draft_max: u16,
    /// Prompts for `drafts`, one a line: text, or a JSON object with a `prompt`, which a new line then follows
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
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

/// [`GenerateWhat`], as clap reads it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Prefill and decode of the uncut model, one sequence
    Uncut,
    /// What the cut costs a token, in time and bytes
    Split,
    /// Many sequences together against the same in turn
    Sessions,
    /// Drafts over a far link, against none
    Drafts,
    /// Memory of both sides while many tokens are generated
    Memory,
    /// The first token of a prompt that was seen before, against one that was not
    Prefix,
}

/// Measures.
pub(super) fn run(args: GenerateBenchArgs, output: &Output, threads: usize) -> anyhow::Result<Exit> {
    let names = if args.drafts.is_empty() { vec!["ngram".to_owned()] } else { args.drafts.clone() };
    let drafts = names.into_iter().map(|name| Ok((name.clone(), drafting(&name, args.draft_max)?))).collect::<anyhow::Result<_>>()?;
    let bench = GenerateBench {
        what: match args.what {
            What::Uncut => GenerateWhat::Uncut,
            What::Split => GenerateWhat::Split,
            What::Sessions => GenerateWhat::Sessions,
            What::Drafts => GenerateWhat::Drafts,
            What::Memory => GenerateWhat::Memory,
            What::Prefix => GenerateWhat::Prefix,
        },
        subject: subject(args.model, args.shape)?,
        cut: args.cut,
        tail: args.tail,
        prompt: args.prompt,
        new: args.new,
        repeats: args.repeats,
        sessions: args.sessions,
        tokens: args.tokens,
        rtt_ms: args.rtt_ms,
        drafts,
        texts: args.prompts.as_deref().map_or(Ok(vec![]), |file| texts(file, args.repeats))?,
        device: args.device,
        precision: args.precision,
    };
    let program = std::env::current_exe().context("cannot find the cutlayer binary that children are started from")?;
    let options = BenchOptions { program, show: output.show(), threads };
    let report = block_on(async { Ok(bench_generate(&bench, &options).await?) })?;
    write_json(args.json.as_deref(), &report)?;
    output.result(&report, &generate_table(&report));
    Ok(Exit::Success)
}

/// The first prompts of a file.
fn texts(file: &Path, count: u32) -> anyhow::Result<Vec<String>> {
    let wrong = |reason: String| Failure::because(Exit::Usage, format!("--prompts {}: {reason}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let one = |line: &str| -> anyhow::Result<String> {
        if !line.starts_with('{') {
            return Ok(line.to_owned());
        }
        let value: serde_json::Value = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let prompt = value["prompt"].as_str().ok_or_else(|| wrong("a line has no `prompt`; write {\"prompt\": \"..\"}".into()))?;
        Ok(format!("{prompt}\n"))
    };
    let texts = text.lines().filter(|line| !line.trim().is_empty()).take(count as usize).map(one).collect::<anyhow::Result<Vec<_>>>()?;
    if texts.is_empty() { Err(wrong("it has no prompts; write one a line".into())) } else { Ok(texts) }
}
