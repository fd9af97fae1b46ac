//! The fixed header of a record on a session's stream: its fields, their 12 bytes, and every check that precedes an allocation.
//!
//! Decoding believes nothing; [`RecordHeader::check`] decides from the header alone, and nothing is allocated for a record that it refuses.
//! Kinds are numbered for both sides together, so that a record that comes from the wrong side is known as such.

use crate::frame::REASON_BYTES_MAX;
use crate::frame_header::{put, take};
use crate::frame_limits::FRAME_BYTES_MAX;
use crate::generate::{
    FailureCode, PAGE_TOKENS, PREFIX_PAGES_MAX, PageDigest, RECORD_HEADER_BYTES, RECORD_ROWS_MAX, RecordLimits, TOP_LOGPROBS_MAX, Wanted,
};
use crate::record_error::RecordError;

/// Longest sequence that can be spoken of: what the pages that an opening session names can hold.
pub const POSITIONS_MAX: u32 = PREFIX_PAGES_MAX as u32 * PAGE_TOKENS;

/// Most digests beside the rows of one record. Those of a prompt are named when the session opens; what is left are pages of text that was
/// generated since, one every [`PAGE_TOKENS`] tokens.
pub const RECORD_DIGESTS_MAX: usize = (u8::MAX >> WANTED_BITS) as usize;

/// Most bytes of an `Open`: its pages, each token generated so far as a long varint, and the rest, of which biases are the most.
pub(crate) const OPEN_BYTES_MAX: usize = PREFIX_PAGES_MAX * DIGEST_BYTES + POSITIONS_MAX as usize * TOKEN_BYTES_MAX + OPEN_REST_BYTES_MAX;

/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = size_of::<PageDigest>();
/// A token as bincode writes it, at its longest.
const TOKEN_BYTES_MAX: usize = 5;
/// Everything in an `Open` but pages and tokens: 1024 biases of 9 bytes, and a name.
const OPEN_REST_BYTES_MAX: usize = 16 << 10;
/// Lowest bits of the flags of rows, which say what of them is wanted. The others count digests.
pub(crate) const WANTED_BITS: u8 = 2;
/// The flag of tokens that come with their probabilities.
pub(crate) const LOGPROBS: u8 = 1;
/// Bytes of a token alone.
pub(crate) const DRAWN_BYTES: u32 = 4;
/// Bytes of a token with its probability, and of each of the likeliest beside it.
const DRAWN_LOGPROB_BYTES: u32 = DRAWN_BYTES + 5;
const TOP_BYTES: u32 = 8;

// A flag byte has room for the digests of the pages that any record's rows can fill, but for the last.
const _: () = assert!(RECORD_DIGESTS_MAX + 1 >= (RECORD_ROWS_MAX as u32 / PAGE_TOKENS) as usize);

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// [`crate::DeviceRecord::Open`].
    Open = 1,
    /// [`crate::DeviceRecord::Rows`].
    Rows = 2,
    /// [`crate::ServerRecord::Held`].
    Held = 3,
    /// [`crate::ServerRecord::Tokens`].
    Tokens = 4,
    /// [`crate::ServerRecord::Rows`].
    Hidden = 5,
    /// [`crate::ServerRecord::Failed`].
    Failed = 6,
}

/// What stands before a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Of rows, which are wanted and how many digests come first; of tokens, whether probabilities do; of a failure, its code.
    pub flags: u8,
    /// Rows or tokens.
    pub rows: u16,
    /// Where in the sequence the first of them stands; of `Held`, how many there are.
    pub position: u32,
    /// Bytes after the header.
    pub body_bytes: u32,
}

impl TryFrom<u8> for RecordKind {
    type Error = RecordError;

    fn try_from(found: u8) -> Result<Self, RecordError> {
        match found {
            1 => Ok(Self::Open),
            2 => Ok(Self::Rows),
            3 => Ok(Self::Held),
            4 => Ok(Self::Tokens),
            5 => Ok(Self::Hidden),
            6 => Ok(Self::Failed),
            _ => Err(RecordError::Kind { found }),
        }
    }
}

