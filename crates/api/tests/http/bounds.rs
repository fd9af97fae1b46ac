//! Clients that send too much, too slowly, or read nothing. Waits here are of the server's configuration: each test ends when the server
//! acts, and fails when it does not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cutlayer_api::{ServeError, ServerConfig, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{Server, patient, request, rest};
use crate::engine::Echo;

const COMPLETIONS: &str = "/v1/completions";
const JSON: &str = "Content-Type: application/json";
const SHORT: Duration = Duration::from_millis(500);

fn hang(stream: bool) -> String {
    request("POST", COMPLETIONS, &[JSON], &json!({ "model": "echo", "prompt": "hang:", "stream": stream, "temperature": 0 }).to_string())
}

/// A head that announces a body, and no body.
fn head(bytes: usize) -> String {
    format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}\r\nContent-Length: {bytes}\r\n\r\n")
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let server = Server::start(ServerConfig { head_time_max: SHORT, ..ServerConfig::local() }).await;
    let keep_alive = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for beginning in ["", "GET /health HTTP/1.1\r\nHost: loc", keep_alive] {
        let mut stream = server.send(beginning).await;
        let mut bytes = Vec::new();
        patient(stream.read_to_end(&mut bytes)).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.contains("200 OK"), beginning == keep_alive, "{text}");
    }
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = Server::local().await;
    let answer = rest(server.send(&format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}", "y".repeat(80 << 10))).await).await;
    assert_eq!(answer.status, 431, "{answer:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let server = Server::start(ServerConfig { body_time_max: SHORT, ..ServerConfig::local() }).await;
    let answer = rest(server.send(&(head(100) + "{\"model\":")).await).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (408, &json!("request_timeout")));
    server.metric("cutlayer_api_requests_waiting 0").await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_announced_or_not() {
    let server = Server::start(ServerConfig { body_bytes_max: 1000, ..ServerConfig::local() }).await;
    let body = json!({ "model": "echo", "prompt": "x".repeat(1000) });
    let announced = server.post(COMPLETIONS, &body).await;
    let body = body.to_string();
    let chunked =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let counted = rest(server.send(&(chunked.clone() + &chunks)).await).await;
    for answer in [announced, counted] {
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (413, &json!("request_too_large")));
    }
    let body = json!({ "model": "echo", "prompt": "x" }).to_string();
    let fits = rest(server.send(&(chunked + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()))).await).await;
    assert_eq!(fits.status, 200);
}

#[tokio::test]
async fn more_than_wait_are_sent_away_and_those_who_wait_are_served() {
    let server = Server::start(ServerConfig { requests_max: 1, waiting_max: 1, ..ServerConfig::local() }).await;
    let active = server.send(&hang(false)).await;
    server.metric("cutlayer_api_requests_active 1").await;
    let body = json!({ "model": "echo", "prompt": "patience", "temperature": 0 });
    let waiting = server.send(&request("POST", COMPLETIONS, &[JSON], &body.to_string())).await;
    server.metric("cutlayer_api_requests_waiting 1").await;
    let refused = server.post(COMPLETIONS, &body).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    server.metric("cutlayer_api_requests_busy_total 1").await;
    drop(active);
    let served = rest(waiting).await;
    assert_eq!((served.status, &served.json()["choices"][0]["text"]), (200, &json!("patience")));
}

#[tokio::test]
async fn a_request_ends_in_time() {
    let server = Server::start(ServerConfig { request_time_max: SHORT, requests_max: 2, ..ServerConfig::local() }).await;
    let (whole, streamed) = (server.send(&hang(false)).await, server.send(&hang(true)).await);
    let waited = server.send(&hang(false)).await;
    let whole = rest(whole).await;
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (504, &json!("request_timeout")));
    let events = rest(streamed).await.events();
    let last: Value = serde_json::from_str(&events[2]).unwrap();
    assert_eq!((events.len(), &last["error"]["code"]), (3, &json!("request_timeout")));
    // Its time may have been over before its turn came, or after.
    assert!([429, 504].contains(&rest(waited).await.status));
    server.idle().await;
}

#[tokio::test]
async fn bytes_of_bodies_are_counted_together() {
    let config = ServerConfig { body_bytes_max: 1000, bodies_bytes_max: 1000, ..ServerConfig::local() };
    let server = Server::start(ServerConfig { request_time_max: Duration::from_secs(2), ..config }).await;
    let slow = server.send(&head(900)).await;
    server.metric("cutlayer_api_requests_waiting 1").await;
    let answer = server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": "x".repeat(200) })).await;
    assert_eq!(answer.status, 429);
    let small = server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": "x" })).await;
    assert_eq!(small.status, 200);
    drop(slow);
    assert_eq!(server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": "x".repeat(900) })).await.status, 200);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let server = Server::start(ServerConfig { write_stall_max: SHORT, ..ServerConfig::local() }).await;
    let body = json!({ "model": "echo", "prompt": "flood:", "stream": true }).to_string();
    let stalled = server.send(&request("POST", COMPLETIONS, &[JSON], &body)).await;
    server.metric("cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"cancelled\"} 1").await;
    server.idle().await;
    drop(stalled);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_outside() {
    let server = Server::start(ServerConfig { connections_max: 1, ..ServerConfig::local() }).await;
    let mut first = server.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut some = [0; 12];
    patient(first.read_exact(&mut some)).await.unwrap();
    let mut second = server.send(&request("GET", "/health", &[], "")).await;
    let early = tokio::time::timeout(SHORT, second.read(&mut some)).await;
    assert!(early.is_err(), "a second connection was served");
    drop(first);
    assert_eq!(rest(second).await.status, 200);
}

#[tokio::test]
async fn shutdown_lets_requests_finish_and_takes_no_more() {
    let mut server = Server::local().await;
    let body = json!({ "model": "echo", "prompt": "before the end", "temperature": 0 }).to_string();
    let mut under_way = server.send(&head(body.len())).await;
    server.metric("cutlayer_api_requests_waiting 1").await;
    let mut idle = server.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut some = [0; 12];
    patient(idle.read_exact(&mut some)).await.unwrap();
    server.shut_down();
    // Nothing more is asked on it: it is closed.
    patient(idle.read_to_end(&mut vec![])).await.unwrap();
    under_way.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(rest(under_way).await.json()["choices"][0]["text"], "before the end");
    let address = server.address;
    server.ended().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn shutdown_cuts_off_what_does_not_end() {
    let mut server = Server::start(ServerConfig { drain_time_max: SHORT, ..ServerConfig::local() }).await;
    let (whole, streamed) = (server.send(&hang(false)).await, server.send(&hang(true)).await);
    server.metric("cutlayer_api_requests_active 2").await;
    let engine = server.engine.clone();
    server.shut_down();
    server.ended().await;
    patient(async {
        while engine.open.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop((whole, streamed));
}

#[tokio::test]
async fn other_machines_without_a_key_are_not_served() {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await.unwrap();
    let ended = serve(listener, Arc::new(Echo::default()), ServerConfig::local(), std::future::pending()).await;
    assert!(matches!(ended, Err(ServeError::KeysNeeded { .. })));
}
