//! A sample that came by before travels as the difference from what the receiver has of it (AQ-SGD), and a token that hardly
//! moved not at all (SplitCom).
//!
//! Differences are taken from what the receiver reconstructed, never from what the sender had, so that errors do not add up. A
//! payload is, for each sample, its id and the visit that it is a difference from (0 for none), then the bytes of the samples
//! that travel whole after their length, then those of the differences. A difference that is zero is a row that is zero: the
//! encoding leaves it out.

use super::cache::Cache;
use super::{MemoryBound, MemoryError, Sample, split};
use crate::encoding::{Encoding, EncodingError};

/// Bytes of a sample's id and visit.
const SAMPLE_BYTES: usize = 12;
/// Bytes of a length.
const LENGTH_BYTES: usize = 4;

/// What both ends of such a memory agree on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Differences {
    /// Encoding of a sample's first visit: finer, as all later ones build on it.
    pub whole: Encoding,
    /// Encoding of differences.
    pub difference: Encoding,
    /// A token whose difference is at most this share of its own norm does not travel; 0 sends every token that moved at all.
    pub moved: f32,
    /// What may be remembered.
    pub bound: MemoryBound,
}

/// The sender's end.
#[derive(Clone, Debug)]
pub struct DifferenceSender {
    terms: Differences,
    known: Cache,
}

/// The receiver's end.
#[derive(Clone, Debug)]
pub struct DifferenceReceiver {
    terms: Differences,
    known: Cache,
}

impl Differences {
    /// What an encoding says of differences, if it speaks of them. A first visit travels in bf16.
    pub fn of(encoding: Encoding, bound: MemoryBound) -> Option<Self> {
        let moved = encoding.differences()?;
        Some(Self { whole: Encoding::BF16, difference: encoding.forgetful(), moved, bound })
    }

    /// The most bytes of such a payload.
    pub fn payload_bytes_max(&self, samples: u32, rows: u32, columns: u32) -> Result<u64, EncodingError> {
        let whole = self.whole.payload_bytes_max(rows, columns)?;
        let difference = self.difference.payload_bytes_max(rows, columns)?;
        let head = u64::from(samples) * SAMPLE_BYTES as u64 + LENGTH_BYTES as u64;
        // No row is in both, but either may be stored with a byte before it.
        Ok(whole.max(difference).saturating_add(head + 2))
    }

    /// Both ends, with nothing remembered.
    pub fn ends(self) -> (DifferenceSender, DifferenceReceiver) {
        let known = Cache::new(self.bound);
        (DifferenceSender { terms: self, known: known.clone() }, DifferenceReceiver { terms: self, known })
    }

    /// What the receiver will have of each sample, and that into both memories: the same words on either side.
    fn remember(known: &mut Cache, samples: &[Sample], visits: &[u32], columns: usize, (whole, difference): (&[f32], &[f32])) -> Vec<f32> {
        let (mut whole, mut difference) = (whole, difference);
        let mut all = Vec::with_capacity(whole.len() + difference.len());
        let mut parts = Vec::with_capacity(samples.len());
        for (sample, visit) in samples.iter().zip(visits) {
            let length = sample.rows as usize * columns;
            let from = if *visit == 0 { &mut whole } else { &mut difference };
            let (front, back) = from.split_at(length);
            *from = back;
            let values = match known.get(sample.id, length).filter(|_| *visit > 0) {
                None => front.to_vec(),
                Some(entry) => entry.values.iter().zip(front).map(|(known, moved)| known + moved).collect(),
            };
            all.extend_from_slice(&values);
            parts.push(values);
        }
        // After all were read: a sample that is there twice is a difference from the same visit twice.
        for ((sample, visit), values) in samples.iter().zip(visits).zip(parts) {
            known.put(sample.id, visit.saturating_add(1), values);
        }
        all
    }
}

impl DifferenceSender {
    /// Values remembered.
    pub fn values(&self) -> usize {
        self.known.values()
    }

