//! Rotary positions and the activations of the feed-forward network: one unit a vector of elements.

use super::matrix::{Matrix, units};
use crate::spec::Activation;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// An activation as a kernel's compile-time value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Curve {
    Silu,
    Gelu,
    GeluTanh,
    Relu,
}

impl From<Activation> for Curve {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
        }
    }
}

/// `exp` of this is large, yet finite even when doubled: WGSL promises nothing of infinity.
const EXPONENT_MAX: f32 = 80.0;
/// `1 / sqrt(2)`.
const HALF_ROOT: f32 = core::f32::consts::FRAC_1_SQRT_2;
/// `1 / sqrt(2π)`, the normal density at its middle.
const DENSITY: f32 = 0.398_942_3;
/// `sqrt(2/π)` and the cubic coefficient of the tanh approximation of GELU.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

#[cube]
fn sigmoid(x: f32) -> f32 {
    f32::new(1.0) / (f32::new(1.0) + (-x).min(f32::new(EXPONENT_MAX)).exp())
}

/// Through `exp`, because the `tanh` of some WGSL drivers overflows.
#[cube]
fn tanh(x: f32) -> f32 {
    f32::new(2.0) * sigmoid(f32::new(2.0) * x) - f32::new(1.0)
}

/// The normal distribution's `(1 + erf(x/√2)) / 2`, by Abramowitz and Stegun 7.1.26 (1.5e-7): WGSL has no erf.
#[cube]
fn normal(x: f32) -> f32 {
    let z = x.abs() * f32::new(HALF_ROOT);
    let t = f32::new(1.0) / (f32::new(1.0) + f32::new(0.327_591_1) * z);
    let series = ((((f32::new(1.061_405_4) * t - f32::new(1.453_152)) * t + f32::new(1.421_413_7)) * t - f32::new(0.284_496_74)) * t
        + f32::new(0.254_829_6))
        * t;
    let tail = f32::new(0.5) * series * (-(z * z).min(f32::new(EXPONENT_MAX))).exp();
    select(x < f32::new(0.0), tail, f32::new(1.0) - tail)
}

#[cube]
fn curve_at(x: f32, #[comptime] curve: Curve) -> f32 {
    match comptime!(curve) {
        Curve::Silu => x * sigmoid(x),
        Curve::Gelu => x * normal(x),
        Curve::GeluTanh => x * sigmoid(f32::new(2.0 * TANH_SCALE) * (x + f32::new(TANH_CUBIC) * x * x * x)),
        Curve::Relu => x.max(f32::new(0.0)),
    }
}

#[cube]
fn slope_at(x: f32, #[comptime] curve: Curve) -> f32 {
    match comptime!(curve) {
        Curve::Silu => {
            let s = sigmoid(x);
            s * (f32::new(1.0) + x * (f32::new(1.0) - s))
        }
        Curve::Gelu => {
            let density = f32::new(DENSITY) * (-(f32::new(0.5) * x * x).min(f32::new(EXPONENT_MAX))).exp();
            normal(x) + x * density
        }
        Curve::GeluTanh => {
            let t = tanh(f32::new(TANH_SCALE) * (x + f32::new(TANH_CUBIC) * x * x * x));
            let inner = f32::new(TANH_SCALE) * (f32::new(1.0) + f32::new(3.0 * TANH_CUBIC) * x * x);
            f32::new(0.5) * (f32::new(1.0) + t) + f32::new(0.5) * x * (f32::new(1.0) - t * t) * inner
        }
        Curve::Relu => select(x > f32::new(0.0), f32::new(1.0), f32::new(0.0)),
    }
}

#[cube]
fn curve_of<N: Size>(x: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    let mut y = x;
    #[unroll]
    for k in 0..N::value() {
        y.insert(k, curve_at(x.extract(k), curve));
    }
    y
}

#[cube]
fn slope_of<N: Size>(x: Vector<f32, N>, #[comptime] curve: Curve) -> Vector<f32, N> {
    let mut y = x;
    #[unroll]
    for k in 0..N::value() {
        y.insert(k, slope_at(x.extract(k), curve));
    }
    y
}

/// Lengths and strides are in vectors, in this and all that follow.
#[cube(launch)]
fn activate_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    total: usize,
    columns: usize,
    stride: usize,
    #[comptime] curve: Curve,
    #[comptime] gated: bool,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place >= total {
        terminate!();
    }
    let from = place / columns * stride + place % columns;
    let mut value = curve_of::<N>(Vector::cast_from(x[from]), curve);
    if comptime!(gated) {
        value *= Vector::<f32, N>::cast_from(x[from + columns]);
    }
    y[place] = Vector::cast_from(value);
}

