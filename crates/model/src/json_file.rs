//! The JSON files that stand beside weights: read whole, but never beyond a named bound.

use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Why a JSON file of a model or adapter folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonFileError {
    /// No such file.
    #[error("{} is missing; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    Missing {
        /// Path of the file.
        file: PathBuf,
    },
    /// The operating system would not let us.
    #[error("{}: {source}", file.display())]
    Io {
        /// Path of the file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Larger than any real one.
    #[error("{} is {bytes} bytes long, more than the {bytes_max} allowed; is it the right file?", file.display())]
    TooLarge {
        /// Path of the file.
        file: PathBuf,
        /// Its length.
        bytes: u64,
        /// The most that is read.
        bytes_max: u64,
    },
    /// Not JSON, or not the JSON it should be.
    #[error("{}: {source}; fetch it again (`cutlayer pull ORG/NAME` for a model)", file.display())]
    Malformed {
        /// Path of the file.
        file: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
}

/// Reads a JSON file of at most `bytes_max` bytes.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<T, JsonFileError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => JsonFileError::Missing { file: path.into() },
        _ => JsonFileError::Io { file: path.into(), source },
    };
    let file = File::open(path).map_err(io_error)?;
    let bytes = file.metadata().map_err(io_error)?.len();
    if bytes > bytes_max {
        return Err(JsonFileError::TooLarge { file: path.into(), bytes, bytes_max });
    }
    serde_json::from_reader(BufReader::new(file.take(bytes_max))).map_err(|source| JsonFileError::Malformed { file: path.into(), source })
}
