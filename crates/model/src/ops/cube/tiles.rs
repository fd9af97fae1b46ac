//! Tiles of attention in shared memory, and the two products on them that every attention kernel is made of.
//!
//! A cube of `side × side` units owns a tile of `rows` rows and walks over tiles of `columns` columns. Unit `(y, x)` holds
//! rows `y, y + side, ..` and columns `x, x + side, ..` of a product in registers. `width` is the head dimension rounded up
//! to a multiple of `side`; what is beyond the head or the batch is zero in shared memory.

use cubecl::client::Client;
use cubecl::prelude::*;

/// Shared memory a kernel may take at most; CUDA's without opting in to more.
const SHARED_BYTES_MAX: usize = 48 * 1024;

/// Sizes to choose from, the fastest first: side, rows, columns. Neither rows nor columns may exceed the units, `side²`.
const CHOICES: [(usize, usize, usize); 10] =
    [(16, 64, 32), (16, 32, 32), (16, 32, 16), (16, 16, 16), (8, 16, 16), (8, 16, 8), (8, 8, 8), (4, 8, 4), (4, 4, 4), (2, 4, 2)];

/// Features per head that fit wherever WebGPU runs.
#[cfg(test)]
pub(super) const HEAD_DIM_MAX: usize = 256;

/// The sizes of one kernel's tiles, known when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiles {
    pub side: usize,
    pub rows: usize,
    pub columns: usize,
    /// Features per head.
    pub dim: usize,
}

impl Tiles {
    /// The largest tiles the device has room for; `shared_values` counts what a kernel keeps in shared memory.
    pub fn choose(client: &Client, dim: usize, shared_values: impl Fn(Tiles) -> usize) -> Self {
        let hardware = &client.properties().hardware;
        let bytes = hardware.max_shared_memory_size.min(SHARED_BYTES_MAX);
        Self::largest(hardware.max_units_per_cube as usize, bytes, dim, shared_values)
    }

    /// # Panics
    ///
    /// If not even the smallest fit. In 16 KiB, which every WebGPU device has, heads of `HEAD_DIM_MAX` features do.
    fn largest(units_max: usize, bytes_max: usize, dim: usize, shared_values: impl Fn(Tiles) -> usize) -> Self {
        CHOICES
            .into_iter()
            .map(|(side, rows, columns)| Tiles { side, rows, columns, dim })
            .find(|&tiles| tiles.units() <= units_max && shared_values(tiles) * size_of::<f32>() <= bytes_max)
            .unwrap_or_else(|| panic!("heads of {dim} features do not fit {bytes_max} B of shared memory"))
    }

    pub const fn units(self) -> usize {
        self.side * self.side
    }

    pub const fn row_steps(self) -> usize {
        self.rows / self.side
    }

    pub const fn column_steps(self) -> usize {
        self.columns / self.side
    }

    pub const fn width_steps(self) -> usize {
        self.dim.div_ceil(self.side)
    }

    pub const fn width(self) -> usize {
        self.width_steps() * self.side
    }

    /// Distance between a tile's rows: odd, so that neighbouring rows lie in different banks.
    pub const fn pitch(self) -> usize {
        self.width() + 1
    }

    /// Values of a tile of rows, of a tile of columns, and of their product.
    pub const fn row_values(self) -> usize {
        self.rows * self.pitch()
    }

    pub const fn column_values(self) -> usize {
        self.columns * self.pitch()
    }

    pub const fn product_values(self) -> usize {
        self.rows * (self.columns + 1)
    }
}

/// Copies `count` rows of one head, from row `first` of `n`, times `factor`, into a tile. The head starts at column `offset`.
#[cube]
pub(super) fn load_tile<F: Float>(
    source: &[F],
    tile: &mut Shared<[f32]>,
    first: usize,
    n: usize,
    stride: usize,
    offset: usize,
    factor: f32,
    #[comptime] count: usize,
    #[comptime] tiles: Tiles,
) {
    let width = comptime!(tiles.width());
    let mut i = UNIT_POS as usize;
    while i < comptime!(count * tiles.width()) {
        let row = i / width;
        let column = i % width;
        let mut value = f32::new(0.0);
        if first + row < n && column < comptime!(tiles.dim) {
            value = f32::cast_from(source[(first + row) * stride + offset + column]) * factor;
        }
        tile[row * comptime!(tiles.pitch()) + column] = value;
        i += comptime!(tiles.units());
    }
}

/// `product[row][column] = dot(rows[row], columns[column])`, in registers.
#[cube]
pub(super) fn dot_tiles(product: &mut Array<f32>, rows: &Shared<[f32]>, columns: &Shared<[f32]>, #[comptime] tiles: Tiles) {
    let y = UNIT_POS as usize / comptime!(tiles.side);
    let x = UNIT_POS as usize % comptime!(tiles.side);
    let row_steps = comptime!(tiles.row_steps());
    let column_steps = comptime!(tiles.column_steps());
    let pitch = comptime!(tiles.pitch());
    #[unroll]
    for i in 0..comptime!(row_steps * column_steps) {
        product[i] = f32::new(0.0);
    }
    let mut row_values = Array::<f32>::new(row_steps);
    for c in 0..comptime!(tiles.dim) {
        #[unroll]
        for i in 0..row_steps {
            row_values[i] = rows[(y + comptime!(i * tiles.side)) * pitch + c];
        }
        #[unroll]
        for j in 0..column_steps {
            let column_value = columns[(x + comptime!(j * tiles.side)) * pitch + c];
            #[unroll]
            for i in 0..row_steps {
                product[comptime!(i * column_steps + j)] += row_values[i] * column_value;
            }
        }
    }
}

