//! An adapter on the wire: one unidirectional stream, the same bytes in both directions.
//!
//! A 40-byte little-endian header, a bincode manifest of names and shapes, then raw f32 values in the
//! manifest's order. Lengths are believed only after they agree with each other and with the limits.

use crate::codec::{ManifestEntry, decode_manifest, encode_manifest};
use crate::encoding::Encoding;
use crate::frame_header::{put, take};
use crate::ids::{BaseHash, RoundId};
use crate::message::PROTOCOL_VERSION;
use crate::tensor::{AdapterState, HostTensor};

/// Bytes of an encoded header.
pub const ADAPTER_HEADER_BYTES: usize = 40;

/// The largest manifest: some ten thousand tensors with full PEFT names.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// The largest adapter: rank 64 on every projection of a 70B model, in f32.
pub const ADAPTER_PAYLOAD_BYTES_MAX: u64 = 4 << 30;

/// The first bytes of every adapter frame.
const MAGIC: [u8; 4] = *b"CUTA";

/// Bytes of one value.
const VALUE_BYTES: u64 = 4;

/// What stands before an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterHeader {
    /// The round that made it.
    pub round: RoundId,
    /// Bytes of manifest.
    pub manifest_bytes: u32,
    /// Bytes of values.
    pub payload_bytes: u64,
    /// Tokens, examples or clients behind it, as the plan weighs updates.
    pub weight: f64,
    /// [`BaseHash::prefix`] of the model that it belongs to.
    pub base_prefix: u64,
}

/// How large an adapter a receiver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// The largest manifest, in bytes.
    pub manifest_bytes_max: usize,
    /// The largest payload, in bytes.
    pub payload_bytes_max: u64,
}

/// An adapter, the round that made it, and what it weighs.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFrame {
    /// The round that made it: an update names the round trained, a global adapter the round committed.
    pub round: RoundId,
    /// Tokens, examples or clients behind it; 0 where nobody asks.
    pub weight: f64,
    /// [`BaseHash::prefix`] of the model that it belongs to.
    pub base_prefix: u64,
    /// The tensors by name.
    pub state: AdapterState,
}

