//! Pieces to JSON, in the shapes of both endpoints, whole and in chunks. It must never show a token's half character as text.

mod chat;
mod completion;
pub(crate) mod embedding;
mod logprobs;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::engine::{FinishReason, ModelCard, Piece, Token, Usage};

/// Which of the two endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    Completion,
    Chat,
}

/// What every object of an answer begins with.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    shape: Shape,
    id: String,
    created_unix_s: u64,
    model: String,
    fingerprint: String,
}

/// What came of one choice since the last chunk, or in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    pub text: String,
    /// Tokens with their log-probabilities, where they were asked for.
    pub tokens: Vec<Token>,
    pub finish: Option<FinishReason>,
    /// Characters of the choice before this part.
    pub offset: usize,
}

impl Part {
    /// Adds a piece; with `scored`, its token too.
    pub fn add(&mut self, piece: Piece, scored: bool) {
        match piece {
            Piece::Prompt(token) | Piece::Token(token) => {
                self.text.push_str(&token.text);
                if scored {
                    self.tokens.push(token);
                }
            }
            Piece::End { reason, text, .. } => {
                self.text.push_str(&text);
                self.finish = Some(reason);
            }
        }
    }

    /// Characters of its tokens, by which the next part's offset grows.
    pub fn characters(&self) -> usize {
        self.tokens.iter().filter_map(|token| token.scored.as_ref()).map(|scored| logprobs::characters(&scored.bytes)).sum()
    }

    /// Nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty() && self.finish.is_none()
    }
}

impl Head {
    pub fn new(shape: Shape, card: &ModelCard) -> Self {
        let prefix = match shape {
            Shape::Completion => "cmpl",
            Shape::Chat => "chatcmpl",
        };
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        Self { shape, id, created_unix_s: now_unix_s(), model: card.id.clone(), fingerprint: card.fingerprint.clone() }
    }

    /// The whole answer.
    pub fn whole(&self, parts: &[Part], scored: bool, usage: &Usage) -> Value {
        let (object, choices): (_, Vec<Value>) = match self.shape {
            Shape::Completion => ("text_completion", choices(parts, |index, part| completion::choice(index, part, scored))),
            Shape::Chat => ("chat.completion", choices(parts, |index, part| chat::choice(index, part, scored))),
        };
        let mut answer = self.object(object, choices);
        answer["usage"] = usage_json(usage);
        answer
    }

    /// One chunk of a stream. With `include_usage` every chunk but the last says that it has none.
    pub fn chunk(&self, index: usize, part: &Part, scored: bool, include_usage: bool) -> Value {
        let choice = match self.shape {
            Shape::Completion => completion::choice(index, part, scored),
            Shape::Chat => chat::delta(index, part, scored),
        };
        self.with_null_usage(vec![choice], include_usage)
    }

    /// What a choice's stream begins with, if anything.
    pub fn opening(&self, index: usize, include_usage: bool) -> Option<Value> {
        (self.shape == Shape::Chat).then(|| self.with_null_usage(vec![chat::opening(index)], include_usage))
    }

    /// The chunk that tells what was used.
    pub fn usage(&self, usage: &Usage) -> Value {
        let mut chunk = self.with_null_usage(vec![], true);
        chunk["usage"] = usage_json(usage);
        chunk
    }

    fn with_null_usage(&self, choices: Vec<Value>, include_usage: bool) -> Value {
        let object = match self.shape {
            Shape::Completion => "text_completion",
            Shape::Chat => "chat.completion.chunk",
        };
        let mut chunk = self.object(object, choices);
        if include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created_unix_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Seconds since 1970; a clock before that tells 0.
pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn choices(parts: &[Part], choice: impl Fn(usize, &Part) -> Value) -> Vec<Value> {
    parts.iter().enumerate().map(|(index, part)| choice(index, part)).collect()
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
    })
}

fn reason(finish: Option<FinishReason>) -> Value {
    match finish {
        None => Value::Null,
        Some(FinishReason::Stop) => json!("stop"),
        Some(FinishReason::Length) => json!("length"),
    }
}
