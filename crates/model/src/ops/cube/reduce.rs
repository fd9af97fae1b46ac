//! Sums and maxima over one cube, through shared memory: plane operations are missing on some WebGPU devices, so none is used.

use cubecl::prelude::*;

/// Units of a cube that works on one row: WebGPU's largest workgroup.
pub(super) const UNITS: usize = 256;

/// Stands for "no score yet"; far below any real one. WGSL has no infinity.
pub(super) const LOWEST: f32 = -1e30;

/// Sum over the elements of one vector.
#[cube]
pub(super) fn horizontal<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for k in 0..N::value() {
        sum += vector.extract(k);
    }
    sum
}

/// Sum over the cube, returned to every unit. `scratch` holds one value per unit and may be used again after.
#[cube]
pub(super) fn cube_sum(value: f32, scratch: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            scratch[unit] += scratch[unit + half];
        }
        sync_cube();
    }
    let total = scratch[0];
    sync_cube();
    total
}

/// The largest value over the cube and its index, returned to every unit; of equal values, the lowest index.
#[cube]
pub(super) fn cube_best(
    value: f32,
    index: u32,
    values: &mut Shared<[f32]>,
    indices: &mut Shared<[u32]>,
    #[comptime] units: usize,
) -> (f32, u32) {
    let unit = UNIT_POS as usize;
    values[unit] = value;
    indices[unit] = index;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2() as usize) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let (mine, other) = (values[unit], values[unit + half]);
            let (mine_index, other_index) = (indices[unit], indices[unit + half]);
            if other > mine || (other == mine && other_index < mine_index) {
                values[unit] = other;
                indices[unit] = other_index;
            }
        }
        sync_cube();
    }
    let best = values[0];
    let best_index = indices[0];
    sync_cube();
    (best, best_index)
}
