//! Whole answers, field by field.

use cutlayer_api::Prompt;
use serde_json::{Value, json};

use crate::client::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_completion_has_every_field() {
    let server = Server::local().await;
    let answer = server.json(COMPLETIONS, json!({ "model": "echo", "prompt": "tell me", "temperature": 0 })).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-") && answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        (&answer["object"], &answer["model"], &answer["system_fingerprint"]),
        (&json!("text_completion"), &json!("echo"), &json!("fp_echo"))
    );
    let choice = json!({ "index": 0, "text": "tell me", "logprobs": null, "finish_reason": "stop" });
    assert_eq!(answer["choices"], json!([choice]));
    let details = json!({ "cached_tokens": 3 });
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14, "prompt_tokens_details": details });
    assert_eq!(answer["usage"], usage);
}

#[tokio::test]
async fn a_chat_has_every_field() {
    let server = Server::local().await;
    let messages = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": [{ "type": "text", "text": "Hi" }] }]);
    let answer = server.json(CHAT, json!({ "model": "echo", "messages": messages, "temperature": 0 })).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let message = json!({ "role": "assistant", "content": prompt, "refusal": null });
    assert_eq!(answer["choices"], json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": "stop" }]));
    let asked = server.engine.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.prompt, Prompt::Text { text: prompt.to_owned(), add_special: false });
    assert_eq!((asked.tokens_max, asked.stop, asked.echo), (None, vec![], false));
}

#[tokio::test]
async fn a_model_without_a_template_talks_plainly() {
    let server = Server::local().await;
    let body = json!({ "model": "org/plain", "messages": [{ "role": "user", "content": "Hi" }], "stop": "!", "max_completion_tokens": 5 });
    server.json(CHAT, body).await;
    let asked = server.engine.asked.lock().unwrap().take().unwrap();
    assert_eq!(asked.prompt, Prompt::Text { text: "User: Hi\nAssistant:".into(), add_special: true });
    assert_eq!(asked.stop, ["!", "\nUser:", "\nSystem:"]);
    assert_eq!(asked.tokens_max, Some(5));
}

#[tokio::test]
async fn the_engine_hears_every_field() {
    let server = Server::local().await;
    let body = json!({ "model": "echo", "prompt": [104, 105], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.25, "seed": 3,
        "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": { "65": -100 }, "stop": ["a", "b"],
        "max_tokens": 9, "logprobs": 2, "echo": true, "user": "someone", "unheard_of": { "x": 1 } });
    server.json(COMPLETIONS, body).await;
    let asked = server.engine.asked.lock().unwrap().take().unwrap();
    let sampling = cutlayer_wire::SamplingSpec {
        temperature: 0.5,
        top_k: 4,
        top_p: 0.9,
        min_p: 0.25,
        repetition_penalty: 1.5,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        logit_bias: vec![(65, -100.0)],
        seed: 3,
        logprobs: Some(2),
    };
    assert_eq!((asked.model.as_str(), asked.prompt, asked.sampling), ("echo", Prompt::Tokens(vec![104, 105]), sampling));
    assert_eq!((asked.stop, asked.tokens_max, asked.echo), (vec!["a".to_owned(), "b".to_owned()], Some(9), true));
}

#[tokio::test]
async fn several_prompts_and_choices_are_numbered() {
    let server = Server::local().await;
    let ask = |prompt: Value, n: u32| json!({ "model": "echo", "prompt": prompt, "n": n, "seed": 5, "temperature": 1.5 });
    let answer = server.json(COMPLETIONS, ask(json!(["first one", "second"]), 3)).await;
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // A prompt counts once, and answers as it would alone.
    assert_eq!(answer["usage"]["prompt_tokens"], 9 + 6);
    let alone = server.json(COMPLETIONS, ask(json!("second"), 3)).await;
    for (together, alone) in choices[3..].iter().zip(alone["choices"].as_array().unwrap()) {
        assert_eq!(together["text"], alone["text"]);
    }
    let completion: u64 = answer["usage"]["completion_tokens"].as_u64().unwrap();
    let texts: usize = choices.iter().map(|choice| choice["text"].as_str().unwrap().len()).sum();
    assert_eq!(completion, texts as u64);
}

#[tokio::test]
async fn a_stop_string_and_a_limit_end_the_answer() {
    let server = Server::local().await;
    let ask = |more: Value| {
        let mut body = json!({ "model": "echo", "prompt": "abcabd, and so on", "temperature": 0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, text, reason) in [
        (json!({ "stop": "abd" }), "abc", "stop"),
        (json!({ "stop": ["zzz", ", "] }), "abcabd", "stop"),
        (json!({ "max_tokens": 4 }), "abca", "length"),
        // Held back for the stop string, and let go at the end.
        (json!({ "max_tokens": 5, "stop": "abd" }), "abcab", "length"),
        (json!({ "max_tokens": 0 }), "", "length"),
        (json!({}), "abcabd, and so o", "length"),
        (json!({ "max_tokens": 3, "echo": true }), "abcabd, and so onabc", "length"),
    ] {
        let choice = server.json(COMPLETIONS, ask(more.clone())).await["choices"][0].clone();
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!(reason)), "{more}");
    }
}

