//! Writes model folders and safetensors files.
//!
//! A file appears under its name only when it is complete and on the disk, as `durable` has it: a crash leaves the old one.

use crate::folder::{CONFIG_FILE, WEIGHTS_FILE};
use cutlayer_durable::{DurableFile, write_durably};
use cutlayer_wire::HostTensor;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Values encoded at a time, so that a large tensor never lies twice in memory.
const CHUNK_VALUES: usize = 1 << 18;

/// Headers are padded to this, so that the data of every file is aligned.
const HEADER_ALIGNMENT_BYTES: usize = 8;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The operating system would not let us.
    #[error("cannot write {}: {source}", file.display())]
    Io {
        /// Path of the file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A value that the file's type cannot hold, or that was never finite.
    #[error("tensor `{tensor}` holds {value} at index {index}, which is not finite as {dtype}; {} was not written", file.display())]
    NotFinite {
        /// Path of the file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Index of the first such value, in row-major order.
        index: usize,
        /// That value.
        value: f32,
        /// The type asked for.
        dtype: String,
    },
    /// The same name came twice.
    #[error("tensor `{tensor}` was given twice; {} was not written", file.display())]
    Duplicate {
        /// Path of the file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
}

/// Type of the values in a written model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportDtype {
    /// 4 bytes a value, exact.
    F32,
    /// 2 bytes a value, rounded to nearest.
    Bf16,
}

impl ExportDtype {
    fn stored(self) -> Dtype {
        match self {
            ExportDtype::F32 => Dtype::F32,
            ExportDtype::Bf16 => Dtype::BF16,
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            ExportDtype::F32 => "float32",
            ExportDtype::Bf16 => "bfloat16",
        }
    }
}

/// Writes a model folder: `config.json` (its `torch_dtype` set to `dtype`) and `model.safetensors`.
///
/// Tensors are taken one at a time and land in the file in the order given. Returns the bytes of the weights file.
pub fn write_model(
    dir: &Path,
    config: &Value,
    tensors: impl Iterator<Item = (String, HostTensor)>,
    dtype: ExportDtype,
) -> Result<u64, ExportError> {
    fs::create_dir_all(dir).map_err(|source| ExportError::Io { file: dir.into(), source })?;
    let target = dir.join(WEIGHTS_FILE);
    // The header comes first in the file and is known last, so the data waits in a file of its own.
    let mut data = TensorWriter::create_part(&target.with_extension("data"), &target)?;
    let mut planned = Vec::new();
    let mut names = BTreeSet::new();
    for (name, tensor) in tensors {
        if !names.insert(name.clone()) {
            return Err(ExportError::Duplicate { file: target, tensor: name });
        }
        assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "tensor `{name}` must hold what its shape says");
        data.write_values(&name, &tensor.values, dtype.stored())?;
        planned.push(PlannedTensor { name, dtype: dtype.stored(), shape: tensor.shape });
    }
    let bytes = concatenate(&target, &planned, &mut data)?;
    let mut config = config.clone();
    if let Value::Object(fields) = &mut config {
        fields.remove("dtype");
        fields.insert("torch_dtype".into(), dtype.torch_name().into());
    }
    write_json(&dir.join(CONFIG_FILE), &config)?;
    Ok(bytes)
}

fn concatenate(target: &Path, planned: &[PlannedTensor], data: &mut TensorWriter) -> Result<u64, ExportError> {
    let failed = |source| ExportError::Io { file: target.into(), source };
    let mut file = DurableFile::create(target).map_err(failed)?;
    let header = header_bytes(planned);
    file.write_all(&header).map_err(failed)?;
    let copied = data.file.rewound().and_then(|mut data| io::copy(&mut data, &mut file)).map_err(failed)?;
    file.commit().map_err(failed)?;
    Ok(header.len() as u64 + copied)
}

/// Writes `value` as indented JSON.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value always prints") + "\n";
    write_durably(path, text.as_bytes()).map_err(|source| ExportError::Io { file: path.into(), source })
}

/// What a safetensors header says of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl PlannedTensor {
    pub(crate) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Length and header of a file with these tensors, in this order; the same bytes that Python's safetensors writes.
pub(crate) fn header_bytes(planned: &[PlannedTensor]) -> Vec<u8> {
    let mut end = 0;
    let infos = planned.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        (tensor.name.clone(), TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).expect("contiguous offsets computed from the shapes");
    let mut json = serde_json::to_vec(&metadata).expect("a header always prints");
    json.resize(json.len().next_multiple_of(HEADER_ALIGNMENT_BYTES), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes
}

/// A durable file that tensors are written to.
pub(crate) struct TensorWriter {
    file: DurableFile,
    /// The file that errors are about.
    whole: PathBuf,
}

impl TensorWriter {
    /// The file that will become `target`.
    pub(crate) fn create(target: &Path) -> Result<Self, ExportError> {
        Self::create_part(target, target)
    }

    /// A file at `target` that waits to become a part of `whole`.
    fn create_part(target: &Path, whole: &Path) -> Result<Self, ExportError> {
        let file = DurableFile::create(target).map_err(|source| ExportError::Io { file: whole.into(), source })?;
        Ok(Self { file, whole: whole.into() })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.file.write_all(bytes).map_err(|source| ExportError::Io { file: self.whole.clone(), source })
    }

    /// Writes values as `dtype`, one of the three float types we store; refuses what would not be finite there.
    pub(crate) fn write_values(&mut self, tensor: &str, values: &[f32], dtype: Dtype) -> Result<(), ExportError> {
        let mut encoded = Vec::with_capacity(size_of::<f32>() * CHUNK_VALUES.min(values.len()));
        for (position, chunk) in values.chunks(CHUNK_VALUES).enumerate() {
            encoded.clear();
            if let Err(index) = encode(chunk, dtype, &mut encoded) {
                let dtype = dtype.to_string();
                let file = self.whole.clone();
                return Err(ExportError::NotFinite {
                    file,
                    tensor: tensor.into(),
                    index: position * CHUNK_VALUES + index,
                    value: chunk[index],
                    dtype,
                });
            }
            self.write(&encoded)?;
        }
        Ok(())
    }

    /// Puts the file on the disk and gives it its name.
    pub(crate) fn commit(self) -> Result<(), ExportError> {
        self.file.commit().map_err(|source| ExportError::Io { file: self.whole, source })
    }
}

/// Appends `values` as `dtype`; the error is the index of the first value that is not finite there.
fn encode(values: &[f32], dtype: Dtype, bytes: &mut Vec<u8>) -> Result<(), usize> {
    for (index, &value) in values.iter().enumerate() {
        let finite = match dtype {
            Dtype::F16 => {
                let half = f16::from_f32(value);
                bytes.extend(half.to_le_bytes());
                half.is_finite()
            }
            Dtype::BF16 => {
                let half = bf16::from_f32(value);
                bytes.extend(half.to_le_bytes());
                half.is_finite()
            }
            Dtype::F32 => {
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            other => panic!("values are stored as F32, F16 or BF16, not {other}"),
        };
        if !finite {
            return Err(index);
        }
    }
    Ok(())
}
