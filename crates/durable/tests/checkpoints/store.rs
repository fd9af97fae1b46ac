//! One process and its folder: round trips, damage, half-made saves.

use crate::support::{Words, names, sample, temporaries};
use cutlayer_durable::{CheckpointError, Damage, Saved, Store};
use cutlayer_wire::HostTensor;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The checkpoint called `server` with this number.
fn file(folder: &Path, number: u64) -> std::path::PathBuf {
    folder.join(format!("server.{number}.safetensors"))
}

fn newest(store: &Store) -> Option<(u64, Saved<Words>)> {
    store.newest("server", |_| true).expect("one is whole")
}

/// A folder that holds the samples with these numbers.
fn folder_of(numbers: &[u64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(folder.path()).expect("free");
    numbers.iter().for_each(|number| store.save("server", *number, &sample(*number)).expect("written"));
    folder
}

/// Tensors of any shape, empty ones too, with any bits.
fn tensors() -> impl Strategy<Value = BTreeMap<String, HostTensor>> {
    let tensor = prop::collection::vec(0_usize..4, 0..4).prop_flat_map(|shape| {
        let count: usize = shape.iter().product();
        let values = prop::collection::vec(any::<u32>().prop_map(f32::from_bits), count);
        values.prop_map(move |values| HostTensor { shape: shape.clone(), values })
    });
    prop::collection::btree_map("[a-zä\"\\\\.]{0,6}", tensor, 0..5)
}

fn words() -> impl Strategy<Value = Words> {
    let fields = (any::<u64>(), ".*", prop::collection::btree_map(".{0,5}", any::<i64>(), 0..4), any::<Option<bool>>());
    fields.prop_map(|(seed, text, counts, flag)| Words { seed, text, counts, flag })
}

proptest! {
    /// Goal: what is kept comes back, each bit. Method: random states and tensors, NaN and empty ones among them.
    #[test]
    fn what_is_kept_comes_back(state in words(), tensors in tensors(), number: u64) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let saved = Saved { state, tensors };
        Store::open(folder.path()).expect("free").save("any-1", number, &saved).expect("written");
        let (found, again) = Store::open(folder.path()).expect("free").newest::<Words>("any-1", |_| true).expect("whole").expect("there");
        prop_assert_eq!((found, &again.state), (number, &saved.state));
        prop_assert_eq!(bits(&again.tensors), bits(&saved.tensors));
    }
}

/// A NaN is not equal to itself; its bits are.
fn bits(tensors: &BTreeMap<String, HostTensor>) -> Vec<(&str, &[usize], Vec<u32>)> {
    let bits = |tensor: &HostTensor| tensor.values.iter().map(|value| value.to_bits()).collect();
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice(), bits(tensor))).collect()
}

/// Goal: a file cut short anywhere, or with one byte changed anywhere, is never used. Method: each length, each byte, in the
/// newest of two.
#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before_it() {
    let folder = folder_of(&[1, 2]);
    let store = Store::open(folder.path()).expect("free");
    let whole = fs::read(file(folder.path(), 2)).expect("there");
    let check = |bytes: &[u8], what: &str| {
        fs::write(file(folder.path(), 2), bytes).expect("written");
        let (number, found) = newest(&store).expect("one is whole");
        assert_eq!((number, &found), (1, &sample(1)), "{what}");
    };
    for length in 0..whole.len() {
        check(&whole[..length], &format!("cut to {length} B"));
    }
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (place % 8);
        check(&bytes, &format!("byte {place} changed"));
    }
    check(&[&whole[..], &[0]].concat(), "a byte more");
    fs::write(file(folder.path(), 2), &whole).expect("written");
    assert_eq!(newest(&store), Some((2, sample(2))), "whole again");
}

/// Goal: nobody starts anew by mistake. Method: damage both; the error names both and says why.
#[test]
fn with_none_whole_each_is_named() {
    let folder = folder_of(&[8, 9]);
    let store = Store::open(folder.path()).expect("free");
    fs::write(file(folder.path(), 8), b"").expect("written");
    let mut bytes = fs::read(file(folder.path(), 9)).expect("there");
    bytes.truncate(100);
    fs::write(file(folder.path(), 9), bytes).expect("written");
    let error = store.newest::<Words>("server", |_| true).expect_err("none is whole");
    let text = error.to_string();
    assert!(text.contains("server.8.safetensors") && text.contains("server.9.safetensors") && text.contains("checksum"), "{text}");
    assert!(store.newest::<Words>("server", |number| number > 9).expect("no such number").is_none());
    assert!(store.newest::<Words>("client-0", |_| true).expect("another name").is_none());
}

