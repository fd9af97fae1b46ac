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

    /// How many scores its loss is a mean of.
    pub fn scored(&self) -> u32 {
        self.labels.iter().filter(|label| **label != IGNORED).count() as u32
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
