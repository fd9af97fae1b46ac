//! `cutlayer run FILE`: a whole experiment on this machine.

use super::block_on;
use super::config_args::{ConfigArgs, set};
use super::console::stop_on_interrupt;
use super::exit::Exit;
use super::output::Output;
use anyhow::Context;
use clap::Args;
use cutlayer_lab::{Chaos, RunOptions, resolve_labels, tables};
use cutlayer_node::Stop;
use std::path::PathBuf;

/// Arguments of `run`.
#[derive(Args, Debug)]
#[command(after_help = "Example: cutlayer run experiments/quickstart/run.toml --set train.rounds=2")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Name of the run and of its folder [key: name]
    #[arg(long)]
    name: Option<String>,
    /// Folder that gets the run's folder
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
    /// Let things go wrong, such as kill=1/2m,partition=5s: processes are killed and started again, networks cut; the adapter
    /// stays what it would have been [key: chaos]
    #[arg(long, value_name = "WHAT")]
    chaos: Option<Chaos>,
    /// Print the resolved run file and run nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub(crate) fn run(args: RunArgs, output: &Output, cores: usize) -> anyhow::Result<Exit> {
    let name = args.name.iter().map(|name| set("name", name));
    let flags: Vec<String> = name.chain(args.chaos.iter().map(|chaos| set("chaos", chaos))).collect();
    let mut config = args.config.load(&flags)?;
    if args.dry_run {
        resolve_labels(&mut config)?;
        config.plan()?;
        output.result(&config, config.to_toml()?.trim_end());
        return Ok(Exit::Success);
    }
    let program = std::env::current_exe().context("cannot find the cutlayer binary that children are started from")?;
    let options = RunOptions { program, runs: args.runs, show: output.show(), phases: false, cores };
    let summary = block_on(async {
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        Ok(cutlayer_lab::run(config, &options, &stop).await?)
    })?;
    output.result(&summary, &tables(&summary));
    Ok(if summary.interrupted { Exit::Interrupted } else { Exit::Success })
}
