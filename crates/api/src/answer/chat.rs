//! A choice as conversations tell it.

use serde_json::{Value, json};

use super::logprobs::{number, shown};
use super::{Part, reason};
use crate::engine::{Scored, Token};

/// A choice of a whole answer.
pub(super) fn choice(index: usize, part: &Part, scored: bool) -> Value {
    json!({
        "index": index,
        "message": { "role": "assistant", "content": part.text, "refusal": null },
        "logprobs": logprobs(part, scored),
        "finish_reason": reason(part.finish),
    })
}

/// The first chunk of a choice, which says who speaks.
pub(super) fn opening(index: usize) -> Value {
    json!({ "index": index, "delta": { "role": "assistant", "content": "" }, "logprobs": null, "finish_reason": null })
}

/// A later chunk.
pub(super) fn delta(index: usize, part: &Part, scored: bool) -> Value {
    let delta = if part.text.is_empty() && part.tokens.is_empty() { json!({}) } else { json!({ "content": part.text }) };
    let logprobs = if part.tokens.is_empty() { Value::Null } else { logprobs(part, scored) };
    json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason(part.finish) })
}

fn logprobs(part: &Part, scored: bool) -> Value {
    if !scored {
        return Value::Null;
    }
    let one = |token: &Token| {
        let mut chosen = entry(token.scored.as_ref()?);
        chosen["top_logprobs"] = token.top.iter().map(entry).collect();
        Some(chosen)
    };
    json!({ "content": part.tokens.iter().filter_map(one).collect::<Vec<_>>(), "refusal": null })
}

fn entry(scored: &Scored) -> Value {
    json!({ "token": shown(&scored.bytes), "logprob": number(scored.logprob), "bytes": scored.bytes })
}
