//! Adapter folders, which are also the checkpoints of a run: a byte chooses, two are the length of
//! `adapter_config.json`, then that file, then `adapter_model.safetensors`.
//!
//! What is read is whole and finite, and comes back the same from what is written.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use cutlayer_model::PeftFolder;
use libfuzzer_sys::fuzz_target;

/// Where the folders lie: in memory, where `TMPDIR` says so.
static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    let Some(([labels, low, high], rest)) = bytes.split_first_chunk::<3>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([*low, *high]));
    let Some((config, weights)) = rest.split_at_checked(length) else {
        return;
    };
    let (read, written) = (SCRATCH.path().join("read"), SCRATCH.path().join("written"));
    std::fs::create_dir_all(&read).expect("a folder of ours");
    put(&read, "adapter_config.json", Some(config));
    put(&read, "adapter_model.safetensors", Some(weights));
    put(&read, "labels.json", (labels % 2 == 1).then_some(&br#"["no","yes"]"#[..]));
    let Ok((config, state)) = PeftFolder::read(&read) else {
        return;
    };
    for tensor in state.values() {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len());
        assert!(tensor.is_finite());
    }
    PeftFolder::write(&written, &config, &state).expect("what is read can be written");
    let (again, same) = PeftFolder::read(&written).expect("our own folder");
    assert_eq!((again, same), (config, state));
});

fn put(folder: &Path, name: &str, bytes: Option<&[u8]>) {
    let path = folder.join(name);
    match bytes {
        Some(bytes) => std::fs::write(path, bytes).expect("a file of ours"),
        None => drop(std::fs::remove_file(path)),
    }
}
