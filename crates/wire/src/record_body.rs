//! Records whole: from values to bytes and back.
//!
//! Taken apart by `assemble`, which believes nothing; a record that its own side would refuse is refused before it is sent. Payloads are
//! handed over where no digests come before them, and never interpreted.

use crate::codec::{decode_open, encode_open};
use crate::frame::shorten_reason;
use crate::frame_header::take;
use crate::generate::{
    DeviceRecord, Drawn, PageDigest, RECORD_HEADER_BYTES, RECORD_ROWS_MAX, RecordLimits, RowsRecord, ServerRecord, TOP_LOGPROBS_MAX,
};
use crate::record::{DIGEST_BYTES, DRAWN_BYTES, LOGPROBS, RECORD_DIGESTS_MAX, RecordHeader, RecordKind, WANTED_BITS};
use crate::record_error::RecordError;

/// What one side says on a session's stream.
pub trait Record: Sized {
    /// Whether a record of this kind is this side's to say.
    fn says(kind: RecordKind) -> bool;

    /// The bytes to send, in two parts: the second is a payload, handed over as it is.
    fn into_parts(self) -> Result<(Vec<u8>, Vec<u8>), RecordError>;

    /// Joins a header that [`Record::check`] let pass with the body that followed it.
    fn assemble(header: &RecordHeader, body: Vec<u8>, limits: &RecordLimits) -> Result<Self, RecordError>;

    /// Everything that can be refused before the body is read or allocated for; gives the bytes of the body.
    fn check(header: &RecordHeader, limits: &RecordLimits) -> Result<usize, RecordError> {
        if !Self::says(header.kind) {
            return Err(RecordError::Side { kind: header.kind });
        }
        header.check(limits)
    }

    /// The whole record in one buffer.
    fn encode(self) -> Result<Vec<u8>, RecordError> {
        let (mut bytes, payload) = self.into_parts()?;
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// The record in `bytes`, which must hold it and nothing else.
    fn decode(bytes: &[u8], limits: &RecordLimits) -> Result<Self, RecordError> {
        let wrong = || RecordError::Malformed { kind: RecordKind::Open, reason: format!("{} B are no header", bytes.len()) };
        let (header, body) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>().ok_or_else(wrong)?;
        let header = RecordHeader::decode(header)?;
        Self::check(&header, limits)?;
        Self::assemble(&header, body.to_vec(), limits)
    }
}

impl Record for DeviceRecord {
    fn says(kind: RecordKind) -> bool {
        matches!(kind, RecordKind::Open | RecordKind::Rows)
    }

    fn into_parts(self) -> Result<(Vec<u8>, Vec<u8>), RecordError> {
        match self {
            Self::Open(open) => {
                open.check(&open.widest())?;
                Ok(parts((RecordKind::Open, 0), (0, 0), &[], encode_open(&open)))
            }
            Self::Rows(RowsRecord { position, rows, wanted, digests, payload }) => {
                up_to(RecordKind::Rows, "digests", digests.len(), RECORD_DIGESTS_MAX)?;
                let flags = wanted as u8 | (digests.len() as u8) << WANTED_BITS;
                let digests: Vec<[u8; DIGEST_BYTES]> = digests.into_iter().map(|PageDigest(digest)| digest).collect();
                Ok(parts((RecordKind::Rows, flags), (rows, position), digests.as_flattened(), payload))
            }
        }
    }

    fn assemble(header: &RecordHeader, mut body: Vec<u8>, limits: &RecordLimits) -> Result<Self, RecordError> {
        check_body(header, &body)?;
        match header.kind {
            RecordKind::Open => {
                let open = decode_open(&body).map_err(|reason| RecordError::Malformed { kind: RecordKind::Open, reason })?;
                open.check(limits)?;
                Ok(Self::Open(open))
            }
            RecordKind::Rows => {
                let digests_bytes = header.digests_bytes().min(body.len());
                let payload = if digests_bytes == 0 { std::mem::take(&mut body) } else { body.split_off(digests_bytes) };
                let digests = body.as_chunks().0.iter().copied().map(PageDigest).collect();
                let RecordHeader { position, rows, .. } = *header;
                Ok(Self::Rows(RowsRecord { position, rows, wanted: header.wanted()?, digests, payload }))
            }
            kind => Err(RecordError::Side { kind }),
        }
    }
}

impl Record for ServerRecord {
    fn says(kind: RecordKind) -> bool {
        matches!(kind, RecordKind::Held | RecordKind::Tokens | RecordKind::Hidden | RecordKind::Failed)
    }

    fn into_parts(self) -> Result<(Vec<u8>, Vec<u8>), RecordError> {
        Ok(match self {
            Self::Held(position) => parts((RecordKind::Held, 0), (0, position), &[], Vec::new()),
            Self::Tokens { position, drawn } => {
                up_to(RecordKind::Tokens, "rows", drawn.len(), RECORD_ROWS_MAX.into())?;
                let (flags, body) = write_drawn(&drawn)?;
                parts((RecordKind::Tokens, flags), (drawn.len() as u16, position), &body, Vec::new())
            }
            Self::Rows { position, rows, payload } => parts((RecordKind::Hidden, 0), (rows, position), &[], payload),
            Self::Failed { code, reason } => {
                parts((RecordKind::Failed, code as u8), (0, 0), shorten_reason(&reason).as_bytes(), Vec::new())
            }
        })
    }

