//! How the values of a tensor become bytes on the wire.
//!
//! Host-side reference implementations; a device may produce the same bytes itself. Each encoding is
//! one id and one type behind [`TensorEncoding`]: a new one is appended to both.

use std::fmt;
use std::str::FromStr;

use half::bf16;
use serde::{Deserialize, Serialize};

/// Which encoding a tensor travels in; the byte in a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Encoding {
    /// Four bytes a value, little-endian; lossless.
    F32 = 0,
    /// Two bytes a value: the upper half of an f32, rounded to nearest even.
    Bf16 = 1,
}

/// An encoding that cannot be used as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingError {
    /// A name that no encoding has.
    #[error("no encoding is called {found:?}: use one of f32, bf16")]
    UnknownName {
        /// The name given.
        found: String,
    },
    /// A number that no encoding has.
    #[error("no encoding has the number {found}: the peer may be newer than this build")]
    UnknownId {
        /// The number found.
        found: u8,
    },
    /// Bytes that are not a whole number of values.
    #[error("{bytes} B of {encoding} is not a whole number of values")]
    Ragged {
        /// The encoding read.
        encoding: Encoding,
        /// The bytes given.
        bytes: usize,
    },
}

/// Turns values into bytes and back, with no state and no shape.
pub trait TensorEncoding: Send + Sync {
    /// The id that frames carry.
    fn encoding(&self) -> Encoding;

    /// Bytes that `values` values take, or nothing where that overflows.
    fn payload_bytes(&self, values: u64) -> Option<u64>;

    /// Appends the bytes of `values`.
    fn write(&self, values: &[f32], bytes: &mut Vec<u8>);

    /// Appends the values in `bytes`.
    fn read(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<(), EncodingError>;
}

impl Encoding {
    /// Every encoding this build speaks, best fidelity first.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// The implementation behind the id.
    pub fn codec(self) -> &'static dyn TensorEncoding {
        match self {
            Self::F32 => &PlainF32,
            Self::Bf16 => &RoundedBf16,
        }
    }

    /// Bytes of a `[tokens, hidden]` tensor, or nothing where that overflows.
    pub fn payload_bytes(self, tokens: u32, hidden: u32) -> Option<u64> {
        // Two u32 multiply into a u64 without overflow.
        self.codec().payload_bytes(u64::from(tokens) * u64::from(hidden))
    }

    /// The bytes of `values`.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.codec().write(values, &mut bytes);
        bytes
    }

    /// The values in `bytes`.
    pub fn decode(self, bytes: &[u8]) -> Result<Vec<f32>, EncodingError> {
        let mut values = Vec::new();
        self.codec().read(bytes, &mut values)?;
        Ok(values)
    }
}

impl TryFrom<u8> for Encoding {
    type Error = EncodingError;

    fn try_from(id: u8) -> Result<Self, EncodingError> {
        Self::ALL.into_iter().find(|encoding| *encoding as u8 == id).ok_or(EncodingError::UnknownId { found: id })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Encoding {
    type Err = EncodingError;

    fn from_str(text: &str) -> Result<Self, EncodingError> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(EncodingError::UnknownName { found: text.into() }),
        }
    }
}

/// Lossless little-endian f32.
struct PlainF32;

/// bf16, rounded to nearest even.
struct RoundedBf16;

// Filling a sized buffer by chunks, rather than pushing, is what lets the compiler vectorise these loops.

impl TensorEncoding for PlainF32 {
    fn encoding(&self) -> Encoding {
        Encoding::F32
    }

    fn payload_bytes(&self, values: u64) -> Option<u64> {
        values.checked_mul(4)
    }

    fn write(&self, values: &[f32], bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + values.len() * 4, 0);
        for (chunk, value) in bytes[start..].chunks_exact_mut(4).zip(values) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn read(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<(), EncodingError> {
        whole(bytes, 4, Encoding::F32)?;
        values.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    }
}

impl TensorEncoding for RoundedBf16 {
    fn encoding(&self) -> Encoding {
        Encoding::Bf16
    }

    fn payload_bytes(&self, values: u64) -> Option<u64> {
        values.checked_mul(2)
    }

    fn write(&self, values: &[f32], bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + values.len() * 2, 0);
        for (chunk, value) in bytes[start..].chunks_exact_mut(2).zip(values) {
            chunk.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
        }
    }

    fn read(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<(), EncodingError> {
        whole(bytes, 2, Encoding::Bf16)?;
        values.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        Ok(())
    }
}

fn whole(bytes: &[u8], value_bytes: usize, encoding: Encoding) -> Result<(), EncodingError> {
    if bytes.len().is_multiple_of(value_bytes) { Ok(()) } else { Err(EncodingError::Ragged { encoding, bytes: bytes.len() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: f32 is lossless, NaN's payload included. Method: bits in, bits out.
    #[test]
    fn f32_keeps_every_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::NAN];
        let back = Encoding::F32.decode(&Encoding::F32.encode(&values)).expect("whole values");
        assert_eq!(back.map_bits(), values.map_bits());
    }

    /// Goal: bf16 rounds to nearest even. Method: the halfway points on both sides of an even value.
    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (bits, expected) in [(0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81)] {
            let bytes = Encoding::Bf16.encode(&[f32::from_bits(bits)]);
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{bits:08x}");
        }
    }

    /// Goal: names, ids and sizes agree with each other. Method: every encoding.
    #[test]
    fn every_encoding_is_found_by_name_and_id() {
        for encoding in Encoding::ALL {
            assert_eq!(encoding.codec().encoding(), encoding);
            assert_eq!(encoding.to_string().parse(), Ok(encoding));
            assert_eq!(Encoding::try_from(encoding as u8), Ok(encoding));
            let bytes = encoding.encode(&[1.0; 6]).len() as u64;
            assert_eq!(encoding.payload_bytes(2, 3), Some(bytes));
        }
        assert_eq!(Encoding::F32.payload_bytes(u32::MAX, u32::MAX), None);
        assert!(Encoding::try_from(9).is_err());
        assert!("f16".parse::<Encoding>().is_err());
    }

    /// Goal: half a value is refused. Method: one byte too many.
    #[test]
    fn ragged_bytes_are_refused() {
        assert!(Encoding::F32.decode(&[0; 5]).is_err());
        assert!(Encoding::Bf16.decode(&[0; 3]).is_err());
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl<T: AsRef<[f32]> + ?Sized> MapBits for T {
        fn map_bits(&self) -> Vec<u32> {
            self.as_ref().iter().map(|value| value.to_bits()).collect()
        }
    }
}