/// An adapter that is not to be believed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFrameError {
    /// Not an adapter at all.
    #[error("stream opens with {found:02x?}, not a cutlayer adapter: close it")]
    Magic {
        /// The first bytes found.
        found: [u8; 4],
    },
    /// Another protocol.
    #[error("adapter speaks protocol {theirs}, we speak {ours}: install the same cutlayer on both sides")]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// Reserved bytes that no sender sets.
    #[error("adapter of round {round} sets reserved bits {found:#06x}")]
    Reserved {
        /// The adapter's round.
        round: RoundId,
        /// The bits found.
        found: u16,
    },
    /// A weight that no count can be.
    #[error("adapter of round {round} weighs {weight}: a weight is finite and not negative")]
    Weight {
        /// The adapter's round.
        round: RoundId,
        /// The weight claimed.
        weight: f64,
    },
    /// Larger than allowed.
    #[error("adapter of round {round}: {part} of {bytes} B exceeds {bytes_max} B: lower the rank or name fewer targets")]
    TooLarge {
        /// The adapter's round.
        round: RoundId,
        /// Manifest or payload.
        part: &'static str,
        /// The size claimed.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A body shorter or longer than its header says.
    #[error("adapter of round {round} is truncated or overlong: {part} has {found} B, the header says {expected} B")]
    Body {
        /// The adapter's round.
        round: RoundId,
        /// Manifest or payload.
        part: &'static str,
        /// Bytes found.
        found: u64,
        /// Bytes promised.
        expected: u64,
    },
    /// A manifest that cannot be read.
    #[error("adapter of round {round}: manifest of {bytes} B cannot be read: {reason}")]
    Manifest {
        /// The adapter's round.
        round: RoundId,
        /// Its size.
        bytes: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that occurs twice.
    #[error("adapter of round {round} holds {name:?} twice")]
    Repeated {
        /// The adapter's round.
        round: RoundId,
        /// The name.
        name: String,
    },
    /// Shapes and payload that disagree.
    #[error("adapter of round {round}: its shapes take {shapes_bytes} B, the payload has {payload_bytes} B")]
    Shapes {
        /// The adapter's round.
        round: RoundId,
        /// Bytes that the shapes take; `u64::MAX` where they overflow.
        shapes_bytes: u64,
        /// Bytes of payload.
        payload_bytes: u64,
    },
}

impl AdapterLimits {
    /// The widest limits: any adapter this crate can carry.
    pub const WIDEST: Self = Self { manifest_bytes_max: MANIFEST_BYTES_MAX, payload_bytes_max: ADAPTER_PAYLOAD_BYTES_MAX };

    /// Limits for adapters of this many values.
    pub fn for_values(values: u64) -> Self {
        let payload_bytes_max = values.saturating_mul(VALUE_BYTES).min(ADAPTER_PAYLOAD_BYTES_MAX);
        Self { payload_bytes_max, ..Self::WIDEST }
    }
}

impl AdapterHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; ADAPTER_HEADER_BYTES] {
        let mut bytes = [0; ADAPTER_HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, MAGIC);
        put(&mut rest, PROTOCOL_VERSION.to_le_bytes());
        put(&mut rest, [0; 2]);
        put(&mut rest, self.round.0.to_le_bytes());
        put(&mut rest, self.manifest_bytes.to_le_bytes());
        put(&mut rest, self.payload_bytes.to_le_bytes());
        put(&mut rest, self.weight.to_le_bytes());
        put(&mut rest, self.base_prefix.to_le_bytes());
        assert!(rest.is_empty(), "the fields fill the header");
        bytes
    }

    /// The header in `bytes`: well-formed, not yet believed.
    pub fn decode(bytes: &[u8; ADAPTER_HEADER_BYTES]) -> Result<Self, AdapterFrameError> {
        let mut rest = &bytes[..];
        let magic = take(&mut rest);
        if magic != MAGIC {
            return Err(AdapterFrameError::Magic { found: magic });
        }
        let theirs = u16::from_le_bytes(take(&mut rest));
        if theirs != PROTOCOL_VERSION {
            return Err(AdapterFrameError::Version { ours: PROTOCOL_VERSION, theirs });
        }
        let reserved = u16::from_le_bytes(take(&mut rest));
        let round = RoundId(u32::from_le_bytes(take(&mut rest)));
        if reserved != 0 {
            return Err(AdapterFrameError::Reserved { round, found: reserved });
        }
        Ok(Self {
            round,
            manifest_bytes: u32::from_le_bytes(take(&mut rest)),
            payload_bytes: u64::from_le_bytes(take(&mut rest)),
            weight: f64::from_le_bytes(take(&mut rest)),
            base_prefix: u64::from_le_bytes(take(&mut rest)),
        })
    }

    /// Everything that can be refused before the body is read or allocated for.
    pub fn check(&self, limits: &AdapterLimits) -> Result<(), AdapterFrameError> {
        let round = self.round;
        if !self.weight.is_finite() || self.weight < 0.0 {
            return Err(AdapterFrameError::Weight { round, weight: self.weight });
        }
        let manifest_bytes_max = limits.manifest_bytes_max.min(MANIFEST_BYTES_MAX) as u64;
        let payload_bytes_max = limits.payload_bytes_max.min(ADAPTER_PAYLOAD_BYTES_MAX);
        for (part, bytes, bytes_max) in
            [("manifest", u64::from(self.manifest_bytes), manifest_bytes_max), ("payload", self.payload_bytes, payload_bytes_max)]
        {
            if bytes > bytes_max {
                return Err(AdapterFrameError::TooLarge { round, part, bytes, bytes_max });
            }
        }
        Ok(())
    }

    fn exactly(&self, part: &'static str, found: usize, expected: u64) -> Result<(), AdapterFrameError> {
        let (round, found) = (self.round, found as u64);
        if found == expected {
            return Ok(());
        }
        Err(AdapterFrameError::Body { round, part, found, expected })
    }
}

impl AdapterFrame {
    /// An adapter of the model `base`.
    pub fn new(round: RoundId, weight: f64, base: &BaseHash, state: AdapterState) -> Self {
        Self { round, weight, base_prefix: base.prefix(), state }
    }

