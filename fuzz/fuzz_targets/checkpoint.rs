//! Checkpoints: what a killed process, a full disk or a stranger left in a folder of states.
//!
//! As it is, a damaged file has to be refused, which the checksum sees to; with the right checksum put to its end, it has to be
//! refused for what it says or be whole: then it is kept again, and comes back the same.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use cutlayer_durable::{Saved, Store};
use libfuzzer_sys::fuzz_target;

/// Any state of whole numbers and words, by name.
type State = BTreeMap<String, String>;

/// Where the folder lies: in memory, where `TMPDIR` says so.
static SCRATCH: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));
static STORE: LazyLock<Store> = LazyLock::new(|| Store::open(SCRATCH.path()).expect("a folder of ours"));

fuzz_target!(|bytes: &[u8]| {
    check(&STORE, SCRATCH.path(), bytes);
    check(&STORE, SCRATCH.path(), &[bytes, blake3::hash(bytes).as_bytes()].concat());
});

fn check(store: &Store, folder: &Path, bytes: &[u8]) {
    std::fs::write(folder.join("read.1.safetensors"), bytes).expect("a file of ours");
    let Ok(found) = store.newest::<State>("read", |_| true) else { return };
    let (_, saved) = found.expect("it is there");
    for tensor in saved.tensors.values() {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len());
    }
    store.save("kept", 1, &saved).expect("what is read can be kept");
    let (_, again) = store.newest::<State>("kept", |_| true).expect("our own file").expect("it is there");
    assert_eq!(bits(&again), bits(&saved));
}

/// A NaN is not equal to itself; its bits are.
fn bits(saved: &Saved<State>) -> (&State, Vec<(&String, &[usize], Vec<u32>)>) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    let tensors = saved.tensors.iter().map(|(name, tensor)| (name, tensor.shape.as_slice(), bits(&tensor.values)));
    (&saved.state, tensors.collect())
}
