//! The messages of a conversation, as templates take them. It must never drop a part of a message in silence.

use serde::Deserialize;

use super::field::Asked;
use crate::error::ApiError;
use crate::template::ChatMessage;

/// One message of a body.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Message {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    #[serde(default)]
    tool_calls: Asked,
    #[serde(default)]
    function_call: Asked,
    #[serde(default)]
    audio: Asked,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// The messages of a body, each of a role that templates know, and of text alone.
pub(crate) fn conversation(messages: Option<Vec<Message>>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = messages.ok_or_else(|| ApiError::missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' is empty: send at least one."));
    }
    messages.into_iter().enumerate().map(|(index, message)| one(index, message)).collect()
}

fn one(index: usize, message: Message) -> Result<ChatMessage, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let role = match message.role.as_str() {
        role @ ("system" | "user" | "assistant") => role,
        // OpenAI's newer name for it; templates know the older.
        "developer" => "system",
        "tool" | "function" => return Err(ApiError::unsupported(at("role"), "Tools are not supported by this server.")),
        other => {
            return Err(ApiError::invalid(at("role"), format!("{other:?} is no role: use system, developer, user or assistant.")));
        }
    };
    for (name, asked) in [("tool_calls", message.tool_calls), ("function_call", message.function_call), ("audio", message.audio)] {
        if asked.0 {
            return Err(ApiError::unsupported(at(name), format!("'{name}' is not supported by this server.")));
        }
    }
    let content = match message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => joined(&parts, &at("content"))?,
        None => return Err(ApiError::invalid(at("content"), "A message needs content: a string or an array of text parts.")),
    };
    Ok(ChatMessage { role: role.to_owned(), content, name: message.name })
}

/// Parts are paragraphs: one to a line.
fn joined(parts: &[Part], at: &str) -> Result<String, ApiError> {
    let texts = parts.iter().enumerate().map(|(index, part)| text(index, part, at)).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n"))
}

fn text<'a>(index: usize, part: &'a Part, at: &str) -> Result<&'a str, ApiError> {
    match (part.kind.as_str(), &part.text) {
        ("text", Some(text)) => Ok(text),
        ("text", None) => Err(ApiError::invalid(format!("{at}[{index}].text"), "A text part needs its text.")),
        (kind, _) => {
            let message = format!("Parts of type {kind:?} are not supported: send text.");
            Err(ApiError::unsupported(format!("{at}[{index}].type"), message))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Body, parse};
    use super::*;

    fn of(json: &str) -> Result<Vec<ChatMessage>, ApiError> {
        conversation(parse::<Body>(json.as_bytes())?.messages)
    }

    #[test]
    fn strings_and_text_parts_are_content() {
        let json = r#"{"messages":[{"role":"developer","content":"Be brief."},
            {"role":"user","name":"ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":"c","tool_calls":null,"refusal":null}]}"#;
        let message = |role: &str, content: &str, name: Option<&str>| ChatMessage {
            role: role.to_owned(),
            content: content.to_owned(),
            name: name.map(str::to_owned),
        };
        let expected = [message("system", "Be brief.", None), message("user", "a\nb", Some("ann")), message("assistant", "c", None)];
        assert_eq!(of(json).unwrap(), expected);
    }

    #[test]
    fn what_is_not_text_is_refused_by_place() {
        for (json, param) in [
            (r#"{}"#, "messages"),
            (r#"{"messages":[]}"#, "messages"),
            (r#"{"messages":[{"role":"tool","content":"x"}]}"#, "messages[0].role"),
            (r#"{"messages":[{"role":"king","content":"x"}]}"#, "messages[0].role"),
            (r#"{"messages":[{"role":"user"}]}"#, "messages[0].content"),
            (r#"{"messages":[{"role":"user","content":null}]}"#, "messages[0].content"),
            (r#"{"messages":[{"role":"user","content":7}]}"#, "messages[0].content"),
            (r#"{"messages":[{"role":"assistant","content":"x","tool_calls":[{}]}]}"#, "messages[0].tool_calls"),
            (r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}}]}]}"#, "messages[0].content[0].type"),
            (r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#, "messages[0].content[0].text"),
        ] {
            assert_eq!(of(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }
}
