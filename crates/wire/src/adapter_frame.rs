//! An adapter on the wire: one unidirectional stream, the same bytes in both directions.
//!
//! A 60-byte little-endian header, a bincode manifest of names and shapes, then the values in the manifest's order: as they
//! are in f32, or in another encoding as rows that are filled up with zeros (`adapter_values.rs`). Lengths are believed only
//! after they agree with each other and with the limits.

use crate::adapter_error::AdapterFrameError;
use crate::adapter_values::{VALUE_BYTES, fits, payload_bytes_max, payload_of, values_of};
use crate::codec::{ManifestEntry, decode_manifest, encode_manifest};
use crate::encoding::Encoding;
use crate::frame_header::{put, take};
use crate::ids::{BaseHash, RoundId};
use crate::message::PROTOCOL_VERSION;
use crate::tensor::{AdapterState, HostTensor};

/// Bytes of an encoded header.
pub const ADAPTER_HEADER_BYTES: usize = 60;

/// The largest manifest: some ten thousand tensors with full PEFT names.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;

/// The largest adapter: rank 64 on every projection of a 70B model, in f32.
pub const ADAPTER_PAYLOAD_BYTES_MAX: u64 = 4 << 30;

/// The first bytes of every adapter frame.
const MAGIC: [u8; 4] = *b"CUTA";

/// The flag of an adapter that is a difference.
const DELTA: u16 = 1;

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
    /// How its values are encoded.
    pub encoding: Encoding,
    /// The global adapter that it is a difference from, if it is one.
    pub from: Option<RoundId>,
    /// Values in it: what a receiver may have to hold, however few bytes travel.
    pub values: u32,
}

/// How large an adapter a receiver takes, and in which encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// The largest manifest, in bytes.
    pub manifest_bytes_max: usize,
    /// The largest payload, in bytes.
    pub payload_bytes_max: u64,
    /// The most values.
    pub values_max: u32,
    /// The encoding agreed; nothing takes any.
    pub encoding: Option<Encoding>,
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
    /// How the values travel.
    pub encoding: Encoding,
    /// The global adapter that `state` is a difference from, if it is one.
    pub from: Option<RoundId>,
    /// The tensors by name.
    pub state: AdapterState,
}

impl AdapterLimits {
    /// The widest limits: any adapter this crate can carry.
    pub const WIDEST: Self = Self {
        manifest_bytes_max: MANIFEST_BYTES_MAX,
        payload_bytes_max: ADAPTER_PAYLOAD_BYTES_MAX,
        values_max: (ADAPTER_PAYLOAD_BYTES_MAX / VALUE_BYTES) as u32,
        encoding: None,
    };

    /// Limits for adapters of this many values in f32.
    pub fn for_values(values: u64) -> Self {
        Self::encoded(values, Encoding::F32)
    }

    /// Limits for adapters of this many values in `encoding`.
    pub fn encoded(values: u64, encoding: Encoding) -> Self {
        let payload_bytes_max = payload_bytes_max(values, encoding).unwrap_or(0).min(ADAPTER_PAYLOAD_BYTES_MAX);
        let values_max = u32::try_from(values).unwrap_or(u32::MAX).min(Self::WIDEST.values_max);
        Self { payload_bytes_max, values_max, encoding: Some(encoding), ..Self::WIDEST }
    }
}

