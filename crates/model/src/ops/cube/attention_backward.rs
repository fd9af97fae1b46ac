//! Attention backward (Dao et al. 2022), from the saved log-sum-exp: scores are computed again, tile by tile.
//!
//! With `P = exp(scale·q·k - lse)` and `D = dot(dO, O)`: `dV = Pᵀ·dO`, `dS = P·(dO·v - D)`, `dQ = scale·dS·k`, `dK = scale·dSᵀ·q`.
//! One kernel computes D, one dQ by tiles of queries, one dK and dV by tiles of keys: no two cubes write the same place.
//! Launched unchecked, as the forward kernel is.

use super::attention::check;
use super::matrix::{Matrix, units, vector};
use super::tiles::{Tiles, cover, dot_tiles, load_spans, load_tile, mix_tiles, share_product, store_sum, zeros};
use crate::ops::Heads;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{DType, TensorMetadata};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Two tiles of rows, two of columns, a product; spans.
pub(super) fn query_shared_values(tiles: Tiles) -> usize {
    2 * tiles.row_values() + 2 * tiles.column_values() + tiles.product_values() + 2 * tiles.rows
}

/// The same with a second product, and the spans of the columns as well.
pub(super) fn key_shared_values(tiles: Tiles) -> usize {
    query_shared_values(tiles) + tiles.product_values() + 2 * tiles.columns
}

/// One unit a query and head: `dot(dO, O)`.
#[cube(launch_unchecked)]
fn delta_kernel<F: Float>(
    out: &[F],
    grad: &[F],
    delta: &mut [f32],
    total: usize,
    heads: usize,
    stride: usize,
    grad_stride: usize,
    #[comptime] dim: usize,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place >= total {
        terminate!();
    }
    let (row, head) = (place / heads, place % heads);
    let mut sum = f32::new(0.0);
    for c in 0..dim {
        sum += f32::cast_from(out[row * stride + head * dim + c]) * f32::cast_from(grad[row * grad_stride + head * dim + c]);
    }
    delta[place] = sum;
}

#[cube(launch_unchecked)]
fn query_gradient_kernel<F: Float, I: Int>(
    qkv: &[F],
    spans: &[I],
    lse: &[f32],
    delta: &[f32],
    grad: &[F],
    dqkv: &mut [F],
    n: usize,
    stride: usize,
    grad_stride: usize,
    query_heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let side = comptime!(tiles.side);
    let row_steps = comptime!(tiles.row_steps());
    let y = UNIT_POS as usize / side;
    let first = CUBE_POS_X as usize * comptime!(tiles.rows);
    let head = CUBE_POS_Y as usize;
    let offset = head * comptime!(tiles.dim);
    let kv_head = head / (query_heads / kv_heads);
    let key_offset = (query_heads + kv_head) * comptime!(tiles.dim);
    let value_offset = (query_heads + kv_heads + kv_head) * comptime!(tiles.dim);

    let mut queries = Shared::<[f32]>::new_slice(comptime!(tiles.row_values()));
    let mut pulls = Shared::<[f32]>::new_slice(comptime!(tiles.row_values()));
    let mut keys = Shared::<[f32]>::new_slice(comptime!(tiles.column_values()));
    let mut values = Shared::<[f32]>::new_slice(comptime!(tiles.column_values()));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(tiles.product_values()));
    let mut starts = Shared::<[u32]>::new_slice(comptime!(tiles.rows));
    let mut ends = Shared::<[u32]>::new_slice(comptime!(tiles.rows));

    load_spans::<I>(spans, &mut starts, &mut ends, first, n, 0usize, comptime!(tiles.rows));
    load_tile::<F>(qkv, &mut queries, first, n, stride, offset, scale, comptime!(tiles.rows), tiles);
    load_tile::<F>(grad, &mut pulls, first, n, grad_stride, offset, 1.0, comptime!(tiles.rows), tiles);
    sync_cube();
    let (low, high) = cover(&starts, &ends, comptime!(tiles.rows));

    let mut row_lse = zeros(row_steps);
    let mut row_delta = zeros(row_steps);
    #[unroll]
    for i in 0..row_steps {
        let row = first + y + comptime!(i * side);
        if row < n {
            row_lse[i] = lse[row * query_heads + head];
            row_delta[i] = delta[row * query_heads + head];
        }
    }
    let mut scores = zeros(comptime!(row_steps * tiles.column_steps()));
    let mut pulled = zeros(comptime!(row_steps * tiles.column_steps()));
    let mut sum = zeros(comptime!(row_steps * tiles.width_steps()));

    let mut key = low;
    while key < high {
        sync_cube();
        load_tile::<F>(qkv, &mut keys, key, n, stride, key_offset, 1.0, comptime!(tiles.columns), tiles);
        load_tile::<F>(qkv, &mut values, key, n, stride, value_offset, 1.0, comptime!(tiles.columns), tiles);
        sync_cube();
        dot_tiles(&mut scores, &queries, &keys, tiles);
        dot_tiles(&mut pulled, &pulls, &values, tiles);
        slopes_of_rows(&mut scores, &pulled, &row_lse, &row_delta, &starts, &ends, key, tiles);
        share_product(&scores, &mut slopes, tiles);
        sync_cube();
        mix_tiles(&mut sum, &slopes, &keys, tiles);
        key += comptime!(tiles.columns);
    }
    let out_stride = (query_heads + 2 * kv_heads) * comptime!(tiles.dim);
    store_sum::<F>(&sum, dqkv, first, n, out_stride, offset, scale, tiles);
}

