//! From rows to a payload: rows that are exactly zero do not travel.
//!
//! A payload is one stretch of bytes a row. Where rows are zero and it pays, a bitmap of the rows present comes first and
//! only those follow. The bitmap is used only where it makes the payload strictly shorter, so that the length alone tells.

use super::{Encoding, EncodingError};

/// Turns one row into a fixed number of bytes, and such bytes into a row.
///
/// Reading is total: whatever the bytes, it gives values or an error. A NaN or an infinity in a row comes out as one, so that a
/// receiver sees what the sender had.
pub(super) trait RowCodec {
    /// Bytes of a row.
    fn row_bytes(&self) -> usize;

    /// Writes `row`, the `index`-th of its tensor, into `row_bytes` bytes.
    fn write(&mut self, index: usize, row: &[f32], bytes: &mut [u8]);

    /// Reads `row_bytes` bytes into `row`; an error says what is wrong with them.
    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str>;
}

/// The payload of whole rows of `columns`.
pub(super) fn write(codec: &mut dyn RowCodec, values: &[f32], columns: usize) -> Vec<u8> {
    let present: Vec<bool> = values.chunks_exact(columns).map(|row| row.iter().any(|value| *value != 0.0)).collect();
    frame(&present, codec.row_bytes(), |index, bytes| codec.write(index, &values[index * columns..][..columns], bytes))
}

/// The payload of rows, some of which are zero: `write` fills the bytes of the row that it is given the index of.
pub(super) fn frame(present: &[bool], row_bytes: usize, mut write: impl FnMut(usize, &mut [u8])) -> Vec<u8> {
    let rows = present.len();
    let count = present.iter().filter(|present| **present).count();
    let bitmap_bytes = rows.div_ceil(8);
    let sparse = bitmap_bytes + count * row_bytes < rows * row_bytes;
    let start = if sparse { bitmap_bytes } else { 0 };
    let mut bytes = vec![0; start + if sparse { count } else { rows } * row_bytes];
    let (bitmap, body) = bytes.split_at_mut(start);
    if sparse {
        for (index, _) in present.iter().enumerate().filter(|(_, present)| **present) {
            bitmap[index / 8] |= 1 << (index % 8);
        }
    }
    let travelling = (0..rows).filter(|index| !sparse || present[*index]);
    travelling.zip(body.chunks_exact_mut(row_bytes)).for_each(|(index, bytes)| write(index, bytes));
    bytes
}

/// The values of a payload of `rows` rows of `columns`.
pub(super) fn read(
    encoding: Encoding,
    codec: &mut dyn RowCodec,
    bytes: &[u8],
    (rows, columns): (usize, usize),
) -> Result<Vec<f32>, EncodingError> {
    let mut values = Vec::new();
    unframe(encoding, codec.row_bytes(), bytes, (rows, columns), |row, bytes| {
        // Only now is the length known to be that of such a tensor.
        values.resize(rows * columns, 0.0);
        codec.read(bytes, &mut values[row * columns..][..columns])
    })?;
    values.resize(rows * columns, 0.0);
    Ok(values)
}

/// Gives `read` each row of a payload that is there, with its index; the others are zero.
pub(super) fn unframe(
    encoding: Encoding,
    row_bytes: usize,
    bytes: &[u8],
    (rows, columns): (usize, usize),
    mut read: impl FnMut(usize, &[u8]) -> Result<(), &'static str>,
) -> Result<(), EncodingError> {
    let corrupt = |reason| EncodingError::Corrupt { encoding, reason };
    let wrong_length = || EncodingError::Length {
        encoding,
        rows: rows as u64,
        columns: columns as u64,
        bytes: bytes.len() as u64,
        bytes_max: (rows as u64).saturating_mul(row_bytes as u64),
    };
    let (Some(whole), Some(_)) = (rows.checked_mul(row_bytes), rows.checked_mul(columns)) else { return Err(wrong_length()) };
    let (bitmap, body) =
        if bytes.len() == whole { (&[][..], bytes) } else { bytes.split_at_checked(rows.div_ceil(8)).ok_or_else(wrong_length)? };
    let present = |index: usize| bitmap.is_empty() || bitmap[index / 8] >> (index % 8) & 1 == 1;
    let expected = (0..rows).filter(|index| present(*index)).count() * row_bytes;
    if bytes.len() > whole || body.len() != expected {
        return Err(wrong_length());
    }
    if bitmap.last().is_some_and(|last| rows % 8 > 0 && last >> (rows % 8) != 0) {
        return Err(corrupt("its bitmap has rows beyond the tensor"));
    }
    let mut travelling = (0..rows).filter(|index| present(*index)).zip(body.chunks_exact(row_bytes));
    travelling.try_for_each(|(index, bytes)| read(index, bytes)).map_err(corrupt)
}
