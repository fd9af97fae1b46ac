//! Integers of a few bits with one scale a row or a group: `x' = code * scale`.
//!
//! The scale is signed and there is no offset. Of 16 codes, -8 to 7, the far one belongs to the side that reaches further: the
//! scale's sign says which. That spends every code, keeps zero exact, and costs one number a group. A minimum and a maximum would
//! cost two: at 4.5 bits a value normal rows come back off by 0.090 of their norm, with a signed scale over half the group by
//! 0.085, and with uneven features by 0.175 against 0.088 (`examples/encodings.rs`).
//!
//! The scale is a bf16: gradients need the exponents of f32, which f16 lacks, and a coarse mantissa costs nothing, because the
//! codes are taken against the scale as it travels. It is rounded up, so that no value falls outside the codes: a value is off by
//! half a scale at most, or by less than a whole one where rounding is by chance. A group with a NaN or an infinity has the scale
//! NaN: the receiver sees it, as it would in f32.

use super::bits::{pack, packed_bytes, unpack};
use super::hadamard::rotate;
use super::random::Stream;
use super::rows::RowCodec;
use half::bf16;

/// Bytes of a scale.
pub(super) const SCALE_BYTES: usize = 2;

/// 1.5 * 2^23: adding it rounds an f32 to the nearest even integer, which then stands in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Values worked on side by side.
const LANES: usize = 8;

/// Rows of groups of integers.
pub(super) struct Quantised {
    bits: u8,
    group: usize,
    rotate: bool,
    chance: Option<Stream>,
    codes: Vec<u8>,
    rotated: Vec<f32>,
    scratch: Vec<f32>,
}

impl Quantised {
    /// Rows of `columns` values; `group` divides them, and is a power of two where it is rotated.
    pub fn new(columns: usize, bits: u8, group: usize, rotate: bool, chance: Option<Stream>) -> Self {
        let zeros = || vec![0.0; group];
        Self { bits, group, rotate, chance, codes: vec![0; columns], rotated: zeros(), scratch: zeros() }
    }

    fn scales_bytes(&self) -> usize {
        self.codes.len() / self.group * SCALE_BYTES
    }
}

impl RowCodec for Quantised {
    fn row_bytes(&self) -> usize {
        self.scales_bytes() + packed_bytes(self.codes.len(), self.bits)
    }

    fn write(&mut self, index: usize, row: &[f32], bytes: &mut [u8]) {
        let (scales, packed) = bytes.split_at_mut(self.scales_bytes());
        let half = half_of(self.bits);
        // Where in the tensor the group starts, for rounding by chance: modulo 2^32, which only repeats numbers far apart.
        let mut place = (index as u32).wrapping_mul(row.len() as u32);
        let groups = row.chunks_exact(self.group).zip(self.codes.chunks_exact_mut(self.group));
        for ((values, codes), bytes) in groups.zip(scales.chunks_exact_mut(SCALE_BYTES)) {
            let values = if self.rotate {
                self.rotated.copy_from_slice(values);
                rotate(&mut self.rotated, &mut self.scratch);
                &self.rotated
            } else {
                values
            };
            let scale = scale_of(values, half, self.chance.is_some());
            bytes.copy_from_slice(&scale.to_le_bytes());
            match (scale.to_f32(), self.chance) {
                (scale, _) if scale == 0.0 || scale.is_nan() => codes.fill(half as u8),
                (scale, None) => quantise(values, scale, half, codes),
                (scale, Some(stream)) => quantise_by_chance(values, scale, half, (stream, place), codes),
            }
            place = place.wrapping_add(self.group as u32);
        }
        pack(&self.codes, self.bits, packed);
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        let (scales, packed) = bytes.split_at(self.scales_bytes());
        unpack(packed, self.bits, &mut self.codes);
        let half = half_of(self.bits) as i32;
        let groups = row.chunks_exact_mut(self.group).zip(self.codes.chunks_exact(self.group));
        for ((values, codes), bytes) in groups.zip(scales.chunks_exact(SCALE_BYTES)) {
            let scale = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            for (value, code) in values.iter_mut().zip(codes) {
                *value = (i32::from(*code) - half) as f32 * scale;
            }
            if self.rotate {
                rotate(values, &mut self.scratch);
            }
        }
        Ok(())
    }
}

