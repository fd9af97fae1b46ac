//! `cutlayer link`: a slow, far or broken network in front of a server, without root.

use super::block_on;
use super::console::stop_on_interrupt;
use super::exit::{Exit, Failure};
use super::network::resolve;
use super::output::Output;
use clap::Args;
use cutlayer_node::Stop;
use cutlayer_transport::{Changes, Conditions, Emulator, EmulatorCounts, LaneCounts, MtuDrop, Outage, Profile, Rate, Share, Span};
use serde::Serialize;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often it says what passed.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `link`.
#[derive(Args, Debug)]
#[command(after_help = "\
Clients join at the address it listens at, in place of the server's. Numbers go over the profile's:
  cutlayer link --listen 127.0.0.1:4434 --to 127.0.0.1:4433 --profile lte
  cutlayer link --to 10.0.0.5:4433 --rate 50mbit --delay 25ms --jitter 5ms --loss 1% --partition 5s@30s --rebind 60s --seed 7
A run file does the same for its own clients with link.profile and [link.emulate].")]
pub(crate) struct LinkArgs {
    /// Address at which clients find the link; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The server behind it
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// loopback, fibre, wifi, 5g, lte, satellite or train
    #[arg(long, value_name = "NAME", default_value = "loopback")]
    profile: Profile,
    /// Rate each way, such as 50mbit
    #[arg(long)]
    rate: Option<Rate>,
    /// Rate from the clients to the server
    #[arg(long, value_name = "RATE")]
    rate_up: Option<Rate>,
    /// Rate from the server to the clients
    #[arg(long, value_name = "RATE")]
    rate_down: Option<Rate>,
    /// Delay each way, such as 25ms: half of the round trip
    #[arg(long, value_name = "TIME")]
    delay: Option<Span>,
    /// At most this much more delay, changing every 10 ms
    #[arg(long, value_name = "TIME")]
    jitter: Option<Span>,
    /// Share of datagrams lost each way, such as 1%
    #[arg(long, value_name = "SHARE")]
    loss: Option<Share>,
    /// Datagrams lost in a row on average, for losses in bursts
    #[arg(long, value_name = "COUNT")]
    burst: Option<f64>,
    /// Share of datagrams that come late, behind others
    #[arg(long, value_name = "SHARE")]
    reorder: Option<Share>,
    /// Share of datagrams that come twice
    #[arg(long, value_name = "SHARE")]
    duplicate: Option<Share>,
    /// How long datagrams may wait for their turn before more are dropped
    #[arg(long, value_name = "TIME")]
    queue: Option<Span>,
    /// Largest IP packet in bytes; with @TIME, it falls to that then (repeatable)
    #[arg(long, value_name = "BYTES[@TIME]")]
    mtu: Vec<Mtu>,
    /// Let nothing pass for a while, such as 5s@30s, or 5s@30s/60s for each minute (repeatable)
    #[arg(long, value_name = "LENGTH@TIME[/EVERY]")]
    partition: Vec<Outage>,
    /// Change the address that the server sees, at this time (repeatable)
    #[arg(long, value_name = "TIME")]
    rebind: Vec<Span>,
    /// Where the dice start: the same seed and the same traffic meet the same fate
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End after this time; without it, at Ctrl-C
    #[arg(long = "for", value_name = "TIME")]
    lasting: Option<Span>,
}

/// `1400` from the start, or `1280@30s` from then on.
#[derive(Clone, Copy, Debug)]
enum Mtu {
    Always(u16),
    Falls(MtuDrop),
}

impl std::str::FromStr for Mtu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            return text.parse().map(Self::Falls).map_err(|error: cutlayer_transport::ConditionsError| error.to_string());
        }
        text.parse().map(Self::Always).map_err(|_| format!("`{text}` is not an MTU: write bytes, such as 1400, or 1280@30s"))
    }
}

/// The end of a link, for programs.
#[derive(Serialize)]
struct Report<'a> {
    listen: SocketAddr,
    to: SocketAddr,
    seed: u64,
    seconds: f64,
    #[serde(flatten)]
    conditions: &'a Conditions,
    passed: EmulatorCounts,
}

