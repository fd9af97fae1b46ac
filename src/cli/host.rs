//! `cutlayer host`: the edge server of split inference.

use super::block_on;
use super::console::{event_words, stop_on_interrupt};
use super::exit::Exit;
use super::generator_args::ModelArgs;
use super::keys::KeyStore;
use super::network::reachable_from_outside;
use super::output::Output;
use clap::Args;
use cutlayer_node::{Event, EventSink, HostConfig, Stop, host};
use cutlayer_transport::{AllowList, LinkConfig};
use std::net::SocketAddr;
use std::sync::Arc;

/// Arguments of `host`.
#[derive(Args, Debug)]
#[command(after_help = "\
Example, for a phone and a laptop:
  cutlayer host --model models/smollm --listen 0.0.0.0:4434 --invite phone --invite laptop
It prints the flags for `cutlayer generate`, `chat` and `api` on each of them.")]
pub(crate) struct HostArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen at; 0.0.0.0:4434 is every network of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4434")]
    listen: SocketAddr,
    /// Lowest block to hold; devices may cut there or above
    #[arg(long, value_name = "BLOCK", default_value_t = 0)]
    first_block: u16,
    /// Hold no head: serve only devices that draw their tokens themselves
    #[arg(long)]
    no_head: bool,
    #[command(flatten)]
    keys: KeyStore,
    /// Make a single-use token for a new device and print its flags (repeatable)
    #[arg(long, value_name = "NAME")]
    invite: Vec<String>,
}

/// Serves until it is interrupted.
pub(crate) fn run(args: HostArgs, output: &Output) -> anyhow::Result<Exit> {
    let identity = args.keys.identity(output)?;
    let allow = Arc::new(args.keys.allow_list()?);
    let config = HostConfig {
        listen: args.listen,
        model: args.model.model.clone(),
        compute: args.model.compute(),
        first_block: args.first_block,
        head: !args.no_head,
        adapters: args.model.adapters()?,
        cache_bytes: args.model.cache_bytes(),
        sessions_max: args.model.sessions_max,
        link: LinkConfig::default(),
    };
    let events = with_invitations(&args, &allow, output);
    block_on(async {
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        host(config, &identity, allow, events, stop).await?;
        Ok(Exit::Success)
    })
}

/// Tells a person what happens; once the address is known, also how to use it.
fn with_invitations(args: &HostArgs, allow: &Arc<AllowList>, output: &Output) -> EventSink {
    let (tell, output, allow, names, first) = (event_words(output), *output, allow.clone(), args.invite.clone(), args.first_block);
    Arc::new(move |event| {
        let Event::Listening { addr, peer_id } = &event else { return tell(event) };
        let Ok(address) = addr.parse() else { return tell(event) };
        let flags = format!("--server {} --server-id {peer_id} --cut {}", reachable_from_outside(address), first.max(1));
        tell(event);
        for name in &names {
            match allow.issue_token(name) {
                Ok(token) => output.say(&format!("\nfor {name}, once:\n  {flags} --token {token}")),
                Err(error) => output.say(&format!("no token for {name}: {error}")),
            }
        }
        output.say(&format!(
            "\nfor a device whose key is enrolled (`cutlayer keys enrol NAME --key KEY` here, or --invite NAME for a new one):\n  cutlayer generate --model DIR {flags} PROMPT\n"
        ));
    })
}
