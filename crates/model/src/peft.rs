//! Adapter folders as PEFT 0.21 reads and writes them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What this file accepts it can also write back with the same meaning; any PEFT feature beyond that is refused by name.

use crate::export::{ExportError, PlannedTensor, TensorWriter, header_bytes, write_json};
use crate::json_file::{JsonFileError, read_json};
use crate::peft_config::{config_from_json, config_to_json};
use crate::tensor_file::{TensorFile, TensorFileError};
use cutlayer_wire::{AdapterState, HostTensor, LoraSpec, PlanError};
use safetensors::Dtype;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of an adapter's configuration.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Name of an adapter's weights.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Names of a classifier's labels, in class order: ours, beside PEFT's files, which have no place for them.
pub const LABELS_FILE: &str = "labels.json";

/// What PEFT puts before every module path.
pub const KEY_PREFIX: &str = "base_model.model.";

/// Largest `adapter_config.json` or `labels.json` read, in bytes.
pub const ADAPTER_JSON_BYTES_MAX: u64 = 4 << 20;

/// Why an adapter folder cannot be used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// No folder there.
    #[error("there is no adapter folder at {}; give the folder that holds {ADAPTER_CONFIG_FILE}", folder.display())]
    NotAFolder {
        /// The path given.
        folder: PathBuf,
    },
    /// A field of the configuration is missing or not what PEFT writes.
    #[error("{}: `{field}` is {found}, but must be {needed}", file.display())]
    Field {
        /// Path of the configuration.
        file: PathBuf,
        /// Name of the field.
        field: String,
        /// What it holds.
        found: String,
        /// What it should.
        needed: String,
    },
    /// A PEFT feature that cutlayer does not have.
    #[error("{}: `{field}` is {found}, which cutlayer does not support; {remedy}", file.display())]
    Unsupported {
        /// Path of the configuration.
        file: PathBuf,
        /// Name of the field.
        field: String,
        /// What it holds.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A rank, scale, dropout or target that no plan allows.
    #[error("{}: {source}", file.display())]
    Lora {
        /// Path of the configuration.
        file: PathBuf,
        /// Which and why.
        source: PlanError,
    },
    /// A tensor that belongs to no target and no saved module.
    #[error("{}: tensor `{tensor}` is neither a LoRA factor of a target ({}) nor of a module to save ({}); do the two files belong together?",
        file.display(), targets.join(", "), modules_to_save.join(", "))]
    UnknownTensor {
        /// Path of the weights.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// The targets of the configuration.
        targets: Vec<String>,
        /// The saved modules of the configuration.
        modules_to_save: Vec<String>,
    },
    /// A LoRA factor without its partner.
    #[error("{}: tensor `{tensor}` has no partner `{partner}`; the file is incomplete: copy the adapter folder again", file.display())]
    Unpaired {
        /// Path of the weights.
        file: PathBuf,
        /// The factor there is.
        tensor: String,
        /// The one there is not.
        partner: String,
    },
    /// A LoRA factor of another rank, or not a matrix.
    #[error("{}: tensor `{tensor}` has shape {found:?}, but rank {rank} needs {needed}; do the two files belong together?", file.display())]
    Shape {
        /// Path of the weights.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// Rank of the configuration.
        rank: u32,
        /// The shape in words.
        needed: &'static str,
    },
    /// A NaN or an infinity in an adapter about to be written.
    #[error("tensor `{tensor}` holds a NaN or an infinity; {} was not written", file.display())]
    NotFinite {
        /// Path of the weights.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// As many label names as classes, or none.
    #[error("{}: {found} labels for a classifier of {classes} classes; list one name per class, or delete the file", file.display())]
    Labels {
        /// Path of the labels.
        file: PathBuf,
        /// Number of names.
        found: usize,
        /// Rows of the classifier.
        classes: usize,
    },
    /// An adapter without a single tensor.
    #[error("{} holds no LoRA factor at all; is it the weights file of an adapter?", file.display())]
    Empty {
        /// Path of the weights.
        file: PathBuf,
    },
    /// A JSON file is missing or unreadable.
    #[error(transparent)]
    Json(#[from] JsonFileError),
    /// The weights file, or a tensor in it, is not usable.
    #[error(transparent)]
    Weights(#[from] TensorFileError),
    /// A file could not be written.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// What the base model was loaded as when the adapter was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeftTask {
    /// `CAUSAL_LM`.
    CausalLm,
    /// `SEQ_CLS`.
    SequenceClassification,
}

/// The meaning of an `adapter_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Rank, scale, dropout and targets.
    pub lora: LoraSpec,
    /// Task, if one is named.
    pub task: Option<PeftTask>,
    /// Name or path of the base model, if one is named.
    pub base_model: Option<String>,
    /// PEFT's flag for weights stored `[in, out]`, as GPT-2's; PEFT and we look at the model itself and keep the flag only to write it back.
    pub fan_in_fan_out: bool,
    /// Modules trained whole and stored beside the factors: a classifier's head.
    pub modules_to_save: Vec<String>,
    /// Names of the classes in order, if known; kept in `labels.json`.
    pub labels: Vec<String>,
}

/// Adapter folders of PEFT.
pub struct PeftFolder;

impl PeftFolder {
    /// Reads and checks an adapter folder. Every value returned is finite and every factor has its partner.
    pub fn read(dir: &Path) -> Result<(PeftConfig, AdapterState), PeftError> {
        if !dir.is_dir() {
            return Err(PeftError::NotAFolder { folder: dir.into() });
        }
        let config_path = dir.join(ADAPTER_CONFIG_FILE);
        let json: Value = read_json(&config_path, ADAPTER_JSON_BYTES_MAX)?;
        let mut config = config_from_json(&json, &config_path)?;
        let labels_path = dir.join(LABELS_FILE);
        if labels_path.exists() {
            config.labels = read_json(&labels_path, ADAPTER_JSON_BYTES_MAX)?;
        }
        let file = TensorFile::open(&dir.join(ADAPTER_WEIGHTS_FILE))?;
        // Names and shapes first: they are in the header, and a wrong one needs no data read.
        check_shapes(&config, dir, file.entries().iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice())))?;
        let mut state = AdapterState::new();
        for name in file.entries().keys() {
            state.insert(name.clone(), file.read(name)?);
        }
        Ok((config, state))
    }

    /// Writes an adapter folder that PEFT loads. Refuses a state that `config` does not describe.
    ///
    /// Two equal states give the same bytes.
    pub fn write(dir: &Path, config: &PeftConfig, state: &AdapterState) -> Result<(), PeftError> {
        let weights_path = dir.join(ADAPTER_WEIGHTS_FILE);
        let invalid = |source| PeftError::Lora { file: dir.join(ADAPTER_CONFIG_FILE), source };
        config.lora.validate().map_err(invalid)?;
        check_shapes(config, dir, state.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())))?;
        if let Some((tensor, _)) = state.iter().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(PeftError::NotFinite { file: weights_path, tensor: tensor.clone() });
        }
        fs::create_dir_all(dir).map_err(|source| ExportError::Io { file: dir.into(), source })?;
        write_tensors(&weights_path, state)?;
        write_json(&dir.join(ADAPTER_CONFIG_FILE), &config_to_json(config))?;
        let labels_path = dir.join(LABELS_FILE);
        if !config.labels.is_empty() {
            write_json(&labels_path, &config.labels.clone().into())?;
        } else if labels_path.exists() {
            // Those of an adapter that lay here before.
            fs::remove_file(&labels_path).map_err(|source| ExportError::Io { file: labels_path, source })?;
        }
        Ok(())
    }
}

