//! Softmax cross-entropy of a chunk of logits: one cube a row; the maximum, the sum and the best class in one reading, the gradient in a second.

use super::matrix::{Matrix, cubes, vector};
use super::reduce::{LOWEST, UNITS, cube_best, cube_sum};
use burn::backend::DType;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// `columns` and strides are in vectors.
#[cube(launch)]
fn cross_entropy_kernel<F: Float, I: Int, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[I],
    losses: &mut [f32],
    best: &mut [I],
    grad: &mut [Vector<F, N>],
    rows: usize,
    columns: usize,
    stride: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let mut scratch_indices = Shared::<[u32]>::new_slice(UNITS);

    let mut unit_best = f32::new(LOWEST);
    let mut unit_index = 0u32;
    let mut unit_sum = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < columns {
        let vector = Vector::<f32, N>::cast_from(logits[row * stride + i]);
        #[unroll]
        for k in 0..N::value() {
            let value = vector.extract(k);
            if value > unit_best {
                unit_sum = unit_sum * (unit_best - value).exp() + f32::new(1.0);
                unit_best = value;
                unit_index = (i * N::value() + k) as u32;
            } else {
                unit_sum += (value - unit_best).exp();
            }
        }
        i += UNITS;
    }
    let (row_best, row_index) = cube_best(unit_best, unit_index, &mut scratch, &mut scratch_indices, UNITS);
    let sum = cube_sum(unit_sum * (unit_best - row_best).exp(), &mut scratch, UNITS);
    let lse = row_best + sum.ln();

    let target = u32::cast_from(targets[row]) as usize;
    let mut i = UNIT_POS as usize;
    while i < columns {
        let vector = Vector::<f32, N>::cast_from(logits[row * stride + i]);
        let mut slope = vector;
        #[unroll]
        for k in 0..N::value() {
            let value = vector.extract(k);
            let mut weight = (value - lse).exp();
            if i * N::value() + k == target {
                weight -= f32::new(1.0);
                losses[row] = lse - value;
            }
            slope.insert(k, weight);
        }
        grad[row * columns + i] = Vector::cast_from(slope);
        i += UNITS;
    }
    if UNIT_POS == 0 {
        best[row] = I::cast_from(row_index);
    }
}

/// The loss of each row (always f32), its best class, and `softmax(logits) - onehot(target)`.
pub(super) fn cross_entropy(logits: CubeTensor, targets: CubeTensor) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (logits, targets) = (Matrix::new(logits), vector(targets));
    let losses = logits.empty([logits.rows], DType::F32);
    let best = logits.empty([logits.rows], targets.dtype);
    let grad = logits.empty([logits.rows, logits.columns], logits.tensor.dtype);
    if logits.rows == 0 {
        return (losses, best, grad);
    }
    let client = logits.client();
    let size = logits.vector_size(&[logits.columns]);
    cross_entropy_kernel::launch(
        &client,
        cubes(&client, logits.rows),
        CubeDim::new_1d(UNITS as u32),
        size,
        logits.tensor.clone().into_buffer_arg(),
        targets.clone().into_buffer_arg(),
        losses.clone().into_buffer_arg(),
        best.clone().into_buffer_arg(),
        grad.clone().into_buffer_arg(),
        logits.rows,
        logits.columns / size,
        logits.stride / size,
        [logits.kind(), dtype_to_storage_type(targets.dtype)],
    );
    (losses, best, grad)
}
