//! What does a token's round trip cost over loopback, beyond computing? A row of hidden 576 in int8 there, a token back.
//!
//! `cargo run --release -p cutlayer-transport --example records`. It must take the path that runs take: mutual TLS, sessions' streams,
//! records through the codec; one process with both ends, so that both share its cores. The answer costs nothing to make.

use cutlayer_transport::{AllowList, DeviceStream, Identity, Link, LinkConfig, LinkError, Server, connect};
use cutlayer_wire::{DeviceRecord, Drawn, Encoding, Open, RecordLimits, RowsRecord, SamplingSpec, ServerRecord, Wanted};
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMITS: RecordLimits = RecordLimits { hidden: 576, encoding: Encoding::INT8, positions_max: 131_072 };
/// Bytes of a row: a scale, and a code each.
const ROW_BYTES: usize = 578;
/// Round trips of a session. The first tenth is not counted.
const TOKENS: u32 = 5000;
/// Rows of a record of a prompt.
const PROMPT_ROWS: u16 = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    println!("| threads | sessions at once | round trip, median | 99 % within | tokens/s | UDP bytes a token, up and down |");
    println!("|---|---|---|---|---|---|");
    for threads in [1, 2] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        for sessions in [1, 4, 16, 64] {
            runtime.block_on(measure(threads, sessions, false))?;
        }
        runtime.block_on(measure(threads, 1, true))?;
    }
    Ok(())
}

async fn measure(threads: usize, sessions: u32, beside_prompts: bool) -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("cutlayer-records-{}", std::process::id()));
    let (here, there) = (Identity::generate()?, Identity::generate()?);
    let allow = AllowList::open(&folder)?;
    allow.allow("device", there.peer_id())?;
    let config = LinkConfig::default();
    let mut server = Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &here, Arc::new(allow), &config)?;
    let device = connect(server.local_addr(), &there, here.peer_id(), None, &config).await?;
    let accepted = server.accept().await?;
    accepted.allow_sessions(256);
    tokio::spawn(serve(accepted));
    let prompts = beside_prompts.then(|| tokio::spawn(prompt(device.clone())));
    let (before, started) = (device.stats(), Instant::now());
    let running: Vec<_> = (0..sessions).map(|_| tokio::spawn(generate(device.clone()))).collect();
    let mut times = Vec::new();
    for session in running {
        times.extend(session.await??);
    }
    let (after, took) = (device.stats(), started.elapsed().as_secs_f64());
    if let Some(prompts) = prompts {
        prompts.abort();
    }
    times.sort_unstable();
    let us = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    let tokens = f64::from(sessions * TOKENS);
    let per_token = |bytes: u64| if beside_prompts { "-".into() } else { format!("{:.0}", bytes as f64 / tokens) };
    let (up, down) = (per_token(after.bytes_sent - before.bytes_sent), per_token(after.bytes_received - before.bytes_received));
    let beside = if beside_prompts { " beside prompts" } else { "" };
    println!("| {threads} | {sessions}{beside} | {:.0} us | {:.0} us | {:.0} | {up}, {down} |", us(50), us(99), tokens / took);
    device.close("measured").await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn rows(position: u32, rows: u16, wanted: Wanted) -> DeviceRecord {
    let payload = vec![7; usize::from(rows) * ROW_BYTES];
    DeviceRecord::Rows(RowsRecord { position, rows, wanted, digests: Vec::new(), payload })
}

async fn open(device: &Link) -> Result<DeviceStream, LinkError> {
    let mut stream = device.open_generate().await?;
    let sampling = Some(SamplingSpec::GREEDY);
    let open = Open { adapter: None, sampling, tokens_max: TOKENS, prefix: Vec::new(), generated: (0, Vec::new()) };
    stream.send(DeviceRecord::Open(open)).await?;
    stream.recv(&LIMITS).await?;
    Ok(stream)
}

/// A session, token by token; the time of each.
async fn generate(device: Link) -> Result<Vec<Duration>, LinkError> {
    let mut stream = open(&device).await?;
    let mut times = Vec::new();
    for position in 0..TOKENS {
        let started = Instant::now();
        stream.send(rows(position, 1, Wanted::Last)).await?;
        stream.recv(&LIMITS).await?;
        times.push(started.elapsed());
    }
    Ok(times.split_off(TOKENS as usize / 10))
}

/// Prompts of another session, one record of 600 KB after the other.
async fn prompt(device: Link) -> Result<(), LinkError> {
    let mut stream = open(&device).await?;
    loop {
        for part in 0..16 {
            let wanted = if part == 15 { Wanted::Last } else { Wanted::None };
            stream.send(rows(part * u32::from(PROMPT_ROWS), PROMPT_ROWS, wanted)).await?;
        }
        stream.recv(&LIMITS).await?;
    }
}

async fn serve(link: Link) -> Result<(), LinkError> {
    loop {
        let mut stream = link.accept_generate().await?;
        tokio::spawn(async move {
            while let Some(record) = stream.recv(&LIMITS).await? {
                let answer = match record {
                    DeviceRecord::Open(_) => ServerRecord::Held(0),
                    DeviceRecord::Rows(RowsRecord { wanted: Wanted::None, .. }) => continue,
                    DeviceRecord::Rows(RowsRecord { position, .. }) => {
                        ServerRecord::Tokens { position, drawn: vec![Drawn { id: 7, logprob: None, top: Vec::new() }] }
                    }
                };
                stream.send(answer).await?;
            }
            Ok::<_, LinkError>(())
        });
    }
}
