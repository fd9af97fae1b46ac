//! `cutlayer api` over a split model, asked by plain HTTP; the official client asks in `experiments/generation/openai.sh`.

use crate::generate::Hosting;
use crate::harness::{Process, model, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest silence of the endpoint.
const SILENCE_MAX: Duration = Duration::from_secs(100);
/// The shipped model's name.
const MODEL: &str = "quickstart";

/// An endpoint, and where it answers.
struct Endpoint {
    process: Process,
    address: String,
}

/// An answer, whole.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Endpoint {
    /// An endpoint of `hosting`'s device, over the host at `road`.
    fn open(hosting: &Hosting, road: &str, more: &[&str]) -> Self {
        let model = model();
        let flags = hosting.flags(&model, road);
        let mut process = hosting.desk.starts(&[&["api", "--listen", "127.0.0.1:0", "--cut", "2"], &flags[..], more].concat());
        let said = process.until_said("listening on http://");
        let rest = said.split("listening on http://").nth(1).unwrap_or_else(|| panic!("{said}"));
        let address = rest.split("/v1").next().expect("an address").to_owned();
        Self { process, address }
    }

    /// Sends a request and returns the stream on which the answer comes. HTTP/1.0: no chunks, and the end is the connection's.
    fn ask(&self, path: &str, key: &str, body: Option<&Value>) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("the endpoint");
        stream.set_read_timeout(Some(SILENCE_MAX)).expect("a timeout");
        let (method, body) = body.map_or(("GET", String::new()), |body| ("POST", body.to_string()));
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        stream
    }

    fn answer(&self, path: &str, key: &str, body: Option<&Value>) -> Answer {
        let mut text = String::new();
        self.ask(path, key, body).read_to_string(&mut text).expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// Asks with the right key, for JSON.
    #[track_caller]
    fn json(&self, path: &str, body: &Value) -> Value {
        let answer = self.answer(path, "sesame", Some(body));
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
    }

    /// A count of `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let page = self.answer("/metrics", "sesame", None).body;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {page}"))
    }
}

/// The events of a stream but the last, which must say that it is done.
fn events(body: &str) -> Vec<Value> {
    let mut events: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{body}");
    events.iter().map(|event| serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}"))).collect()
}

/// The likeliest answer, which no token ends before so many.
fn endless(tokens: u32) -> Value {
    json!({ "model": MODEL, "prompt": "What of the rain?", "temperature": 0, "max_tokens": tokens, "logit_bias": { "2": -100 } })
}

fn with(mut body: Value, key: &str, value: impl Into<Value>) -> Value {
    body[key] = value.into();
    body
}

