//! Encodings that remember: what a sample's tensor was when it last came by, or what its last encoding left out.
//!
//! Plain structs, one on each side of the cut, with no clock: the same tensors in the same order leave the same memory. Both
//! ends of a memory must have the same bounds, because what one forgets the other must forget too.

mod cache;
mod difference;
mod feedback;

pub use difference::{DifferenceReceiver, DifferenceSender, Differences};
pub use feedback::Feedback;

use crate::encoding::EncodingError;

/// One sample of a batch, as a memory knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Tells it apart from every other sample of its client; nothing else is read from it.
    pub id: u64,
    /// Its tokens.
    pub rows: u32,
}

/// What a memory may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// The most values, over all samples; beyond it the samples longest unseen are forgotten.
    pub values_max: usize,
}

/// A tensor that a memory cannot send or take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Its bytes.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// Samples that are not the tensor's rows.
    #[error("samples of {rows} rows do not make a tensor of {values} values")]
    Samples {
        /// The rows of all samples.
        rows: u64,
        /// The values given.
        values: usize,
    },
    /// Bytes that end early.
    #[error("{bytes} B are too few for {samples} samples with what they are differences from; the peer is at fault")]
    Truncated {
        /// The bytes given.
        bytes: usize,
        /// Samples expected.
        samples: usize,
    },
    /// A difference from what this side does not remember.
    #[error("sample {sample:#x} is a difference from its visit {theirs}, this side remembers {ours}: start the session anew")]
    OutOfStep {
        /// The sample.
        sample: u64,
        /// The visit that the sender remembers.
        theirs: u32,
        /// The visit that this side remembers; 0 for none.
        ours: u32,
    },
}

/// The values of samples, one after the other; refuses samples that are not all the rows.
fn split<'a>(samples: &[Sample], values: &'a [f32], columns: usize) -> Result<Vec<&'a [f32]>, MemoryError> {
    let rows: u64 = samples.iter().map(|sample| u64::from(sample.rows)).sum();
    if rows.checked_mul(columns as u64) != Some(values.len() as u64) {
        return Err(MemoryError::Samples { rows, values: values.len() });
    }
    let mut rest = values;
    let parts = samples.iter().map(|sample| {
        let (front, back) = rest.split_at(sample.rows as usize * columns);
        rest = back;
        front
    });
    Ok(parts.collect())
}
