//! `cutlayer join`: a client of a run.

use super::block_on;
use super::config_args::{ConfigArgs, set};
use super::console::{event_lines, event_words, stop_on_interrupt, stop_with_supervisor};
use super::data_args::DataArgs;
use super::exit::{Exit, Failure};
use super::keys::KeyStore;
use super::network::resolve;
use super::output::Output;
use clap::Args;
use cutlayer_lab::{RunConfig, data_of_client};
use cutlayer_node::{ClientData, JoinConfig, JoinReport, Stop, join};
use cutlayer_wire::{CutPoint, PeerId};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Arguments of `join`.
#[derive(Args, Debug)]
#[command(after_help = "\
The server prints the line to paste. With a run file, --client N takes the N-th share of its data:
  cutlayer join experiments/shakespeare/run.toml --client 2 --server 10.0.0.5:4433 --server-id KEY
With flags alone, the records are one's own:
  cutlayer join --server 10.0.0.5:4433 --server-id KEY --model models/smollm --cut 2 --data notes.jsonl --text body")]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The server's address, as it printed it
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// The server's key, as it printed it
    #[arg(long, value_name = "KEY")]
    server_id: PeerId,
    /// Single-use token, where the server does not know this machine's key yet
    #[arg(long)]
    token: Option<String>,
    /// Which client of the run file this is, from 0
    #[arg(long, value_name = "N", requires = "file")]
    client: Option<u32>,
    /// Blocks to run here, from the bottom [key: split.cut]
    #[arg(long, value_name = "BLOCKS")]
    cut: Option<u16>,
    /// Blocks to run here from the top, with head and labels, which then stay here [key: split.tail]
    #[arg(long, value_name = "BLOCKS")]
    tail: Option<u16>,
    /// What people call this client
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    keys: KeyStore,
    /// PEFT folder that gets this client's layers of the last global adapter
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder for the state of this client: one that was killed takes up its round when it is started again with it
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Be a child of `cutlayer run`: events on standard output, stop when standard input ends
    #[arg(long, hide = true)]
    supervised: bool,
    /// Tell the phases of each step
    #[arg(long, hide = true)]
    phases: bool,
}

/// Trains until the run is over.
pub(crate) fn run(args: JoinArgs, output: &Output) -> anyhow::Result<Exit> {
    // A run described by flags alone has one client that it knows of: this one.
    let flags: Vec<String> = if args.config.file.is_none() { vec![set("clients.count", 1)] } else { vec![] };
    let config = args.config.load(&flags)?;
    let data = records(&args, &config)?;
    let identity = args.keys.identity(output)?;
    let job = job(&args, &config)?;
    let events = if args.supervised { event_lines() } else { event_words(output) };
    let (outcome, stopped) = block_on(async {
        let stop = Stop::new();
        if args.supervised {
            stop_with_supervisor(&stop)
        } else {
            stop_on_interrupt(&stop)
        }
        let outcome = join(job, &identity, data, events, stop.clone()).await;
        Ok((outcome, stop.is_triggered()))
    })?;
    match outcome {
        Ok(report) => {
            if !args.supervised {
                report_end(&report, output);
            }
            Ok(if stopped { Exit::Interrupted } else { Exit::Success })
        }
        Err(error) if stopped => {
            output.result(&json!({ "interrupted": true, "reason": error.to_string() }), &error.to_string());
            Ok(Exit::Interrupted)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the run file says of this client, and over it what the flags say.
fn job(args: &JoinArgs, config: &RunConfig) -> anyhow::Result<JoinConfig> {
    let index = args.client.unwrap_or(0);
    let mut job = config.join_config(index, resolve("--server", &args.server)?, args.server_id, args.token.clone())?;
    if let Some(cut) = args.cut {
        job.cut = CutPoint(cut);
    }
    job.tail = args.tail.or(job.tail);
    if let Some(name) = &args.name {
        job.name.clone_from(name);
    } else if args.client.is_none() {
        job.name = args.keys.name();
    }
    job.out.clone_from(&args.out);
    job.phases = args.phases;
    job.state.clone_from(&args.state);
    Ok(job)
}

fn records(args: &JoinArgs, config: &RunConfig) -> anyhow::Result<ClientData> {
    if let Some(spec) = args.data.spec()? {
        let mut shares = spec.load(Path::new(""), 1, config.seed)?;
        return Ok(ClientData { train: shares.train.swap_remove(0), eval: shares.held_out.swap_remove(0) });
    }
    match args.client {
        Some(index) => Ok(data_of_client(config, index)?),
        None => Err(Failure::because(Exit::Usage, "there is nothing to train on: give --data FILE, or a run file and --client N")),
    }
}

fn report_end(report: &JoinReport, output: &Output) {
    let value = json!({
        "rounds": report.rounds,
        "steps": report.steps,
        "tokens": report.tokens,
        "updates_accepted": report.accepted,
        "bytes_sent": report.bytes.0,
        "bytes_received": report.bytes.1,
        "reconnects": report.reconnects,
        "reason": report.reason,
    });
    let (rounds, steps, tokens) = (report.rounds, report.steps, report.tokens);
    output.result(&value, &format!("{rounds} rounds, {steps} steps, {tokens} tokens: {}", report.reason));
}