    /// Forgets everything: the receiver does so too, or takes the next visits for first ones.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// The payload of `values`.
    pub fn pack(&mut self, samples: &[Sample], values: &[f32], columns: usize, seed: u64) -> Result<Vec<u8>, MemoryError> {
        let parts = split(samples, values, columns)?;
        let (mut whole, mut difference, mut visits) = (Vec::new(), Vec::new(), Vec::new());
        let mut head = Vec::with_capacity(samples.len() * SAMPLE_BYTES + LENGTH_BYTES);
        for (sample, part) in samples.iter().zip(parts) {
            let known = self.known.get(sample.id, part.len());
            let visit = known.map_or(0, |entry| entry.visit);
            match known {
                None => whole.extend_from_slice(part),
                Some(entry) => {
                    let rows = part.chunks_exact(columns).zip(entry.values.chunks_exact(columns));
                    rows.for_each(|(row, known)| moved(row, known, self.terms.moved, &mut difference));
                }
            }
            visits.push(visit);
            head.extend_from_slice(&sample.id.to_le_bytes());
            head.extend_from_slice(&visit.to_le_bytes());
        }
        let (whole_bytes, difference_bytes) =
            (self.terms.whole.encode(&whole, columns, seed)?, self.terms.difference.encode(&difference, columns, seed)?);
        let whole = self.terms.whole.decode(&whole_bytes, whole.len() / columns, columns)?;
        let difference = self.terms.difference.decode(&difference_bytes, difference.len() / columns, columns)?;
        Differences::remember(&mut self.known, samples, &visits, columns, (&whole, &difference));
        let length = u32::try_from(whole_bytes.len()).map_err(|_| MemoryError::Samples { rows: 0, values: values.len() })?;
        Ok([&head[..], &length.to_le_bytes(), &whole_bytes, &difference_bytes].concat())
    }
}

/// Appends what `row` differs from `known` by, or zeros where that is too little to send.
fn moved(row: &[f32], known: &[f32], share: f32, difference: &mut Vec<f32>) {
    let start = difference.len();
    difference.extend(row.iter().zip(known).map(|(value, known)| value - known));
    let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    if square(&difference[start..]) <= square(row) * f64::from(share).powi(2) {
        difference[start..].fill(0.0);
    }
}

impl DifferenceReceiver {
    /// Values remembered.
    pub fn values(&self) -> usize {
        self.known.values()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// The values in `bytes`, of samples of so many rows. A payload that is refused changes nothing.
    pub fn unpack(&mut self, bytes: &[u8], rows: &[u32], columns: usize) -> Result<Vec<f32>, MemoryError> {
        let truncated = || MemoryError::Truncated { bytes: bytes.len(), samples: rows.len() };
        let head_bytes = rows.len().checked_mul(SAMPLE_BYTES).ok_or_else(truncated)?;
        let (head, rest) = bytes.split_at_checked(head_bytes).ok_or_else(truncated)?;
        let (length, rest) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(truncated)?;
        let (whole, difference) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(truncated)?;
        let (mut samples, mut visits, mut counts) = (Vec::new(), Vec::new(), [0_usize; 2]);
        for (entry, rows) in head.chunks_exact(SAMPLE_BYTES).zip(rows) {
            let (id, visit) = entry.split_first_chunk::<8>().ok_or_else(truncated)?;
            let visit = visit.first_chunk::<4>().ok_or_else(truncated)?;
            let (id, theirs) = (u64::from_le_bytes(*id), u32::from_le_bytes(*visit));
            let length = (*rows as usize).checked_mul(columns).ok_or_else(truncated)?;
            let ours = self.known.get(id, length).map_or(0, |entry| entry.visit);
            if theirs != 0 && theirs != ours {
                return Err(MemoryError::OutOfStep { sample: id, theirs, ours });
            }
            counts[usize::from(theirs > 0)] += *rows as usize;
            samples.push(Sample { id, rows: *rows });
            visits.push(theirs);
        }
        let whole = self.terms.whole.decode(whole, counts[0], columns)?;
        let difference = self.terms.difference.decode(difference, counts[1], columns)?;
        Ok(Differences::remember(&mut self.known, &samples, &visits, columns, (&whole, &difference)))
    }
}
