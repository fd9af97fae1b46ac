//! The smallest HTTP client, over real sockets: it sends what it is told, also what no client should.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cutlayer_api::{ServeError, ServerConfig, listen, serve};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::engine::Echo;

/// Nothing here takes nearly so long: a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of its own for a test.
pub struct Server {
    pub address: SocketAddr,
    pub engine: Arc<Echo>,
    shutdown: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Server {
    pub async fn start(config: ServerConfig) -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let engine = Arc::new(Echo::default());
        let (shutdown, asked) = oneshot::channel();
        let shut = async move { asked.await.unwrap_or(()) };
        let serving = tokio::spawn(serve(listener, engine.clone(), config, shut));
        Self { address, engine, shutdown: Some(shutdown), serving }
    }

    pub async fn local() -> Self {
        Self::start(ServerConfig::local()).await
    }

    /// Asks it to end, without waiting.
    pub fn shut_down(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end.
    pub async fn ended(self) {
        patient(self.serving).await.unwrap().unwrap();
    }

    pub async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let stream = self.send(&request(method, path, headers, body)).await;
        rest(stream).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &["Content-Type: application/json"], &body.to_string()).await
    }

    /// Posts what must be answered.
    pub async fn json(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Posts with `stream`, and gives the events, of which the last is `[DONE]` and left out.
    pub async fn events(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let answer = self.post(path, &body).await;
        assert!(answer.status == 200 && answer.head.contains("text/event-stream"), "{answer:?}");
        let mut events = answer.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{answer:?}");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// Waits until the engine has no open stream.
    pub async fn idle(&self) {
        let idle = async {
            while self.engine.open.load(std::sync::atomic::Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        patient(idle).await;
    }

    /// Waits until the metrics have a line.
    pub async fn metric(&self, line: &str) {
        let counted = async {
            while !self.get("/metrics").await.body.lines().any(|found| found == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("no metric {line}"));
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn events(&self) -> Vec<String> {
        self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

/// Fails rather than hang.
pub async fn patient<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("nothing happened for a minute")
}

pub fn request(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let host = if headers.iter().any(|header| header.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// Reads a response to the end of its connection.
pub async fn rest(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    if let Err(error) = patient(stream.read_to_end(&mut bytes)).await {
        panic!("{error} after {:?}", String::from_utf8_lossy(&bytes));
    }
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {head:?}"));
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body) } else { body.to_owned() };
    Answer { status, head: head.to_owned(), body }
}

/// What arrived of a chunked body; it may have broken off.
fn dechunked(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        let end = size.min(rest.len());
        body.push_str(&rest[..end]);
        chunks = rest.get(size + 2..).unwrap_or("");
    }
    body
}
