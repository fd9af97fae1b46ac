//! Tokenizers: a `tokenizer.json` from a stranger's folder. Whatever it says, it may fail but not panic.
#![no_main]

use std::sync::LazyLock;

use cutlayer_data::Tokenizer;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(SCRATCH.path().join("tokenizer.json"), bytes).expect("a file of ours");
    let Ok(tokenizer) = Tokenizer::open(SCRATCH.path()) else {
        return;
    };
    if let Ok(ids) = tokenizer.encode("To be, or not to be: 2 × ß\u{1f600}\n", true) {
        let _ = tokenizer.decode(&ids);
    }
});
