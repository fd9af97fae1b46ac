//! `cutlayer offload fit`: answers a validation file with the compact model and with the large one, and learns from that which answers of
//! the compact one to keep.

mod measure;
mod questions;
mod report;
mod svg;

use super::block_on;
use super::console::event_words;
use super::exit::{Exit, Failure};
use super::generator_args::GeneratorArgs;
use super::offload_args::{PolicyFile, open_local};
use super::output::Output;
use anyhow::Context;
use clap::{Args, Subcommand};
use cutlayer_generation::offload::{Budget, fit};
use measure::{PowerArgs, Score, measure};
use questions::QuestionArgs;
use report::Report;
use std::path::PathBuf;

/// Arguments of `offload`.
#[derive(Args, Debug)]
pub(crate) struct OffloadFitArgs {
    #[command(subcommand)]
    command: OffloadCommand,
}

#[derive(Subcommand, Debug)]
enum OffloadCommand {
    /// Fit a policy to a validation file and a budget, and report what it gives
    Fit(Box<FitArgs>),
}

/// Arguments of `offload fit`. The large model is that of the flags that `generate` takes; without a host it too runs here.
#[derive(Args, Debug)]
#[command(after_help = "\
Example: keep as much on the device as an accuracy of 60 % allows, by multiple choice.
  cutlayer offload fit --data questions.jsonl --prompt question --completion answer --options choices --accuracy 0.6 \\
    --local-model models/small --model models/large --server 10.0.0.5:4434 --server-id KEY --cut 1 --tail 0 --out fits/arc")]
struct FitArgs {
    #[command(flatten)]
    questions: QuestionArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Folder of the compact model
    #[arg(long, value_name = "DIR")]
    local_model: PathBuf,
    #[command(flatten)]
    generator: GeneratorArgs,
    /// How right an answer is; without it `choice` with --options, else `prefix`
    #[arg(long, value_enum)]
    score: Option<Score>,
    /// Tokens at most of an answer that is text
    #[arg(long, value_name = "N", default_value_t = 32)]
    tokens_max: u32,
    /// Text that ends an answer (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    power: PowerArgs,
    /// Folder for policy.json, report.json and curve.svg
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What may be spent, as the mean of all requests; give one.
#[derive(Args, Clone, Copy, Debug)]
#[group(id = "spend", required = true, multiple = false)]
struct BudgetArgs {
    /// Be at least so right, from 0 to 1, and keep as much local as that allows
    #[arg(long, value_name = "SHARE", group = "spend")]
    accuracy: Option<f64>,
    /// Spend at most so many milliseconds, and be as right as that allows
    #[arg(long, value_name = "MS", group = "spend")]
    latency_ms: Option<f64>,
    /// Spend at most so many joules of the device, modelled
    #[arg(long, value_name = "J", group = "spend")]
    energy_j: Option<f64>,
    /// Send and receive at most so many bytes
    #[arg(long, value_name = "BYTES", group = "spend")]
    bytes: Option<f64>,
    /// Keep at least this share local, from 0 to 1
    #[arg(long, value_name = "SHARE", group = "spend")]
    local_share: Option<f64>,
}

impl BudgetArgs {
    fn budget(&self) -> Budget {
        let given = [
            self.accuracy.map(Budget::Accuracy),
            self.latency_ms.map(Budget::LatencyMs),
            self.energy_j.map(Budget::EnergyJ),
            self.bytes.map(Budget::Bytes),
            self.local_share.map(Budget::Local),
        ];
        given.into_iter().flatten().next().expect("clap asks for one")
    }
}

/// Runs it.
pub(crate) fn run(args: OffloadFitArgs, output: &Output) -> anyhow::Result<Exit> {
    let OffloadCommand::Fit(args) = args.command;
    run_fit(*args, output)
}

fn run_fit(args: FitArgs, output: &Output) -> anyhow::Result<Exit> {
    let score = args.score.unwrap_or(if args.questions.has_options() { Score::Choice } else { Score::Prefix });
    if (score == Score::Choice) != args.questions.has_options() {
        return Err(Failure::because(Exit::Usage, "score choice goes with --options COLUMN, and the others without"));
    }
    let questions = args.questions.read()?;
    let budget = args.budget.budget();
    let (examples, local) = block_on(async {
        let local = open_local(&args.local_model, &args.generator, output, event_words(output)).await?;
        let large = args.generator.open(output, event_words(output)).await?;
        let how = measure::How { score, tokens_max: args.tokens_max, stop: args.stop.clone(), power: args.power };
        Ok((measure(&questions, &local, &large, &how, output).await?, local.base().to_string()))
    })?;
    let fitted = fit(&examples, budget).map_err(|error| Failure::because(Exit::Usage, error.to_string()))?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let write = |name: &str, text: String| {
        let path = args.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let policy = PolicyFile { local, score: score.name().into(), policy: fitted.policy.clone() };
    write("policy.json", serde_json::to_string_pretty(&policy)? + "\n")?;
    write("curve.svg", svg::draw(&fitted))?;
    let report = Report::new(&args, score, budget, &examples, fitted);
    write("report.json", serde_json::to_string_pretty(&report)? + "\n")?;
    output.result(&report, &format!("{}\nwritten to {}", report.table(), args.out.display()));
    Ok(Exit::Success)
}
