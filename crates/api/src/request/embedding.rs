//! The body of a request for embeddings. It must never shorten a vector that was asked for in another length.

use serde::Deserialize;

use super::field::Texts;
use super::prompts;
use crate::engine::{Embed, ModelCard, ModelKind};
use crate::error::ApiError;

/// Its fields.
#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingBody {
    pub model: Option<String>,
    input: Option<Texts>,
    encoding_format: Option<String>,
    dimensions: Option<u32>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Encoding {
    /// As an array of numbers.
    Float,
    /// As base64 of little-endian f32, which the official client asks for on its own.
    Base64,
}

impl EmbeddingBody {
    /// What to ask the engine, and how to write its answer.
    pub fn embed(self, card: &ModelCard) -> Result<(Embed, Encoding), ApiError> {
        let ModelKind::Embeds { dimensions } = card.kind else {
            return Err(ApiError::invalid("model", format!("The model {:?} gives no embeddings: see 'kind' in /v1/models.", card.id)));
        };
        let encoding = match self.encoding_format.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                return Err(ApiError::invalid("encoding_format", format!("{other:?} is no encoding: use \"float\" or \"base64\".")));
            }
        };
        if self.dimensions.is_some_and(|asked| asked != dimensions) {
            return Err(ApiError::unsupported("dimensions", format!("The vectors of {:?} have {dimensions} dimensions.", card.id)));
        }
        let inputs = prompts("input", self.input.ok_or_else(|| ApiError::missing("input"))?)?;
        Ok((Embed { model: card.id.clone(), inputs }, encoding))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::engine::Prompt;

    fn card(kind: ModelKind) -> ModelCard {
        ModelCard { id: "e".into(), created_unix_s: 0, kind, context_tokens: 8, fingerprint: String::new() }
    }

    fn embed(json: &str) -> Result<(Embed, Encoding), ApiError> {
        parse::<EmbeddingBody>(json.as_bytes())?.embed(&card(ModelKind::Embeds { dimensions: 4 }))
    }

    #[test]
    fn inputs_are_texts_or_tokens() {
        let (asked, encoding) = embed(r#"{"input":["a","b"],"dimensions":4}"#).unwrap();
        assert_eq!((asked.inputs.len(), encoding), (2, Encoding::Float));
        let (asked, encoding) = embed(r#"{"input":[1,2],"encoding_format":"base64"}"#).unwrap();
        assert_eq!((asked.inputs, encoding), (vec![Prompt::Tokens(vec![1, 2])], Encoding::Base64));
    }

    #[test]
    fn refusals_name_the_field() {
        for (json, param) in [
            (r#"{}"#, "input"),
            (r#"{"input":[]}"#, "input"),
            (r#"{"input":[[]]}"#, "input"),
            (r#"{"input":"a","dimensions":3}"#, "dimensions"),
            (r#"{"input":"a","encoding_format":"hex"}"#, "encoding_format"),
        ] {
            assert_eq!(embed(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
        let body = parse::<EmbeddingBody>(br#"{"input":"a"}"#).unwrap();
        assert_eq!(body.embed(&card(ModelKind::Generates)).unwrap_err().param.as_deref(), Some("model"));
    }
}
