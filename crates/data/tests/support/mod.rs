//! What the integration tests share: temporary files, the shared data folder, and tokenizers trained on the spot.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::path::{Path, PathBuf};

use cutlayer_data::{Tokenizer, train_tokenizer};
use tempfile::TempDir;

/// A folder holding one file.
pub fn folder_with(name: &str, content: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join(name), content).expect("a file");
    folder
}

/// The shared data folder; says so loudly, and returns nothing, where it is absent.
pub fn shared_data() -> Option<PathBuf> {
    let folder =
        std::env::var_os("CUTLAYER_DATA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"), PathBuf::from);
    if folder.join("PROVENANCE.md").exists() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no shared data at {}; set CUTLAYER_DATA", folder.display());
    None
}

/// A tokenizer of 290 tokens with `<s>` and `</s>`, in which ASCII text is mostly bytes.
pub fn small_tokenizer() -> (TempDir, Tokenizer) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "the rain in the plain falls mainly on the grain; 12 trains leave at 07:45 for the plain. ";
    train_tokenizer(std::iter::repeat_n(text, 4), 290, folder.path()).expect("trains");
    let tokenizer = Tokenizer::open(folder.path()).expect("opens");
    (folder, tokenizer)
}

/// The same without any special token in front or behind.
pub fn bare_tokenizer() -> (TempDir, Tokenizer) {
    let (folder, _) = small_tokenizer();
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value["post_processor"] = serde_json::Value::Null;
    std::fs::write(&path, value.to_string()).expect("writes");
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).expect("removes");
    let tokenizer = Tokenizer::open(folder.path()).expect("opens");
    (folder, tokenizer)
}
