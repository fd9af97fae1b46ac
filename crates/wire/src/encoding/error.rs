//! Why an encoding cannot be used, or its bytes not be read. Every text says what to write instead or who is at fault.

use super::Encoding;

/// An encoding that cannot be used as asked, or bytes that it never wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingError {
    /// A name that no encoding has.
    #[error(
        "no encoding is called {found:?}: write f32, bf16, f16, int8, int4 or int4/64 (groups of 64 features), and after it any of \
         +hadamard, +stochastic, +topk=0.05, +proj=64, +feedback, +zstd, +delta, +moved=0.05"
    )]
    UnknownName {
        /// The name given.
        found: String,
    },
    /// Stages that do not go together.
    #[error("{found:?} is no encoding: {reason}")]
    Combination {
        /// The name given.
        found: String,
        /// What is wrong, and what to write.
        reason: &'static str,
    },
    /// Bytes that name no encoding.
    #[error("no encoding has the bytes {found:02x?}: the peer may be newer than this build")]
    UnknownBytes {
        /// The bytes found.
        found: [u8; Encoding::BYTES],
    },
    /// A model that is too wide, too narrow or of the wrong width.
    #[error("{encoding} does not fit a hidden size of {columns}: {remedy}")]
    Columns {
        /// The encoding.
        encoding: Encoding,
        /// The hidden size.
        columns: u64,
        /// What to write.
        remedy: String,
    },
    /// An encoding that remembers what such a tensor has no use for.
    #[error("{encoding} is nothing for {what}: {remedy}")]
    Remembers {
        /// The encoding.
        encoding: Encoding,
        /// What was to travel in it.
        what: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// Values that are not whole rows.
    #[error("{values} values are not whole rows of {columns}")]
    Shape {
        /// The values given.
        values: usize,
        /// The width of a row.
        columns: usize,
    },
    /// A number of bytes that no tensor of this shape takes.
    #[error("{bytes} B are no [{rows}, {columns}] tensor in {encoding}: it takes {bytes_max} B, and fewer only by whole rows")]
    Length {
        /// The encoding read.
        encoding: Encoding,
        /// Rows expected.
        rows: u64,
        /// Columns expected.
        columns: u64,
        /// The bytes given.
        bytes: u64,
        /// The most it takes.
        bytes_max: u64,
    },
    /// Bytes of the right number that nobody encoded.
    #[error("the bytes are not {encoding}: {reason}; the peer is at fault")]
    Corrupt {
        /// The encoding read.
        encoding: Encoding,
        /// What is wrong with them.
        reason: &'static str,
    },
}
