//! What a device does of an encoding, so that only codes and scales cross to the host: the host finds the scales, and frames.
//!
//! A device rotates, reduces each group to how far it reaches, divides and rounds; the sixteen bits of a scale, the order of codes
//! in a payload, rows that are zero and the lossless stage stay here, in one place. The bytes are those of [`Encoding::encode`]
//! wherever the device divides and rounds as IEEE 754 has it; else a code may be the next one, which any receiver reads as well.

use super::bits::{pack, packed_bytes, unpack};
use super::quantised::{SCALE_BYTES, half_of, scale_between};
use super::{Encoding, EncodingError, Values, rows};
use half::bf16;

/// What a device computes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevicePart {
    /// Values rounded to bf16.
    Bf16,
    /// Values rounded to f16, a finite one to no infinity.
    F16,
    /// Integers: of each group of a row the code of every value, `clamp(round(value / scale), -half, half - 1) + half`.
    Integers {
        /// Bits of a code, 2 to 8.
        bits: u8,
        /// Values of a group.
        group: usize,
        /// Whether a group is rotated first, by the orthonormal Walsh-Hadamard matrix in its usual order.
        rotated: bool,
    },
}

impl DevicePart {
    /// Half the codes: that of zero.
    pub fn half(bits: u8) -> f32 {
        half_of(bits)
    }
}

impl Encoding {
    /// What a device may compute of rows of `columns`; nothing where all is the host's: f32, chance, choice and projection.
    pub fn device_part(self, columns: usize) -> Option<DevicePart> {
        if self.top > 0 || self.projection > 0 || self.stochastic {
            return None;
        }
        match self.values {
            Values::F32 => None,
            Values::Bf16 => Some(DevicePart::Bf16),
            Values::F16 => Some(DevicePart::F16),
            Values::Int(bits) => Some(DevicePart::Integers { bits, group: self.group_of(columns), rotated: self.hadamard }),
        }
    }

    /// The scale of a group whose values reach `high` above zero and `low` below it; NaN where they are not finite.
    pub fn scale(self, high: f32, low: f32) -> f32 {
        let Values::Int(bits) = self.values else { return 1.0 };
        if !(high.is_finite() && low.is_finite()) {
            return f32::NAN;
        }
        scale_between((high.max(0.0), low.max(0.0)), half_of(bits), false).to_f32()
    }

    /// The payload of codes, one a value, and their scales, one a group, as [`Encoding::scale`] gave them.
    pub fn frame_codes(self, codes: &[u8], scales: &[f32], columns: usize) -> Result<Vec<u8>, EncodingError> {
        let (bits, group) = self.integers(columns)?;
        if !codes.len().is_multiple_of(columns) || codes.len() != scales.len() * group {
            return Err(EncodingError::Shape { values: codes.len(), columns });
        }
        let of_row = columns / group;
        let present: Vec<bool> = scales.chunks_exact(of_row).map(|row| row.iter().any(|scale| *scale != 0.0)).collect();
        let payload = rows::frame(&present, of_row * SCALE_BYTES + packed_bytes(columns, bits), |index, bytes| {
            let (head, packed) = bytes.split_at_mut(of_row * SCALE_BYTES);
            for (bytes, scale) in head.chunks_exact_mut(SCALE_BYTES).zip(&scales[index * of_row..]) {
                bytes.copy_from_slice(&bf16::from_f32(*scale).to_le_bytes());
            }
            pack(&codes[index * columns..][..columns], bits, packed);
        });
        Ok(self.pack(payload))
    }

    /// Undoes [`Encoding::frame_codes`] for `rows` rows of `columns`: the codes, and the scales, zero for rows that are zero.
    pub fn unframe_codes(self, bytes: &[u8], rows: usize, columns: usize) -> Result<(Vec<u8>, Vec<f32>), EncodingError> {
        let (bits, group) = self.integers(columns)?;
        let of_row = columns / group;
        let row_bytes = of_row * SCALE_BYTES + packed_bytes(columns, bits);
        let payload = self.unpack(bytes, rows.saturating_mul(row_bytes))?;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        rows::unframe(self, row_bytes, &payload, (rows, columns), |index, bytes| {
            // Only now is the length known to be that of such a tensor.
            codes.resize(rows * columns, half_of(bits) as u8);
            scales.resize(rows * of_row, 0.0);
            let (head, packed) = bytes.split_at(of_row * SCALE_BYTES);
            for (bytes, scale) in head.chunks_exact(SCALE_BYTES).zip(&mut scales[index * of_row..]) {
                *scale = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
            unpack(packed, bits, &mut codes[index * columns..][..columns]);
            Ok(())
        })?;
        codes.resize(rows * columns, half_of(bits) as u8);
        scales.resize(rows * of_row, 0.0);
        Ok((codes, scales))
    }

    /// The payload of values that a device rounded to sixteen bits, little-endian.
    pub fn frame_halves(self, halves: &[u8], columns: usize) -> Result<Vec<u8>, EncodingError> {
        self.check_columns(u32::try_from(columns).unwrap_or(u32::MAX))?;
        let row_bytes = columns * 2;
        if !halves.len().is_multiple_of(row_bytes) {
            return Err(EncodingError::Shape { values: halves.len() / 2, columns });
        }
        let is_zero = |row: &[u8]| row.chunks_exact(2).all(|half| half[0] == 0 && half[1] & 0x7f == 0);
        let present: Vec<bool> = halves.chunks_exact(row_bytes).map(|row| !is_zero(row)).collect();
        let payload = rows::frame(&present, row_bytes, |index, bytes| bytes.copy_from_slice(&halves[index * row_bytes..][..row_bytes]));
        Ok(self.pack(payload))
    }

    /// Undoes [`Encoding::frame_halves`] for `rows` rows of `columns`.
    pub fn unframe_halves(self, bytes: &[u8], rows: usize, columns: usize) -> Result<Vec<u8>, EncodingError> {
        self.check_columns(u32::try_from(columns).unwrap_or(u32::MAX))?;
        let row_bytes = columns * 2;
        let payload = self.unpack(bytes, rows.saturating_mul(row_bytes))?;
        let mut halves = Vec::new();
        rows::unframe(self, row_bytes, &payload, (rows, columns), |index, bytes| {
            halves.resize(rows * row_bytes, 0);
            halves[index * row_bytes..][..row_bytes].copy_from_slice(bytes);
            Ok(())
        })?;
        halves.resize(rows * row_bytes, 0);
        Ok(halves)
    }

    /// Bits of a code and values of a group, of rows of a width that fits.
    fn integers(self, columns: usize) -> Result<(u8, usize), EncodingError> {
        self.check_columns(u32::try_from(columns).unwrap_or(u32::MAX))?;
        match self.values {
            Values::Int(bits) => Ok((bits, self.group_of(columns))),
            _ => Err(EncodingError::Corrupt { encoding: self, reason: "it has no codes" }),
        }
    }

    fn group_of(self, columns: usize) -> usize {
        if self.group == 0 { columns } else { self.group.into() }
    }
}
