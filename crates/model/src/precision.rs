//! What the frozen network is held and multiplied in. Adapters, their gradients, norms' statistics, softmax and losses stay in f32.

use crate::device::DeviceError;
use crate::ops::is_cpu;
use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Precision of one side's frozen layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Weights in bf16, half the memory. On a CPU activations stay f32 and are rounded as they enter a product, whose sums are f32; with
    /// AVX-512-BF16 that is the fastest there is, elsewhere weights are widened first. On a GPU activations are bf16 too.
    Bf16,
    /// The same in f16, on a GPU.
    F16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16, Self::F16]
            .into_iter()
            .find(|precision| precision.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no precision; write f32, bf16 or f16"))
    }
}

/// The types of the tensors of one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Types {
    /// Weight matrices and embedding tables.
    pub matrices: DType,
    /// Activations, biases, norms and rotary angles.
    pub activations: DType,
}

impl Precision {
    /// The types on `device`, which must have them.
    pub(crate) fn types(self, device: &Device) -> Result<Types, DeviceError> {
        let wanted = match self {
            Self::F32 => return Ok(Types { matrices: DType::F32, activations: DType::F32 }),
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        };
        let refused = |reason: &str| Err(DeviceError::Precision { precision: self, reason: reason.into() });
        if is_cpu(device) {
            return match self {
                Self::F16 => refused("a CPU computes in f32 or bf16"),
                _ => Ok(Types { matrices: wanted, activations: DType::F32 }),
            };
        }
        if !device.supports_dtype(wanted) {
            return refused("this GPU lacks it");
        }
        Ok(Types { matrices: wanted, activations: wanted })
    }
}
