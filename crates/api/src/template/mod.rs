//! How a conversation becomes a prompt: the template of a model's folder, rendered as `transformers` would. It must never reach beyond
//! its messages: no file, no clock, and a bound on the work and on what it writes.

mod folder;
mod python;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use serde::Serialize;

pub use folder::FolderError;

/// Most instructions of one rendering: some thousand messages through the longest templates in use.
const FUEL: u64 = 10_000_000;
/// Deepest nesting of calls.
const RECURSION_MAX: usize = 64;
/// Longest prompt.
const PROMPT_BYTES_MAX: usize = 16 << 20;
/// What stands in for a template where a model has none.
const PLAIN: &str = "\
{%- for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}";

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// Who says it, where there are several users. Few templates ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Why a conversation has no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template itself refuses it: roles that do not alternate, a system message that the model does not know.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// Too much work, or too long a prompt.
    #[error("the model's chat template takes too much work or writes too much for these messages: send fewer")]
    TooMuch,
    /// The template is broken, or uses what is not built.
    #[error("the model's chat template cannot be rendered: {0}")]
    Broken(String),
}

/// A model's way to write a conversation down.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    plain: bool,
}

impl ChatTemplate {
    /// The template of a model's folder: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json` (a string, or a list of
    /// named ones of which `default` is taken). A folder without one gets [`ChatTemplate::plain`].
    pub fn open(model_folder: &Path) -> Result<Self, FolderError> {
        let found = folder::read(model_folder)?;
        let Some(source) = found.source else { return Ok(Self::plain()) };
        Self::new(&source, found.special_tokens).map_err(|error| FolderError::Template { folder: model_folder.to_owned(), error })
    }

    /// A line for each message, `User: ..`, `Assistant: ..`, and `Assistant:` last: for models that were never taught a form. The answer
    /// then ends where the model begins a user's line; see [`ChatTemplate::stops`].
    pub fn plain() -> Self {
        let template = Self::new(PLAIN, BTreeMap::new()).expect("our own template compiles");
        Self { plain: true, ..template }
    }

    /// A template in Jinja's language, with the tokens that it may name: `bos_token`, `eos_token` and others, by those names.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // Prompts are not HTML.
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        python::add_to(&mut environment);
        let source = python::without_generation_tags(source);
        environment.add_template_owned("chat", source).map_err(|error| TemplateError::Broken(error.to_string()))?;
        Ok(Self { environment, special_tokens, plain: false })
    }

    /// The prompt, which ends where the assistant goes on if `add_generation_prompt`. `now_unix_s` is for templates that tell the date,
    /// in UTC.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool, now_unix_s: i64) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").map_err(|error| TemplateError::Broken(error.to_string()))?;
        // A token that the tokenizer lacks stays undefined: templates ask whether it is.
        let context = context! {
            messages,
            add_generation_prompt,
            tools => (),
            documents => (),
            strftime_now => python::strftime_at(now_unix_s),
            ..Value::from_serialize(&self.special_tokens)
        };
        let mut prompt = Bounded(Vec::new());
        template.render_captured_to(context, &mut prompt).map_err(|error| template_error(&error))?;
        String::from_utf8(prompt.0).map_err(|error| TemplateError::Broken(error.to_string()))
    }

    /// Whether the tokenizer adds its own special tokens: only where the template writes none.
    pub fn add_special(&self) -> bool {
        self.plain
    }

    /// Strings that end an answer, beside those that the client names.
    pub fn stops(&self) -> &'static [&'static str] {
        if self.plain { &["\nUser:", "\nSystem:"] } else { &[] }
    }
}

fn template_error(error: &minijinja::Error) -> TemplateError {
    // What `raise_exception` said may be wrapped by a macro or a loop around it.
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<python::Raised>() {
            return TemplateError::Refused(raised.0.clone());
        }
        cause = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel | ErrorKind::WriteFailure => TemplateError::TooMuch,
        _ => TemplateError::Broken(error.to_string()),
    }
}

/// A writer that ends at the longest prompt.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PROMPT_BYTES_MAX {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