impl AdapterHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; ADAPTER_HEADER_BYTES] {
        let mut bytes = [0; ADAPTER_HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, MAGIC);
        put(&mut rest, PROTOCOL_VERSION.to_le_bytes());
        put(&mut rest, if self.from.is_some() { DELTA } else { 0 }.to_le_bytes());
        put(&mut rest, self.round.0.to_le_bytes());
        put(&mut rest, self.manifest_bytes.to_le_bytes());
        put(&mut rest, self.payload_bytes.to_le_bytes());
        put(&mut rest, self.weight.to_le_bytes());
        put(&mut rest, self.base_prefix.to_le_bytes());
        put(&mut rest, self.encoding.to_bytes());
        put(&mut rest, self.from.map_or(0, |from| from.0).to_le_bytes());
        put(&mut rest, self.values.to_le_bytes());
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
        let flags = u16::from_le_bytes(take(&mut rest));
        let round = RoundId(u32::from_le_bytes(take(&mut rest)));
        let manifest_bytes = u32::from_le_bytes(take(&mut rest));
        let payload_bytes = u64::from_le_bytes(take(&mut rest));
        let weight = f64::from_le_bytes(take(&mut rest));
        let base_prefix = u64::from_le_bytes(take(&mut rest));
        let encoding = take(&mut rest);
        let from = RoundId(u32::from_le_bytes(take(&mut rest)));
        let values = u32::from_le_bytes(take(&mut rest));
        let delta = flags & DELTA != 0;
        if flags & !DELTA != 0 || (!delta && from.0 != 0) {
            return Err(AdapterFrameError::Reserved { round, found: flags & !DELTA });
        }
        let encoding = Encoding::from_bytes(encoding).map_err(|source| AdapterFrameError::Encoding { round, source })?;
        Ok(Self { round, manifest_bytes, payload_bytes, weight, base_prefix, encoding, from: delta.then_some(from), values })
    }

    /// Everything that can be refused before the body is read or allocated for.
    pub fn check(&self, limits: &AdapterLimits) -> Result<(), AdapterFrameError> {
        let round = self.round;
        if !self.weight.is_finite() || self.weight < 0.0 {
            return Err(AdapterFrameError::Weight { round, weight: self.weight });
        }
        if let Some(expected) = limits.encoding.filter(|encoding| *encoding != self.encoding) {
            return Err(AdapterFrameError::Agreed { round, found: self.encoding, expected });
        }
        let manifest_bytes_max = limits.manifest_bytes_max.min(MANIFEST_BYTES_MAX) as u64;
        let payload_bytes_max = limits.payload_bytes_max.min(ADAPTER_PAYLOAD_BYTES_MAX);
        let values_bytes_max = u64::from(limits.values_max.min(AdapterLimits::WIDEST.values_max)) * VALUE_BYTES;
        for (part, bytes, bytes_max) in [
            ("manifest", u64::from(self.manifest_bytes), manifest_bytes_max),
            ("payload", self.payload_bytes, payload_bytes_max),
            ("values in f32", u64::from(self.values) * VALUE_BYTES, values_bytes_max),
        ] {
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
    /// An adapter of the model `base`, whole and in f32.
    pub fn new(round: RoundId, weight: f64, base: &BaseHash, state: AdapterState) -> Self {
        Self { round, weight, base_prefix: base.prefix(), encoding: Encoding::F32, from: None, state }
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
        let payload = payload_of(self);
        let header = AdapterHeader {
            round: self.round,
            manifest_bytes: u32::try_from(manifest.len()).expect("a manifest fits a u32"),
            payload_bytes: payload.len() as u64,
            weight: self.weight,
            base_prefix: self.base_prefix,
            encoding: self.encoding,
            from: self.from,
            values: u32::try_from(values).expect("an adapter's values fit a u32"),
        };
        [&header.encode()[..], &manifest, &payload].concat()
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
        let all = values_of(header, payload)?;
        let mut state = AdapterState::new();
        let mut rest = &all[..];
        for (name, axes) in entries {
            let shape: Vec<usize> = axes.iter().map(|axis| *axis as usize).collect();
            let (front, back) = rest.split_at(shape.iter().product());
            rest = back;
            if state.contains_key(&name) {
                return Err(AdapterFrameError::Repeated { round, name });
            }
            state.insert(name, HostTensor { shape, values: front.to_vec() });
        }
        let &AdapterHeader { weight, base_prefix, encoding, from, .. } = header;
        Ok(Self { round, weight, base_prefix, encoding, from, state })
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

/// The shapes hold the values promised, and the payload can be theirs: no later product or split can fail.
fn check_shapes(header: &AdapterHeader, entries: &[ManifestEntry]) -> Result<(), AdapterFrameError> {
    let AdapterHeader { round, payload_bytes, values, .. } = *header;
    let count_of = |axes: &[u32]| axes.iter().try_fold(1_u64, |count, axis| count.checked_mul(u64::from(*axis)));
    let found = entries.iter().try_fold(0_u64, |sum, (_, axes)| sum.checked_add(count_of(axes)?)).unwrap_or(u64::MAX);
    if found != u64::from(values) {
        return Err(AdapterFrameError::Values { round, found, expected: values.into() });
    }
    let shapes_bytes = payload_bytes_max(found, header.encoding).map_err(|source| AdapterFrameError::Encoding { round, source })?;
    if fits(payload_bytes, found, header.encoding) {
        return Ok(());
    }
    Err(AdapterFrameError::Shapes { round, shapes_bytes, payload_bytes })
}
