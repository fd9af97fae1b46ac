//! The body of a completion or a conversation, and what in it is refused. It must never ignore what would change the answer's meaning.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::chat::Message;
use super::field::{Asked, Logprobs, Texts};
use super::top;
use crate::error::ApiError;

/// The fields of both endpoints: what one does not know, it ignores, as it ignores fields that stand nowhere.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Body {
    pub model: Option<String>,
    pub prompt: Option<Texts>,
    pub messages: Option<Vec<Message>>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<u32>,
    pub best_of: Option<u32>,
    pub max_tokens: Option<u32>,
    pub max_completion_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<i64>,
    pub stop: Option<Texts>,
    pub logprobs: Option<Logprobs>,
    pub top_logprobs: Option<u64>,
    pub echo: Option<bool>,
    #[serde(default)]
    suffix: Asked,
    #[serde(default)]
    tools: Asked,
    #[serde(default)]
    functions: Asked,
    #[serde(default)]
    audio: Asked,
    #[serde(default)]
    prediction: Asked,
    #[serde(default)]
    web_search_options: Asked,
    #[serde(default)]
    guided_json: Asked,
    #[serde(default)]
    guided_regex: Asked,
    #[serde(default)]
    guided_choice: Asked,
    #[serde(default)]
    guided_grammar: Asked,
    #[serde(default)]
    structured_outputs: Asked,
    modalities: Option<Vec<String>>,
    response_format: Option<ResponseFormat>,
}

/// What a stream carries beside text.
#[derive(Debug, Deserialize)]
pub(crate) struct StreamOptions {
    pub include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

impl Body {
    /// Fields that ask for another kind of answer than text.
    pub fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let fields = [
            ("tools", self.tools),
            ("functions", self.functions),
            ("audio", self.audio),
            ("prediction", self.prediction),
            ("web_search_options", self.web_search_options),
            ("guided_json", self.guided_json),
            ("guided_regex", self.guided_regex),
            ("guided_choice", self.guided_choice),
            ("guided_grammar", self.guided_grammar),
            ("structured_outputs", self.structured_outputs),
        ];
        if let Some((name, _)) = fields.iter().find(|(_, asked)| asked.0) {
            return Err(ApiError::unsupported(*name, format!("'{name}' is not supported by this server: leave it out.")));
        }
        if self.modalities.iter().flatten().any(|modality| modality != "text") {
            return Err(ApiError::unsupported("modalities", "This server answers with text only."));
        }
        if let Some(format) = self.response_format.as_ref().filter(|format| format.kind != "text") {
            let message = format!("The response format {:?} is not supported: leave it out, or ask for \"text\".", format.kind);
            return Err(ApiError::unsupported("response_format", message));
        }
        Ok(())
    }

    /// Those of completions alone.
    pub fn refuse_unsupported_in_completions(&self) -> Result<(), ApiError> {
        if self.suffix.0 {
            return Err(ApiError::unsupported("suffix", "'suffix' is not supported: the model only goes on with text."));
        }
        if self.best_of.is_some_and(|best_of| best_of != self.n.unwrap_or(1)) {
            return Err(ApiError::unsupported("best_of", "'best_of' is not supported unless it is 'n'."));
        }
        Ok(())
    }

    /// Log-probabilities as conversations ask for them.
    pub fn chat_logprobs(&self) -> Result<Option<u8>, ApiError> {
        let wanted = match self.logprobs {
            None | Some(Logprobs::Flag(false)) => false,
            Some(Logprobs::Flag(true)) => true,
            Some(Logprobs::Count(_)) => return Err(ApiError::invalid("logprobs", "'logprobs' is true or false here: see 'top_logprobs'.")),
        };
        match (wanted, self.top_logprobs) {
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "'top_logprobs' is only allowed with 'logprobs'.")),
            (true, count) => Ok(Some(top("top_logprobs", count.unwrap_or(0))?)),
        }
    }
}

/// Reads a body, and names the field that is not what it should be.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would read the fields from an array too, in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", "The body is an array: send an object."));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match error.classify() {
            Category::Data if path != "." => ApiError::invalid(path.clone(), format!("Invalid '{path}': {error}.")),
            Category::Data => ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", format!("Invalid body: {error}.")),
            _ => no_json(&error),
        }
    })?;
    json.end().map_err(|error| no_json(&error))?;
    Ok(parsed)
}

fn no_json(error: &serde_json::Error) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, None, format!("We could not parse the JSON body of your request: {error}."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(json: &str) -> ApiError {
        match parse::<Body>(json.as_bytes()) {
            Err(error) => error,
            Ok(body) => body.refuse_unsupported().and(body.refuse_unsupported_in_completions()).unwrap_err(),
        }
    }

    #[test]
    fn the_field_at_fault_is_named() {
        for (json, param) in [
            (r#"{"temperature":"hot"}"#, Some("temperature")),
            (r#"{"max_tokens":-1}"#, Some("max_tokens")),
            (r#"{"max_tokens":1.5}"#, Some("max_tokens")),
            (r#"{"messages":[{"role":"user","content":"a"},{"role":7}]}"#, Some("messages[1].role")),
            (r#"{"stream":"yes"}"#, Some("stream")),
            (r#"{"prompt":[1,"a"]}"#, Some("prompt")),
            (r#"{"tools":[{"type":"function"}]}"#, Some("tools")),
            (r#"{"functions":[{}]}"#, Some("functions")),
            (r#"{"response_format":{"type":"json_object"}}"#, Some("response_format")),
            (r#"{"audio":{"voice":"a"}}"#, Some("audio")),
            (r#"{"modalities":["text","audio"]}"#, Some("modalities")),
            (r#"{"suffix":"end"}"#, Some("suffix")),
            (r#"{"best_of":3,"n":2}"#, Some("best_of")),
            (r#"[1]"#, None),
            (r#"{"a":1"#, None),
            (r#"{} x"#, None),
            ("", None),
        ] {
            let error = refused(json);
            assert_eq!((error.status, error.param.as_deref()), (StatusCode::BAD_REQUEST, param), "{json}: {error:?}");
        }
    }

    #[test]
    fn unknown_and_empty_fields_are_ignored() {
        let json = r#"{"model":"m","tools":[],"functions":null,"response_format":{"type":"text"},"modalities":["text"],"suffix":null,
            "audio":null,"store":true,"metadata":{"a":"b"},"user":"u","never_heard_of":[[1]],"n":2,"best_of":2}"#;
        let body: Body = parse(json.as_bytes()).unwrap();
        body.refuse_unsupported().unwrap();
        body.refuse_unsupported_in_completions().unwrap();
        assert_eq!(body.model.as_deref(), Some("m"));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |field: &str| format!("{{{field}{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        for field in ["\"prompt\":", "\"messages\":", "\"stop\":", "\"stream_options\":"] {
            assert_eq!(parse::<Body>(deep(field).as_bytes()).err().map(|error| error.status), Some(StatusCode::BAD_REQUEST), "{field}");
        }
        // What is skipped takes no stack.
        assert!(parse::<Body>(deep("\"x\":").as_bytes()).is_ok() && parse::<Body>(deep("\"tools\":").as_bytes()).is_ok());
    }
}
