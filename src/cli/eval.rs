//! `cutlayer eval`: the whole model on held-out records.

use super::config_args::{ConfigArgs, set};
use super::data_args::DataArgs;
use super::exit::{Exit, Failure};
use super::output::Output;
use clap::Args;
use cutlayer_data::Record;
use cutlayer_lab::{RunConfig, held_out, resolve_labels};
use cutlayer_node::Scorer;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cutlayer eval runs/shakespeare/resolved.toml --adapter runs/shakespeare/adapter
  cutlayer eval --model models/smollm --data test.csv --prompt mr --completion ref")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// PEFT folder to put on the model; without one, the base is scored
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Also write ids and logits of one record here (safetensors), to hold other frameworks against
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// Sequences in a batch [key: train.sequences]
    #[arg(long, value_name = "N")]
    sequences: Option<u32>,
    /// Longest sequence, in tokens [key: train.tokens_max]
    #[arg(long, value_name = "N")]
    tokens_max: Option<u32>,
}

/// Scores it.
pub(crate) fn run(args: EvalArgs, output: &Output) -> anyhow::Result<Exit> {
    let sequences = args.sequences.map(|count| set("train.sequences", count));
    let tokens = args.tokens_max.map(|count| set("train.tokens_max", count));
    let flags: Vec<String> = sequences.into_iter().chain(tokens).collect();
    let mut config = args.config.load(&flags)?;
    resolve_labels(&mut config)?;
    let records = records(&args, &config)?;
    let (model, task) = (config.model_path()?, config.task()?);
    output.say(&format!("{} records on {}", records.len(), config.server.device));
    let mut scorer = Scorer::load(&model, args.adapter.as_deref(), config.server.device, &config.batch(), &task)?;
    if let Some(file) = &args.logits {
        scorer.write_logits(&records, file)?;
    }
    let sums = scorer.score(&records)?;
    let (loss, accuracy) = (sums.mean_loss(), sums.accuracy());
    let value = json!({
        "model": model,
        "adapter": args.adapter,
        "records": records.len(),
        "loss": loss,
        "perplexity": loss.map(f64::exp),
        "accuracy": accuracy,
        "scored": sums.scored,
    });
    let text = match (loss, accuracy) {
        (Some(loss), Some(share)) => {
            format!("loss {loss:.4}, perplexity {:.3}, accuracy {:.1} % of {} labels", loss.exp(), share * 100.0, sums.scored)
        }
        _ => "nothing in these records can be scored".into(),
    };
    output.result(&value, &text);
    Ok(Exit::Success)
}

/// The file named by flags, all of it; else what the run file holds out.
fn records(args: &EvalArgs, config: &RunConfig) -> anyhow::Result<Vec<Record>> {
    let records = match args.data.spec()? {
        Some(spec) => {
            let shares = spec.load(Path::new(""), 1, config.seed)?;
            let held_out: Vec<Record> = shares.held_out.into_iter().flatten().collect();
            if held_out.is_empty() { shares.train.into_iter().flatten().collect() } else { held_out }
        }
        None => held_out(config)?,
    };
    if records.is_empty() {
        return Err(Failure::because(Exit::Usage, "the run file holds nothing out: set data.held_out in it, or give --data FILE"));
    }
    Ok(records)
}
