//! The fused operations on the CPU, for burn's Flex tensors in f32.

mod attention;
mod cached;
mod crew;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_avx512;
#[cfg(test)]
mod gemm_tests;
mod rows;
mod simd;

use super::{CachePlan, Fused, Group, Groups, Heads, Maybe};
use crate::spec::Activation;
use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, TensorData};
use burn_flex::FlexTensor;
pub(super) use crew::muster;
use gemm::{Init, Job, Matrix, Target, Term, product, run};
use half::bf16;
use rayon::prelude::*;

/// Floats that a task of row-wise work takes at least.
const TASK_FLOATS: usize = 8192;

type T = FlexTensor;

fn dims(x: &T) -> [usize; 2] {
    let shape = x.layout().shape();
    match shape.num_dims() {
        1 => [1, shape[0]],
        2 => [shape[0], shape[1]],
        other => panic!("a fused operation takes matrices, not {other} dimensions"),
    }
}

/// The tensor's values in one piece, row after row.
fn dense(x: &T) -> T {
    if x.is_contiguous() { x.clone() } else { x.to_contiguous() }
}

/// The same, ours alone if it was.
fn into_dense(x: T) -> T {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

fn floats(x: &T) -> &[f32] {
    let layout = x.layout();
    assert!(layout.is_contiguous(), "made dense before");
    &x.storage::<f32>()[layout.start_offset()..layout.start_offset() + layout.num_elements()]
}

/// `x [m, k]` and `W [k, n]` of bf16 as pairs, with the rounded `x`; `None` where this machine or this shape has no way.
struct Halves<'a> {
    x: Vec<bf16>,
    rows: usize,
    columns: usize,
    weight: Matrix<'a>,
}

impl<'a> Halves<'a> {
    fn new(x: &T, weight: &'a T) -> Option<Self> {
        let ([rows, columns], [k, n]) = (dims(x), dims(weight));
        let strides: Vec<usize> = weight.layout().strides().iter().map(|&s| usize::try_from(s).ok()).collect::<Option<_>>()?;
        let [rs, cs] = strides[..] else { return None };
        let pairs = k.is_multiple_of(2) && (cs == 1 || rs == 1 && cs.is_multiple_of(2));
        (gemm::multiplies_bf16() && pairs).then(|| {
            let data = &weight.storage::<bf16>()[weight.layout().start_offset()..];
            Self { x: rounded(floats(&dense(x))), rows, columns, weight: Matrix::pairs_down(data, k, n, rs, cs) }
        })
    }

    fn term(&self) -> Term<'_> {
        Term::new(Matrix::pairs(&self.x, self.rows, self.columns), self.weight)
    }
}

fn rounded(x: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; x.len()];
    let part = TASK_FLOATS * 4;
    if x.len() <= part {
        gemm::round(x, &mut out);
    } else {
        out.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(out, x)| gemm::round(x, out));
    }
    out
}

/// A view that a product reads in place, transposed or not; `None` for a layout that it must be copied out of.
fn view(x: &T) -> Option<Matrix<'_>> {
    let [rows, cols] = dims(x);
    let strides: Vec<usize> = x.layout().strides().iter().map(|&s| usize::try_from(s).ok()).collect::<Option<_>>()?;
    let (rs, cs) = if strides.len() == 2 { (strides[0], strides[1]) } else { (cols, strides[0]) };
    (rs == 1 || cs == 1).then(|| Matrix::new(&x.storage::<f32>()[x.layout().start_offset()..], rows, cols, rs, cs))
}

/// The tensor, copied if no product could read it in place.
fn viewable(x: T) -> T {
    if view(&x).is_some() { x } else { x.to_contiguous() }
}