/// Forwards until it is stopped.
pub(crate) fn run(args: LinkArgs, output: &Output) -> anyhow::Result<Exit> {
    let to = resolve("--to", &args.to)?;
    let conditions = args.changes().apply(args.profile).map_err(|error| Failure::because(Exit::Usage, error.to_string()))?;
    block_on(async {
        let stop = Stop::new();
        stop_on_interrupt(&stop);
        let emulator = Emulator::start(args.listen, to, &conditions, args.seed)?;
        output.say(&format!("listening on {} for {to}; {conditions}; seed {}", emulator.local_addr(), args.seed));
        let started = Instant::now();
        let stopped = tell_until_the_end(&emulator, &args, &stop, output).await;
        output.still();
        let (passed, seconds) = (emulator.counts(), started.elapsed().as_secs_f64());
        let report = Report { listen: emulator.local_addr(), to, seed: args.seed, seconds, conditions: &conditions, passed };
        output.result(&report, &summary(&passed, seconds));
        Ok(if stopped { Exit::Interrupted } else { Exit::Success })
    })
}

impl LinkArgs {
    fn changes(&self) -> Changes {
        let mtu = self.mtu.iter().rev().find_map(|mtu| if let Mtu::Always(bytes) = mtu { Some(*bytes) } else { None });
        let mtu_drop = self.mtu.iter().filter_map(|mtu| if let Mtu::Falls(drop) = mtu { Some(*drop) } else { None }).collect();
        Changes {
            rate: self.rate,
            rate_up: self.rate_up,
            rate_down: self.rate_down,
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            burst: self.burst,
            reorder: self.reorder,
            duplicate: self.duplicate,
            queue: self.queue,
            mtu,
            partition: self.partition.clone(),
            rebind: self.rebind.clone(),
            mtu_drop,
        }
    }
}

/// Says once a second what passed; returns whether somebody stopped it.
async fn tell_until_the_end(emulator: &Emulator, args: &LinkArgs, stop: &Stop, output: &Output) -> bool {
    let end = async {
        match args.lasting {
            Some(time) => tokio::time::sleep(time.duration()).await,
            None => std::future::pending().await,
        }
    };
    let telling = async {
        let mut before = emulator.counts();
        loop {
            tokio::time::sleep(TELL_EVERY).await;
            let now = emulator.counts();
            output.moving(&progress(&before, &now));
            before = now;
        }
    };
    tokio::select! {
        () = stop.triggered() => true,
        () = end => false,
        () = telling => false,
    }
}

/// `up 3.21 Mbit/s, 1234 packets, queue 12 ms, lost 3 + 0 queue | down ..`.
fn progress(before: &EmulatorCounts, now: &EmulatorCounts) -> String {
    let lane = |name: &str, before: &LaneCounts, now: &LaneCounts, queue_ms: f64| {
        let mbit = (now.bytes_out - before.bytes_out.min(now.bytes_out)) as f64 * 8e-6 / TELL_EVERY.as_secs_f64();
        format!("{name} {mbit:.2} Mbit/s, {} packets, queue {queue_ms:.0} ms{}", now.packets_out, drops(now))
    };
    let up = lane("up", &before.up, &now.up, now.queue_up_ms);
    let down = lane("down", &before.down, &now.down, now.queue_down_ms);
    let rebinds = if now.rebinds > 0 { format!(" | {} address changes", now.rebinds) } else { String::new() };
    format!("{up} | {down} | {} clients{rebinds}", now.peers)
}

/// What did not arrive, by cause; nothing where all did.
fn drops(counts: &LaneCounts) -> String {
    let causes = [
        (counts.lost, "lost"),
        (counts.dropped_queue, "over the queue"),
        (counts.dropped_mtu, "over the MTU"),
        (counts.dropped_partition, "in partitions"),
        (counts.dropped_here, "not forwarded"),
    ];
    let words: Vec<String> = causes.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    if words.is_empty() { String::new() } else { format!(", dropped {}", words.join(" + ")) }
}

fn summary(passed: &EmulatorCounts, seconds: f64) -> String {
    let lane = |name: &str, counts: &LaneCounts| {
        let (packets, kb, mbit) = (counts.packets_out, counts.bytes_out as f64 / 1e3, counts.bytes_out as f64 * 8e-6 / seconds.max(1e-3));
        let oddly: Vec<String> = [(counts.reordered, "late"), (counts.duplicated, "twice")]
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, how)| format!(", {count} {how}"))
            .collect();
        format!("{name}: {packets} packets, {kb:.1} kB, {mbit:.2} Mbit/s on average{}{}", oddly.concat(), drops(counts))
    };
    let rebinds = if passed.rebinds > 0 { format!("\n{} address changes", passed.rebinds) } else { String::new() };
    format!("{}\n{}{rebinds}", lane("up", &passed.up), lane("down", &passed.down))
}
