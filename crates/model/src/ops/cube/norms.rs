//! Root-mean-square and layer norm, forward and backward: one cube a row, sums in f32.

use super::matrix::{Matrix, cubes, vector};
use super::reduce::{UNITS, cube_sum, horizontal};
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Every element of a row is its own `scale`, plus `centre` subtracted first. Lengths are in vectors.
#[cube(launch)]
fn norm_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    bias: &[Vector<W, N>],
    y: &mut [Vector<F, N>],
    rows: usize,
    columns: usize,
    stride: usize,
    columns_inverse: f32,
    epsilon: f32,
    #[comptime] centred: bool,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let mut mean = f32::new(0.0);
    if comptime!(centred) {
        mean = row_mean::<F, N>(x, row * stride, columns, columns_inverse, &mut scratch);
    }
    let mean = Vector::<f32, N>::new(mean);
    let mut squares = Vector::<f32, N>::new(f32::new(0.0));
    let mut i = UNIT_POS as usize;
    while i < columns {
        let value = Vector::<f32, N>::cast_from(x[row * stride + i]) - mean;
        squares += value * value;
        i += UNITS;
    }
    let variance = cube_sum(horizontal::<N>(squares), &mut scratch, UNITS) * columns_inverse;
    let inverse = Vector::<f32, N>::new(f32::new(1.0) / (variance + epsilon).sqrt());
    let mut i = UNIT_POS as usize;
    while i < columns {
        let value = Vector::<f32, N>::cast_from(x[row * stride + i]) - mean;
        let mut scaled = value * inverse * Vector::<f32, N>::cast_from(weight[i]);
        if comptime!(centred) {
            scaled += Vector::<f32, N>::cast_from(bias[i]);
        }
        y[row * columns + i] = Vector::cast_from(scaled);
        i += UNITS;
    }
}

/// With `c = x - mean` (or `x`), `s = 1 / sqrt(mean(c²) + ε)` and `u = weight · grad`:
/// `dx = s·u - c·s³·mean(u·c)`, less `s·mean(u)` where the row is centred.
#[cube(launch)]
fn norm_backward_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    grad: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    rows: usize,
    columns: usize,
    stride: usize,
    grad_stride: usize,
    columns_inverse: f32,
    epsilon: f32,
    #[comptime] centred: bool,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let mut mean = f32::new(0.0);
    if comptime!(centred) {
        mean = row_mean::<F, N>(x, row * stride, columns, columns_inverse, &mut scratch);
    }
    let mean = Vector::<f32, N>::new(mean);
    let mut squares = Vector::<f32, N>::new(f32::new(0.0));
    let mut products = Vector::<f32, N>::new(f32::new(0.0));
    let mut pulls = Vector::<f32, N>::new(f32::new(0.0));
    let mut i = UNIT_POS as usize;
    while i < columns {
        let value = Vector::<f32, N>::cast_from(x[row * stride + i]) - mean;
        let pull = Vector::<f32, N>::cast_from(grad[row * grad_stride + i]) * Vector::<f32, N>::cast_from(weight[i]);
        squares += value * value;
        products += value * pull;
        pulls += pull;
        i += UNITS;
    }
    let variance = cube_sum(horizontal::<N>(squares), &mut scratch, UNITS) * columns_inverse;
    let product = cube_sum(horizontal::<N>(products), &mut scratch, UNITS) * columns_inverse;
    let mut pull_mean = f32::new(0.0);
    if comptime!(centred) {
        pull_mean = cube_sum(horizontal::<N>(pulls), &mut scratch, UNITS) * columns_inverse;
    }
    let inverse = f32::new(1.0) / (variance + epsilon).sqrt();
    let along = Vector::<f32, N>::new(product * inverse * inverse);
    let inverse = Vector::<f32, N>::new(inverse);
    let pull_mean = Vector::<f32, N>::new(pull_mean);
    let mut i = UNIT_POS as usize;
    while i < columns {
        let value = Vector::<f32, N>::cast_from(x[row * stride + i]) - mean;
        let pull = Vector::<f32, N>::cast_from(grad[row * grad_stride + i]) * Vector::<f32, N>::cast_from(weight[i]);
        dx[row * columns + i] = Vector::cast_from((pull - pull_mean - value * along) * inverse);
        i += UNITS;
    }
}

#[cube]
fn row_mean<F: Float, N: Size>(x: &[Vector<F, N>], first: usize, columns: usize, columns_inverse: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let mut sum = Vector::<f32, N>::new(f32::new(0.0));
    let mut i = UNIT_POS as usize;
    while i < columns {
        sum += Vector::<f32, N>::cast_from(x[first + i]);
        i += UNITS;
    }
    cube_sum(horizontal::<N>(sum), scratch, UNITS) * columns_inverse
}

/// The norm of each row; with a bias, of its distance from its mean.
pub(super) fn norm(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, epsilon: f32) -> CubeTensor {
    let (x, weight) = (Matrix::new(x), vector(weight));
    let y = x.empty([x.rows, x.columns], x.tensor.dtype);
    if x.rows == 0 {
        return y;
    }
    let client = x.client();
    let size = x.vector_size(&[x.columns]);
    let centred = bias.is_some();
    // A root-mean-square norm reads no bias; the kernel's signature needs some buffer in its place.
    let bias = bias.map_or_else(|| weight.clone(), vector);
    norm_kernel::launch(
        &client,
        cubes(&client, x.rows),
        CubeDim::new_1d(UNITS as u32),
        size,
        x.tensor.clone().into_buffer_arg(),
        weight.clone().into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        x.rows,
        x.columns / size,
        x.stride / size,
        1.0 / x.columns as f32,
        epsilon,
        centred,
        [x.kind(), dtype_to_storage_type(weight.dtype)],
    );
    y
}

/// The gradient with respect to `x` of [`norm`].
pub(super) fn norm_backward(x: CubeTensor, weight: CubeTensor, grad: CubeTensor, epsilon: f32, centred: bool) -> CubeTensor {
    let (x, weight, grad) = (Matrix::new(x), vector(weight), Matrix::new(grad));
    let dx = x.empty([x.rows, x.columns], x.tensor.dtype);
    if x.rows == 0 {
        return dx;
    }
    let client = x.client();
    let size = x.vector_size(&[x.columns, grad.stride]);
    norm_backward_kernel::launch(
        &client,
        cubes(&client, x.rows),
        CubeDim::new_1d(UNITS as u32),
        size,
        x.tensor.clone().into_buffer_arg(),
        weight.clone().into_buffer_arg(),
        grad.tensor.clone().into_buffer_arg(),
        dx.clone().into_buffer_arg(),
        x.rows,
        x.columns / size,
        x.stride / size,
        grad.stride / size,
        1.0 / x.columns as f32,
        epsilon,
        centred,
        [x.kind(), dtype_to_storage_type(weight.dtype)],
    );
    dx
}
