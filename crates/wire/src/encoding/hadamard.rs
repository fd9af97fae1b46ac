//! The orthonormal Walsh-Hadamard rotation: it spreads an outlier over its whole block, and undoes itself.
//!
//! Every stage reads both halves and writes pairs side by side. After as many stages as the index has bits each bit is back
//! in its place, so the result is in the usual order, and each stage is the same loop, which vectorises.

/// Rotates `block`, whose length is a power of two, with as much `scratch`. Twice is not at all, up to rounding.
pub(super) fn rotate(block: &mut [f32], scratch: &mut [f32]) {
    debug_assert!(block.len().is_power_of_two() && block.len() == scratch.len());
    let stages = block.len().trailing_zeros();
    let factor = (block.len() as f32).sqrt().recip();
    for pair in 0..stages / 2 {
        butterflies(block, scratch, 1.0);
        butterflies(scratch, block, if pair * 2 + 2 == stages { factor } else { 1.0 });
    }
    if stages % 2 == 1 {
        butterflies(block, scratch, factor);
        block.copy_from_slice(scratch);
    }
}

fn butterflies(from: &[f32], to: &mut [f32], factor: f32) {
    let (low, high) = from.split_at(from.len() / 2);
    for ((low, high), pair) in low.iter().zip(high).zip(to.chunks_exact_mut(2)) {
        pair[0] = (low + high) * factor;
        pair[1] = (low - high) * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(values: &[f32]) -> Vec<f32> {
        let mut block = values.to_vec();
        rotate(&mut block, &mut vec![0.0; values.len()]);
        block
    }

    /// Goal: the fast rotation is the matrix. Method: entry (i, j) is the sign of the common bits' parity over the root.
    #[test]
    fn the_rotation_is_the_hadamard_matrix() {
        for size in [1_usize, 2, 4, 8, 16, 32, 64] {
            for place in 0..size {
                let mut unit = vec![0.0; size];
                unit[place] = 1.0;
                for (row, value) in rotated(&unit).into_iter().enumerate() {
                    let sign = if (row & place).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                    assert!((value - sign / (size as f32).sqrt()).abs() < 1e-6, "{size} {place} {row}");
                }
            }
        }
    }

    /// Goal: it is its own inverse and keeps lengths. Method: twice, and the norm, on uneven values.
    #[test]
    fn twice_is_not_at_all() {
        for size in [1_usize, 2, 8, 64, 256, 4096] {
            let values: Vec<f32> = (0..size).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect();
            let once = rotated(&values);
            let norm = |values: &[f32]| values.iter().map(|value| f64::from(value * value)).sum::<f64>();
            assert!((norm(&once) - norm(&values)).abs() <= norm(&values) * 1e-5);
            assert!(rotated(&once).iter().zip(&values).all(|(back, value)| (back - value).abs() < 1e-3), "{size}");
        }
    }
}
