//! One row of a data set, before any tokenizer has seen it, with the place it came from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a record was read: a file and a line, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, as named in the source.
    pub file: Arc<Path>,
    /// The line on which the record starts, from 1.
    pub line: u64,
}

impl Origin {
    /// Line `line` (from 1) of `file`.
    pub fn new(file: &Path, line: u64) -> Self {
        Self { file: Arc::from(file), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file.display(), self.line)
    }
}

/// The words of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Plain text: every token of it is scored.
    Text(String),
    /// A prompt that is only read, and the completion that is scored. The prompt holds its separator.
    Pair {
        /// What is given, separator included.
        prompt: String,
        /// What is to be said.
        completion: String,
    },
}

/// One row of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its words.
    pub body: Body,
    /// Its class, where it has one.
    pub label: Option<String>,
    /// Its natural key (speaker, author, device, domain), where it has one.
    pub key: Option<String>,
    /// Where it was read.
    pub at: Origin,
}

impl Record {
    /// A plain text made in memory.
    pub fn text(text: impl Into<String>) -> Self {
        Self::made(Body::Text(text.into()))
    }

    /// A prompt (separator included) and its completion, made in memory.
    pub fn pair(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Self::made(Body::Pair { prompt: prompt.into(), completion: completion.into() })
    }

    /// The same record with a class.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The same record with a natural key.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Its length in bytes of text, prompt included: the measure by which uneven records are shared out.
    pub fn text_bytes(&self) -> usize {
        match &self.body {
            Body::Text(text) => text.len(),
            Body::Pair { prompt, completion } => prompt.len() + completion.len(),
        }
    }

    fn made(body: Body) -> Self {
        Self { body, label: None, key: None, at: Origin::new(Path::new("memory"), 1) }
    }
}
