//! What is refused, with which status and in which words.

use cutlayer_api::{ApiKey, ServerConfig};
use serde_json::{Value, json};

use crate::client::{Answer, Server};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "Content-Type: application/json";

/// Every refusal has these four fields and no more, and a name for the log.
fn check(answer: &Answer, status: u16, kind: &str, code: Value, param: Value) {
    assert_eq!(answer.status, status, "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["error"]["type"], &body["error"]["code"], &body["error"]["param"]), (&json!(kind), &code, &param), "{answer:?}");
    assert_eq!((body.as_object().unwrap().len(), body["error"].as_object().unwrap().len()), (1, 4));
    assert!(!body["error"]["message"].as_str().unwrap().is_empty() && answer.header("x-request-id").is_some());
}

fn invalid(answer: &Answer, status: u16, code: impl Into<Value>, param: impl Into<Value>) {
    check(answer, status, "invalid_request_error", code.into(), param.into());
}

#[tokio::test]
async fn paths_methods_and_bodies() {
    let server = Server::local().await;
    let null = || Value::Null;
    invalid(&server.get("/v1/nothing").await, 404, "unknown_url", null());
    let answer = server.get(COMPLETIONS).await;
    invalid(&answer, 405, "method_not_allowed", null());
    assert_eq!(answer.header("allow"), Some("POST"));
    invalid(&server.ask("POST", COMPLETIONS, &[JSON], "{\"model\":").await, 400, null(), null());
    invalid(&server.ask("POST", COMPLETIONS, &[JSON], "").await, 400, null(), null());
    invalid(&server.ask("POST", COMPLETIONS, &[JSON], "[]").await, 400, "invalid_value", null());
    invalid(&server.ask("POST", COMPLETIONS, &["Content-Type: text/plain"], "{}").await, 415, "unsupported_content_type", null());
    invalid(&server.ask("POST", CHAT, &[], "{}").await, 415, "unsupported_content_type", null());
    let typed = ["Content-Type: Application/JSON; charset=utf-8"];
    invalid(&server.ask("POST", CHAT, &typed, "{}").await, 400, "missing_required_parameter", "model");
}

#[tokio::test]
async fn models() {
    let server = Server::local().await;
    invalid(&server.get("/v1/models/nobody").await, 404, "model_not_found", "model");
    for path in [COMPLETIONS, CHAT, "/v1/embeddings"] {
        let body = json!({ "model": "nobody", "prompt": "a", "input": "a", "messages": [{ "role": "user", "content": "a" }] });
        invalid(&server.post(path, &body).await, 404, "model_not_found", "model");
    }
    let body = |model: &str| json!({ "model": model, "prompt": "a", "input": "a", "messages": [{ "role": "user", "content": "a" }] });
    invalid(&server.post(COMPLETIONS, &body("embed")).await, 400, "invalid_value", "model");
    invalid(&server.post("/v1/embeddings", &body("echo")).await, 400, "invalid_value", "model");
    invalid(&server.post(CHAT, &body("bare")).await, 400, "no_chat_template", Value::Null);
}

#[tokio::test]
async fn fields() {
    let server = Server::local().await;
    let with = |more: Value| {
        let mut body = json!({ "model": "echo", "prompt": "a", "messages": [{ "role": "user", "content": "a" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (path, more, code, param) in [
        (COMPLETIONS, json!({ "prompt": null }), "missing_required_parameter", "prompt"),
        (COMPLETIONS, json!({ "prompt": [] }), "invalid_value", "prompt"),
        (COMPLETIONS, json!({ "prompt": [[]] }), "invalid_value", "prompt"),
        (COMPLETIONS, json!({ "prompt": [1, "a"] }), "invalid_value", "prompt"),
        (COMPLETIONS, json!({ "prompt": [300] }), "invalid_value", "prompt"),
        (COMPLETIONS, json!({ "temperature": 3 }), "invalid_value", "temperature"),
        (COMPLETIONS, json!({ "n": 0 }), "invalid_value", "n"),
        (COMPLETIONS, json!({ "n": 129 }), "invalid_value", "n"),
        (COMPLETIONS, json!({ "logprobs": 21 }), "invalid_value", "logprobs"),
        (COMPLETIONS, json!({ "logprobs": true }), "invalid_value", "logprobs"),
        (COMPLETIONS, json!({ "suffix": "b" }), "unsupported_parameter", "suffix"),
        (COMPLETIONS, json!({ "best_of": 2 }), "unsupported_parameter", "best_of"),
        (COMPLETIONS, json!({ "stream_options": { "include_usage": true } }), "invalid_value", "stream_options"),
        (COMPLETIONS, json!({ "stop": ["a", "b", "c", "d", "e"] }), "invalid_value", "stop"),
        (CHAT, json!({ "messages": null }), "missing_required_parameter", "messages"),
        (CHAT, json!({ "messages": [{ "role": "assistant", "content": "a" }] }), "invalid_value", "messages"),
        (CHAT, json!({ "messages": [{ "role": "tool", "content": "a" }] }), "unsupported_parameter", "messages[0].role"),
        (CHAT, json!({ "tools": [{ "type": "function" }] }), "unsupported_parameter", "tools"),
        (CHAT, json!({ "response_format": { "type": "json_object" } }), "unsupported_parameter", "response_format"),
        (CHAT, json!({ "functions": [{}] }), "unsupported_parameter", "functions"),
        (CHAT, json!({ "audio": { "voice": "a" } }), "unsupported_parameter", "audio"),
        (CHAT, json!({ "max_tokens": 0 }), "invalid_value", "max_tokens"),
        (CHAT, json!({ "logprobs": 1 }), "invalid_value", "logprobs"),
        (CHAT, json!({ "top_logprobs": 1 }), "invalid_value", "top_logprobs"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "invalid_value", "top_logprobs"),
    ] {
        invalid(&server.post(path, &with(more)).await, 400, code, param);
    }
}

#[tokio::test]
async fn what_the_engine_cannot() {
    let server = Server::local().await;
    let ask = async |prompt: &str| server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": prompt, "temperature": 0 })).await;
    invalid(&ask("fail:refused").await, 400, "invalid_value", "echo");
    invalid(&ask("fail:unknown").await, 404, "model_not_found", "model");
    invalid(&ask(&"long".repeat(2000)).await, 400, "context_length_exceeded", Value::Null);
    let busy = ask("fail:busy").await;
    check(&busy, 429, "rate_limit_error", json!("rate_limit_exceeded"), Value::Null);
    assert_eq!(busy.header("retry-after"), Some("7"));
    check(&ask("fail:gone").await, 503, "server_error", json!("engine_unavailable"), Value::Null);
    check(&ask("fail:any").await, 500, "server_error", json!("internal_error"), Value::Null);
    check(&ask("fail:panic").await, 500, "server_error", json!("internal_error"), Value::Null);
    check(&ask("vanish:").await, 500, "server_error", json!("internal_error"), Value::Null);
    // The server lives on.
    assert_eq!(ask("fine").await.status, 200);
}

#[tokio::test]
async fn keys() {
    let keys = ["sesame", "other"].map(|key| ApiKey::new(key).unwrap()).to_vec();
    let server = Server::start(ServerConfig { keys, ..ServerConfig::local() }).await;
    for header in
        ["X: y", "Authorization: Bearer wrong", "Authorization: Basic sesame", "Authorization: Bearer ", "Authorization: Bearer sesame2"]
    {
        for path in ["/v1/models", "/metrics", "/v1/nothing"] {
            let answer = server.ask("GET", path, &[header], "").await;
            invalid(&answer, 401, "invalid_api_key", Value::Null);
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        assert_eq!(server.ask("POST", COMPLETIONS, &[header, JSON], "{}").await.status, 401);
    }
    for key in ["sesame", "other"] {
        assert_eq!(server.ask("GET", "/v1/models", &[&format!("Authorization: Bearer {key}")], "").await.status, 200);
    }
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn names_that_are_not_this_machine() {
    let config = ServerConfig { hosts: vec!["proxy.lan".to_owned()], ..ServerConfig::local() };
    let server = Server::start(config).await;
    for host in ["Host: evil.example", "Host: 127.0.0.1.evil.example:80"] {
        invalid(&server.ask("GET", "/health", &[host], "").await, 403, "host_not_allowed", Value::Null);
    }
    for host in ["Host: 127.0.0.1:1", "Host: LocalHost", "Host: [::1]:8080", "Host: proxy.lan"] {
        assert_eq!(server.ask("GET", "/health", &[host], "").await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn pages_of_other_origins() {
    let origin = "Origin: https://app.example";
    let preflight = [origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type"];
    let closed = Server::local().await;
    assert_eq!(closed.ask("GET", "/health", &[origin], "").await.header("access-control-allow-origin"), None);
    assert_eq!(closed.ask("OPTIONS", COMPLETIONS, &preflight, "").await.header("access-control-allow-origin"), None);
    let keys = vec![ApiKey::new("sesame").unwrap()];
    let open = Server::start(ServerConfig { keys, origins: vec!["https://app.example".to_owned()], ..ServerConfig::local() }).await;
    // A preflight carries no key.
    let answer = open.ask("OPTIONS", COMPLETIONS, &preflight, "").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://app.example")));
    let refused = open.ask("GET", "/v1/models", &[origin], "").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example")));
    assert_eq!(open.ask("GET", "/health", &["Origin: https://evil.example"], "").await.header("access-control-allow-origin"), None);
}
