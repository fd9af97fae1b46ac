//! `cutlayer merge`: an adapter into its model.

use super::exit::{Exit, Failure};
use super::output::Output;
use clap::Args;
use cutlayer_model::{ModelFolder, merge};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `merge`.
#[derive(Args, Debug)]
#[command(after_help = "Example: cutlayer merge --model models/smollm --adapter runs/shakespeare/adapter --out models/smollm-shakespeare")]
pub(crate) struct MergeArgs {
    /// Model folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// New model folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Merges them.
pub(crate) fn run(args: MergeArgs, output: &Output) -> anyhow::Result<Exit> {
    if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("{} is not empty; give another folder, or empty it", args.out.display());
        return Err(Failure::because(Exit::Usage, message));
    }
    let report = merge(&ModelFolder::open(&args.model)?, &args.adapter, &args.out)?;
    let value = json!({
        "folder": args.out,
        "merged": report.merged,
        "replaced": report.replaced,
        "tensors": report.tensors,
        "bytes": report.bytes,
        "copied": report.copied,
    });
    let text = format!("{}: {} of {} tensors changed", args.out.display(), report.merged + report.replaced.len(), report.tensors);
    output.result(&value, &text);
    Ok(Exit::Success)
}
