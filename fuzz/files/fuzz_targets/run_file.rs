//! Run files: what is read and checked can be written, and read again it says the same.
#![no_main]

use std::sync::LazyLock;

use cutlayer_lab::RunConfig;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    let file = SCRATCH.path().join("run.toml");
    std::fs::write(&file, bytes).expect("a file of ours");
    let Ok(config) = RunConfig::load(&file, &[]) else {
        return;
    };
    let text = config.to_toml().expect("what is read can be written");
    std::fs::write(&file, &text).expect("a file of ours");
    let again = RunConfig::load(&file, &[]).expect("our own file");
    // By text: a NaN, where one may stand, is not equal to itself.
    assert_eq!(again.to_toml().expect("the same again"), text);
});
