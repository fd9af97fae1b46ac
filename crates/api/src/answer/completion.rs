//! A choice as completions tell it.

use serde_json::{Map, Value, json};

use super::logprobs::{characters, number, shown};
use super::{Part, reason};

/// The same in a chunk as in a whole answer.
pub(super) fn choice(index: usize, part: &Part, scored: bool) -> Value {
    let logprobs = if scored { logprobs(part) } else { Value::Null };
    json!({ "index": index, "text": part.text, "logprobs": logprobs, "finish_reason": reason(part.finish) })
}

/// Four lists side by side. The first token of a prompt, which follows nothing, has null for its numbers.
fn logprobs(part: &Part) -> Value {
    let (mut tokens, mut logprobs, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
    let mut offset = part.offset;
    for token in &part.tokens {
        let Some(scored) = &token.scored else { continue };
        tokens.push(json!(shown(&scored.bytes)));
        logprobs.push(number(scored.logprob));
        offsets.push(json!(offset));
        offset += characters(&scored.bytes);
        let mut likeliest = Map::new();
        for other in &token.top {
            // Two tokens of the same bytes: the likelier one stays.
            likeliest.entry(shown(&other.bytes)).or_insert_with(|| number(other.logprob));
        }
        top.push(if scored.logprob.is_some() { Value::Object(likeliest) } else { Value::Null });
    }
    json!({ "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets })
}
