//! Folds an adapter into a model folder: `W += scale · B A`, and a trained head in its place.
//!
//! Works one tensor at a time, so that memory stays near the largest tensor that changes. Never touches the base folder.

use crate::arch::{self, ConfigError};
use crate::export::{ExportError, PlannedTensor, TensorWriter, header_bytes, write_json};
use crate::folder::{CONFIG_FILE, FolderError, ModelFolder, TOKENIZER_FILE, WEIGHTS_FILE};
use crate::merge_plan::{CLASSIFIERS, Change, MergePlan, Part};
use crate::peft::{PeftConfig, PeftError, PeftFolder};
use crate::spec::WeightLayout;
use crate::tensor_file::TensorFileError;
use cutlayer_wire::{AdapterState, HostTensor};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of an unchanged tensor copied at a time.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// Files copied beside the weights where the base has them.
const COMPANIONS: [&str; 14] = [
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// Why a merge did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The result would overwrite one of its sources.
    #[error("{} is also an input of the merge; give another output folder", folder.display())]
    Overwrite {
        /// The folder given.
        folder: PathBuf,
    },
    /// The adapter changes a weight that the base does not have.
    #[error("the adapter in {} changes `{parameter}`, which the model in {} does not have; was it trained on another base?", adapter.display(), base.display())]
    UnknownTarget {
        /// The adapter's folder.
        adapter: PathBuf,
        /// The base's folder.
        base: PathBuf,
        /// Full name of the weight.
        parameter: String,
    },
    /// The adapter's factors do not fit the base's weight.
    #[error("the adapter in {} does not fit `{parameter}`: B A is {adapter_shape:?}, the base's weight {base_shape:?}; was it trained on another base?", adapter.display())]
    Shape {
        /// The adapter's folder.
        adapter: PathBuf,
        /// Full name of the weight.
        parameter: String,
        /// Shape that the adapter has for it, as the base would store it.
        adapter_shape: Vec<usize>,
        /// Shape in the base.
        base_shape: Vec<usize>,
    },
    /// The adapter changes one use of a weight that the model uses twice.
    #[error("the adapter in {} changes `{parameter}`, but the model ties embedding and head: a merged folder cannot hold both; keep the adapter apart", adapter.display())]
    Tied {
        /// The adapter's folder.
        adapter: PathBuf,
        /// Full name of the weight.
        parameter: String,
    },
    /// A file beside the weights could not be copied.
    #[error("cannot copy {} to {}: {source}", from.display(), to.display())]
    Copy {
        /// Source.
        from: PathBuf,
        /// Destination.
        to: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The base is of no architecture that we know.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The base cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The adapter cannot be read.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// A weights file cannot be read.
    #[error(transparent)]
    Weights(#[from] TensorFileError),
    /// The result cannot be written.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Weights that an adapter was folded into.
    pub merged: usize,
    /// Parameters taken whole from the adapter, by the names they have in the result.
    pub replaced: Vec<String>,
    /// Tensors in the result.
    pub tensors: usize,
    /// Bytes of its weights file.
    pub bytes: u64,
    /// Files copied beside the weights.
    pub copied: Vec<String>,
}

/// Folds the adapter in `adapter_dir` into `model` and writes the result to `out_dir`, in the base's own types.
///
/// Tensors that the adapter leaves alone are copied byte for byte. With a classification head in the adapter the result is a
/// sequence classifier: `config.json` says so and names the labels, and the backbone gets the prefix that transformers expects.
pub fn merge(model: &ModelFolder, adapter_dir: &Path, out_dir: &Path) -> Result<MergeReport, MergeError> {
    let spec = arch::spec(model.config_json())?;
    let (config, state) = PeftFolder::read(adapter_dir)?;
    for source in [model.path(), adapter_dir] {
        if is_same_folder(source, out_dir) {
            return Err(MergeError::Overwrite { folder: out_dir.into() });
        }
    }
    let plan = MergePlan { model, spec: &spec, state: &state, adapter_dir }.parts()?;
    fs::create_dir_all(out_dir).map_err(|source| ExportError::Io { file: out_dir.into(), source })?;
    let bytes = write_weights(&plan, model, &state, config.lora.scale(), out_dir)?;
    write_json(&out_dir.join(CONFIG_FILE), &merged_config(model.config_json(), &config, &plan, &state))?;
    let copied = copy_companions(model.path(), out_dir)?;
    let merged = plan.iter().filter(|part| matches!(part.change, Change::Fold { .. })).count();
    let replaced = plan.iter().filter(|part| matches!(part.change, Change::Replace { .. }));
    let replaced = replaced.map(|part| part.planned.name.clone()).collect();
    Ok(MergeReport { merged, replaced, tensors: plan.len(), bytes, copied })
}

fn write_weights(plan: &[Part], model: &ModelFolder, state: &AdapterState, scale: f32, out_dir: &Path) -> Result<u64, MergeError> {
    let planned: Vec<PlannedTensor> = plan.iter().map(|part| part.planned.clone()).collect();
    let header = header_bytes(&planned);
    let mut file = TensorWriter::create(&out_dir.join(WEIGHTS_FILE))?;
    file.write(&header)?;
    let mut bytes = header.len() as u64;
    for Part { planned, change } in plan {
        bytes += planned.bytes() as u64;
        match change {
            Change::Copy { stored } => copy_tensor(&mut file, model, stored)?,
            Change::Replace { key } => file.write_values(&planned.name, &state[key].values, planned.dtype)?,
            Change::Fold { stored, key_a, key_b, layout } => {
                let mut weight = model.read(stored, &planned.shape)?;
                fold_product(&mut weight, &state[key_a], &state[key_b], scale, *layout);
                file.write_values(&planned.name, &weight.values, planned.dtype)?;
            }
        }
    }
    file.commit()?;
    Ok(bytes)
}

fn copy_tensor(file: &mut TensorWriter, model: &ModelFolder, stored: &str) -> Result<(), MergeError> {
    let (source, entry) = model.entry(stored).expect("the plan names only tensors that are there");
    let mut chunk = vec![0; COPY_CHUNK_BYTES.min(entry.bytes as usize)];
    let mut done = 0;
    while done < entry.bytes {
        let part = &mut chunk[..COPY_CHUNK_BYTES.min((entry.bytes - done) as usize)];
        source.read_at(entry.start + done, part)?;
        file.write(part)?;
        done += part.len() as u64;
    }
    Ok(())
}

/// `weight += scale · B A`, in the order of sums that PEFT's `B @ A` has: over the rank, then the scale.
fn fold_product(weight: &mut HostTensor, factor_a: &HostTensor, factor_b: &HostTensor, scale: f32, layout: WeightLayout) {
    // Row r of the weight gets the sum over the rank k of left[r, k] times row k of right, whichever factor stands left.
    let (left, right) = match layout {
        WeightLayout::OutIn => (factor_b.values.clone(), factor_a.values.clone()),
        WeightLayout::InOut => (transposed(factor_a), transposed(factor_b)),
    };
    let (columns, rank) = (weight.shape[1], factor_a.shape[0]);
    let mut product = vec![0.0f32; columns];
    for (row, left) in weight.values.chunks_exact_mut(columns).zip(left.chunks_exact(rank)) {
        product.fill(0.0);
        for (&factor, right) in left.iter().zip(right.chunks_exact(columns)) {
            product.iter_mut().zip(right).for_each(|(sum, &value)| *sum += factor * value);
        }
        row.iter_mut().zip(&product).for_each(|(value, &delta)| *value += scale * delta);
    }
}

fn transposed(matrix: &HostTensor) -> Vec<f32> {
    let (rows, columns) = (matrix.shape[0], matrix.shape[1]);
    let mut values = Vec::with_capacity(matrix.values.len());
    for column in 0..columns {
        values.extend((0..rows).map(|row| matrix.values[row * columns + column]));
    }
    values
}

/// The base's config; with a trained classification head, that of the classifier.
fn merged_config(base: &Value, adapter: &PeftConfig, plan: &[Part], state: &AdapterState) -> Value {
    let mut config = base.clone();
    let mut heads = plan.iter().filter_map(|part| match &part.change {
        Change::Replace { key } if CLASSIFIERS.iter().any(|head| part.planned.name == format!("{head}.weight")) => Some(&state[key]),
        _ => None,
    });
    if let (Some(head), Value::Object(fields)) = (heads.next(), &mut config) {
        let classes = head.shape[0];
        let label = |class: usize| adapter.labels.get(class).cloned().unwrap_or_else(|| format!("LABEL_{class}"));
        let names: Map<String, Value> = (0..classes).map(|class| (class.to_string(), label(class).into())).collect();
        let ids: Map<String, Value> = (0..classes).map(|class| (label(class), class.into())).collect();
        fields.insert("architectures".into(), vec![classifier_architecture(base)].into());
        fields.insert("id2label".into(), names.into());
        fields.insert("label2id".into(), ids.into());
        fields.insert("problem_type".into(), "single_label_classification".into());
        fields.remove("num_labels");
    }
    config
}

/// `LlamaForCausalLM` and `BertModel` become `…ForSequenceClassification`.
fn classifier_architecture(base: &Value) -> String {
    let named = base["architectures"][0].as_str().or(base["model_type"].as_str()).unwrap_or_default();
    let stem = named.split("For").next().unwrap_or_default();
    let stem = stem.strip_suffix("LMHeadModel").or(stem.strip_suffix("Model")).unwrap_or(stem);
    let mut letters = stem.chars();
    let stem: String = letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect();
    format!("{stem}ForSequenceClassification")
}

fn copy_companions(from: &Path, to: &Path) -> Result<Vec<String>, MergeError> {
    let mut copied = Vec::new();
    for name in COMPANIONS {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_file() {
            fs::copy(&from, &to).map_err(|source| MergeError::Copy { from, to, source })?;
            copied.push(name.to_owned());
        }
    }
    Ok(copied)
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
