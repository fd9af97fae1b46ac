//! What both sides remember of a client's samples, where activations travel as differences between visits.
//!
//! The client numbers its samples as they first come: a number says that a sample came before, and nothing of what is in it.

use crate::error::NodeError;
use cutlayer_data::Batch;
use cutlayer_wire::{DifferenceReceiver, DifferenceSender, Differences, Encoding, MemoryBound, MemoryError, Sample};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The most activations that either side remembers of one client: 32 MiB of f32. Both sides must agree, so it is no setting.
const REMEMBERED: MemoryBound = MemoryBound { values_max: 8 << 20 };

/// The client's end.
pub(crate) struct Visits {
    sender: DifferenceSender,
    /// The number of each sample, by a hash of its tokens: a collision costs bytes, not correctness.
    numbers: BTreeMap<u64, u64>,
}

impl Visits {
    /// Nothing seen yet; `None` where the encoding remembers nothing.
    pub fn of(encoding: Encoding) -> Option<Self> {
        let (sender, _) = Differences::of(encoding, REMEMBERED)?.ends();
        Some(Self { sender, numbers: BTreeMap::new() })
    }

    /// The payload of a batch's activations.
    pub fn pack(&mut self, batch: &Batch, values: &[f32], width: usize, seed: u64) -> Result<Vec<u8>, MemoryError> {
        let mut rest = &batch.ids[..];
        let samples = batch.lengths.iter().map(|rows| {
            let (tokens, back) = rest.split_at(*rows as usize);
            rest = back;
            let mut hasher = DefaultHasher::new();
            tokens.hash(&mut hasher);
            let next = self.numbers.len() as u64;
            Sample { id: *self.numbers.entry(hasher.finish()).or_insert(next), rows: *rows }
        });
        let samples: Vec<Sample> = samples.collect();
        self.sender.pack(&samples, values, width, seed)
    }

    /// A step that the server would not take: it may not have seen it, so all samples travel whole again.
    pub fn forget(&mut self) {
        self.sender.clear();
    }
}

/// The server's end for one client; `None` where the encoding remembers nothing.
pub(crate) fn receiver(encoding: Encoding) -> Option<DifferenceReceiver> {
    Some(Differences::of(encoding, REMEMBERED)?.ends().1)
}

/// Gradients and updates belong to no sample that could come by again.
pub(crate) fn check_forgetful(encodings: [Encoding; 2]) -> Result<(), NodeError> {
    match encodings.into_iter().find(|encoding| encoding.differences().is_some()) {
        None => Ok(()),
        Some(encoding) => Err(cutlayer_wire::EncodingError::Remembers { encoding }.into()),
    }
}
