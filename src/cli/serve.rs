//! `cutlayer serve`: the server of a run.

use super::block_on;
use super::config_args::{ConfigArgs, set};
use super::console::{event_lines, event_words, stop_on_interrupt, stop_with_supervisor};
use super::exit::Exit;
use super::keys::KeyStore;
use super::network::reachable_from_outside;
use super::output::Output;
use clap::Args;
use cutlayer_lab::{RunConfig, resolve_labels};
use cutlayer_node::{Event, EventSink, ServeReport, Stop, serve};
use cutlayer_transport::AllowList;
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, with two clients on other machines:
  cutlayer serve --model models/smollm --listen 0.0.0.0:4433 --clients 2 --invite ada --invite bob
It prints the line to paste on each of them.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address to listen at; 0.0.0.0:4433 is every network of this machine [key: server.listen]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Clients to wait for [key: clients.count]
    #[arg(long, value_name = "N")]
    clients: Option<u32>,
    /// Rounds in the run [key: train.rounds]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Lowest block this server holds; clients may cut there or above [key: split.cut]
    #[arg(long, value_name = "BLOCKS")]
    cut: Option<u16>,
    #[command(flatten)]
    keys: KeyStore,
    /// Make a single-use token for a new client and print its line (repeatable)
    #[arg(long, value_name = "NAME")]
    invite: Vec<String>,
    /// PEFT folder that gets the global adapter at each commit
    #[arg(long, value_name = "DIR", default_value = "adapter")]
    out: PathBuf,
    /// Folder for the state of the run: a server that was killed goes on from its last committed round when it is started again with it
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Be a child of `cutlayer run`: events on standard output, stop when standard input ends
    #[arg(long, hide = true)]
    supervised: bool,
    /// Tell the phases of each step
    #[arg(long, hide = true)]
    phases: bool,
}

impl ServeArgs {
    fn flags(&self) -> Vec<String> {
        let listen = self.listen.map(|address| set("server.listen", toml::Value::String(address.to_string())));
        let clients = self.clients.map(|count| set("clients.count", count));
        let rounds = self.rounds.map(|rounds| set("train.rounds", rounds));
        let cut = self.cut.map(|cut| set("split.cut", cut));
        listen.into_iter().chain(clients).chain(rounds).chain(cut).collect()
    }
}

/// Serves until the run is over.
pub(crate) fn run(args: ServeArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut config = args.config.load(&args.flags())?;
    resolve_labels(&mut config)?;
    let mut job = config.serve_config(std::path::absolute(&args.out)?)?;
    job.phases = args.phases;
    job.state.clone_from(&args.state);
    let identity = args.keys.identity(output)?;
    let allow = Arc::new(args.keys.allow_list()?);
    let events = if args.supervised { event_lines() } else { with_invitations(&args, &config, &allow, output) };
    let (report, stopped) = block_on(async {
        let stop = Stop::new();
        if args.supervised {
            stop_with_supervisor(&stop)
        } else {
            stop_on_interrupt(&stop)
        }
        let report = serve(job, &identity, allow, events, stop.clone()).await?;
        Ok((report, stop.is_triggered()))
    })?;
    if !args.supervised {
        report_end(&report, &args.out, output);
        return Ok(if stopped { Exit::Interrupted } else { Exit::Success });
    }
    Ok(Exit::Success)
}

/// Tells a person what happens; once the address is known, also how to join.
fn with_invitations(args: &ServeArgs, config: &RunConfig, allow: &Arc<AllowList>, output: &Output) -> EventSink {
    let (tell, output, allow) = (event_words(output), *output, allow.clone());
    let (names, model, cut) = (args.invite.clone(), config.model.path.clone(), config.split.cut.of(0).unwrap_or(1));
    Arc::new(move |event| {
        if let Event::Listening { addr, peer_id } = &event
            && let Ok(address) = addr.parse()
        {
            let model = model_on(address, model.as_deref());
            let line = format!("cutlayer join --server {} --server-id {peer_id}", reachable_from_outside(address));
            let rest = format!("--model {model} --cut {cut} --data FILE");
            tell(event);
            invite(&names, &allow, &line, &rest, &output);
        } else {
            tell(event);
        }
    })
}

/// The model folder as a client may name it: on this machine the path, elsewhere its name.
fn model_on(listening: SocketAddr, model: Option<&Path>) -> String {
    let here = listening.ip().is_loopback();
    let shown = model.and_then(|path| if here { Some(path.as_os_str()) } else { path.file_name() });
    shown.map_or("DIR".into(), |name| name.to_string_lossy().into_owned())
}

fn invite(names: &[String], allow: &AllowList, line: &str, rest: &str, output: &Output) {
    for name in names {
        match allow.issue_token(name) {
            Ok(token) => output.say(&format!("\nto join as {name}, once:\n  {line} --token {token} --name {name} {rest}")),
            Err(error) => output.say(&format!("no token for {name}: {error}")),
        }
    }
    output.say(&format!(
        "\nto join with an enrolled key (`cutlayer keys enrol NAME --key KEY` here, or --invite NAME for a new one):\n  {line} {rest}\n"
    ));
}

fn report_end(report: &ServeReport, out: &Path, output: &Output) {
    let evaluations: Vec<_> = report
        .evaluations
        .iter()
        .map(|(round, sums)| json!({ "round": round, "loss": sums.mean_loss(), "accuracy": sums.accuracy(), "scored": sums.scored }))
        .collect();
    let value = json!({ "rounds": report.rounds, "reason": report.reason, "adapter": out, "evaluations": evaluations });
    output.result(&value, &format!("{} rounds; the adapter is in {}", report.rounds, out.display()));
}