#[cube(launch)]
fn activate_backward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    grad: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    total: usize,
    columns: usize,
    stride: usize,
    grad_stride: usize,
    #[comptime] curve: Curve,
    #[comptime] gated: bool,
    #[define(F)] _dtype: ElemType,
) {
    let place = ABSOLUTE_POS;
    if place >= total {
        terminate!();
    }
    let (row, column) = (place / columns, place % columns);
    let from = row * stride + column;
    let value = Vector::<f32, N>::cast_from(x[from]);
    let pull = Vector::<f32, N>::cast_from(grad[row * grad_stride + column]);
    let slope = slope_of::<N>(value, curve);
    if comptime!(gated) {
        let up = Vector::<f32, N>::cast_from(x[from + columns]);
        dx[row * columns * 2 + column] = Vector::cast_from(pull * up * slope);
        dx[row * columns * 2 + columns + column] = Vector::cast_from(pull * curve_of::<N>(value, curve));
    } else {
        dx[place] = Vector::cast_from(pull * slope);
    }
}

/// One unit turns a vector of pairs: `half` vectors make half a head.
#[cube(launch)]
fn rotary_kernel<F: Float, A: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<A, N>],
    sin: &[Vector<A, N>],
    y: &mut [Vector<F, N>],
    total: usize,
    heads: usize,
    turned: usize,
    half: usize,
    stride: usize,
    cos_stride: usize,
    sin_stride: usize,
    #[comptime] inverse: bool,
    #[define(F, A)] _dtypes: [ElemType; 2],
) {
    let place = ABSOLUTE_POS;
    if place >= total {
        terminate!();
    }
    let i = place % half;
    let head = place / half % heads;
    let row = place / half / heads;
    let from = row * stride + head * half * 2 + i;
    let to = (row * heads + head) * half * 2 + i;
    let low = x[from];
    let high = x[from + half];
    if head < turned {
        let c = Vector::<f32, N>::cast_from(cos[row * cos_stride + i]);
        let mut s = Vector::<f32, N>::cast_from(sin[row * sin_stride + i]);
        if comptime!(inverse) {
            s = Vector::<f32, N>::new(f32::new(0.0)) - s;
        }
        let low = Vector::<f32, N>::cast_from(low);
        let high = Vector::<f32, N>::cast_from(high);
        y[to] = Vector::cast_from(low * c - high * s);
        y[to + half] = Vector::cast_from(high * c + low * s);
    } else {
        y[to] = low;
        y[to + half] = high;
    }
}

/// `act(x)`; where `gated`, `act` of the left half of the columns times the right half.
pub(super) fn activate(x: CubeTensor, activation: Activation, gated: bool) -> CubeTensor {
    let x = Matrix::new(x);
    let columns = if gated { x.columns / 2 } else { x.columns };
    let y = x.empty([x.rows, columns], x.tensor.dtype);
    if x.rows == 0 {
        return y;
    }
    let client = x.client();
    let size = x.vector_size(&[columns]);
    let total = x.rows * columns / size;
    let (count, dim) = units(&client, total);
    activate_kernel::launch(
        &client,
        count,
        dim,
        size,
        x.tensor.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        total,
        columns / size,
        x.stride / size,
        activation.into(),
        gated,
        x.kind(),
    );
    y
}

/// The gradient with respect to `x` of [`activate`].
pub(super) fn activate_backward(x: CubeTensor, grad: CubeTensor, activation: Activation, gated: bool) -> CubeTensor {
    let (x, grad) = (Matrix::new(x), Matrix::new(grad));
    let dx = x.empty([x.rows, x.columns], x.tensor.dtype);
    if x.rows == 0 {
        return dx;
    }
    let client = x.client();
    let size = x.vector_size(&[grad.columns, grad.stride]);
    let total = x.rows * grad.columns / size;
    let (count, dim) = units(&client, total);
    activate_backward_kernel::launch(
        &client,
        count,
        dim,
        size,
        x.tensor.clone().into_buffer_arg(),
        grad.tensor.clone().into_buffer_arg(),
        dx.clone().into_buffer_arg(),
        total,
        grad.columns / size,
        x.stride / size,
        grad.stride / size,
        activation.into(),
        gated,
        x.kind(),
    );
    dx
}

/// Turns the first `turned` heads of `head_dim` columns by each row's angles and copies the other columns.
pub(super) fn rotary(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, turned: usize, head_dim: usize, inverse: bool) -> CubeTensor {
    let (x, cos, sin) = (Matrix::new(x), Matrix::new(cos), Matrix::new(sin));
    let y = x.empty([x.rows, x.columns], x.tensor.dtype);
    if x.rows == 0 {
        return y;
    }
    let client = x.client();
    let (half, heads) = (head_dim / 2, x.columns / head_dim);
    let size = x.vector_size(&[half, cos.stride, sin.stride]);
    let total = x.rows * heads * half / size;
    let (count, dim) = units(&client, total);
    rotary_kernel::launch(
        &client,
        count,
        dim,
        size,
        x.tensor.clone().into_buffer_arg(),
        cos.tensor.clone().into_buffer_arg(),
        sin.tensor.clone().into_buffer_arg(),
        y.clone().into_buffer_arg(),
        total,
        heads,
        turned,
        half / size,
        x.stride / size,
        cos.stride / size,
        sin.stride / size,
        inverse,
        [x.kind(), cos.kind()],
    );
    y
}
