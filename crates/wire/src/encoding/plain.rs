//! Values one by one: f32 as it is, and its two halves.
//!
//! Filling sized chunks, rather than pushing, is what lets the compiler vectorise these loops.

use super::rows::RowCodec;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Lossless little-endian f32.
pub(super) struct PlainF32 {
    pub columns: usize,
}

/// The upper half of an f32, rounded to nearest even.
pub(super) struct RoundedBf16 {
    pub columns: usize,
}

/// IEEE half precision, rounded to nearest even. A finite value beyond its range is its largest: no false infinity.
pub(super) struct RoundedF16 {
    halves: Vec<f16>,
}

impl RoundedF16 {
    pub fn new(columns: usize) -> Self {
        Self { halves: vec![f16::ZERO; columns] }
    }
}

impl RowCodec for PlainF32 {
    fn row_bytes(&self) -> usize {
        self.columns * 4
    }

    fn write(&mut self, _index: usize, row: &[f32], bytes: &mut [u8]) {
        for (chunk, value) in bytes.chunks_exact_mut(4).zip(row) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        for (chunk, value) in bytes.chunks_exact(4).zip(row) {
            *value = f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        Ok(())
    }
}

impl RowCodec for RoundedBf16 {
    fn row_bytes(&self) -> usize {
        self.columns * 2
    }

    fn write(&mut self, _index: usize, row: &[f32], bytes: &mut [u8]) {
        for (chunk, value) in bytes.chunks_exact_mut(2).zip(row) {
            chunk.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
        }
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        for (chunk, value) in bytes.chunks_exact(2).zip(row) {
            *value = bf16::from_le_bytes([chunk[0], chunk[1]]).to_f32();
        }
        Ok(())
    }
}

impl RowCodec for RoundedF16 {
    fn row_bytes(&self) -> usize {
        self.halves.len() * 2
    }

    fn write(&mut self, _index: usize, row: &[f32], bytes: &mut [u8]) {
        self.halves.convert_from_f32_slice(row);
        for ((chunk, half), value) in bytes.chunks_exact_mut(2).zip(&self.halves).zip(row) {
            let saturated = if half.is_infinite() && value.is_finite() { f16::MAX.copysign(*half) } else { *half };
            chunk.copy_from_slice(&saturated.to_le_bytes());
        }
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        for (chunk, half) in bytes.chunks_exact(2).zip(&mut self.halves) {
            *half = f16::from_le_bytes([chunk[0], chunk[1]]);
        }
        self.halves.convert_to_f32_slice(row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(codec: &mut dyn RowCodec, row: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; codec.row_bytes()];
        codec.write(0, row, &mut bytes);
        bytes
    }

    /// Goal: f32 is lossless, NaN's payload included. Method: bits in, bits out.
    #[test]
    fn f32_keeps_every_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::NAN];
        let mut codec = PlainF32 { columns: 6 };
        let bytes = written(&mut codec, &values);
        let mut back = [1.0; 6];
        codec.read(&bytes, &mut back).expect("values");
        assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits));
    }

    /// Goal: bf16 rounds to nearest even. Method: the halfway points on both sides of an even value.
    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (bits, expected) in [(0x3f80_8000, 0x3f80), (0x3f81_8000, 0x3f82), (0x3f80_8001, 0x3f81)] {
            let bytes = written(&mut RoundedBf16 { columns: 1 }, &[f32::from_bits(bits)]);
            assert_eq!(u16::from_le_bytes([bytes[0], bytes[1]]), expected, "{bits:08x}");
        }
    }

    /// Goal: f16 takes no large value for an infinity, and hides none. Method: beyond its range, and infinite.
    #[test]
    fn f16_saturates_what_is_finite() {
        let mut codec = RoundedF16::new(4);
        let bytes = written(&mut codec, &[1e9, -1e9, f32::NEG_INFINITY, 1.0 / 3.0]);
        let mut back = [0.0; 4];
        codec.read(&bytes, &mut back).expect("values");
        assert_eq!(back[..3], [65504.0, -65504.0, f32::NEG_INFINITY]);
        assert!((back[3] - 1.0 / 3.0).abs() < 1e-4);
    }
}