#[tokio::test]
async fn a_completion_lists_its_tokens() {
    let server = Server::local().await;
    let body = json!({ "model": "echo", "prompt": "aé!", "temperature": 0, "logprobs": 2, "echo": true });
    let logprobs = server.json(COMPLETIONS, body).await["choices"][0]["logprobs"].clone();
    let twice = |one: Value| Value::from([one.as_array().unwrap().clone(), one.as_array().unwrap().clone()].concat());
    assert_eq!(logprobs["tokens"], twice(json!(["a", "bytes:\\xc3", "bytes:\\xa9", "!"])));
    // The second half of a character begins none.
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 2, 3, 4, 5, 5]));
    let numbers = logprobs["token_logprobs"].as_array().unwrap();
    assert!(numbers[0].is_null() && numbers[1..].iter().all(|number| number.as_f64().unwrap() <= 0.0), "{numbers:?}");
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert!(top[0].is_null() && top[4].as_object().unwrap().len() == 2);
    assert_eq!(top[4]["a"], numbers[4], "greedy takes the likeliest");
}

#[tokio::test]
async fn a_chat_lists_its_tokens() {
    let server = Server::local().await;
    let messages = json!([{ "role": "user", "content": "é" }]);
    let body =
        json!({ "model": "org/plain", "messages": messages, "temperature": 0, "logprobs": true, "top_logprobs": 3, "max_tokens": 8 });
    let choice = server.json(CHAT, body).await["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "User: é");
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 8);
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("U"), &json!([85])));
    assert_eq!((&content[6]["token"], &content[6]["bytes"]), (&json!("bytes:\\xc3"), &json!([0xc3])));
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert!(token["logprob"].as_f64().unwrap() <= 0.0 && top.len() == 3 && top[0]["logprob"] == token["logprob"], "{token}");
    }
}

#[tokio::test]
async fn a_seed_repeats_and_chance_does_not() {
    let server = Server::local().await;
    let ask = |seed: Option<u64>| json!({ "model": "echo", "prompt": "a long enough prompt to differ", "seed": seed, "max_tokens": 40, "temperature": 2 });
    let text = async |seed| server.json(COMPLETIONS, ask(seed)).await["choices"][0]["text"].clone();
    assert_eq!(text(Some(1)).await, text(Some(1)).await);
    assert_ne!(text(Some(1)).await, text(Some(2)).await);
    assert_ne!(text(None).await, text(None).await);
}

#[tokio::test]
async fn embeddings_come_in_order() {
    let server = Server::local().await;
    let answer = server.json("/v1/embeddings", json!({ "model": "embed", "input": ["ab", "c"], "dimensions": 8 })).await;
    assert_eq!((&answer["object"], &answer["model"], &answer["data"][1]["index"]), (&json!("list"), &json!("embed"), &json!(1)));
    assert_eq!(answer["data"][0]["embedding"], json!([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 3, "total_tokens": 3 }));
    let answer = server.json("/v1/embeddings", json!({ "model": "embed", "input": [99], "encoding_format": "base64" })).await;
    assert_eq!(answer["data"][0]["embedding"], "AAAAAAAAAAAAAAAAAACAPwAAAAAAAAAAAAAAAAAAAAA=");
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let server = Server::local().await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!((&list["object"], ids), (&json!("list"), vec!["echo", "org/plain", "bare", "embed"]));
    // Names have slashes, and some clients escape them.
    for path in ["/v1/models/org/plain", "/v1/models/org%2Fplain"] {
        let card = json!({ "id": "org/plain", "object": "model", "created": 1_700_000_000, "owned_by": "cutlayer", "kind": "generates",
            "max_model_len": crate::engine::CONTEXT_TOKENS });
        assert_eq!(server.get(path).await.json(), card);
    }
}

#[tokio::test]
async fn health_and_metrics_tell_what_is_under_way() {
    let server = Server::local().await;
    assert_eq!(server.get("/health").await.json(), json!({ "status": "ok" }));
    server.json(COMPLETIONS, json!({ "model": "echo", "prompt": "abcd", "temperature": 0 })).await;
    for line in [
        "cutlayer_api_requests_active 0",
        "cutlayer_api_requests_total{endpoint=\"completions\",outcome=\"answered\"} 1",
        "cutlayer_api_prompt_tokens_total 4",
        "cutlayer_api_cached_tokens_total 2",
        "cutlayer_api_completion_tokens_total 4",
    ] {
        server.metric(line).await;
    }
}
