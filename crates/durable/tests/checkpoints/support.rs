//! What the tests keep and how they look into a folder.

use cutlayer_durable::Saved;
use cutlayer_wire::HostTensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A state with a field of each kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Words {
    pub seed: u64,
    pub text: String,
    pub counts: BTreeMap<String, i64>,
    pub flag: Option<bool>,
}

/// A small checkpoint, another for each number.
pub fn sample(number: u64) -> Saved<Words> {
    sized(number, 6)
}

/// The same with as many values in its tensor `weight`, an even number.
pub fn sized(number: u64, values: usize) -> Saved<Words> {
    let state = Words { seed: number, text: format!("round {number}"), counts: BTreeMap::from([("steps".into(), -1)]), flag: None };
    let weight = HostTensor { shape: vec![2, values / 2], values: (0..values).map(|index| (number * 31 + index as u64) as f32).collect() };
    let empty = HostTensor { shape: vec![0, 4], values: vec![] };
    Saved { state, tensors: BTreeMap::from([("empty".into(), empty), ("weight".into(), weight)]) }
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Those of them that are half written.
pub fn temporaries(folder: &Path) -> usize {
    names(folder).iter().filter(|name| name.ends_with(".tmp")).count()
}
