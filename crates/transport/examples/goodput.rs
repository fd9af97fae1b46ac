//! How much of a long link do steps fill? 16 MiB at a time over the emulator, one after the other, and four at once.
//!
//! `cargo run --release -p cutlayer-transport --example goodput`. It must take the path that runs take: mutual TLS, step streams, one
//! process with both ends. A row's percentages are of the link's rate, on which 28 bytes of headers a packet count: 96.8 % is all that
//! QUIC's packets of 1452 bytes and their own headers leave.

use cutlayer_transport::{AllowList, Changes, Conditions, Emulator, Identity, Link, LinkConfig, Profile, Server, Share, Span, connect};
use cutlayer_wire::{Encoding, EvalSums, Frame, FrameFlags, FrameLimits, RoundId, StepId};
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Values of a token.
const HIDDEN: u32 = 1024;
/// Tokens of a step: 16 MiB in f32.
const TOKENS: u32 = 4096;
const STEP_BYTES: f64 = TOKENS as f64 * HIDDEN as f64 * 4.0;
/// Steps one after the other; the first finds the connection cold.
const STEPS: usize = 7;
/// Steps under way at once, as a client that pipelines has them.
const AT_ONCE: usize = 4;

/// Mbit/s, round trip in ms, loss in per cent.
const LINKS: [(u32, u32, f64); 6] = [(100, 100, 0.0), (1000, 50, 0.0), (50, 50, 0.0), (50, 50, 1.0), (50, 50, 2.0), (100, 100, 1.0)];

fn main() -> Result<(), Box<dyn Error>> {
    let only: Option<usize> = std::env::args().nth(1).map(|text| text.parse()).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("| link | loss | first step | later steps, median | the same less the round trip | four at once |");
    println!("|---|---|---|---|---|---|");
    for (_, (mbit, rtt_ms, loss)) in LINKS.into_iter().enumerate().filter(|(index, _)| only.is_none_or(|only| only == *index)) {
        runtime.block_on(measure(mbit, rtt_ms, loss))?;
    }
    Ok(())
}

async fn measure(mbit: u32, rtt_ms: u32, loss: f64) -> Result<(), Box<dyn Error>> {
    let rtt = Duration::from_millis(rtt_ms.into());
    let changes = Changes {
        rate: Some(format!("{mbit}mbit").parse()?),
        delay: Some(Span::ms(u64::from(rtt_ms) / 2)),
        // What a router's buffer is advised to hold: one round trip.
        queue: Some(Span::ms(rtt_ms.into())),
        loss: Some(Share::percent(loss)),
        mtu: Some(1500),
        ..Changes::default()
    };
    let config = LinkConfig { bandwidth_mbit: mbit, rtt_ms, ..LinkConfig::default() };
    let (client, server, _rest) = connected(&changes.apply(Profile::Loopback)?, &config).await?;
    tokio::spawn(serve(server));
    let mut times = Vec::new();
    for index in 0..STEPS {
        times.push(step(client.clone(), index as u64).await?);
    }
    let started = Instant::now();
    let together: Vec<_> = (0..AT_ONCE).map(|index| tokio::spawn(step(client.clone(), (STEPS + index) as u64))).collect();
    for step in together {
        step.await??;
    }
    let together = started.elapsed();
    let (first, later) = (times[0], median(&mut times[1..]));
    let share = |steps: usize, time: Duration| {
        format!("{:.1} %", steps as f64 * STEP_BYTES * 8.0 / time.as_secs_f64() / (f64::from(mbit) * 1e6) * 100.0)
    };
    let (own, less, all) = (share(1, later), share(1, later.saturating_sub(rtt)), share(AT_ONCE, together.saturating_sub(rtt)));
    println!(
        "| {mbit} Mbit/s x {rtt_ms} ms | {loss} % | {:.2} s, {} | {:.3} s, {own} | {less} | {all} |",
        first.as_secs_f64(),
        share(1, first),
        later.as_secs_f64()
    );
    client.close("measured").await;
    std::fs::remove_dir_all(folder())?;
    Ok(())
}

/// From the first byte that is written to the answer: the step's bytes, and a round trip.
async fn step(client: Link, id: u64) -> Result<Duration, cutlayer_transport::LinkError> {
    let lengths = vec![TOKENS];
    let payload = vec![7; STEP_BYTES as usize];
    let frame =
        Frame::forward(StepId(id + 1), RoundId(1), FrameFlags::TRAIN, Encoding::F32, HIDDEN, lengths, vec![0; TOKENS as usize], payload);
    let (limits, started) = (limits().answering(&frame.header), Instant::now());
    let mut stream = client.open_step().await?;
    stream.send(frame).await?;
    stream.recv(&limits).await?;
    Ok(started.elapsed())
}

fn limits() -> FrameLimits {
    FrameLimits::new(HIDDEN, TOKENS, TOKENS)
}

async fn serve(server: Link) {
    while let Ok(mut stream) = server.accept_step().await {
        tokio::spawn(async move {
            if let Ok(frame) = stream.recv(&limits()).await {
                // A client that has gone needs no answer.
                let _ = stream.send(Frame::done(&frame.header, EvalSums::default())).await;
                let _ = stream.finish().await;
            }
        });
    }
}

async fn connected(link: &Conditions, config: &LinkConfig) -> Result<(Link, Link, (Server, Emulator)), Box<dyn Error>> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let folder = folder();
    std::fs::create_dir_all(&folder)?;
    let (own, other, allow) = (Identity::generate()?, Identity::generate()?, Arc::new(AllowList::open(&folder)?));
    allow.allow("client", other.peer_id())?;
    let mut server = Server::bind(loopback, &own, allow, config)?;
    let emulator = Emulator::start(loopback, server.local_addr(), link, 1)?;
    let client = connect(emulator.local_addr(), &other, own.peer_id(), None, config).await?;
    let accepted = server.accept().await?;
    Ok((client, accepted, (server, emulator)))
}

/// Of the server's list of keys, which it reads for as long as it lives.
fn folder() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("cutlayer-goodput-{}", std::process::id()))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