impl RecordHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let mut rest = &mut bytes[..];
        put(&mut rest, [self.kind as u8, self.flags]);
        put(&mut rest, self.rows.to_le_bytes());
        put(&mut rest, self.position.to_le_bytes());
        put(&mut rest, self.body_bytes.to_le_bytes());
        assert!(rest.is_empty(), "the fields fill the header");
        bytes
    }

    /// The header in `bytes`: well-formed, not yet believed.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, RecordError> {
        let mut rest = &bytes[..];
        let [kind, flags] = take(&mut rest);
        Ok(Self {
            kind: RecordKind::try_from(kind)?,
            flags,
            rows: u16::from_le_bytes(take(&mut rest)),
            position: u32::from_le_bytes(take(&mut rest)),
            body_bytes: u32::from_le_bytes(take(&mut rest)),
        })
    }

    /// Everything that can be refused before the body is read or allocated for; gives the bytes of the body.
    pub fn check(&self, limits: &RecordLimits) -> Result<usize, RecordError> {
        let positions_max = limits.positions_max.min(POSITIONS_MAX);
        match self.kind {
            RecordKind::Open => {
                self.check_bare()?;
                self.exactly("position", self.position, 0)?;
                self.body_between(1, OPEN_BYTES_MAX as u32)?;
            }
            RecordKind::Rows | RecordKind::Hidden => {
                self.check_span(positions_max)?;
                self.check_payload(limits)?;
            }
            RecordKind::Held => {
                self.check_bare()?;
                self.between("position", self.position, (0, positions_max))?;
                self.body_between(0, 0)?;
            }
            RecordKind::Tokens => {
                self.check_span(positions_max)?;
                self.check_tokens()?;
            }
            RecordKind::Failed => {
                self.failure()?;
                self.exactly("rows", self.rows.into(), 0)?;
                self.exactly("position", self.position, 0)?;
                self.body_between(0, REASON_BYTES_MAX as u32)?;
            }
        }
        // Every body is below FRAME_BYTES_MAX, which any usize holds.
        Ok(self.body_bytes as usize)
    }

    /// Which rows are wanted.
    pub(crate) fn wanted(&self) -> Result<Wanted, RecordError> {
        match self.flags & !(u8::MAX << WANTED_BITS) {
            0 => Ok(Wanted::None),
            1 => Ok(Wanted::Last),
            2 => Ok(Wanted::All),
            _ => Err(self.unknown_flags()),
        }
    }

    /// Bytes of the digests before the payload.
    pub(crate) fn digests_bytes(&self) -> usize {
        usize::from(self.flags >> WANTED_BITS) * DIGEST_BYTES
    }

    /// Why the session failed.
    pub(crate) fn failure(&self) -> Result<FailureCode, RecordError> {
        match self.flags {
            1 => Ok(FailureCode::Adapter),
            2 => Ok(FailureCode::TooLong),
            3 => Ok(FailureCode::Busy),
            4 => Ok(FailureCode::Malformed),
            5 => Ok(FailureCode::Internal),
            _ => Err(self.unknown_flags()),
        }
    }

    /// No rows and no flags.
    fn check_bare(&self) -> Result<(), RecordError> {
        if self.flags != 0 {
            return Err(self.unknown_flags());
        }
        self.exactly("rows", self.rows.into(), 0)
    }

    /// Some rows, all of them within the longest sequence.
    fn check_span(&self, positions_max: u32) -> Result<(), RecordError> {
        self.between("rows", self.rows.into(), (1, RECORD_ROWS_MAX.into()))?;
        let end = self.position.saturating_add(self.rows.into());
        if end <= positions_max {
            return Ok(());
        }
        Err(RecordError::TooLong { kind: self.kind, end, positions_max })
    }

    /// Digests, and a tensor of a number of bytes that its encoding can have.
    fn check_payload(&self, limits: &RecordLimits) -> Result<(), RecordError> {
        let digests_bytes = if self.kind == RecordKind::Rows {
            self.wanted()?;
            self.digests_bytes() as u32
        } else if self.flags == 0 {
            0
        } else {
            return Err(self.unknown_flags());
        };
        self.body_between(1, FRAME_BYTES_MAX as u32)?;
        let payload_bytes = self.body_bytes.saturating_sub(digests_bytes);
        let fits = limits.encoding.check_bytes(payload_bytes.into(), self.rows.into(), limits.hidden);
        fits.map_err(|source| RecordError::Payload { kind: self.kind, source })
    }

    fn check_tokens(&self) -> Result<(), RecordError> {
        let rows = u32::from(self.rows);
        match self.flags {
            0 => self.body_between(rows * DRAWN_BYTES, rows * DRAWN_BYTES),
            LOGPROBS => {
                self.body_between(rows * DRAWN_LOGPROB_BYTES, rows * (DRAWN_LOGPROB_BYTES + u32::from(TOP_LOGPROBS_MAX) * TOP_BYTES))
            }
            _ => Err(self.unknown_flags()),
        }
    }

    fn body_between(&self, least: u32, most: u32) -> Result<(), RecordError> {
        self.between("body_bytes", self.body_bytes, (least, most))
    }

    fn exactly(&self, field: &'static str, found: u32, expected: u32) -> Result<(), RecordError> {
        self.between(field, found, (expected, expected))
    }

    fn between(&self, field: &'static str, found: u32, (least, most): (u32, u32)) -> Result<(), RecordError> {
        if (least..=most).contains(&found) {
            return Ok(());
        }
        Err(RecordError::Count { kind: self.kind, field, found: found.into(), least: least.into(), most: most.into() })
    }

    fn unknown_flags(&self) -> RecordError {
        RecordError::Flags { kind: self.kind, found: self.flags }
    }
}