/// Goal: a whole file is not enough, it must be the right one. Method: one under another number, under another name, of another
/// state, and another safetensors file with the right checksum.
#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let folder = folder_of(&[3]);
    let store = Store::open(folder.path()).expect("free");
    let refused = |name: &str, from: &Path| {
        let to = folder.path().join(format!("{name}.4.safetensors"));
        let bytes = fs::read(from).expect("there");
        fs::write(&to, bytes).expect("copied");
        let error = store.newest::<Words>(name, |number| number == 4).expect_err("not the right one");
        fs::remove_file(to).expect("removed");
        let CheckpointError::NoneWhole { mut bad } = error else { panic!("{error}") };
        bad.remove(0).damage
    };
    assert!(matches!(refused("server", &file(folder.path(), 3)), Damage::Foreign(reason) if reason.contains("server 3")));
    store.save("client", 4, &sample(4)).expect("written");
    assert!(
        matches!(refused("server", &folder.path().join("client.4.safetensors")), Damage::Foreign(reason) if reason.contains("client 4"))
    );
    store.save("server", 4, &Saved { state: 7_u32, tensors: BTreeMap::new() }).expect("written");
    assert!(matches!(refused("server", &file(folder.path(), 4)), Damage::State(_)));
    let text = br#"{"blake3":{"dtype":"U8","shape":[32],"data_offsets":[0,32]}}"#;
    let body = [&(text.len() as u64).to_le_bytes()[..], text].concat();
    let bytes = [&body[..], blake3::hash(&body).as_bytes()].concat();
    fs::write(folder.path().join("other"), bytes).expect("written");
    assert!(matches!(refused("server", &folder.path().join("other")), Damage::Foreign(reason) if reason.contains("label")));
}

/// Goal: three are kept, and never fewer than one that is whole. Method: save on; go back and save from there.
#[test]
fn the_newest_three_are_kept() {
    let folder = folder_of(&[1, 2, 8, 9, 10]);
    let store = Store::open(folder.path()).expect("free");
    assert_eq!(names(folder.path()), [".lock", "server.10.safetensors", "server.8.safetensors", "server.9.safetensors"]);
    store.save("server", 10, &sample(11)).expect("written again");
    assert_eq!(newest(&store), Some((10, sample(11))));
    assert_eq!(store.newest::<Words>("server", |number| number < 10).expect("whole"), Some((9, sample(9))));
    store.save("client-0", 1, &sample(1)).expect("another name");
    store.save("server", 9, &sample(9)).expect("back to before 10");
    assert_eq!(names(folder.path()), [".lock", "client-0.1.safetensors", "server.8.safetensors", "server.9.safetensors"]);
}

/// Goal: a crash between any two steps of a save leaves the last good one in force. Method: the folder as each step leaves it.
#[test]
fn a_crash_between_two_steps_loses_nothing() {
    let saved = folder_of(&[3]);
    let third = fs::read(file(saved.path(), 3)).expect("there");
    // Half written, or whole and not yet renamed.
    for length in [0, 1, third.len() / 2, third.len() - 1, third.len()] {
        let folder = folder_of(&[0, 1, 2]);
        fs::write(folder.path().join(".server.3.safetensors.4711.tmp"), &third[..length]).expect("written");
        let store = Store::open(folder.path()).expect("free");
        assert_eq!(newest(&store), Some((2, sample(2))), "{length} B were written");
        let kept = [".lock", "server.0.safetensors", "server.1.safetensors", "server.2.safetensors"];
        assert_eq!(names(folder.path()), kept, "swept");
    }
    // Renamed, and the oldest not yet removed.
    let folder = folder_of(&[0, 1, 2]);
    fs::write(file(folder.path(), 3), &third).expect("written");
    let store = Store::open(folder.path()).expect("free");
    assert_eq!(newest(&store), Some((3, sample(3))));
    store.save("server", 4, &sample(4)).expect("written");
    assert_eq!(names(folder.path()), [".lock", "server.2.safetensors", "server.3.safetensors", "server.4.safetensors"]);
    // Gone back to before 3: removed, and the new 2 not yet written.
    fs::remove_file(file(folder.path(), 4)).expect("removed");
    assert_eq!(newest(&store), Some((3, sample(3))));
}

/// Goal: a save that fails harms nothing and leaves nothing. Method: a folder in the way of the name, as an error of the disk.
#[test]
fn a_failed_save_leaves_the_last_good_one() {
    let folder = folder_of(&[1, 2]);
    let store = Store::open(folder.path()).expect("free");
    fs::create_dir_all(file(folder.path(), 3).join("full")).expect("made");
    let error = store.save("server", 3, &sample(3)).expect_err("a folder is in the way").to_string();
    assert!(error.contains("server.3.safetensors") && error.contains("start again"), "{error}");
    assert_eq!(newest(&store), Some((2, sample(2))));
    assert_eq!(temporaries(folder.path()), 0, "nothing half written");
}

/// Goal: Python reads it, without us. Method: its safetensors' rules, by the Rust crate that is under them, and the checksum.
#[test]
fn any_safetensors_reader_takes_it() {
    let folder = folder_of(&[5]);
    let bytes = fs::read(file(folder.path(), 5)).expect("there");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let weight = tensors.tensor("weight").expect("there");
    assert_eq!((weight.dtype(), weight.shape()), (safetensors::Dtype::F32, &[2_usize, 3][..]));
    let (body, checksum) = bytes.split_last_chunk::<32>().expect("long enough");
    assert_eq!(tensors.tensor("blake3").expect("there").data(), checksum);
    assert_eq!(blake3::hash(body).as_bytes(), checksum);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let label = &metadata.metadata().as_ref().expect("metadata")["checkpoint"];
    assert!(label.starts_with(r#"{"version":1,"name":"server","number":5,"state":{"seed":5,"#), "{label}");
}