/// Rows are keys, columns are queries: of each query head that shares the key head in turn.
#[cube(launch_unchecked)]
fn key_value_gradient_kernel<F: Float, I: Int>(
    qkv: &[F],
    spans: &[I],
    lse: &[f32],
    delta: &[f32],
    grad: &[F],
    dqkv: &mut [F],
    n: usize,
    stride: usize,
    grad_stride: usize,
    query_heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] tiles: Tiles,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let side = comptime!(tiles.side);
    let row_steps = comptime!(tiles.row_steps());
    let column_steps = comptime!(tiles.column_steps());
    let x = UNIT_POS as usize % side;
    let first = CUBE_POS_X as usize * comptime!(tiles.rows);
    let kv_head = CUBE_POS_Y as usize;
    let group = query_heads / kv_heads;
    let key_offset = (query_heads + kv_head) * comptime!(tiles.dim);
    let value_offset = (query_heads + kv_heads + kv_head) * comptime!(tiles.dim);

    let mut keys = Shared::<[f32]>::new_slice(comptime!(tiles.row_values()));
    let mut values = Shared::<[f32]>::new_slice(comptime!(tiles.row_values()));
    let mut queries = Shared::<[f32]>::new_slice(comptime!(tiles.column_values()));
    let mut pulls = Shared::<[f32]>::new_slice(comptime!(tiles.column_values()));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(tiles.product_values()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(tiles.product_values()));
    let mut seen_starts = Shared::<[u32]>::new_slice(comptime!(tiles.rows));
    let mut seen_ends = Shared::<[u32]>::new_slice(comptime!(tiles.rows));
    let mut starts = Shared::<[u32]>::new_slice(comptime!(tiles.columns));
    let mut ends = Shared::<[u32]>::new_slice(comptime!(tiles.columns));

    load_spans::<I>(spans, &mut seen_starts, &mut seen_ends, first, n, 2usize, comptime!(tiles.rows));
    load_tile::<F>(qkv, &mut keys, first, n, stride, key_offset, 1.0, comptime!(tiles.rows), tiles);
    load_tile::<F>(qkv, &mut values, first, n, stride, value_offset, 1.0, comptime!(tiles.rows), tiles);
    sync_cube();
    let (low, high) = cover(&seen_starts, &seen_ends, comptime!(tiles.rows));

    let mut scores = zeros(comptime!(row_steps * tiles.column_steps()));
    let mut pulled = zeros(comptime!(row_steps * tiles.column_steps()));
    let mut column_lse = zeros(column_steps);
    let mut column_delta = zeros(column_steps);
    let mut key_sum = zeros(comptime!(row_steps * tiles.width_steps()));
    let mut value_sum = zeros(comptime!(row_steps * tiles.width_steps()));

    for member in 0..group {
        let head = kv_head * group + member;
        let offset = head * comptime!(tiles.dim);
        let mut query = low;
        while query < high {
            sync_cube();
            load_spans::<I>(spans, &mut starts, &mut ends, query, n, 0usize, comptime!(tiles.columns));
            load_tile::<F>(qkv, &mut queries, query, n, stride, offset, scale, comptime!(tiles.columns), tiles);
            load_tile::<F>(grad, &mut pulls, query, n, grad_stride, offset, 1.0, comptime!(tiles.columns), tiles);
            sync_cube();
            dot_tiles(&mut scores, &keys, &queries, tiles);
            dot_tiles(&mut pulled, &values, &pulls, tiles);
            #[unroll]
            for j in 0..column_steps {
                let row = query + x + comptime!(j * side);
                column_lse[j] = f32::new(0.0);
                column_delta[j] = f32::new(0.0);
                if row < n {
                    column_lse[j] = lse[row * query_heads + head];
                    column_delta[j] = delta[row * query_heads + head];
                }
            }
            weights_of_columns(&mut scores, &mut pulled, &column_lse, &column_delta, &starts, &ends, first, tiles);
            share_product(&scores, &mut weights, tiles);
            share_product(&pulled, &mut slopes, tiles);
            sync_cube();
            mix_tiles(&mut value_sum, &weights, &pulls, tiles);
            // The queries were scaled when loaded.
            mix_tiles(&mut key_sum, &slopes, &queries, tiles);
            query += comptime!(tiles.columns);
        }
    }
    let out_stride = (query_heads + 2 * kv_heads) * comptime!(tiles.dim);
    store_sum::<F>(&key_sum, dqkv, first, n, out_stride, key_offset, 1.0, tiles);
    store_sum::<F>(&value_sum, dqkv, first, n, out_stride, value_offset, 1.0, tiles);
}

