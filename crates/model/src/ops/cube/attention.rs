//! Attention forward (Dao et al. 2022): one cube a tile of queries and head, an online softmax over tiles of keys.
//!
//! No `[n, n]` tensor exists, and no copy of a key head for each query head. Arithmetic is f32 whatever the tensors are.
//! Launched unchecked, because checked kernels take a fifth longer (SwiftShader, 512 tokens, 9 heads of 64: medians 523 and 437 ms).

use super::matrix::{Matrix, vector};
use super::reduce::LOWEST;
use super::tiles::{Tiles, cover, dot_tiles, load_spans, load_tile, mix_tiles, share_product, store_sum, zeros};
use crate::ops::Heads;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Queries and keys or values; scores; each unit's part of a row's maximum or sum; spans.
pub(super) fn shared_values(tiles: Tiles) -> usize {
    tiles.row_values() + tiles.column_values() + tiles.product_values() + tiles.rows * tiles.side + 2 * tiles.rows
}

#[cube(launch_unchecked)]
fn attention_kernel<F: Float, I: Int>(
    qkv: &[F],
    spans: &[I],
    out: &mut [F],
    lse: &mut [f32],
    n: usize,
    stride: usize,
    query_heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let side = comptime!(tiles.side);
    let row_steps = comptime!(tiles.row_steps());
    let width_steps = comptime!(tiles.width_steps());
    let y = UNIT_POS as usize / side;
    let x = UNIT_POS as usize % side;
    let first = CUBE_POS_X as usize * comptime!(tiles.rows);
    let head = CUBE_POS_Y as usize;
    let kv_head = head / (query_heads / kv_heads);
    let key_offset = (query_heads + kv_head) * comptime!(tiles.dim);
    let value_offset = (query_heads + kv_heads + kv_head) * comptime!(tiles.dim);

    let mut queries = Shared::<[f32]>::new_slice(comptime!(tiles.row_values()));
    let mut columns = Shared::<[f32]>::new_slice(comptime!(tiles.column_values()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.product_values()));
    let mut parts = Shared::<[f32]>::new_slice(comptime!(tiles.rows * tiles.side));
    let mut starts = Shared::<[u32]>::new_slice(comptime!(tiles.rows));
    let mut ends = Shared::<[u32]>::new_slice(comptime!(tiles.rows));

    load_spans::<I>(spans, &mut starts, &mut ends, first, n, 0usize, comptime!(tiles.rows));
    load_tile::<F>(qkv, &mut queries, first, n, stride, head * comptime!(tiles.dim), scale, comptime!(tiles.rows), tiles);
    sync_cube();
    let (low, high) = cover(&starts, &ends, comptime!(tiles.rows));

    let mut scores = zeros(comptime!(row_steps * tiles.column_steps()));
    let mut mixed = zeros(comptime!(row_steps * width_steps));
    let mut sums = zeros(row_steps);
    let mut maxima = Array::<f32>::new(row_steps);
    #[unroll]
    for i in 0..row_steps {
        maxima[i] = f32::new(LOWEST);
    }

    let mut key = low;
    while key < high {
        // The last tile's values are still read until here.
        sync_cube();
        load_tile::<F>(qkv, &mut columns, key, n, stride, key_offset, 1.0, comptime!(tiles.columns), tiles);
        sync_cube();
        dot_tiles(&mut scores, &queries, &columns, tiles);
        hide_unseen(&mut scores, &mut parts, &starts, &ends, key, tiles);
        sync_cube();
        // The keys have been read: their place is the values' now.
        load_tile::<F>(qkv, &mut columns, key, n, stride, value_offset, 1.0, comptime!(tiles.columns), tiles);
        weigh(&mut scores, &mut maxima, &mut sums, &mut mixed, &parts, tiles);
        share_product(&scores, &mut weights, tiles);
        sync_cube();
        mix_tiles(&mut mixed, &weights, &columns, tiles);
        key += comptime!(tiles.columns);
    }

    total(&mut sums, &mut parts, tiles);
    #[unroll]
    for i in 0..row_steps {
        let row = first + y + comptime!(i * side);
        #[unroll]
        for j in 0..width_steps {
            mixed[comptime!(i * width_steps + j)] /= sums[i];
        }
        if x == 0 && row < n {
            lse[row * query_heads + head] = maxima[i] + sums[i].ln();
        }
    }
    let out_stride = query_heads * comptime!(tiles.dim);
    store_sum::<F>(&mixed, out, first, n, out_stride, head * comptime!(tiles.dim), 1.0, tiles);
}

