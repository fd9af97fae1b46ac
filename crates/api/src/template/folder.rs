//! Finds a model's template in its folder. It must never read a file without bound.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::TemplateError;

/// Longest file that is read: `tokenizer_config.json` lists every added token.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The name that is taken where a folder has several.
const DEFAULT: &str = "default";

/// Why a folder gives no template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A file that is there cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// `tokenizer_config.json` is not what it should be.
    #[error("{path}: {error}")]
    Config {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// Several templates, and none that is meant for conversations.
    #[error("{path}: no chat template is named \"default\", only {names:?}: name one so")]
    NoDefault {
        /// The file that lists them.
        path: PathBuf,
        /// Those there are.
        names: Vec<String>,
    },
    /// The template does not compile.
    #[error("{folder}: {error}")]
    Template {
        /// The model's folder.
        folder: PathBuf,
        /// What is wrong.
        error: TemplateError,
    },
}

/// What a folder says.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub source: Option<String>,
    pub special_tokens: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "chat_template is a string or a list of named templates")]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// Reads what there is; a file beside the configuration goes before what stands in it, as with `transformers`.
pub(super) fn read(folder: &Path) -> Result<Found, FolderError> {
    let path = folder.join("tokenizer_config.json");
    let mut found = Found::default();
    if let Some(text) = read_file(&path)? {
        let config: TokenizerConfig = serde_json::from_str(&text).map_err(|error| FolderError::Config { path: path.clone(), error })?;
        let tokens = config.others.into_iter().filter(|(name, _)| name.ends_with("_token"));
        found.special_tokens = tokens.filter_map(|(name, value)| Some((name, token(value)?))).collect();
        found.source = match config.chat_template {
            None => None,
            Some(Templates::One(source)) => Some(source),
            Some(Templates::Named(named)) => Some(default_of(named, path)?),
        };
    }
    if let Some(source) = read_file(&folder.join("chat_template.jinja"))? {
        found.source = Some(source);
    }
    Ok(found)
}

fn default_of(named: Vec<Named>, path: PathBuf) -> Result<String, FolderError> {
    let names = named.iter().map(|named| named.name.clone()).collect();
    let default = named.into_iter().find(|named| named.name == DEFAULT);
    default.map(|named| named.template).ok_or(FolderError::NoDefault { path, names })
}

/// A token is its text, or an object that holds it.
fn token(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(fields) => fields.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// `None` where there is no such file.
fn read_file(path: &Path) -> Result<Option<String>, FolderError> {
    let failed = |error| FolderError::File { path: path.to_owned(), error };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other(format!("longer than {FILE_BYTES_MAX} B"))));
    }
    Ok(Some(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{ChatMessage, ChatTemplate};
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn rendered(files: &[(&str, &str)]) -> String {
        let message = ChatMessage { role: "user".into(), content: "hi".into(), name: None };
        ChatTemplate::open(folder(files).path()).unwrap().render(&[message], true, 0).unwrap()
    }

    #[test]
    fn every_place_of_a_template_is_found() {
        let string = r#"{"bos_token":{"content":"<s>"},"eos_token":"</s>","unk_token":"?","add_bos_token":true,"chat_template":"{{ bos_token }}string{{ eos_token }}{{ unk_token }}{{ pad_token }}"}"#;
        assert_eq!(rendered(&[("tokenizer_config.json", string)]), "<s>string</s>?");
        let list = r#"{"chat_template":[{"name":"rag","template":"no"},{"name":"default","template":"named"}]}"#;
        assert_eq!(rendered(&[("tokenizer_config.json", list)]), "named");
        let files = [("tokenizer_config.json", string), ("chat_template.jinja", "{{ bos_token }}file")];
        assert_eq!(rendered(&files), "<s>file");
        assert_eq!(rendered(&[("chat_template.jinja", "alone")]), "alone");
    }

    #[test]
    fn a_folder_without_one_is_plain() {
        for files in [&[][..], &[("tokenizer_config.json", r#"{"bos_token":null}"#)]] {
            assert_eq!(rendered(files), "User: hi\nAssistant:");
        }
    }

    #[test]
    fn broken_folders_are_refused_by_file() {
        let refused = |files: &[(&str, &str)]| ChatTemplate::open(folder(files).path()).unwrap_err();
        assert!(matches!(refused(&[("tokenizer_config.json", "{")]), FolderError::Config { .. }));
        assert!(matches!(refused(&[("tokenizer_config.json", r#"{"chat_template":7}"#)]), FolderError::Config { .. }));
        let list = r#"{"chat_template":[{"name":"rag","template":"no"}]}"#;
        assert!(matches!(refused(&[("tokenizer_config.json", list)]), FolderError::NoDefault { names, .. } if names == ["rag"]));
        assert!(matches!(refused(&[("chat_template.jinja", "{% if %}")]), FolderError::Template { .. }));
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("chat_template.jinja")).unwrap();
        assert!(matches!(ChatTemplate::open(folder.path()).unwrap_err(), FolderError::File { .. }));
    }
}
