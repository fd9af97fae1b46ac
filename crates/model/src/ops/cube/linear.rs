//! A projection with all that is added to it: burn's matrix product, then one pass over its result in place.

use super::matrix::{Matrix, VECTOR_MAX, units, vector};
use crate::ops::{Group, Groups, Maybe};
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Ranks up to this are multiplied while the terms are added: each value then costs `rank` products, hidden behind memory.
/// Above it a matrix product of its own is cheaper.
const RANK_MAX: usize = 32;

/// `y += low·up + bias + residual`. Lengths and strides of vectors are in vectors; `up` is read value by value, in any layout.
#[cube(launch)]
fn add_terms_kernel<F: Float, N: Size>(
    y: &mut [Vector<F, N>],
    low: &[F],
    up: &[F],
    bias: &[Vector<F, N>],
    residual: &[Vector<F, N>],
    total: usize,
    columns: usize,
    stride: usize,
    low_stride: usize,
    up_row_stride: usize,
    up_column_stride: usize,
    residual_stride: usize,
    #[comptime] rank: usize,
    #[comptime] has_bias: bool,
    #[comptime] has_residual: bool,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place >= total {
        terminate!();
    }
    let (row, column) = (place / columns, place % columns);
    let mut sum = Vector::<f32, N>::cast_from(y[row * stride + column]);
    if comptime!(has_bias) {
        sum += Vector::<f32, N>::cast_from(bias[column]);
    }
    if comptime!(has_residual) {
        sum += Vector::<f32, N>::cast_from(residual[row * residual_stride + column]);
    }
    for r in 0..rank {
        let factor = f32::cast_from(low[row * low_stride + r]);
        #[unroll]
        for k in 0..N::value() {
            let value = f32::cast_from(up[r * up_row_stride + (column * N::value() + k) * up_column_stride]);
            sum.insert(k, sum.extract(k) + factor * value);
        }
    }
    y[row * stride + column] = Vector::cast_from(sum);
}

/// A tensor that may be absent, as an option.
pub(super) fn present(x: Maybe<CubeBackend>) -> Option<CubeTensor> {
    match x {
        Maybe::Some(x) => Some(x),
        Maybe::None => None,
    }
}

/// As [`Fused::affine`](crate::ops::Fused::affine).
pub(super) fn affine(
    x: CubeTensor,
    weight: Option<CubeTensor>,
    factors: Option<(CubeTensor, CubeTensor)>,
    groups: &Groups,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let n = x.meta.shape()[0];
    let Some(weight) = weight else {
        let (low, up) = factors.expect("a product of nothing");
        let nothing = || CubeBackend::float_zeros([n, up.meta.shape()[1]].into(), &up.device, low.dtype.into());
        return add_groups(residual.unwrap_or_else(nothing), &low, &up, groups);
    };
    let mut y = CubeBackend::float_matmul(x, weight);
    let mut factors = factors;
    if let Some((low, up)) = factors.take_if(|(low, _)| low.meta.shape()[1] > RANK_MAX || !groups.is_whole(n)) {
        y = add_groups(y, &low, &up, groups);
    }
    if factors.is_none() && bias.is_none() && residual.is_none() {
        return y;
    }
    add_terms(Matrix::new(y), factors, bias, residual)
}

/// `y + low·up`, a product for each group.
fn add_groups(y: CubeTensor, low: &CubeTensor, up: &CubeTensor, groups: &Groups) -> CubeTensor {
    let columns = up.meta.shape()[1];
    groups.iter().cloned().fold(y, |y, Group { rows, ranks }| {
        let (rows, across) = (burn::tensor::Slice::from(rows), burn::tensor::Slice::from(0..columns));
        let low = CubeBackend::float_slice(low.clone(), &[rows, (0..ranks.len()).into()]);
        let up = CubeBackend::float_slice(up.clone(), &[ranks.into(), across]);
        let sum = CubeBackend::float_add(CubeBackend::float_slice(y.clone(), &[rows, across]), CubeBackend::float_matmul(low, up));
        CubeBackend::float_slice_assign(y, &[rows, across], sum)
    })
}

fn add_terms(y: Matrix, factors: Option<(CubeTensor, CubeTensor)>, bias: Option<CubeTensor>, residual: Option<CubeTensor>) -> CubeTensor {
    if y.rows == 0 {
        return y.tensor;
    }
    let (has_bias, has_residual) = (bias.is_some(), residual.is_some());
    let rank = factors.as_ref().map_or(0, |(low, _)| low.meta.shape()[1]);
    // An absent term is never read, but its place in the kernel's signature needs a buffer: one vector.
    let nothing = || y.empty([1, VECTOR_MAX], y.tensor.dtype);
    let (low, up) = factors.unwrap_or_else(|| (nothing(), nothing()));
    let (low, up) = (Matrix::new(low), burn_cubecl::kernel::untile(up));
    let residual = residual.map(Matrix::new);
    let residual_stride = residual.as_ref().map_or(0, |residual| residual.stride);
    let client = y.client();
    let size = y.vector_size(&[y.columns, residual_stride]);
    let total = y.rows * y.columns / size;
    let (count, dim) = units(&client, total);
    add_terms_kernel::launch(
        &client,
        count,
        dim,
        size,
        y.tensor.clone().into_buffer_arg(),
        low.tensor.clone().into_buffer_arg(),
        up.clone().into_buffer_arg(),
        bias.map_or_else(nothing, vector).into_buffer_arg(),
        residual.map_or_else(nothing, |residual| residual.tensor).into_buffer_arg(),
        total,
        y.columns / size,
        y.stride / size,
        low.stride,
        up.meta.strides()[0],
        up.meta.strides()[1],
        residual_stride / size,
        rank,
        has_bias,
        has_residual,
        y.kind(),
    );
    y.tensor
}
