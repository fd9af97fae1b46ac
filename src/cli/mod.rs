//! The commands, one file each.

mod api;
mod bench;
mod chat;
mod completions;
mod config_args;
mod console;
mod data_args;
mod doctor;
mod engine;
mod eval;
mod exit;
mod generate;
mod generator_args;
mod host;
mod join;
mod keys;
mod link;
mod merge;
mod network;
mod offload;
mod offload_args;
mod output;
mod pull;
mod run;
mod serve;

use clap::{Args, Parser, Subcommand};
use cutlayer_lab::Threads;
use exit::Exit;
use output::{Format, Output};
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// Threads that serve the network, whatever the machine: they copy and encrypt, and leave the cores to those that compute.
const NETWORK_THREADS: usize = 2;

/// Split federated fine-tuning of transformers over QUIC.
///
/// Clients run the first layers of a model with LoRA adapters on their own devices and stream the activations at the cut
/// layer to an edge server, which runs the rest, sends the gradient back, and folds the clients' adapters into one.
#[derive(Debug, Parser)]
#[command(name = "cutlayer", version, propagate_version = true, after_long_help = exit::TABLE)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct GlobalArgs {
    /// What standard output gets: text for people, or exactly one JSON object (people's text then goes to standard error)
    #[arg(long, value_enum, default_value_t = Format::Human, global = true)]
    format: Format,
    /// Say more on standard error; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    /// Say nothing on standard error but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Threads to compute with; without it, the machine's cores. `run` and `bench` share them out among their processes
    #[arg(long, value_name = "N", env = "CUTLAYER_THREADS", global = true)]
    threads: Option<NonZeroUsize>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole experiment on this machine: a server process and a process for each client
    Run(run::RunArgs),
    /// Be the server of a run
    Serve(Box<serve::ServeArgs>),
    /// Join a run as a client
    Join(Box<join::JoinArgs>),
    /// Generate text, on this machine or split with a host
    Generate(Box<generate::GenerateArgs>),
    /// Talk with a model in the terminal, on this machine or split with a host
    Chat(Box<chat::ChatArgs>),
    /// Answer OpenAI's HTTP API, on this machine or split with a host
    Api(Box<api::ApiArgs>),
    /// Be the edge server of split inference: run the upper blocks for devices that generate
    Host(Box<host::HostArgs>),
    /// Decide what stays on the device: fit the policy of mode auto
    Offload(Box<offload::OffloadFitArgs>),
    /// Be a slow, far or broken network in front of a server
    Link(Box<link::LinkArgs>),
    /// Measure what cutlayer takes on this machine
    Bench(Box<bench::BenchArgs>),
    /// Score a model, with or without an adapter, on held-out records
    Eval(Box<eval::EvalArgs>),
    /// Fold an adapter into a model folder
    Merge(merge::MergeArgs),
    /// Fetch a model from the Hugging Face Hub
    Pull(pull::PullArgs),
    /// Make identities and decide who may join
    Keys(keys::KeysArgs),
    /// Look for what would keep a run from working, and say how to mend it
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// What each exit code means
    #[command(after_help = exit::TABLE)]
    ExitCodes,
}

/// Parses, runs, reports, and says how it ended.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.format, cli.global.quiet);
    start_log(cli.global.verbose, cli.global.quiet);
    let cores = start_threads(cli.global.threads);
    let exit = match dispatch(cli.command, &output, cores) {
        Ok(exit) => exit,
        Err(error) => {
            let exit = exit::of(&error);
            output.error(&error, exit);
            exit
        }
    };
    ExitCode::from(exit as u8)
}

fn dispatch(command: Command, output: &Output, cores: usize) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::run(args, output, cores),
        Command::Serve(args) => serve::run(*args, output),
        Command::Join(args) => join::run(*args, output),
        Command::Generate(args) => generate::run(*args, output),
        Command::Chat(args) => chat::run(*args, output),
        Command::Api(args) => api::run(*args, output),
        Command::Host(args) => host::run(*args, output),
        Command::Offload(args) => offload::run(*args, output),
        Command::Link(args) => link::run(*args, output),
        Command::Bench(args) => bench::run(*args, output, cores),
        Command::Eval(args) => eval::run(*args, output),
        Command::Merge(args) => merge::run(args, output),
        Command::Pull(args) => pull::run(args, output),
        Command::Keys(args) => keys::run(args, output),
        Command::Doctor(args) => doctor::run(args, output),
        Command::Completions(args) => completions::run(&args),
        Command::ExitCodes => {
            output.result(&exit::table_json(), exit::TABLE);
            Ok(Exit::Success)
        }
    }
}

/// The one place that says how many threads compute; returns how many.
///
/// burn's CPU backend and everything else that computes takes its threads from rayon's global pool.
fn start_threads(set: Option<NonZeroUsize>) -> usize {
    let cores = Threads::cores(set.map(NonZeroUsize::get));
    if let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(cores).build_global() {
        tracing::warn!("computing with as many threads as there are cores: {error}");
    }
    cores
}

/// Warnings by default; `RUST_LOG` overrides everything.
fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "warn,cutlayer=info",
        (false, 2) => "warn,cutlayer=debug",
        (false, _) => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(verbose > 0).init();
}

/// The runtime of the commands that talk to a network.
fn block_on<T>(job: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(NETWORK_THREADS).enable_all().build()?.block_on(job)
}

#[cfg(test)]
mod tests {
    use super::Cli;

    /// Goal: no two arguments clash. Method: clap's own check of every command.
    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
