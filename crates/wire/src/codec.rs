//! The door to bincode: the only file that names it.
//!
//! bincode 2.0.1 is complete but unmaintained, so everything about it is here and small enough to replace.
//! Tensor bytes never pass through. Decoding never allocates in proportion to a length that the peer
//! merely claims: the limit stops it, and the whole input must be consumed.

use bincode::config::{Config, standard};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::adapter_frame::MANIFEST_BYTES_MAX;
use crate::generate::Open;
use crate::message::{Message, MessageError, PROTOCOL_VERSION};
use crate::record::OPEN_BYTES_MAX;

/// The largest control message, its length prefix not counted.
pub const CONTROL_BYTES_MAX: usize = 1 << 20;

/// Bytes of the little-endian length before each control message.
pub const CONTROL_PREFIX_BYTES: usize = 4;

/// Where Hello and HelloGenerate stand in [`Message`]: their version is read even when the rest cannot be.
const HELLO_VARIANTS: [u32; 2] = [0, 9];

/// One manifest entry: a tensor's name and its shape.
pub(crate) type ManifestEntry = (String, Vec<u32>);

/// Bytes that are not a message, or a message that cannot be bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Longer than allowed, by the length that the peer sent or by a message of ours.
    #[error("control message of {bytes} B exceeds {bytes_max} B")]
    TooLarge {
        /// The length found.
        bytes: u64,
        /// The bound.
        bytes_max: usize,
    },
    /// The two sides run different versions of cutlayer's protocol.
    #[error("peer speaks protocol {theirs}, we speak {ours}: install the same cutlayer on both sides")]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// Not a message.
    #[error("{bytes} B are not a control message: {reason}")]
    Malformed {
        /// The length of the input.
        bytes: usize,
        /// What bincode found wrong.
        reason: String,
    },
    /// A message with something after it.
    #[error("control message ends after {consumed} of {bytes} B")]
    Trailing {
        /// What the message took.
        consumed: usize,
        /// What was given.
        bytes: usize,
    },
    /// A well-formed message that says something impossible.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl CodecError {
    /// Checks the length prefix of a control message, before anything is allocated for it.
    pub fn check_length(prefix: [u8; CONTROL_PREFIX_BYTES]) -> Result<usize, Self> {
        let bytes = u32::from_le_bytes(prefix);
        match usize::try_from(bytes) {
            Ok(length) if length <= CONTROL_BYTES_MAX => Ok(length),
            _ => Err(Self::TooLarge { bytes: bytes.into(), bytes_max: CONTROL_BYTES_MAX }),
        }
    }
}

/// The bytes of a message, without the length prefix.
pub fn encode(message: &Message) -> Result<Vec<u8>, CodecError> {
    message.check()?;
    let bytes = to_bytes(message);
    if bytes.len() > CONTROL_BYTES_MAX {
        let bytes = bytes.len() as u64;
        return Err(CodecError::TooLarge { bytes, bytes_max: CONTROL_BYTES_MAX });
    }
    Ok(bytes)
}

/// The message in `bytes`, which must hold it and nothing else.
pub fn decode(bytes: &[u8]) -> Result<Message, CodecError> {
    if bytes.len() > CONTROL_BYTES_MAX {
        let bytes = bytes.len() as u64;
        return Err(CodecError::TooLarge { bytes, bytes_max: CONTROL_BYTES_MAX });
    }
    let config = standard().with_limit::<CONTROL_BYTES_MAX>();
    // Another version may have another Hello: report the version, not the first byte that surprised us.
    if let Ok(((variant, theirs), _)) = from_bytes::<(u32, u16), _>(bytes, config)
        && HELLO_VARIANTS.contains(&variant)
        && theirs != PROTOCOL_VERSION
    {
        return Err(CodecError::Version { ours: PROTOCOL_VERSION, theirs });
    }
    let (message, consumed): (Message, usize) =
        from_bytes(bytes, config).map_err(|reason| CodecError::Malformed { bytes: bytes.len(), reason })?;
    if consumed != bytes.len() {
        return Err(CodecError::Trailing { consumed, bytes: bytes.len() });
    }
    message.check()?;
    Ok(message)
}

/// The bytes of an adapter's manifest.
pub(crate) fn encode_manifest(entries: &[ManifestEntry]) -> Vec<u8> {
    to_bytes(&entries)
}

/// The manifest in `bytes` and how many of them it took.
pub(crate) fn decode_manifest(bytes: &[u8]) -> Result<(Vec<ManifestEntry>, usize), String> {
    from_bytes(bytes, standard().with_limit::<MANIFEST_BYTES_MAX>())
}

/// The bytes of what opens a session.
pub(crate) fn encode_open(open: &Open) -> Vec<u8> {
    to_bytes(open)
}

/// What opens a session, in bytes that hold it and nothing else.
pub(crate) fn decode_open(bytes: &[u8]) -> Result<Open, String> {
    let (open, consumed) = from_bytes(bytes, standard().with_limit::<OPEN_BYTES_MAX>())?;
    if consumed == bytes.len() { Ok(open) } else { Err(format!("it ends after {consumed} of {} B", bytes.len())) }
}

fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, standard()).expect("our own types hold nothing that bincode cannot write")
}

fn from_bytes<T: DeserializeOwned, C: Config>(bytes: &[u8], config: C) -> Result<(T, usize), String> {
    bincode::serde::decode_from_slice(bytes, config).map_err(|error| error.to_string())
}