fn matrix(x: &T) -> Matrix<'_> {
    view(x).expect("made viewable before")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> T {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn part(x: Maybe<Flex>) -> Option<T> {
    match x {
        Maybe::Some(x) => Some(x),
        Maybe::None => None,
    }
}

/// A new `[n, columns]` from `row(i, its values)`, on all threads.
fn by_row(n: usize, columns: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> T {
    let mut out: Vec<f32> = Vec::with_capacity(n * columns);
    #[allow(clippy::uninit_vec, reason = "every row is written below before anything is read")]
    // SAFETY: floats have no invalid values and no destructor, and every row is written in full.
    unsafe {
        out.set_len(n * columns);
    }
    each_row(&mut out, columns, row);
    tensor(out, [n, columns])
}

/// `row(i, its values)` for each row of a dense matrix, on all threads.
fn each_row(matrix: &mut [f32], columns: usize, row: impl Fn(usize, &mut [f32]) + Sync) {
    let n = matrix.len() / columns.max(1);
    let rows = n.div_ceil(matrix.len().div_ceil(TASK_FLOATS).max(1)).max(1);
    let at = Target { at: matrix.as_mut_ptr(), rs: columns };
    crew::each(n.div_ceil(rows), |task| {
        for i in task * rows..n.min((task + 1) * rows) {
            // SAFETY: a row of the matrix, and each is in one task.
            row(i, unsafe { std::slice::from_raw_parts_mut(at.below(i).at, columns) });
        }
    });
}

fn row(values: &[f32], columns: usize, i: usize) -> &[f32] {
    &values[i * columns..(i + 1) * columns]
}

fn integers(x: &IntTensor<Flex>) -> Vec<u32> {
    let x = if x.is_contiguous() { x.clone() } else { x.to_contiguous() };
    let range = x.layout().start_offset()..x.layout().start_offset() + x.layout().num_elements();
    match x.dtype() {
        DType::I64 => x.storage::<i64>()[range].iter().map(|&v| v as u32).collect(),
        DType::I32 => x.storage::<i32>()[range].iter().map(|&v| v as u32).collect(),
        other => panic!("indices are i32 or i64, not {other:?}"),
    }
}

fn spans(x: &IntTensor<Flex>) -> Vec<[u32; 4]> {
    integers(x).chunks_exact(4).map(|span| [span[0], span[1], span[2], span[3]]).collect()
}

impl Fused for Flex {
    fn affine(
        x: FloatTensor<Self>,
        weight: Maybe<Self>,
        low: Maybe<Self>,
        up: Maybe<Self>,
        groups: Groups,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
    ) -> FloatTensor<Self> {
        let (weight, up) = (part(weight), part(up).map(viewable));
        let ([m, _], [_, n]) = (dims(&x), weight.as_ref().or(up.as_ref()).map(dims).expect("a product of nothing"));
        let halves = weight.as_ref().filter(|weight| weight.dtype() == DType::BF16).and_then(|weight| Halves::new(&x, weight));
        let whole = weight.as_ref().filter(|_| halves.is_none()).map(|weight| {
            // Where bf16 is not multiplied it is widened first.
            let wide = if weight.dtype() == DType::F32 { weight.clone() } else { Flex::float_cast(weight.clone(), FloatDType::F32) };
            (viewable(x), viewable(wide))
        });
        let low_rank = part(low).map(viewable).zip(up);
        let (bias, residual) = (part(bias).map(|b| dense(&b)), part(residual).map(|r| dense(&r)));
        let mut terms: Vec<Term> = halves.iter().map(Halves::term).collect();
        terms.extend(whole.iter().map(|(x, weight)| Term::new(matrix(x), matrix(weight))));
        if let Some((low, up)) = &low_rank {
            terms.extend(groups.iter().map(|Group { rows, ranks }| {
                let low = matrix(low).part(rows.clone(), 0..ranks.len());
                Term { row: rows.start, a: low, b: matrix(up).part(ranks.clone(), 0..n) }
            }));
        }
        let ones = [1.0];
        let init = match (&bias, &residual) {
            (None, None) => Init::Zero,
            (Some(bias), None) => Init::Row(floats(bias)),
            (None, Some(residual)) => Init::Dense(floats(residual)),
            (Some(bias), Some(residual)) => {
                terms.push(Term::new(Matrix::new(&ones, m, 1, 0, 0), Matrix::new(floats(bias), 1, n, n, 1)));
                Init::Dense(floats(residual))
            }
        };
        tensor(product(m, n, terms, init), [m, n])
    }

    fn shrink(x: FloatTensor<Self>, factors: FloatTensor<Self>, groups: Groups) -> FloatTensor<Self> {
        let ([n, k], width) = (dims(&x), groups.width());
        let (x, factors, mut low) = (viewable(x), viewable(factors), vec![0.0; n * width]);
        let c = Target { at: low.as_mut_ptr(), rs: width };
        let jobs = groups.iter().map(|Group { rows, ranks }| {
            let term = Term::new(matrix(&x).part(rows.clone(), 0..k), matrix(&factors).part(ranks.clone(), 0..k).transposed());
            Job { m: rows.len(), n: ranks.len(), terms: vec![term], init: Init::Zero, c: c.below(rows.start) }
        });
        // SAFETY: each group writes its own rows of `low`.
        unsafe { run(&jobs.collect::<Vec<_>>()) };
        tensor(low, [n, width])
    }

    fn outer(low: FloatTensor<Self>, y: FloatTensor<Self>, groups: Groups) -> FloatTensor<Self> {
        let ([_, k], ranks) = (dims(&y), groups.ranks());
        let (low, y, mut out) = (viewable(low), viewable(y), vec![0.0; ranks * k]);
        let c = Target { at: out.as_mut_ptr(), rs: k };
        let jobs = groups.iter().map(|Group { rows, ranks }| {
            let low = matrix(&low).part(rows.clone(), 0..ranks.len()).transposed();
            let term = Term::new(low, matrix(&y).part(rows.clone(), 0..k));
            Job { m: ranks.len(), n: k, terms: vec![term], init: Init::Zero, c: c.below(ranks.start) }
        });
        // SAFETY: each group writes its own rows of `out`.
        unsafe { run(&jobs.collect::<Vec<_>>()) };
        tensor(out, [ranks, k])
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ([n, d], x, weight) = (dims(&x), dense(&x), dense(&weight));
        by_row(n, d, |i, y| rows::rms_norm(row(floats(&x), d, i), floats(&weight), epsilon, y))
    }

    fn rms_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ([n, d], x, weight, grad) = (dims(&x), dense(&x), dense(&weight), dense(&grad));
        by_row(n, d, |i, dx| rows::rms_norm_backward(row(floats(&x), d, i), floats(&weight), row(floats(&grad), d, i), epsilon, dx))
    }

    fn layer_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ([n, d], x, weight, bias) = (dims(&x), dense(&x), dense(&weight), dense(&bias));
        by_row(n, d, |i, y| rows::layer_norm(row(floats(&x), d, i), floats(&weight), floats(&bias), epsilon, y))
    }

    fn layer_norm_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, grad: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ([n, d], x, weight, grad) = (dims(&x), dense(&x), dense(&weight), dense(&grad));
        by_row(n, d, |i, dx| rows::layer_norm_backward(row(floats(&x), d, i), floats(&weight), row(floats(&grad), d, i), epsilon, dx))
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let ([_, width], cos, sin) = (dims(&x), dense(&cos), dense(&sin));
        let half = head_dim / 2;
        let sign = if inverse { -1.0 } else { 1.0 };
        let mut x = into_dense(x);
        let range = x.layout().start_offset()..x.layout().start_offset() + x.layout().num_elements();
        // In place where nobody else holds it: the projection before it keeps nothing of its output.
        each_row(&mut x.storage_mut::<f32>()[range], width, |i, x| {
            for head in x[..turned * head_dim].chunks_exact_mut(head_dim) {
                rows::rotate(head, row(floats(&cos), half, i), row(floats(&sin), half, i), sign);
            }
        });
        x
    }

    fn gated(both: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let ([n, width], both) = (dims(&both), dense(&both));
        let f = width / 2;
        by_row(n, f, |i, y| {
            let (gate, up) = row(floats(&both), width, i).split_at(f);
            rows::gated(gate, up, activation, y);
        })
    }

    fn gated_backward(both: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let ([n, width], both, grad) = (dims(&both), dense(&both), dense(&grad));
        let f = width / 2;
        by_row(n, width, |i, d_both| {
            let (gate, up) = row(floats(&both), width, i).split_at(f);
            let (d_gate, d_up) = d_both.split_at_mut(f);
            rows::gated_backward(gate, up, row(floats(&grad), f, i), activation, d_gate, d_up);
        })
    }

    fn activate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let ([n, d], x) = (dims(&x), dense(&x));
        by_row(n, d, |i, y| rows::activate(row(floats(&x), d, i), activation, y))
    }

    fn activate_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let ([n, d], x, grad) = (dims(&x), dense(&x), dense(&grad));
        by_row(n, d, |i, dx| rows::activate_backward(row(floats(&x), d, i), row(floats(&grad), d, i), activation, dx))
    }

    fn attention(qkv: FloatTensor<Self>, tokens: IntTensor<Self>, heads: Heads, scale: f32) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let ([n, _], qkv, spans) = (dims(&qkv), dense(&qkv), spans(&tokens));
        let (out, log_sums) = attention::forward(attention::Call { qkv: floats(&qkv), spans: &spans, heads, scale });
        (tensor(out, [n, heads.query * heads.dim]), tensor(log_sums, [n, heads.query]))
    }

    fn attention_backward(
        qkv: FloatTensor<Self>,
        tokens: IntTensor<Self>,
        out: FloatTensor<Self>,
        log_sums: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        heads: Heads,
        scale: f32,
    ) -> FloatTensor<Self> {
        let ([n, _], qkv, spans) = (dims(&qkv), dense(&qkv), spans(&tokens));
        let (out, log_sums, grad) = (dense(&out), dense(&log_sums), dense(&grad));
        let call = attention::Call { qkv: floats(&qkv), spans: &spans, heads, scale };
        tensor(attention::backward(call, floats(&out), floats(&log_sums), floats(&grad)), [n, heads.columns()])
    }

    fn cached_attention(
        qkv: FloatTensor<Self>,
        pool: FloatTensor<Self>,
        plan: CachePlan,
        heads: Heads,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plan.check(dims(&qkv), dims(&pool), heads);
        let (qkv, mut pool) = (dense(&qkv), into_dense(pool));
        let range = pool.layout().start_offset()..pool.layout().start_offset() + pool.layout().num_elements();
        cached::write(floats(&qkv), &mut pool.storage_mut::<f32>()[range], &plan, heads);
        let out = cached::forward(cached::Call { qkv: floats(&qkv), pool: floats(&pool), plan: &plan, heads, scale });
        (tensor(out, [plan.rows(), heads.query * heads.dim]), pool)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let ([c, v], targets) = (dims(&logits), integers(&targets));
        let mut logits = into_dense(logits);
        let range = logits.layout().start_offset()..logits.layout().start_offset() + c * v;
        let found: Vec<(f32, i32)> = logits.storage_mut::<f32>()[range]
            .par_chunks_mut(v)
            .zip(&targets)
            .map(|(row, &target)| rows::cross_entropy(row, target as usize))
            .collect();
        let (losses, best): (Vec<f32>, Vec<i32>) = found.into_iter().unzip();
        (tensor(losses, [c]), FlexTensor::from_data(TensorData::new(best, [c])), logits)
    }
}

/// Whether matrix products are our own here: then a row's results do not depend on the rows beside it.
#[cfg(test)]
pub(crate) fn has_own_products() -> bool {
    gemm::has_own_kernel()
}

/// GFLOP/s of a `512 x 1536 x 1536` product on all threads, the best of a few: what this device gives a plain matrix product.
pub(crate) fn gemm_gflops() -> f64 {
    let (m, n, k) = (512, 1536, 1536);
    let (a, b) = (vec![0.5; m * k], vec![0.25; k * n]);
    let run = || {
        let started = std::time::Instant::now();
        std::hint::black_box(product(m, n, vec![Term::new(Matrix::new(&a, m, k, k, 1), Matrix::new(&b, k, n, n, 1))], Init::Zero));
        started.elapsed().as_secs_f64()
    };
    let best = (0..12).map(|_| run()).fold(f64::INFINITY, f64::min);
    2.0 * (m * n * k) as f64 / best / 1e9
}
