//! The parts that encodings are made of, as a Hello lists them: what a peer can do, rather than each combination of it.

use super::{Encoding, Values};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One part of an encoding.
///
/// Variant order is the wire format: append, never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncodingPart {
    /// Four bytes a value.
    F32,
    /// Two bytes a value, with the exponent of f32.
    Bf16,
    /// Two bytes a value, with a longer mantissa.
    F16,
    /// Two to eight bits a value, with a scale a row or a group.
    Int,
    /// The Walsh-Hadamard rotation of a group or row.
    Hadamard,
    /// Rounding up or down by chance.
    Stochastic,
    /// The largest entries of a row alone.
    TopK,
    /// Fewer coordinates than the row has.
    Projection,
    /// A lossless stage after all others.
    Zstd,
    /// Differences from a sample's last visit, and tokens that did not move.
    Delta,
    /// What was left out of a sample, added to its next tensor.
    Feedback,
}

impl EncodingPart {
    /// Every part this build can read and write.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Int,
        Self::Hadamard,
        Self::Stochastic,
        Self::TopK,
        Self::Projection,
        Self::Zstd,
        Self::Delta,
        Self::Feedback,
    ];
}

impl fmt::Display for EncodingPart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int => "int",
            Self::Hadamard => "hadamard",
            Self::Stochastic => "stochastic",
            Self::TopK => "topk",
            Self::Projection => "proj",
            Self::Zstd => "zstd",
            Self::Delta => "delta",
            Self::Feedback => "feedback",
        })
    }
}

impl Encoding {
    /// What a peer must be able to do to speak it.
    pub fn parts(self) -> Vec<EncodingPart> {
        let values = match self.values {
            Values::F32 => EncodingPart::F32,
            Values::Bf16 => EncodingPart::Bf16,
            Values::F16 => EncodingPart::F16,
            Values::Int(_) => EncodingPart::Int,
        };
        let stages = [
            (self.hadamard, EncodingPart::Hadamard),
            (self.stochastic, EncodingPart::Stochastic),
            (self.top > 0, EncodingPart::TopK),
            (self.projection > 0, EncodingPart::Projection),
            (self.zstd, EncodingPart::Zstd),
            (self.delta, EncodingPart::Delta),
            (self.feedback, EncodingPart::Feedback),
        ];
        std::iter::once(values).chain(stages.into_iter().filter_map(|(on, part)| on.then_some(part))).collect()
    }
}
