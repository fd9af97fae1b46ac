//! The bytes of one checkpoint: a safetensors file that any reader of those takes, ending in a checksum of all before it.
//!
//! `__metadata__.checkpoint` is JSON: the format's version, whose checkpoint it is, its number, and the state. Then come f32
//! tensors, in order of their names, and last the tensor `blake3`: 32 bytes, the BLAKE3 hash of every byte of the file before
//! them. Nothing is looked at before that hash is found right.

use crate::error::Damage;
use cutlayer_wire::HostTensor;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// The format written and read here.
const VERSION: u32 = 1;
/// Largest checkpoint read, in bytes: the adapter and both moments of the largest models in use are a tenth of it.
const FILE_BYTES_MAX: u64 = 16 << 30;
/// Longest header, in bytes: the limit of safetensors itself. The state is part of it.
pub(crate) const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Bytes of the length that precedes the header.
const LENGTH_BYTES: usize = 8;
/// The header is padded to this, so that the tensors are aligned.
const ALIGNMENT_BYTES: usize = 8;
/// The key of the metadata under which all of ours is.
const METADATA_KEY: &str = "checkpoint";
/// Name of the last tensor.
const CHECKSUM: &str = "blake3";
/// Names that no tensor may have: those that the format needs.
const RESERVED: [&str; 2] = [CHECKSUM, "__metadata__"];
/// Values converted at a time.
const CHUNK_VALUES: usize = 1 << 16;

/// What is kept: numbers and words as JSON, tensors by name.
///
/// JSON holds neither NaN nor infinity, and may change the last digit of a fraction: what must come back bit for bit is an
/// integer, a string, or a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved<T> {
    /// Numbers and words: any type whose maps have string keys.
    pub state: T,
    /// Tensors; every bit of them comes back, NaN included. None is called `blake3` or `__metadata__`.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// What a file says of itself.
#[derive(Serialize, Deserialize)]
struct Label<T> {
    version: u32,
    name: String,
    number: u64,
    state: T,
}

/// The part of a [`Label`] that every version has.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The length and the header of the file.
///
/// # Panics
/// If a tensor has a reserved name, or another number of values than its shape says.
pub(crate) fn header<T: Serialize>(name: &str, number: u64, saved: &Saved<T>) -> Vec<u8> {
    let label = Label { version: VERSION, name: name.into(), number, state: &saved.state };
    let label = serde_json::to_string(&label).expect("a state has string keys");
    let mut end = 0;
    let mut place = |dtype: Dtype, shape: Vec<usize>, bytes: usize| {
        end += bytes;
        TensorInfo { dtype, shape, data_offsets: (end - bytes, end) }
    };
    let mut infos = Vec::with_capacity(saved.tensors.len() + 1);
    for (name, tensor) in &saved.tensors {
        assert!(!RESERVED.contains(&name.as_str()), "no tensor of a checkpoint is called {name}");
        assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "tensor `{name}` must hold what its shape says");
        infos.push((name.clone(), place(Dtype::F32, tensor.shape.clone(), size_of_val(tensor.values.as_slice()))));
    }
    infos.push((CHECKSUM.into(), place(Dtype::U8, vec![blake3::OUT_LEN], blake3::OUT_LEN)));
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), label)]);
    let metadata = Metadata::new(Some(metadata), infos).expect("contiguous offsets computed from the shapes");
    let mut json = serde_json::to_vec(&metadata).expect("a header always prints");
    json.resize(json.len().next_multiple_of(ALIGNMENT_BYTES), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

/// Writes a whole checkpoint that begins with `header`.
pub(crate) fn write(out: &mut impl Write, header: &[u8], tensors: &BTreeMap<String, HostTensor>) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out.write_all(bytes)
    };
    put(header)?;
    let mut bytes = Vec::new();
    for values in tensors.values().flat_map(|tensor| tensor.values.chunks(CHUNK_VALUES)) {
        bytes.clear();
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        put(&bytes)?;
    }
    let checksum = hasher.finalize();
    out.write_all(checksum.as_bytes())
}

/// Reads the checkpoint in `file`, which must be `name`'s with this number.
pub(crate) fn read<T: DeserializeOwned>(file: &Path, name: &str, number: u64) -> Result<Saved<T>, Damage> {
    let file = File::open(file)?;
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(Damage::TooLarge { bytes: length, bytes_max: FILE_BYTES_MAX });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let (body, checksum) = bytes.split_last_chunk::<{ blake3::OUT_LEN }>().ok_or(Damage::Checksum)?;
    if blake3::hash(body) != *checksum {
        return Err(Damage::Checksum);
    }
    parse(&bytes, name, number)
}

/// Takes a file apart whose bytes are those that were written; by whom is another matter.
fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str, number: u64) -> Result<Saved<T>, Damage> {
    let foreign = |reason: &str| Damage::Foreign(reason.into());
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| foreign("it has no header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok();
    let (header, data) = length.and_then(|length| rest.split_at_checked(length)).ok_or_else(|| foreign("its header does not end"))?;
    // Checks that the tensors are contiguous and as long as their shapes say, without overflow.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| Damage::Foreign(error.to_string()))?;
    if metadata.data_len() != data.len() {
        return Err(foreign("its header speaks of more or less than it holds"));
    }
    let label = metadata.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY)).ok_or_else(|| foreign("it has no label"))?;
    let VersionOnly { version } = serde_json::from_str(label).map_err(|error| Damage::Foreign(error.to_string()))?;
    if version != VERSION {
        return Err(Damage::Version { found: version, read: VERSION });
    }
    let label: Label<T> = serde_json::from_str(label).map_err(Damage::State)?;
    if (label.name.as_str(), label.number) != (name, number) {
        return Err(Damage::Foreign(format!("it is {} {}", label.name, label.number)));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        if name == CHECKSUM {
            continue;
        }
        if info.dtype != Dtype::F32 {
            return Err(Damage::Foreign(format!("its tensor `{name}` is {}", info.dtype)));
        }
        let (values, _) = data[info.data_offsets.0..info.data_offsets.1].as_chunks::<{ size_of::<f32>() }>();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.insert(name, HostTensor { shape: info.shape.clone(), values });
    }
    Ok(Saved { state: label.state, tensors })
}