/// Half the codes: those below it are negative multiples.
pub(super) fn half_of(bits: u8) -> f32 {
    (1_u32 << (bits - 1)) as f32
}

/// The signed scale of a group; NaN where a value is not finite.
fn scale_of(values: &[f32], half: f32, by_chance: bool) -> bf16 {
    extremes(values).map_or(bf16::NAN, |extremes| scale_between(extremes, half, by_chance))
}

/// The signed scale of values that reach so far above and below zero.
pub(super) fn scale_between((high, low): (f32, f32), half: f32, by_chance: bool) -> bf16 {
    // Rounding to nearest may go half a code beyond the last one; rounding by chance may not.
    let slack = if by_chance { 0.0 } else { 0.5 };
    let (far, near, sign) = if high > low { (high, low, 0x8000) } else { (low, high, 0) };
    let scale = (far / (half + slack)).max(near / (half - 1.0 + slack));
    // The bits of a positive f32 grow with it, so this rounds up; what divides to nothing is the smallest there is.
    let bits = scale.to_bits().max(u32::from(far > 0.0));
    bf16::from_bits((bits.saturating_add(0xffff) >> 16) as u16 | sign)
}

/// How far the values reach above and below zero; `None` where one is not finite.
fn extremes(values: &[f32]) -> Option<(f32, f32)> {
    let (mut high, mut low, mut poison) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
    let chunks = values.chunks_exact(LANES);
    let mut last = [0.0; LANES];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    for chunk in chunks.chain(std::iter::once(&last[..])) {
        for lane in 0..LANES {
            let value = chunk[lane];
            high[lane] = if value > high[lane] { value } else { high[lane] };
            low[lane] = if value < low[lane] { value } else { low[lane] };
            // Zero for every finite value, NaN for any other.
            poison[lane] += value * 0.0;
        }
    }
    let most = |lanes: [f32; LANES]| lanes.into_iter().fold(0.0, f32::max);
    (!poison.iter().any(|lane| lane.is_nan())).then(|| (most(high), most(low.map(|value| -value))))
}

fn quantise(values: &[f32], scale: f32, half: f32, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value / scale).clamp(-half, half - 1.0) + (ROUND + half)).to_bits() as u8;
    }
}

fn quantise_by_chance(values: &[f32], scale: f32, half: f32, (stream, place): (Stream, u32), codes: &mut [u8]) {
    for (index, (code, value)) in (0_u32..).zip(codes.iter_mut().zip(values)) {
        // The nearest integer to a value moved by up to a half is either neighbour, the nearer one more often.
        let moved = value / scale + stream.centred(place.wrapping_add(index));
        *code = (moved.clamp(-half, half - 1.0) + (ROUND + half)).to_bits() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the range is used whole and zero stays zero. Method: the codes of values at the ends, both ways round.
    #[test]
    fn the_far_code_goes_to_the_far_side() {
        for sign in [1.0_f32, -1.0] {
            let row = [8.5, -7.5, 0.0, 1.0, -1.0, 0.25, 0.0, 0.0].map(|value| value * sign);
            let mut codec = Quantised::new(8, 4, 8, false, None);
            let mut bytes = vec![0; codec.row_bytes()];
            codec.write(0, &row, &mut bytes);
            let mut back = [9.0; 8];
            codec.read(&bytes, &mut back).expect("codes");
            assert_eq!(back, [8.0, -7.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0].map(|value: f32| value * sign));
        }
    }

    /// Goal: nothing is lost to a small exponent. Method: scales far below f16's range, and the smallest value there is.
    #[test]
    fn tiny_values_survive() {
        for size in [1e-12_f32, 1e-30, 1e-37, f32::from_bits(1)] {
            let row = [size, -size, size / 2.0, 0.0];
            let mut codec = Quantised::new(4, 8, 4, false, None);
            let mut bytes = vec![0; codec.row_bytes()];
            codec.write(0, &row, &mut bytes);
            let mut back = [9.0; 4];
            codec.read(&bytes, &mut back).expect("codes");
            let scale = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32().abs();
            assert!(row.iter().zip(back).all(|(value, back)| (value - back).abs() <= scale * 0.51), "{size}: {back:?}");
        }
    }
}