/// Replaces the scores that a row does not see by LOWEST, and shares each unit's part of a row's maximum.
#[cube]
fn hide_unseen(
    scores: &mut Array<f32>,
    parts: &mut Shared<[f32]>,
    starts: &Shared<[u32]>,
    ends: &Shared<[u32]>,
    key: usize,
    #[comptime] tiles: Tiles,
) {
    let side = comptime!(tiles.side);
    let column_steps = comptime!(tiles.column_steps());
    let y = UNIT_POS as usize / side;
    let x = UNIT_POS as usize % side;
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        let row = y + comptime!(i * side);
        let (start, end) = (starts[row] as usize, ends[row] as usize);
        let mut best = f32::new(LOWEST);
        #[unroll]
        for j in 0..column_steps {
            let column = key + x + comptime!(j * side);
            let place = comptime!(i * column_steps + j);
            if column < start || column >= end {
                scores[place] = f32::new(LOWEST);
            }
            best = best.max(scores[place]);
        }
        parts[row * side + x] = best;
    }
}

/// Turns scores into weights below the maximum so far; what was summed below a lower maximum shrinks accordingly.
#[cube]
fn weigh(
    scores: &mut Array<f32>,
    maxima: &mut Array<f32>,
    sums: &mut Array<f32>,
    mixed: &mut Array<f32>,
    parts: &Shared<[f32]>,
    #[comptime] tiles: Tiles,
) {
    let side = comptime!(tiles.side);
    let column_steps = comptime!(tiles.column_steps());
    let width_steps = comptime!(tiles.width_steps());
    let y = UNIT_POS as usize / side;
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        let row = y + comptime!(i * side);
        let mut best = maxima[i];
        for k in 0..side {
            best = best.max(parts[row * side + k]);
        }
        let keep = (maxima[i] - best).exp();
        maxima[i] = best;
        sums[i] *= keep;
        #[unroll]
        for j in 0..width_steps {
            mixed[comptime!(i * width_steps + j)] *= keep;
        }
        #[unroll]
        for j in 0..column_steps {
            let place = comptime!(i * column_steps + j);
            // Where a row has seen no key yet, `best` is LOWEST too: a hidden key must not weigh exp(0).
            let weight = select(scores[place] > f32::new(LOWEST), (scores[place] - best).exp(), f32::new(0.0));
            scores[place] = weight;
            sums[i] += weight;
        }
    }
}

/// Each unit has summed its own columns of a row: adds them up. All have read the last maxima from `parts` by now.
#[cube]
fn total(sums: &mut Array<f32>, parts: &mut Shared<[f32]>, #[comptime] tiles: Tiles) {
    let side = comptime!(tiles.side);
    let y = UNIT_POS as usize / side;
    let x = UNIT_POS as usize % side;
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        parts[(y + comptime!(i * side)) * side + x] = sums[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime!(tiles.row_steps()) {
        let mut sum = f32::new(0.0);
        for k in 0..side {
            sum += parts[(y + comptime!(i * side)) * side + k];
        }
        // Rows beyond the batch have no sum, and are not written.
        sums[i] = sum.max(f32::new(1e-30));
    }
}

/// Mixed values `[n, h·e]` and the log-sum-exp of each query's scaled scores `[n, h]`, the latter always f32.
pub(super) fn attention(qkv: CubeTensor, spans: CubeTensor, heads: Heads, scale: f32) -> (CubeTensor, CubeTensor) {
    let (qkv, spans) = (Matrix::new(qkv), vector(spans));
    let n = qkv.rows;
    check(heads, &qkv, &spans);
    let out = qkv.empty([n, heads.query * heads.dim], qkv.tensor.dtype);
    let lse = qkv.empty([n, heads.query], DType::F32);
    if n == 0 {
        return (out, lse);
    }
    let client = qkv.client();
    let tiles = Tiles::choose(&client, heads.dim, shared_values);
    // SAFETY: `check` has proved the shapes. The kernel reads row i < n of `qkv`, in the columns of heads that exist, and of
    // `spans`, and writes row i < n of `out` and `lse`, which have n rows; spans bound its loop and are no index.
    unsafe {
        attention_kernel::launch_unchecked(
            &client,
            CubeCount::Static(n.div_ceil(tiles.rows) as u32, heads.query as u32, 1),
            CubeDim::new_1d(tiles.units() as u32),
            qkv.tensor.clone().into_buffer_arg(),
            spans.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            n,
            qkv.stride,
            heads.query,
            heads.kv,
            scale,
            tiles,
            [qkv.kind(), dtype_to_storage_type(spans.dtype)],
        )
    };
    (out, lse)
}

/// # Panics
///
/// If the tensors are not of these heads: unchecked kernels rely on it.
pub(super) fn check(heads: Heads, qkv: &Matrix, spans: &CubeTensor) {
    let Heads { query, kv, dim } = heads;
    assert!(kv > 0 && query.is_multiple_of(kv), "each key head serves equally many query heads, not {heads:?}");
    assert_eq!(qkv.columns, (query + 2 * kv) * dim, "queries, keys and values of {heads:?}");
    assert_eq!(spans.shape().dims::<2>(), [qkv.rows, 4], "four bounds a token");
}