/// Goal: an app gets from a split model what `generate` says, whole and in a stream, and only with a key. Method: the same prompt by every
/// way; no key, a wrong one, and one from a file; a model that is not there; a graceful end.
#[test]
fn a_split_model_answers_over_http() {
    let hosting = Hosting::open();
    std::fs::write(hosting.desk.path("api-keys"), "# of the tests\n\nsesame\n").expect("a file");
    let endpoint = Endpoint::open(&hosting, &hosting.address, &["--key-file", "api-keys", "--key", "other"]);
    for wrong in ["", "wrong", "# of the tests"] {
        let refused = endpoint.answer("/v1/completions", wrong, Some(&endless(3)));
        assert_eq!(refused.status, 401, "{wrong:?}: {}", refused.body);
        assert!(refused.body.contains("invalid_api_key"), "{}", refused.body);
    }
    assert_eq!(endpoint.answer("/v1/models", "other", None).status, 200);
    let models: Value = serde_json::from_str(&endpoint.answer("/v1/models", "sesame", None).body).expect("JSON");
    assert_eq!(models["data"][0]["id"], MODEL, "{models}");

    let prompt = "weather | place: Brackford | sky: steady rain | day: Monday";
    let model = model();
    let alone = hosting.desk.ends(&["generate", "--model", &model, "--keys", "device", "--tokens-max", "24", "--format", "json", prompt]);
    let expected = alone.json()["text"].as_str().expect("a text").to_owned();
    let body = json!({ "model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 24 });
    let whole = endpoint.json("/v1/completions", &body);
    assert_eq!(whole["choices"][0]["text"], expected.as_str());
    let again = endpoint.json("/v1/completions", &body);
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "the prefix is found again: {again}");
    let streamed = endpoint.answer("/v1/completions", "sesame", Some(&with(body.clone(), "stream", true)));
    assert!(streamed.head.contains("text/event-stream"), "{}", streamed.head);
    let events = events(&streamed.body);
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert!(events.len() > 3 && text == expected, "{events:?}");
    assert_eq!(events[0]["system_fingerprint"], whole["system_fingerprint"]);

    let echoed = endpoint.json("/v1/completions", &with(body.clone(), "echo", true));
    assert_eq!(echoed["choices"][0]["text"], format!("{prompt}{expected}"));
    let scored = endpoint.json("/v1/completions", &with(body.clone(), "logprobs", 2));
    let logprobs = &scored["choices"][0]["logprobs"];
    let tokens: String = logprobs["tokens"].as_array().expect("tokens").iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens, expected, "the bytes of all tokens are the text");
    assert!(logprobs["token_logprobs"].as_array().expect("numbers").iter().all(|number| number.as_f64() <= Some(0.0)), "{logprobs}");
    let chat = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "Rain?" }], "max_tokens": 8, "temperature": 0 });
    assert_eq!(endpoint.json("/v1/chat/completions", &chat)["choices"][0]["message"]["role"], "assistant");

    for (path, body, status, code) in [
        ("/v1/completions", with(body.clone(), "model", "never"), 404, "model_not_found"),
        ("/v1/completions", with(body.clone(), "prompt", "rain ".repeat(600)), 400, "context_length_exceeded"),
        ("/v1/completions", with(with(body.clone(), "echo", true), "logprobs", 1), 400, "invalid_value"),
        ("/v1/completions", with(body.clone(), "logit_bias", json!({ "99999": 1 })), 400, "invalid_value"),
        ("/v1/completions", with(body, "prompt", json!([99_999])), 400, "invalid_value"),
    ] {
        let refused = endpoint.answer(path, "sesame", Some(&body));
        assert!(refused.status == status && refused.body.contains(code), "{body}: {} {}", refused.status, refused.body);
    }
    endpoint.process.signal_group("-INT");
    endpoint.process.ends().check(0, &["all requests are answered"]);
}

/// Goal: whoever goes away frees the place. Method: room for one, over a slow road: a second is refused while the first streams, and answered
/// when it has gone.
#[test]
fn a_client_that_goes_away_frees_its_place() {
    let hosting = Hosting::open();
    let (_link, road) = hosting.slow_road();
    let endpoint = Endpoint::open(&hosting, &road, &["--key", "sesame", "--requests-max", "1", "--waiting-max", "0"]);
    let mut stream = endpoint.ask("/v1/completions", "sesame", Some(&with(endless(400), "stream", true)));
    let mut seen = vec![];
    while !seen.windows(6).any(|window| window == b"data: ") {
        let mut piece = [0; 256];
        let count = stream.read(&mut piece).expect("a piece");
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&piece[..count]);
    }
    assert_eq!(endpoint.metric("cutlayer_api_requests_active"), 1);
    let busy = endpoint.answer("/v1/completions", "sesame", Some(&endless(1)));
    assert!(busy.status == 429 && busy.head.contains("retry-after"), "{} {}", busy.status, busy.body);
    drop(stream);
    let cancelled = "cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"cancelled\"}";
    wait_for("the place", || (endpoint.metric("cutlayer_api_requests_active") == 0).then_some(()));
    assert_eq!(endpoint.metric(cancelled), 1);
    assert_eq!(endpoint.json("/v1/completions", &endless(2))["usage"]["completion_tokens"], 2);
}

/// Goal: slips are told before anything is served. Method: each of them.
#[test]
fn an_endpoint_that_cannot_be_is_refused() {
    let hosting = Hosting::open();
    let model = model();
    let check = |more: &[&str], code: i32, words: &str| {
        hosting
            .desk
            .ends(&[&["api", "--model", &model, "--keys", "device", "--listen", "127.0.0.1:0"], more].concat())
            .check(code, &[words]);
    };
    check(&["--key", "with space"], 2, "a key is empty or holds a space");
    check(&["--key-file", "/nowhere"], 2, "cannot read --key-file /nowhere");
    check(&["--origin", "example.org"], 2, "is no origin");
    check(&["--embed-model", &model], 2, "embeddings need an encoder's folder");
    let open = ["api", "--model", &model, "--keys", "device", "--listen", "0.0.0.0:0"];
    hosting.desk.ends(&open).check(2, &["can be reached from other machines, and no key is needed"]);
}
