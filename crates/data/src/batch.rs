//! Examples side by side: ragged, never padded. Whoever computes pads, or packs, by the lengths.

use crate::example::{Example, Target};

/// The label of a token that is not scored.
pub const IGNORED: i32 = -100;

/// Several sequences, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The length of each sequence in tokens.
    pub lengths: Vec<u32>,
    /// The token ids of all sequences; as many as the lengths add up to.
    pub ids: Vec<u32>,
    /// What is scored. Next-token: for each token the id that follows it, or [`IGNORED`]. Classes: one a sequence.
    pub labels: Vec<i32>,
    /// How many examples it holds.
    pub samples: u32,
}

impl Batch {
    /// Lays examples side by side. All must have the same kind of target.
    pub fn of<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = Self { lengths: Vec::new(), ids: Vec::new(), labels: Vec::new(), samples: 0 };
        for example in examples {
            batch.lengths.push(example.tokens.len() as u32);
            batch.ids.extend_from_slice(&example.tokens);
            match example.target {
                Target::Class(class) => batch.labels.push(class as i32),
                Target::Next { from } => {
                    let following = example.tokens.iter().enumerate().skip(1);
                    let scored = following.map(|(place, id)| if place >= from { *id as i32 } else { IGNORED });
                    batch.labels.extend(scored.chain([IGNORED]));
                }
            }
            batch.samples += 1;
        }
        batch
    }

    /// The same sequences in up to `parts` batches, in order, each of about as many tokens; fewer where there are fewer sequences.
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let parts = parts.clamp(1, self.lengths.len().max(1));
        let per_sequence = self.labels.len() == self.lengths.len() && self.labels.len() != self.ids.len();
        let (mut batches, mut sequence, mut token) = (Vec::with_capacity(parts), 0, 0);
        for part in 0..parts {
            let (first, begin) = (sequence, token);
            // Each part takes at least one sequence and leaves one for each part to come.
            let last_allowed = self.lengths.len() - (parts - part - 1);
            let goal = self.ids.len() * (part + 1) / parts;
            while sequence < last_allowed && (sequence == first || token + self.lengths[sequence] as usize <= goal || part + 1 == parts) {
                token += self.lengths[sequence] as usize;
                sequence += 1;
            }
            let labels = if per_sequence { &self.labels[first..sequence] } else { &self.labels[begin..token] };
            batches.push(Self {
                lengths: self.lengths[first..sequence].to_vec(),
                ids: self.ids[begin..token].to_vec(),
                labels: labels.to_vec(),
                samples: (sequence - first) as u32,
            });
        }
        batches
    }

    /// How many scores its loss is a mean of.
    pub fn scored(&self) -> u32 {
        self.labels.iter().filter(|label| **label != IGNORED).count() as u32
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[u32], classes: bool) -> Batch {
        let tokens: u32 = lengths.iter().sum();
        let labels = if classes { (0..lengths.len() as i32).collect() } else { (0..tokens as i32).collect() };
        Batch { lengths: lengths.to_vec(), ids: (0..tokens).collect(), labels, samples: lengths.len() as u32 }
    }

    /// Goal: micro-batches are the batch. Method: every number of parts of uneven sequences, put together again.
    #[test]
    fn parts_are_the_whole_in_order() {
        for lengths in [&[5, 1, 1, 9, 2, 2][..], &[1], &[64, 1, 1, 1], &[1, 1, 1, 64], &[3, 3, 3, 3, 3, 3, 3, 3]] {
            for (parts, classes) in (1..10).flat_map(|parts| [(parts, false), (parts, true)]) {
                let whole = batch(lengths, classes);
                let split = whole.split(parts);
                assert_eq!(split.len(), parts.min(lengths.len()));
                assert!(split.iter().all(|part| part.samples > 0 && part.samples as usize == part.lengths.len()));
                assert_eq!(split.iter().flat_map(|part| part.lengths.clone()).collect::<Vec<_>>(), whole.lengths);
                assert_eq!(split.iter().flat_map(|part| part.ids.clone()).collect::<Vec<_>>(), whole.ids);
                assert_eq!(split.iter().flat_map(|part| part.labels.clone()).collect::<Vec<_>>(), whole.labels);
            }
        }
        let even = batch(&[3; 8], false).split(4);
        assert!(even.iter().all(|part| part.tokens() == 6), "sequences of one length are shared out evenly");
    }
}
