//! Error feedback: what an encoding left out of a sample's tensor is added to the next one of that sample.
//!
//! Only the sender remembers; the receiver reads an ordinary payload. Over visits nothing is left out for good, so that even a
//! coarse encoding of gradients is right on average (Seide et al. 2014, Karimireddy et al. 2019).

use super::cache::Cache;
use super::{MemoryBound, MemoryError, Sample, split};
use crate::encoding::Encoding;

/// A sender's leftovers.
#[derive(Clone, Debug)]
pub struct Feedback {
    encoding: Encoding,
    left: Cache,
}

impl Feedback {
    /// Nothing left out yet.
    pub fn new(encoding: Encoding, bound: MemoryBound) -> Self {
        Self { encoding, left: Cache::new(bound) }
    }

    /// Values remembered.
    pub fn values(&self) -> usize {
        self.left.values()
    }

    /// Forgets what was left out: a new session, or a new adapter that it would not fit.
    pub fn clear(&mut self) {
        self.left.clear();
    }

    /// The payload of `values` and what was left out of these samples before.
    pub fn pack(&mut self, samples: &[Sample], values: &[f32], columns: usize, seed: u64) -> Result<Vec<u8>, MemoryError> {
        let parts = split(samples, values, columns)?;
        let wanted = samples.iter().zip(&parts).flat_map(|(sample, part)| {
            let left = self.left.get(sample.id, part.len());
            let owed = move |place: usize| left.map_or(0.0, |entry| entry.values[place]);
            part.iter().enumerate().map(move |(place, value)| value + owed(place))
        });
        let wanted: Vec<f32> = wanted.collect();
        let bytes = self.encoding.encode(&wanted, columns, seed)?;
        let sent = self.encoding.decode(&bytes, values.len() / columns.max(1), columns)?;
        let left: Vec<f32> = wanted.iter().zip(&sent).map(|(wanted, sent)| wanted - sent).collect();
        for (sample, left) in samples.iter().zip(split(samples, &left, columns)?) {
            self.left.put(sample.id, 1, left.to_vec());
        }
        Ok(bytes)
    }
}
