//! Goal: no body, however odd, does more than be refused. Method: bodies of chance, and bodies that nearly are requests.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::engine::ModelKind;

fn card(kind: ModelKind) -> ModelCard {
    ModelCard { id: "m".into(), created_unix_s: 0, kind, context_tokens: 8, fingerprint: String::new() }
}

/// Reads the body as every endpoint would; what is accepted is within the bounds.
fn check(bytes: &[u8]) {
    if let Ok(body) = parse::<Body>(bytes) {
        let _ = conversation(body.messages.clone());
        let _ = Job::chat(card(ModelKind::Generates), &body, &[]);
        if let Ok(job) = Job::completion(card(ModelKind::Generates), body) {
            assert!((1..=CHOICES_MAX).contains(&job.choices()));
            for choice in 0..job.choices() {
                let asked = job.generate(choice);
                let spec = &asked.sampling;
                let numbers =
                    [spec.temperature, spec.top_p, spec.min_p, spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty];
                assert!(numbers.iter().all(|number| number.is_finite()) && spec.top_p > 0.0 && spec.repetition_penalty > 0.0);
                assert!(asked.stop.len() <= 4 && asked.stop.iter().all(|stop| !stop.is_empty()));
            }
        }
    }
    if let Ok(body) = parse::<EmbeddingBody>(bytes) {
        let _ = body.embed(&card(ModelKind::Embeds { dimensions: 4 }));
    }
}

/// A value of chance, of the kinds that fields have and of those that they do not.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        (-3.0_f64..3.0).prop_map(|value| value.to_string()),
        (0_u32..30).prop_map(|value| value.to_string()),
        "[a-z]{0,3}".prop_map(|text| format!("{text:?}")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let entry = ("role|content|type|text|[0-9]{1,3}|include_usage", inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(entry, 0..4).prop_map(|entries| format!(
                "{{{}}}",
                entries.iter().map(|(key, value)| format!("{key:?}:{value}")).collect::<Vec<_>>().join(",")
            )),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_of_chance_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn bodies_that_nearly_are_requests_are_refused_or_read(fields in prop::collection::btree_map(
        "model|prompt|messages|input|n|best_of|stream|stream_options|max_tokens|temperature|top_p|top_k|min_p|stop|seed|logprobs|top_logprobs|echo\
         |logit_bias|repetition_penalty|presence_penalty|frequency_penalty|tools|response_format|dimensions|encoding_format",
        value(), 0..8), prompt in any::<bool>())
    {
        let mut fields = fields;
        if prompt {
            fields.insert("prompt".to_owned(), "\"a\"".to_owned());
        }
        let body: Vec<String> = fields.iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
        check(format!("{{{}}}", body.join(",")).as_bytes());
    }
}