    /// The frame's bytes, header included.
    ///
    /// # Panics
    /// If a tensor has an axis, or the manifest a size, beyond `u32::MAX`: no adapter of ours does.
    pub fn encode(&self) -> Vec<u8> {
        let axis = |axis: &usize| u32::try_from(*axis).expect("an adapter's axis fits a u32");
        let entry = |(name, tensor): (&String, &HostTensor)| (name.clone(), tensor.shape.iter().map(axis).collect());
        let entries: Vec<ManifestEntry> = self.state.iter().map(entry).collect();
        let manifest = encode_manifest(&entries);
        let values: usize = self.state.values().map(|tensor| tensor.values.len()).sum();
        let header = AdapterHeader {
            round: self.round,
            manifest_bytes: u32::try_from(manifest.len()).expect("a manifest fits a u32"),
            payload_bytes: values as u64 * VALUE_BYTES,
            weight: self.weight,
            base_prefix: self.base_prefix,
        };
        let bytes = ADAPTER_HEADER_BYTES + manifest.len() + values * VALUE_BYTES as usize;
        let mut out = Vec::with_capacity(bytes);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&manifest);
        for tensor in self.state.values() {
            Encoding::F32.codec().write(&tensor.values, &mut out);
        }
        out
    }

    /// Joins a header that [`AdapterHeader::check`] let pass with the manifest and payload that followed it.
    ///
    /// Values are taken as they are: NaN and Inf are for the federation's contract to refuse, by name.
    pub fn assemble(header: &AdapterHeader, manifest: &[u8], payload: &[u8]) -> Result<Self, AdapterFrameError> {
        let round = header.round;
        header.exactly("manifest", manifest.len(), header.manifest_bytes.into())?;
        header.exactly("payload", payload.len(), header.payload_bytes)?;
        let unreadable = |reason| AdapterFrameError::Manifest { round, bytes: manifest.len(), reason };
        let (entries, consumed) = decode_manifest(manifest).map_err(unreadable)?;
        if consumed != manifest.len() {
            return Err(unreadable(format!("it ends after {consumed} B")));
        }
        check_shapes(header, &entries)?;
        let mut state = AdapterState::new();
        let mut rest = payload;
        for (name, axes) in entries {
            let shape: Vec<usize> = axes.iter().map(|axis| *axis as usize).collect();
            let bytes = shape.iter().product::<usize>() * VALUE_BYTES as usize;
            let (front, back) = rest.split_at(bytes);
            rest = back;
            let values = Encoding::F32.decode(front).expect("shapes count whole values");
            if state.contains_key(&name) {
                return Err(AdapterFrameError::Repeated { round, name });
            }
            state.insert(name, HostTensor { shape, values });
        }
        Ok(Self { round, weight: header.weight, base_prefix: header.base_prefix, state })
    }

    /// The adapter in `bytes`, header included, within `limits`.
    pub fn decode(bytes: &[u8], limits: &AdapterLimits) -> Result<Self, AdapterFrameError> {
        let Some((header, body)) = bytes.split_first_chunk::<ADAPTER_HEADER_BYTES>() else {
            return Err(AdapterFrameError::Body {
                round: RoundId(0),
                part: "header",
                found: bytes.len() as u64,
                expected: ADAPTER_HEADER_BYTES as u64,
            });
        };
        let header = AdapterHeader::decode(header)?;
        header.check(limits)?;
        let manifest_bytes = header.manifest_bytes as usize;
        let Some((manifest, payload)) = body.split_at_checked(manifest_bytes) else {
            header.exactly("manifest", body.len(), header.manifest_bytes.into())?;
            unreachable!("a body shorter than its manifest was refused");
        };
        Self::assemble(&header, manifest, payload)
    }
}

/// The shapes take the payload to the byte, so no later product or split can fail.
fn check_shapes(header: &AdapterHeader, entries: &[ManifestEntry]) -> Result<(), AdapterFrameError> {
    let tensor_bytes = |axes: &[u32]| axes.iter().try_fold(VALUE_BYTES, |bytes, axis| bytes.checked_mul(u64::from(*axis)));
    let shapes_bytes = entries.iter().try_fold(0_u64, |sum, (_, axes)| sum.checked_add(tensor_bytes(axes)?)).unwrap_or(u64::MAX);
    if shapes_bytes == header.payload_bytes {
        return Ok(());
    }
    Err(AdapterFrameError::Shapes { round: header.round, shapes_bytes, payload_bytes: header.payload_bytes })
}
