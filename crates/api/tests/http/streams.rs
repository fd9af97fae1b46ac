//! Answers in events: the same as whole, and given up when nobody listens.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::{Server, patient, request};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What the chunks of a stream make together: text, tokens and the reason, by choice.
fn joined(events: &[Value]) -> BTreeMap<u64, (String, Vec<Value>, Value)> {
    let mut choices = BTreeMap::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let (text, tokens, reason) = choices.entry(choice["index"].as_u64().unwrap()).or_insert((String::new(), vec![], Value::Null));
        assert!(reason.is_null(), "a choice goes on after its end: {choice}");
        text.push_str(choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or(""));
        let logprobs = &choice["logprobs"];
        let listed = logprobs["content"].as_array().cloned().unwrap_or_else(|| {
            let column = |name: &str| logprobs[name].as_array().cloned().unwrap_or_default();
            column("tokens").into_iter().zip(column("text_offset")).map(|(token, offset)| json!([token, offset])).collect()
        });
        tokens.extend(listed);
        *reason = choice["finish_reason"].clone();
    }
    choices
}

#[tokio::test]
async fn a_streamed_completion_is_the_whole_one() {
    let server = Server::local().await;
    let body = json!({ "model": "echo", "prompt": ["é and so", "x"], "n": 2, "seed": 1, "logprobs": 1, "max_tokens": 30, "echo": true, "stop": "so" });
    let whole = server.json(COMPLETIONS, body.clone()).await;
    let events = server.events(COMPLETIONS, body).await;
    let streamed = joined(&events);
    assert_eq!(streamed.len(), 4);
    for choice in whole["choices"].as_array().unwrap() {
        let (text, tokens, reason) = &streamed[&choice["index"].as_u64().unwrap()];
        assert_eq!((&json!(text), reason), (&choice["text"], &choice["finish_reason"]));
        let column = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
        let expected: Vec<Value> =
            column("tokens").into_iter().zip(column("text_offset")).map(|(token, offset)| json!([token, offset])).collect();
        assert_eq!(tokens, &expected);
    }
    assert!(
        events.iter().all(|event| event["object"] == "text_completion" && event["id"] == events[0]["id"] && event.get("usage").is_none())
    );
}

#[tokio::test]
async fn a_streamed_chat_is_the_whole_one() {
    let server = Server::local().await;
    let messages = json!([{ "role": "user", "content": "tell me a story" }]);
    let body = json!({ "model": "echo", "messages": messages, "n": 2, "seed": 1, "logprobs": true, "top_logprobs": 2 });
    let whole = server.json(CHAT, body.clone()).await;
    let mut streaming = body;
    streaming["stream_options"] = json!({ "include_usage": true });
    let mut events = server.events(CHAT, streaming).await;
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage") == Some(&Value::Null)));
    let roles = events.iter().filter(|event| event["choices"][0]["delta"]["role"] == "assistant").count();
    assert_eq!(roles, 2);
    let streamed = joined(&events);
    for choice in whole["choices"].as_array().unwrap() {
        let (text, tokens, reason) = &streamed[&choice["index"].as_u64().unwrap()];
        assert_eq!((&json!(text), reason), (&choice["message"]["content"], &choice["finish_reason"]));
        assert_eq!(tokens, choice["logprobs"]["content"].as_array().unwrap());
    }
}

/// What the engine refuses has its status, also where a stream was asked for.
#[tokio::test]
async fn a_stream_that_cannot_begin_is_refused() {
    let server = Server::local().await;
    let answer = server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": "fail:busy", "stream": true })).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));
}

#[tokio::test]
async fn an_error_in_the_middle_is_an_event_and_the_end() {
    let server = Server::local().await;
    for (prompt, message) in [("break:", "the cable"), ("vanish:", "broke off"), ("panic:", "The engine failed")] {
        let answer = server.post(COMPLETIONS, &json!({ "model": "echo", "prompt": prompt, "stream": true, "temperature": 0 })).await;
        let events = answer.events();
        assert_eq!((answer.status, events.len()), (200, 3), "{answer:?}");
        let last: Value = serde_json::from_str(&events[2]).unwrap();
        assert_eq!(last["error"]["type"], "server_error");
        assert!(last["error"]["message"].as_str().unwrap().contains(message), "{last}");
    }
    server.metric("cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"failed\"} 3").await;
    server.metric("cutlayer_api_requests_active 0").await;
}

/// Goal: whoever goes away costs nothing. Method: an engine that says two tokens and hangs; the client closes.
#[tokio::test]
async fn a_client_that_goes_away_stops_the_engine() {
    let server = Server::local().await;
    for (stream, endpoint, body) in [
        (true, COMPLETIONS, json!({ "model": "echo", "prompt": ["hang:1", "hang:2"], "stream": true, "temperature": 0 })),
        (false, COMPLETIONS, json!({ "model": "echo", "prompt": "hang:3", "temperature": 0 })),
        (true, COMPLETIONS, json!({ "model": "echo", "prompt": "flood:", "stream": true })),
    ] {
        let mut connection = server.send(&request("POST", endpoint, &["Content-Type: application/json"], &body.to_string())).await;
        if stream {
            let mut head = [0; 64];
            patient(connection.read_exact(&mut head)).await.unwrap();
        } else {
            server.metric("cutlayer_api_requests_active 1").await;
        }
        patient(async {
            while server.engine.open.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(connection);
        server.idle().await;
    }
    server.metric("cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"cancelled\"} 3").await;
    server.metric("cutlayer_api_requests_active 0").await;
}
