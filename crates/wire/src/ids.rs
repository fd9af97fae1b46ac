//! Newtypes for everything that could be mistaken for something else.
//!
//! The two hashes travel as 32 raw bytes in bincode and as 64 hex digits in files that people read.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hex digits that `Display` shows of a hash: enough to tell peers apart in a log.
const SHORT_BYTES: usize = 4;

/// A peer's ed25519 public key: who it is, as its TLS certificate proves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// Fingerprint of the frozen base model; two peers whose hashes differ must not train together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseHash(pub [u8; 32]);

/// One forward and backward of one micro-batch. The id is its place in the run, so that a retry carries the same id, from the same
/// process or from one that was started again.
///
/// From the top: 32 bits of round, 1 bit that is set where the step only scores, 23 bits of the step's index in its round, and 8 bits of
/// the micro-batch's in its step. Ids of a client rise in the order in which it takes its steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepId(pub u64);

/// Steps that one round can number.
pub const STEPS_MAX: u32 = 1 << INDEX_BITS;
/// Micro-batches that one step can number.
pub const MICRO_BATCHES_MAX: u32 = 1 << MICRO_BITS;

const INDEX_BITS: u32 = 23;
const MICRO_BITS: u32 = 8;

/// One round of local steps and one aggregation. Global adapter `r` is what round `r` left;
/// adapter 0 is the one that the run started from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoundId(pub u32);

/// The cut layer `k`: the client holds the embedding and blocks `0..k`, the server blocks `k..L`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CutPoint(pub u16);

/// Text that is not a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 64 hexadecimal digits, found {found:?}: copy it whole from `cutlayer keys`")]
pub struct IdError {
    /// What was being read.
    pub what: &'static str,
    /// The text found, cut short.
    pub found: String,
}

impl BaseHash {
    /// The first eight bytes as a little-endian number: what an adapter frame's header carries.
    pub fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl RoundId {
    /// The round after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The round before this one, whose adapter this round starts from; round 0 has none and gives itself.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl StepId {
    /// Micro-batch `micro` of step `index` that trains `round`, or scores it.
    ///
    /// # Panics
    /// If the index is not below [`STEPS_MAX`], or the micro-batch not below [`MICRO_BATCHES_MAX`].
    pub fn new(round: RoundId, train: bool, index: u32, micro: u32) -> Self {
        assert!(index < STEPS_MAX && micro < MICRO_BATCHES_MAX, "step {index}.{micro} cannot be numbered");
        let place = (u64::from(!train) << INDEX_BITS | u64::from(index)) << MICRO_BITS | u64::from(micro);
        Self(u64::from(round.0) << 32 | place)
    }

    /// The round that it trains, or scores.
    pub fn round(self) -> RoundId {
        RoundId((self.0 >> 32) as u32)
    }

    /// Whether it trains.
    pub fn trains(self) -> bool {
        self.0 >> (INDEX_BITS + MICRO_BITS) & 1 == 0
    }

    /// Its step's place in the round, from 0.
    pub fn index(self) -> u32 {
        (self.0 >> MICRO_BITS) as u32 % STEPS_MAX
    }

    /// Its place in the step, from 0.
    pub fn micro(self) -> u32 {
        self.0 as u32 % MICRO_BATCHES_MAX
    }

    /// The ids of all micro-batches of its step.
    pub fn siblings(self) -> std::ops::RangeInclusive<Self> {
        let first = self.0 - u64::from(self.micro());
        Self(first)..=Self(first + u64::from(MICRO_BATCHES_MAX - 1))
    }
}

/// `7/3` is the fourth step of round 7, `7/3.1` its second micro-batch, `7/e3` the fourth batch that scores adapter 7.
impl fmt::Display for StepId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores = if self.trains() { "" } else { "e" };
        write!(out, "{}/{scores}{}", self.round(), self.index())?;
        if self.micro() > 0 { write!(out, ".{}", self.micro()) } else { Ok(()) }
    }
}

fn write_hex(bytes: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

fn to_hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(what: &'static str, text: &str) -> Result<[u8; 32], IdError> {
    let refused = || IdError { what, found: text.chars().take(80).collect() };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(refused());
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(refused)?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(refused)?;
        *byte = (high * 16 + low) as u8;
    }
    Ok(bytes)
}

/// The hashes share everything but their meaning.
macro_rules! hash_id {
    ($name:ident, $what:literal) => {
        impl $name {
            /// All 64 hexadecimal digits.
            pub fn to_hex(&self) -> String {
                to_hex(&self.0)
            }
        }

        /// The first eight hexadecimal digits.
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0[..SHORT_BYTES], out)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(concat!(stringify!($name), "("))?;
                write_hex(&self.0, out)?;
                out.write_str(")")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                from_hex($what, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.serialize_str(&self.to_hex()) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

hash_id!(PeerId, "a peer's key");
hash_id!(BaseHash, "a base model's fingerprint");

macro_rules! number_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    )*};
}

number_id!(RoundId, CutPoint);

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what `keys` prints can be pasted back. Method: through hex, in both cases of letter.
    #[test]
    fn a_peer_survives_its_hex() {
        let peer = PeerId(std::array::from_fn(|i| (i * 37) as u8));
        assert_eq!(peer.to_hex().parse(), Ok(peer));
        assert_eq!(peer.to_hex().to_uppercase().parse(), Ok(peer));
        assert_eq!(peer.to_string(), "00254a6f");
    }

    /// Goal: a key cut short, or with a stray letter, is refused by name. Method: three wrong texts.
    #[test]
    fn what_is_not_hex_is_refused() {
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            let error = text.parse::<PeerId>().expect_err("not a key");
            assert!(error.to_string().contains("a peer's key"), "{error}");
        }
    }

    /// Goal: rounds and prefixes count as documented. Method: the ends of the range.
    #[test]
    fn rounds_have_neighbours() {
        assert_eq!(RoundId(0).previous(), RoundId(0));
        assert_eq!(RoundId(0).next(), RoundId(1));
        assert_eq!(RoundId(u32::MAX).next(), RoundId(u32::MAX));
        assert_eq!(BaseHash(std::array::from_fn(|i| i as u8)).prefix(), 0x0706050403020100);
    }
}