    fn assemble(header: &RecordHeader, body: Vec<u8>, _: &RecordLimits) -> Result<Self, RecordError> {
        check_body(header, &body)?;
        let RecordHeader { kind, rows, position, .. } = *header;
        match kind {
            RecordKind::Held => Ok(Self::Held(position)),
            RecordKind::Tokens => Ok(Self::Tokens { position, drawn: read_drawn(header, &body)? }),
            RecordKind::Hidden => Ok(Self::Rows { position, rows, payload: body }),
            RecordKind::Failed => {
                let unreadable = |_| RecordError::Malformed { kind, reason: "its reason is not UTF-8".into() };
                Ok(Self::Failed { code: header.failure()?, reason: String::from_utf8(body).map_err(unreadable)? })
            }
            RecordKind::Open | RecordKind::Rows => Err(RecordError::Side { kind }),
        }
    }
}

/// A header with what follows it in one buffer, and the payload in another.
fn parts((kind, flags): (RecordKind, u8), (rows, position): (u16, u32), start: &[u8], payload: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let body_bytes = u32::try_from(start.len() + payload.len()).expect("1024 rows of a model of ours are below 4 GiB");
    let header = RecordHeader { kind, flags, rows, position, body_bytes };
    ([&header.encode()[..], start].concat(), payload)
}

fn up_to(kind: RecordKind, field: &'static str, found: usize, most: usize) -> Result<(), RecordError> {
    if found <= most {
        return Ok(());
    }
    Err(RecordError::Count { kind, field, found: found as u64, least: 0, most: most as u64 })
}

fn check_body(header: &RecordHeader, body: &[u8]) -> Result<(), RecordError> {
    let (found, expected) = (body.len(), header.body_bytes as usize);
    if found == expected { Ok(()) } else { Err(RecordError::Body { kind: header.kind, found, expected }) }
}

/// Tokens as bytes, and the flag that says whether their probabilities are among them.
fn write_drawn(drawn: &[Drawn]) -> Result<(u8, Vec<u8>), RecordError> {
    let kind = RecordKind::Tokens;
    let mixed = || RecordError::Malformed { kind, reason: "some of its tokens have probabilities, and others have none".into() };
    let with = drawn.iter().any(|token| token.logprob.is_some());
    let mut bytes = Vec::with_capacity(drawn.len() * DRAWN_BYTES as usize);
    for Drawn { id, logprob, top } in drawn {
        bytes.extend(id.to_le_bytes());
        if !with && top.is_empty() {
            continue;
        }
        up_to(kind, "top", top.len(), TOP_LOGPROBS_MAX.into())?;
        bytes.extend(finite(*id, logprob.ok_or_else(mixed)?)?.to_le_bytes());
        bytes.push(top.len() as u8);
        for (id, logprob) in top {
            bytes.extend(id.to_le_bytes());
            bytes.extend(finite(*id, *logprob)?.to_le_bytes());
        }
    }
    Ok((if with { LOGPROBS } else { 0 }, bytes))
}

/// The tokens in a body whose length was checked to be possible.
fn read_drawn(header: &RecordHeader, body: &[u8]) -> Result<Vec<Drawn>, RecordError> {
    let mut rest = body;
    let mut drawn = Vec::with_capacity(header.rows.into());
    for _ in 0..header.rows {
        let id = u32::from_le_bytes(front(&mut rest)?);
        if header.flags & LOGPROBS == 0 {
            drawn.push(Drawn { id, logprob: None, top: Vec::new() });
            continue;
        }
        let logprob = finite(id, f32::from_le_bytes(front(&mut rest)?))?;
        let [count] = front(&mut rest)?;
        up_to(header.kind, "top", count.into(), TOP_LOGPROBS_MAX.into())?;
        let entry = |_| {
            let id = u32::from_le_bytes(front(&mut rest)?);
            Ok((id, finite(id, f32::from_le_bytes(front(&mut rest)?))?))
        };
        let top = (0..count).map(entry).collect::<Result<_, RecordError>>()?;
        drawn.push(Drawn { id, logprob: Some(logprob), top });
    }
    if rest.is_empty() {
        return Ok(drawn);
    }
    Err(RecordError::Malformed { kind: header.kind, reason: format!("{} B follow its tokens", rest.len()) })
}

fn finite(id: u32, logprob: f32) -> Result<f32, RecordError> {
    if logprob.is_finite() { Ok(logprob) } else { Err(RecordError::Logprob { id, logprob }) }
}

/// What is at the front of `rest`, if it is that long.
fn front<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RecordError> {
    if rest.len() < N {
        return Err(RecordError::Malformed { kind: RecordKind::Tokens, reason: "it ends in the middle of a token".into() });
    }
    Ok(take(rest))
}
