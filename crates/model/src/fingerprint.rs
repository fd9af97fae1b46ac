//! Fingerprint of a frozen base model: what it hashes and how, so that two machines can tell whether they hold the same one.
//!
//! Changing anything here makes every deployed pair disagree about its base: give [`CONTEXT`] a new version if you must.

use crate::tensor_file::{TensorEntry, TensorFile, TensorFileError};
use cutlayer_wire::BaseHash;
use serde_json::Value;
use std::collections::BTreeMap;

/// blake3's key-derivation context, which names the version.
const CONTEXT: &str = "cutlayer 2025-11 base model fingerprint v1";

/// Bytes at each end of a tensor that enter the fingerprint.
const EDGE_BYTES: u64 = 256;

/// Fields of a config that do not change what the frozen model computes, so that they stay out of the fingerprint.
const CONFIG_FIELDS_IGNORED: [&str; 16] = [
    "_name_or_path",
    "_attn_implementation",
    "architectures",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// A fingerprint being taken; feed it the tensors in sorted order.
pub(crate) struct Fingerprint {
    hasher: blake3::Hasher,
}

impl Fingerprint {
    /// Starts with the fields of `config` that bear on the computation.
    pub(crate) fn new(config: &Value) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hash_json(&mut hasher, &without_ignored_fields(config));
        Self { hasher }
    }

    /// Adds one tensor: name, type, shape and both ends of its data.
    pub(crate) fn tensor(&mut self, name: &str, entry: &TensorEntry, file: &TensorFile) -> Result<(), TensorFileError> {
        hash_text(&mut self.hasher, name);
        hash_text(&mut self.hasher, &entry.dtype.to_string());
        hash_count(&mut self.hasher, entry.shape.len());
        entry.shape.iter().for_each(|&size| hash_count(&mut self.hasher, size));
        let mut edge = vec![0; entry.bytes.min(EDGE_BYTES) as usize];
        for start in [entry.start, entry.start + entry.bytes - edge.len() as u64] {
            file.read_at(start, &mut edge)?;
            self.hasher.update(&edge);
        }
        Ok(())
    }

    /// The fingerprint.
    pub(crate) fn finish(self) -> BaseHash {
        BaseHash(*self.hasher.finalize().as_bytes())
    }
}

fn without_ignored_fields(config: &Value) -> Value {
    let mut config = config.clone();
    if let Value::Object(fields) = &mut config {
        fields.retain(|name, _| !CONFIG_FIELDS_IGNORED.contains(&name.as_str()));
    }
    config
}

/// Hashes JSON by meaning: fields in sorted order, null fields as absent ones, every number as its f64.
fn hash_json(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::Null => {
            hasher.update(b"n");
        }
        Value::Bool(flag) => {
            hasher.update(if *flag { b"t" } else { b"f" });
        }
        Value::Number(number) => {
            hasher.update(b"d");
            hasher.update(&number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
        }
        Value::String(text) => {
            hasher.update(b"s");
            hash_text(hasher, text);
        }
        Value::Array(items) => {
            hasher.update(b"a");
            hash_count(hasher, items.len());
            items.iter().for_each(|item| hash_json(hasher, item));
        }
        Value::Object(fields) => {
            let fields: BTreeMap<&String, &Value> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
            hasher.update(b"o");
            hash_count(hasher, fields.len());
            for (name, value) in fields {
                hash_text(hasher, name);
                hash_json(hasher, value);
            }
        }
    }
}

fn hash_text(hasher: &mut blake3::Hasher, text: &str) {
    hash_count(hasher, text.len());
    hasher.update(text.as_bytes());
}

fn hash_count(hasher: &mut blake3::Hasher, count: usize) {
    hasher.update(&(count as u64).to_le_bytes());
}
