//! What either side remembers of a client's samples: activations that travel as differences between visits, and what an encoding
//! of gradients left out.
//!
//! The client numbers its samples as they first come: a number says that a sample came before, and nothing of what is in it.

use crate::auto::Encodings;
use cutlayer_data::Batch;
use cutlayer_wire::{DifferenceReceiver, DifferenceSender, Differences, Encoding, Feedback, MemoryBound, Sample};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The most values that either side remembers of one client, in each direction: 32 MiB of f32. For differences both sides must
/// agree, so it is no setting.
const REMEMBERED: MemoryBound = MemoryBound { values_max: 8 << 20 };

/// The client's end.
pub(crate) struct Visits {
    activations: Option<DifferenceSender>,
    /// U-shape: of the gradients at the tail.
    gradients: Option<Feedback>,
    /// The number of each sample, by a hash of its tokens: a collision costs bytes, not correctness. Nothing where nobody remembers.
    numbers: Option<BTreeMap<u64, u64>>,
}

impl Visits {
    /// Nothing seen yet.
    pub fn of(activations: Encoding, gradients: Encoding) -> Self {
        let activations = Differences::of(activations, REMEMBERED).map(|terms| terms.ends().0);
        let gradients = feedback(gradients);
        let numbers = (activations.is_some() || gradients.is_some()).then(BTreeMap::new);
        Self { activations, gradients, numbers }
    }

    /// The numbers of a batch's samples, where either side remembers them.
    pub fn number(&mut self, batch: &Batch) -> Vec<u64> {
        let Some(numbers) = &mut self.numbers else { return Vec::new() };
        let mut rest = &batch.ids[..];
        let number = |rows: &u32| {
            let (tokens, back) = rest.split_at(*rows as usize);
            rest = back;
            let mut hasher = DefaultHasher::new();
            tokens.hash(&mut hasher);
            let next = numbers.len() as u64;
            *numbers.entry(hasher.finish()).or_insert(next)
        };
        batch.lengths.iter().map(number).collect()
    }

    /// What packs activations, where they are remembered.
    pub fn activations(&mut self) -> Option<&mut DifferenceSender> {
        self.activations.as_mut()
    }

    /// What packs gradients, where they are remembered.
    pub fn gradients(&mut self) -> Option<&mut Feedback> {
        self.gradients.as_mut()
    }

    /// A step that the server would not take: it may not have seen it, so all samples travel whole again.
    pub fn forget(&mut self) {
        self.activations.iter_mut().for_each(DifferenceSender::clear);
    }
}

/// The server's end for one client.
pub(crate) struct Remembered {
    activations: Option<DifferenceReceiver>,
    gradients: Option<Feedback>,
}

impl Remembered {
    /// Nothing seen yet.
    pub fn of(encodings: Encodings) -> Self {
        let activations = Differences::of(encodings.activations, REMEMBERED).map(|terms| terms.ends().1);
        Self { activations, gradients: feedback(encodings.gradients) }
    }

    /// What reads activations, where they are remembered.
    pub fn activations(&mut self) -> Option<&mut DifferenceReceiver> {
        self.activations.as_mut()
    }

    /// What packs gradients, where they are remembered.
    pub fn gradients(&mut self) -> Option<&mut Feedback> {
        self.gradients.as_mut()
    }
}

fn feedback(encoding: Encoding) -> Option<Feedback> {
    encoding.feeds_back().then(|| Feedback::new(encoding, REMEMBERED))
}

/// A batch's samples, by their numbers and lengths; a peer that gives fewer numbers than sequences is refused by what they are for.
pub(crate) fn samples(numbers: &[u64], lengths: &[u32]) -> Vec<Sample> {
    numbers.iter().zip(lengths).map(|(id, rows)| Sample { id: *id, rows: *rows }).collect()
}
