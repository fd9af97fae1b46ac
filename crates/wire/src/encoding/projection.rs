//! Fewer coordinates than a row has: the first of a rotation drawn by chance, the same on both sides.
//!
//! The rotation is two rounds of random signs and Walsh-Hadamard blocks with a shuffle between them, which is orthonormal and
//! needs no matrix: kept coordinates are an orthogonal projection, and reading them back is its transpose. It is drawn from the
//! width alone, so that a model is always seen in the same subspace and its adapters can learn to use it.

use super::hadamard::rotate;
use super::random::Stream;
use super::rows::RowCodec;

/// Where the rotation is drawn from: both sides must draw the same.
const SEED: u64 = 0x6375_746c_6179_6572;

/// Rows of which `inner` writes a few coordinates.
pub(super) struct Projected {
    inner: Box<dyn RowCodec>,
    kept: usize,
    block: usize,
    signs: [Vec<f32>; 2],
    shuffle: Vec<u32>,
    here: Vec<f32>,
    there: Vec<f32>,
    scratch: Vec<f32>,
}

impl Projected {
    /// Rows of `columns`, of which `inner` takes `kept` coordinates.
    pub fn new(inner: Box<dyn RowCodec>, columns: usize, kept: usize) -> Self {
        let stream = Stream::new(SEED ^ columns as u64);
        let mut next = (0_u32..).map(|index| stream.word(index));
        let mut draw = || next.next().unwrap_or_default();
        let mut signs = || (0..columns).map(|_| if draw() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let signs = [signs(), signs()];
        let mut shuffle: Vec<u32> = (0..columns as u32).collect();
        for last in (1..columns).rev() {
            shuffle.swap(last, draw() as usize % (last + 1));
        }
        // The largest power of two that divides the width.
        let block = 1 << columns.trailing_zeros();
        let zeros = || vec![0.0; columns];
        Self { inner, kept, block, signs, shuffle, here: zeros(), there: zeros(), scratch: vec![0.0; block] }
    }
}

fn rotate_blocks(row: &mut [f32], block: usize, scratch: &mut [f32]) {
    row.chunks_exact_mut(block).for_each(|block| rotate(block, scratch));
}

impl RowCodec for Projected {
    fn row_bytes(&self) -> usize {
        self.inner.row_bytes()
    }

    fn write(&mut self, index: usize, row: &[f32], bytes: &mut [u8]) {
        for ((here, value), sign) in self.here.iter_mut().zip(row).zip(&self.signs[0]) {
            *here = value * sign;
        }
        rotate_blocks(&mut self.here, self.block, &mut self.scratch);
        for ((there, place), sign) in self.there.iter_mut().zip(&self.shuffle).zip(&self.signs[1]) {
            *there = self.here[*place as usize] * sign;
        }
        rotate_blocks(&mut self.there, self.block, &mut self.scratch);
        self.inner.write(index, &self.there[..self.kept], bytes);
    }

    fn read(&mut self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        let (kept, dropped) = self.there.split_at_mut(self.kept);
        self.inner.read(bytes, kept)?;
        dropped.fill(0.0);
        rotate_blocks(&mut self.there, self.block, &mut self.scratch);
        for ((there, place), sign) in self.there.iter().zip(&self.shuffle).zip(&self.signs[1]) {
            self.here[*place as usize] = there * sign;
        }
        rotate_blocks(&mut self.here, self.block, &mut self.scratch);
        for ((value, here), sign) in row.iter_mut().zip(&self.here).zip(&self.signs[0]) {
            *value = here * sign;
        }
        Ok(())
    }
}
