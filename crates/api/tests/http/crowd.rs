//! A thousand at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cutlayer_api::ServerConfig;
use serde_json::json;

use crate::client::{Server, request, rest};

const REQUESTS: usize = 1000;
const PROMPT_BYTES: usize = 256 << 10;
const GROWTH_MIB_MAX: usize = 96;
/// All prompts together are far beyond what memory may grow by.
const _: () = assert!(REQUESTS * PROMPT_BYTES > 2 * (GROWTH_MIB_MAX << 20));

/// Resident memory, and its peak.
fn memory_mib(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// Goal: a thousand clients at once are all answered, in bounded memory, and never more at a time than allowed. Method: all connect and
/// send before any is answered; the peak of this process, clients and server, is held against where it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_stay_within_bounds() {
    // The engine's context is shorter: these prompts are read, counted, and refused by it one after another.
    let config = ServerConfig { bodies_bytes_max: 8 << 20, requests_max: 16, ..ServerConfig::local() };
    let server = Arc::new(Server::start(config).await);
    let long = json!({ "model": "echo", "prompt": "x".repeat(PROMPT_BYTES), "stream": true }).to_string();
    let short = json!({ "model": "echo", "prompt": "one of many", "stream": true, "temperature": 0 }).to_string();
    let requests = [long, short].map(|body| Arc::new(request("POST", "/v1/completions", &["Content-Type: application/json"], &body)));
    let before = memory_mib("VmRSS");
    let clients: Vec<_> = (0..REQUESTS)
        .map(|index| {
            let (server, request) = (server.clone(), requests[index % 2].clone());
            tokio::spawn(async move { rest(server.send(&request).await).await })
        })
        .collect();
    for (index, client) in clients.into_iter().enumerate() {
        let answer = client.await.unwrap_or_else(|_| panic!("request {index}"));
        if index % 2 == 0 {
            assert!(answer.status == 400 && answer.body.contains("context_length_exceeded"), "{answer:?}");
        } else {
            assert!(answer.status == 200 && answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
        }
    }
    let growth = memory_mib("VmHWM").saturating_sub(before);
    println!("{REQUESTS} requests: memory grew by {growth} MiB at its peak");
    assert!(growth < GROWTH_MIB_MAX, "memory grew by {growth} MiB");
    let most = server.engine.open_most.load(Ordering::SeqCst);
    assert!((1..=16).contains(&most), "{most} at once");
}
