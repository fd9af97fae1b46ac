//! A model folder as Hugging Face lays it out: `config.json`, weights in one safetensors file or in shards, `tokenizer.json`.
//!
//! Opening reads headers alone; a side then reads only the tensors of the layers that it runs. Never changes the folder.

use crate::fingerprint::Fingerprint;
use crate::json_file::{JsonFileError, read_json};
use crate::tensor_file::{TensorEntry, TensorFile, TensorFileError};
use crate::tokenizer_ids::TokenizerIds;
use cutlayer_wire::{BaseHash, HostTensor};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Name of the configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weights of an unsharded model.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the table that says which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Name of the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Largest `config.json` read, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// Largest shard index read, in bytes: about half a million tensors.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Largest `tokenizer.json` read, in bytes; the largest in use are about 40 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// No folder there.
    #[error("there is no model folder at {}; fetch one with `cutlayer pull ORG/NAME`, or correct the path", folder.display())]
    NotAFolder {
        /// The path given.
        folder: PathBuf,
    },
    /// No weights that we read.
    #[error("{} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}{}; fetch the model with `cutlayer pull ORG/NAME`, or save it with `safe_serialization=True`",
        folder.display(), if *.pickled { " (its PyTorch .bin files are not read)" } else { "" })]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Whether there are weights of the older, pickled kind.
        pickled: bool,
    },
    /// The shard index names something other than a file of the folder.
    #[error("{}: shard `{shard}` is not a file name; fetch the model again with `cutlayer pull ORG/NAME`", index.display())]
    ShardName {
        /// Path of the index.
        index: PathBuf,
        /// What it names.
        shard: String,
    },
    /// The index promises a tensor that its shard does not have.
    #[error("{} puts tensor `{tensor}` in `{shard}`, which does not hold it; the shards are of different downloads: run `cutlayer pull ORG/NAME` again", index.display())]
    NotInShard {
        /// Path of the index.
        index: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The shard named.
        shard: String,
    },
    /// A shard holds a tensor that the index puts elsewhere, or nowhere.
    #[error("shard `{shard}` holds tensor `{tensor}`, which {} does not put there; the shards are of different downloads: run `cutlayer pull ORG/NAME` again", index.display())]
    NotInIndex {
        /// Path of the index.
        index: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The shard that has it.
        shard: String,
    },
    /// The model needs a tensor that no file has.
    #[error("{} has no tensor `{tensor}`; is config.json that of these weights? If so, run `cutlayer pull ORG/NAME` again", folder.display())]
    MissingTensor {
        /// The folder.
        folder: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// The tokenizer produces ids that the model has no embedding for.
    #[error("{} has ids up to {}, but the model's vocabulary is {vocab}; the tokenizer is another model's", tokenizer.display(), ids - 1)]
    Vocabulary {
        /// Path of the tokenizer.
        tokenizer: PathBuf,
        /// Its largest id + 1.
        ids: usize,
        /// The model's vocabulary size.
        vocab: usize,
    },
    /// `config.json`, the index or the tokenizer is missing or unreadable.
    #[error(transparent)]
    Json(#[from] JsonFileError),
    /// A weights file, or a tensor in it, is not usable.
    #[error(transparent)]
    Weights(#[from] TensorFileError),
}

/// A model folder whose headers have been read and checked.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Value,
    files: Vec<TensorFile>,
    // Name -> index into `files`.
    tensors: BTreeMap<String, usize>,
}

impl ModelFolder {
    /// Opens the folder: reads `config.json` and the headers of the weights, and checks that index and shards agree.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        if !path.is_dir() {
            return Err(FolderError::NotAFolder { folder: path.into() });
        }
        let config: Value = read_json(&path.join(CONFIG_FILE), CONFIG_BYTES_MAX)?;
        let single = path.join(WEIGHTS_FILE);
        let index = path.join(INDEX_FILE);
        // The order in which transformers looks.
        let files = if single.exists() {
            vec![TensorFile::open(&single)?]
        } else if index.exists() {
            open_shards(path, &index)?
        } else {
            return Err(FolderError::NoWeights { folder: path.into(), pickled: has_pickled_weights(path) });
        };
        let mut tensors = BTreeMap::new();
        for (position, file) in files.iter().enumerate() {
            tensors.extend(file.entries().keys().map(|name| (name.clone(), position)));
        }
        Ok(Self { path: path.into(), config, files, tensors })
    }

    /// Path that the folder was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, parsed.
    pub fn config_json(&self) -> &Value {
        &self.config
    }

    /// Whether some file holds the tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of the tensor in the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entry(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes that the tensor takes in its file.
    pub fn stored_bytes(&self, name: &str) -> Option<u64> {
        self.entry(name).map(|(_, entry)| entry.bytes)
    }

    /// Reads one tensor as f32; refuses another shape, a type other than f32, f16 and bf16, and any NaN or infinity.
    pub fn read(&self, name: &str, expected_shape: &[usize]) -> Result<HostTensor, FolderError> {
        let missing = || FolderError::MissingTensor { folder: self.path.clone(), tensor: name.into() };
        let (file, entry) = self.entry(name).ok_or_else(missing)?;
        if entry.shape != expected_shape {
            return Err(FolderError::Weights(TensorFileError::Shape {
                file: file.path().into(),
                tensor: name.into(),
                expected: expected_shape.into(),
                found: entry.shape.clone(),
            }));
        }
        Ok(file.read(name)?)
    }

    /// Fingerprint of the frozen base, equal on two machines that hold the same model.
    ///
    /// blake3 over the config's fields that bear on the computation, and over every tensor's name, type, shape and the
    /// first and last 256 bytes of its data. That is cheap on purpose: a side need not read the layers it does not run,
    /// and any retraining changes those bytes. It does not depend on sharding, on the order of tensors in a file, nor on
    /// how the config spells its numbers.
    pub fn base_hash(&self) -> Result<BaseHash, FolderError> {
        let mut fingerprint = Fingerprint::new(&self.config);
        for name in self.tensors.keys() {
            let (file, entry) = self.entry(name).expect("`tensors` names only tensors that a file lists");
            fingerprint.tensor(name, entry, file)?;
        }
        Ok(fingerprint.finish())
    }

    /// Largest id + 1 that `tokenizer.json` can produce, added tokens included; `None` if the folder has no tokenizer.
    pub fn vocab_of_tokenizer(&self) -> Result<Option<usize>, FolderError> {
        let path = self.path.join(TOKENIZER_FILE);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(read_json::<TokenizerIds>(&path, TOKENIZER_BYTES_MAX)?.count()))
    }

    /// Refuses a tokenizer with ids that a vocabulary of `vocab` rows has no embedding for. A padded vocabulary is fine.
    pub fn check_tokenizer(&self, vocab: usize) -> Result<(), FolderError> {
        match self.vocab_of_tokenizer()? {
            Some(ids) if ids > vocab => Err(FolderError::Vocabulary { tokenizer: self.path.join(TOKENIZER_FILE), ids, vocab }),
            _ => Ok(()),
        }
    }

    pub(crate) fn entry(&self, name: &str) -> Option<(&TensorFile, &TensorEntry)> {
        let file = &self.files[*self.tensors.get(name)?];
        Some((file, file.entries().get(name)?))
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path, index_path: &Path) -> Result<Vec<TensorFile>, FolderError> {
    let index: ShardIndex = read_json(index_path, INDEX_BYTES_MAX)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let mut files = Vec::with_capacity(shards.len());
    for shard in shards {
        if !is_file_name(shard) {
            return Err(FolderError::ShardName { index: index_path.into(), shard: shard.clone() });
        }
        let path = folder.join(shard);
        let file = TensorFile::open(&path)?;
        check_shard(index_path, &index, shard, &file)?;
        files.push(file);
    }
    Ok(files)
}

fn check_shard(index_path: &Path, index: &ShardIndex, shard: &str, file: &TensorFile) -> Result<(), FolderError> {
    let promised = index.weight_map.iter().filter(|(_, home)| *home == shard);
    for (tensor, _) in promised {
        if !file.entries().contains_key(tensor) {
            return Err(FolderError::NotInShard { index: index_path.into(), tensor: tensor.clone(), shard: shard.into() });
        }
    }
    for tensor in file.entries().keys() {
        if index.weight_map.get(tensor).map(String::as_str) != Some(shard) {
            return Err(FolderError::NotInIndex { index: index_path.into(), tensor: tensor.clone(), shard: shard.into() });
        }
    }
    Ok(())
}

/// Whether `name` is a plain file name, so that an index cannot lead out of its folder.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

fn has_pickled_weights(folder: &Path) -> bool {
    ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists())
}