/// Writes named tensors as one f32 safetensors file, in order of their names.
pub(crate) fn write_tensors(path: &Path, state: &AdapterState) -> Result<(), ExportError> {
    let plan =
        |(name, tensor): (&String, &HostTensor)| PlannedTensor { name: name.clone(), dtype: Dtype::F32, shape: tensor.shape.clone() };
    let planned: Vec<PlannedTensor> = state.iter().map(plan).collect();
    let mut file = TensorWriter::create(path)?;
    file.write(&header_bytes(&planned))?;
    for (name, tensor) in state {
        file.write_values(name, &tensor.values, Dtype::F32)?;
    }
    file.commit()
}

/// What a key of an adapter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdapterKey<'a> {
    /// `A`, `[rank, in]`, of the module at this path.
    LoraA(&'a str),
    /// `B`, `[out, rank]`, of the module at this path.
    LoraB(&'a str),
    /// A parameter of a module trained whole, by its full path in the base model.
    Saved(&'a str),
}

impl<'a> AdapterKey<'a> {
    /// Reads a key as PEFT writes it.
    pub(crate) fn parse(key: &'a str) -> Option<Self> {
        let path = key.strip_prefix(KEY_PREFIX)?;
        if let Some(module) = path.strip_suffix(".lora_A.weight") {
            return Some(AdapterKey::LoraA(module));
        }
        if let Some(module) = path.strip_suffix(".lora_B.weight") {
            return Some(AdapterKey::LoraB(module));
        }
        // Embedding factors, magnitudes and the like; their features are refused in the configuration already.
        let foreign = path.split('.').any(|part| part.starts_with("lora_"));
        (!foreign).then_some(AdapterKey::Saved(path))
    }
}

/// Key of factor `letter` (`A` or `B`) of the module at `path`.
pub(crate) fn lora_key(module: &str, letter: char) -> String {
    format!("{KEY_PREFIX}{module}.lora_{letter}.weight")
}

/// Checks that exactly the tensors described by `config` are there, each factor with its partner and of the right rank.
fn check_shapes<'a>(
    config: &PeftConfig,
    dir: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize])> + Clone,
) -> Result<(), PeftError> {
    let file = dir.join(ADAPTER_WEIGHTS_FILE);
    let rank = config.lora.rank as usize;
    let names: BTreeSet<&str> = tensors.clone().map(|(name, _)| name).collect();
    let mut factors = 0;
    for (name, shape) in tensors {
        let wrong =
            |needed| PeftError::Shape { file: file.clone(), tensor: name.into(), found: shape.into(), rank: config.lora.rank, needed };
        let (module, partner) = match AdapterKey::parse(name) {
            Some(AdapterKey::LoraA(module)) if is_target(config, module) => {
                if !matches!(shape, [first, _] if *first == rank) {
                    return Err(wrong("[rank, inputs]"));
                }
                (module, 'B')
            }
            Some(AdapterKey::LoraB(module)) if is_target(config, module) => {
                if !matches!(shape, [_, last] if *last == rank) {
                    return Err(wrong("[outputs, rank]"));
                }
                (module, 'A')
            }
            Some(AdapterKey::Saved(parameter)) if is_saved(config, parameter) => {
                check_labels(config, dir, parameter, shape)?;
                continue;
            }
            _ => {
                let (targets, modules_to_save) = (config.lora.targets.clone(), config.modules_to_save.clone());
                return Err(PeftError::UnknownTensor { file, tensor: name.into(), targets, modules_to_save });
            }
        };
        let partner = lora_key(module, partner);
        if !names.contains(partner.as_str()) {
            return Err(PeftError::Unpaired { file, tensor: name.into(), partner });
        }
        factors += 1;
    }
    if factors == 0 { Err(PeftError::Empty { file }) } else { Ok(()) }
}

/// PEFT's rule: the whole path, or a suffix after a dot.
fn is_target(config: &PeftConfig, module: &str) -> bool {
    config.lora.targets.iter().any(|target| module.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// Whether `parameter` lies in a module trained whole.
fn is_saved(config: &PeftConfig, parameter: &str) -> bool {
    let path = format!(".{parameter}");
    config.modules_to_save.iter().any(|module| path.contains(&format!(".{module}.")))
}

fn check_labels(config: &PeftConfig, dir: &Path, parameter: &str, shape: &[usize]) -> Result<(), PeftError> {
    let heads = ["classifier.weight", "score.weight"];
    match shape.first() {
        Some(&classes) if heads.contains(&parameter) && !config.labels.is_empty() && config.labels.len() != classes => {
            Err(PeftError::Labels { file: dir.join(LABELS_FILE), found: config.labels.len(), classes })
        }
        _ => Ok(()),
    }
}
