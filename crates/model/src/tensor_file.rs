//! One safetensors file: its header, and single tensors read by seeking to them.
//!
//! Never reads a tensor that nobody asked for, and never allocates for a length that the file does not hold.

use cutlayer_wire::HostTensor;
use half::{bf16, f16};
use safetensors::{Dtype, tensor::Metadata};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Longest header read, in bytes: the format's own limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Bytes of the length that precedes the header.
const LENGTH_BYTES: u64 = 8;

/// Half-precision values converted at a time, so that a large tensor never lies twice in memory.
const CHUNK_VALUES: usize = 1 << 18;

/// Why a safetensors file, or one tensor of it, cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The operating system would not let us.
    #[error("{}: {source}", file.display())]
    Io {
        /// Path of the file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No such file.
    #[error("{} is missing; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    MissingFile {
        /// Path of the file.
        file: PathBuf,
    },
    /// The file ends before the tensors that its header lists.
    #[error("{} is cut short: {bytes} bytes, where its header needs {bytes_needed}; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    Truncated {
        /// Path of the file.
        file: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length that its header implies.
        bytes_needed: u64,
    },
    /// The file goes on after the last tensor.
    #[error("{} is {bytes} bytes long, but its header accounts for {bytes_needed}; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    Trailing {
        /// Path of the file.
        file: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length that its header implies.
        bytes_needed: u64,
    },
    /// The header is larger than any real one.
    #[error("{}: the header claims {bytes} bytes, more than the {HEADER_BYTES_MAX} allowed; is it a safetensors file?", file.display())]
    HeaderTooLarge {
        /// Path of the file.
        file: PathBuf,
        /// Claimed length of the header.
        bytes: u64,
    },
    /// The header is not what the format asks for.
    #[error("{}: broken safetensors header: {reason}; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    Header {
        /// Path of the file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No tensor of that name.
    #[error("{} has no tensor `{tensor}`", file.display())]
    MissingTensor {
        /// Path of the file.
        file: PathBuf,
        /// The name looked for.
        tensor: String,
    },
    /// A tensor of a type that we do not turn into f32.
    #[error("{}: tensor `{tensor}` is {found}; only F32, F16 and BF16 are read, so save the model in one of them", file.display())]
    Dtype {
        /// Path of the file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A tensor of another shape than the model has.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}; do config.json and the weights belong together?", file.display())]
    Shape {
        /// Path of the file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The shape that the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A NaN or an infinity among the values.
    #[error("{}: tensor `{tensor}` holds {found} at index {index}; the file is damaged or its training diverged", file.display())]
    NotFinite {
        /// Path of the file.
        file: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Index of the first such value, in row-major order.
        index: usize,
        /// That value.
        found: f32,
    },
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorEntry {
    /// Type of its values.
    pub(crate) dtype: Dtype,
    /// Shape.
    pub(crate) shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
}

/// An open safetensors file whose header has been checked against its length.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    entries: BTreeMap<String, TensorEntry>,
    // One handle for all reads: the header and the data are then those of the same file, even if it is replaced.
    file: Mutex<File>,
}

impl TensorFile {
    /// Opens `path` and reads its header, nothing else.
    pub(crate) fn open(path: &Path) -> Result<Self, TensorFileError> {
        let io_error = |source| TensorFileError::Io { file: path.into(), source };
        let mut file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => TensorFileError::MissingFile { file: path.into() },
            _ => io_error(source),
        })?;
        let bytes = file.metadata().map_err(io_error)?.len();
        let header_bytes = header_length(path, &mut file, bytes)?;
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io_error)?;
        // Checks that the tensors are contiguous and as long as their shapes say, without overflow.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| TensorFileError::Header { file: path.into(), reason: error.to_string() })?;
        let data_start = LENGTH_BYTES + header_bytes;
        let bytes_needed = data_start.saturating_add(metadata.data_len() as u64);
        if bytes < bytes_needed {
            return Err(TensorFileError::Truncated { file: path.into(), bytes, bytes_needed });
        }
        if bytes > bytes_needed {
            return Err(TensorFileError::Trailing { file: path.into(), bytes, bytes_needed });
        }
        let entries = metadata.tensors().into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let entry =
                TensorEntry { dtype: info.dtype, shape: info.shape.clone(), start: data_start + from as u64, bytes: (to - from) as u64 };
            (name, entry)
        });
        Ok(Self { path: path.into(), entries: entries.collect(), file: Mutex::new(file) })
    }

    /// Path that it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, by name.
    pub(crate) fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    /// Fills `buffer` from byte `start` of the file.
    pub(crate) fn read_at(&self, start: u64, buffer: &mut [u8]) -> Result<(), TensorFileError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(buffer))
            .map_err(|source| TensorFileError::Io { file: self.path.clone(), source })
    }

    /// Reads one tensor as finite f32, whatever its shape.
    pub(crate) fn read(&self, tensor: &str) -> Result<HostTensor, TensorFileError> {
        let entry =
            self.entries.get(tensor).ok_or_else(|| TensorFileError::MissingTensor { file: self.path.clone(), tensor: tensor.into() })?;
        let values = match entry.dtype {
            Dtype::F32 => self.read_f32(entry)?,
            Dtype::F16 => self.read_half(entry, |bits| f16::from_bits(bits).to_f32())?,
            Dtype::BF16 => self.read_half(entry, |bits| bf16::from_bits(bits).to_f32())?,
            other => return Err(TensorFileError::Dtype { file: self.path.clone(), tensor: tensor.into(), found: other.to_string() }),
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let found = values[index];
            return Err(TensorFileError::NotFinite { file: self.path.clone(), tensor: tensor.into(), index, found });
        }
        Ok(HostTensor { shape: entry.shape.clone(), values })
    }

    fn read_f32(&self, entry: &TensorEntry) -> Result<Vec<f32>, TensorFileError> {
        let mut values = vec![0.0f32; entry.bytes as usize / size_of::<f32>()];
        self.read_at(entry.start, bytemuck::cast_slice_mut(&mut values))?;
        if cfg!(target_endian = "big") {
            values.iter_mut().for_each(|value| *value = f32::from_le_bytes(value.to_ne_bytes()));
        }
        Ok(values)
    }

    fn read_half(&self, entry: &TensorEntry, to_f32: impl Fn(u16) -> f32) -> Result<Vec<f32>, TensorFileError> {
        let count = entry.bytes as usize / size_of::<u16>();
        let mut values = Vec::with_capacity(count);
        let mut chunk = vec![0u8; size_of::<u16>() * CHUNK_VALUES.min(count)];
        let mut start = entry.start;
        while values.len() < count {
            let part = &mut chunk[..size_of::<u16>() * CHUNK_VALUES.min(count - values.len())];
            self.read_at(start, part)?;
            values.extend(part.chunks_exact(2).map(|pair| to_f32(u16::from_le_bytes([pair[0], pair[1]]))));
            start += part.len() as u64;
        }
        Ok(values)
    }
}

/// Reads the 8 bytes of the header's length and checks it against our bound and the file's length.
fn header_length(path: &Path, file: &mut File, bytes: u64) -> Result<u64, TensorFileError> {
    if bytes < LENGTH_BYTES {
        return Err(TensorFileError::Truncated { file: path.into(), bytes, bytes_needed: LENGTH_BYTES });
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|source| TensorFileError::Io { file: path.into(), source })?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(TensorFileError::HeaderTooLarge { file: path.into(), bytes: header_bytes });
    }
    if bytes < LENGTH_BYTES + header_bytes {
        return Err(TensorFileError::Truncated { file: path.into(), bytes, bytes_needed: LENGTH_BYTES + header_bytes });
    }
    Ok(header_bytes)
}