/// `sum[row][feature] += Σ weights[row][column] · columns[column][feature]`, in registers. `weights` is a product in shared memory.
#[cube]
pub(super) fn mix_tiles(sum: &mut Array<f32>, weights: &Shared<[f32]>, columns: &Shared<[f32]>, #[comptime] tiles: Tiles) {
    let y = UNIT_POS as usize / comptime!(tiles.side);
    let x = UNIT_POS as usize % comptime!(tiles.side);
    let row_steps = comptime!(tiles.row_steps());
    let width_steps = comptime!(tiles.width_steps());
    let mut row_values = Array::<f32>::new(row_steps);
    for column in 0..comptime!(tiles.columns) {
        #[unroll]
        for i in 0..row_steps {
            row_values[i] = weights[(y + comptime!(i * tiles.side)) * comptime!(tiles.columns + 1) + column];
        }
        #[unroll]
        for j in 0..width_steps {
            let value = columns[column * comptime!(tiles.pitch()) + x + comptime!(j * tiles.side)];
            #[unroll]
            for i in 0..row_steps {
                sum[comptime!(i * width_steps + j)] += row_values[i] * value;
            }
        }
    }
}

/// Moves a product from registers to shared memory, where every unit of the cube sees it.
#[cube]
pub(super) fn share_product(product: &Array<f32>, shared: &mut Shared<[f32]>, #[comptime] tiles: Tiles) {
    let y = UNIT_POS as usize / comptime!(tiles.side);
    let x = UNIT_POS as usize % comptime!(tiles.side);
    let column_steps = comptime!(tiles.column_steps());
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        #[unroll]
        for j in 0..column_steps {
            let place = (y + comptime!(i * tiles.side)) * comptime!(tiles.columns + 1) + x + comptime!(j * tiles.side);
            shared[place] = product[comptime!(i * column_steps + j)];
        }
    }
}

/// Writes a sum of features, times `factor`, to rows `first ..` of `n` of the output. The head starts at column `offset`.
#[cube]
pub(super) fn store_sum<F: Float>(
    sum: &Array<f32>,
    target: &mut [F],
    first: usize,
    n: usize,
    stride: usize,
    offset: usize,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    let y = UNIT_POS as usize / comptime!(tiles.side);
    let x = UNIT_POS as usize % comptime!(tiles.side);
    let width_steps = comptime!(tiles.width_steps());
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        let row = first + y + comptime!(i * tiles.side);
        #[unroll]
        for j in 0..width_steps {
            let feature = x + comptime!(j * tiles.side);
            if row < n && feature < comptime!(tiles.dim) {
                target[row * stride + offset + feature] = F::cast_from(sum[comptime!(i * width_steps + j)] * factor);
            }
        }
    }
}

/// An array of zeros in registers.
#[cube]
pub(super) fn zeros(#[comptime] length: usize) -> Array<f32> {
    let mut array = Array::<f32>::new(length);
    #[unroll]
    for i in 0..length {
        array[i] = f32::new(0.0);
    }
    array
}

/// Loads two columns of `spans` for `count` tokens from `first`; a token beyond the batch sees, and is seen by, nothing.
#[cube]
pub(super) fn load_spans<I: Int>(
    spans: &[I],
    starts: &mut Shared<[u32]>,
    ends: &mut Shared<[u32]>,
    first: usize,
    n: usize,
    #[comptime] column: usize,
    #[comptime] count: usize,
) {
    let unit = UNIT_POS as usize;
    if unit < count {
        let mut start = n as u32;
        let mut end = 0u32;
        if first + unit < n {
            start = u32::cast_from(spans[(first + unit) * 4 + column]);
            end = u32::cast_from(spans[(first + unit) * 4 + comptime!(column + 1)]);
        }
        starts[unit] = start;
        ends[unit] = end;
    }
}

/// The range that covers `count` loaded spans.
#[cube]
pub(super) fn cover(starts: &Shared<[u32]>, ends: &Shared<[u32]>, #[comptime] count: usize) -> (usize, usize) {
    let mut low = starts[0];
    let mut high = ends[0];
    for i in 1..count {
        low = low.min(starts[i]);
        high = high.max(ends[i]);
    }
    (low as usize, high as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::{attention, attention_backward};

    /// WebGPU's least: 256 units and 16 KiB.
    #[test]
    fn every_head_fits_the_smallest_device() {
        assert!(CHOICES.iter().all(|&(side, rows, columns)| rows.max(columns) <= side * side));
        for dim in 1..=HEAD_DIM_MAX {
            for values in [attention::shared_values, attention_backward::query_shared_values, attention_backward::key_shared_values] {
                Tiles::largest(256, 16 * 1024, dim, values);
            }
        }
    }
}