/// Queries by keys: `scores` becomes the slope of the scores, `P·(dO·v - D)`; zero where a row does not see a column.
#[cube]
fn slopes_of_rows(
    scores: &mut Array<f32>,
    pulled: &Array<f32>,
    row_lse: &Array<f32>,
    row_delta: &Array<f32>,
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
        #[unroll]
        for j in 0..column_steps {
            let column = key + x + comptime!(j * side);
            let place = comptime!(i * column_steps + j);
            let mut slope = f32::new(0.0);
            if column >= start && column < end {
                slope = (scores[place] - row_lse[i]).exp() * (pulled[place] - row_delta[i]);
            }
            scores[place] = slope;
        }
    }
}

/// Keys by queries: `scores` becomes the weights `P`, `pulled` their slopes; zero where a column does not see a row.
#[cube]
fn weights_of_columns(
    scores: &mut Array<f32>,
    pulled: &mut Array<f32>,
    column_lse: &Array<f32>,
    column_delta: &Array<f32>,
    starts: &Shared<[u32]>,
    ends: &Shared<[u32]>,
    first: usize,
    #[comptime] tiles: Tiles,
) {
    let side = comptime!(tiles.side);
    let column_steps = comptime!(tiles.column_steps());
    let y = UNIT_POS as usize / side;
    let x = UNIT_POS as usize % side;
    #[unroll]
    for j in 0..column_steps {
        let column = x + comptime!(j * side);
        let (start, end) = (starts[column] as usize, ends[column] as usize);
        #[unroll]
        for i in 0..comptime!(tiles.row_steps()) {
            let key = first + y + comptime!(i * side);
            let place = comptime!(i * column_steps + j);
            let mut weight = f32::new(0.0);
            if key >= start && key < end {
                weight = (scores[place] - column_lse[j]).exp();
            }
            scores[place] = weight;
            pulled[place] = weight * (pulled[place] - column_delta[j]);
        }
    }
}

/// What the forward pass took and gave, and the gradient of its output.
pub(super) struct Saved {
    pub qkv: CubeTensor,
    pub spans: CubeTensor,
    pub out: CubeTensor,
    pub lse: CubeTensor,
    pub grad: CubeTensor,
}

/// The gradient with respect to `qkv`.
pub(super) fn attention_backward(saved: Saved, heads: Heads, scale: f32) -> CubeTensor {
    let (qkv, out, grad) = (Matrix::new(saved.qkv), Matrix::new(saved.out), Matrix::new(saved.grad));
    let (spans, lse) = (vector(saved.spans), vector(saved.lse));
    let n = qkv.rows;
    check(heads, &qkv, &spans);
    let mixed = (n, heads.query * heads.dim);
    assert!((out.rows, out.columns) == mixed && (grad.rows, grad.columns) == mixed, "attention's output and gradient are [n, h·e]");
    assert_eq!(lse.shape().dims::<2>(), [n, heads.query], "one log-sum-exp a query and head");
    let dqkv = qkv.empty([n, qkv.columns], qkv.tensor.dtype);
    if n == 0 {
        return dqkv;
    }
    let client = qkv.client();
    let delta = dot_rows(&out, &grad, heads);
    let tiles = Tiles::choose(&client, heads.dim, query_shared_values);
    // SAFETY: every tensor's shape was asserted above. The kernel reads rows i < n in the columns of heads that exist, and writes
    // row i < n of `dqkv`, which is as large as `qkv`; spans bound its loop and are no index.
    unsafe {
        query_gradient_kernel::launch_unchecked(
            &client,
            CubeCount::Static(n.div_ceil(tiles.rows) as u32, heads.query as u32, 1),
            CubeDim::new_1d(tiles.units() as u32),
            qkv.tensor.clone().into_buffer_arg(),
            spans.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            grad.tensor.clone().into_buffer_arg(),
            dqkv.clone().into_buffer_arg(),
            n,
            qkv.stride,
            grad.stride,
            heads.query,
            heads.kv,
            scale,
            tiles,
            [qkv.kind(), dtype_to_storage_type(spans.dtype)],
        )
    };
    let tiles = Tiles::choose(&client, heads.dim, key_shared_values);
    // SAFETY: as for the kernel before.
    unsafe {
        key_value_gradient_kernel::launch_unchecked(
            &client,
            CubeCount::Static(n.div_ceil(tiles.rows) as u32, heads.kv as u32, 1),
            CubeDim::new_1d(tiles.units() as u32),
            qkv.tensor.clone().into_buffer_arg(),
            spans.clone().into_buffer_arg(),
            lse.into_buffer_arg(),
            delta.into_buffer_arg(),
            grad.tensor.clone().into_buffer_arg(),
            dqkv.clone().into_buffer_arg(),
            n,
            qkv.stride,
            grad.stride,
            heads.query,
            heads.kv,
            scale,
            tiles,
            [qkv.kind(), dtype_to_storage_type(spans.dtype)],
        )
    };
    dqkv
}

/// D of each query and head. The caller has asserted that both are `[n, h·e]`.
fn dot_rows(out: &Matrix, grad: &Matrix, heads: Heads) -> CubeTensor {
    let client = out.client();
    let total = out.rows * heads.query;
    let delta = out.empty([out.rows, heads.query], DType::F32);
    let (count, dim) = units(&client, total);
    // SAFETY: `out` and `grad` have n rows of h·e columns, and `delta` has n·h values, the number of units that go on.
    unsafe {
        delta_kernel::launch_unchecked(
            &client,
            count,
            dim,
            out.tensor.clone().into_buffer_arg(),
            grad.tensor.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            total,
            heads.query,
            out.stride,
            grad.stride,
            heads.dim,
            out.kind(),
        )
    };
    delta
}
