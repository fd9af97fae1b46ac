//! Grouped-query attention on the CPU without a score matrix (Dao et al. 2022): tiles of 64 queries by 128 keys, which stay in the
//! second-level cache, and products by the kernel of `gemm.rs`, straight from and to the packed `[queries | keys | values]` rows.

use super::gemm::{Matrix, Target, small};
use super::rows::{dot, exp_in_place, largest, scale, softmax_backward};
use crate::ops::Heads;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

const QUERIES: usize = 64;
const KEYS: usize = 128;

/// What the tokens of a batch see: rows `[first key, end, first query, end]`.
pub(super) type Spans<'a> = &'a [[u32; 4]];

/// Inputs of one attention.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub qkv: &'a [f32],
    pub spans: Spans<'a>,
    pub heads: Heads,
    pub scale: f32,
}

/// A tile's scratch: probabilities, their gradients, a sum of values, and a maximum and a denominator for each query.
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
    sums: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { p: vec![0.0; QUERIES * KEYS], dp: vec![0.0; QUERIES * KEYS], sums: vec![(0.0, 0.0); QUERIES] });
}

impl<'a> Call<'a> {
    /// Rows `tokens` of `dim` columns from `column` on.
    fn part(&self, column: usize, tokens: Range<usize>) -> Matrix<'a> {
        let width = self.heads.columns();
        let data = if tokens.is_empty() { &[] } else { &self.qkv[tokens.start * width + column..] };
        Matrix::new(data, tokens.len(), self.heads.dim, width, 1)
    }

    fn queries(&self, head: usize, tokens: Range<usize>) -> Matrix<'a> {
        self.part(self.query_column(head), tokens)
    }

    fn keys(&self, kv: usize, tokens: Range<usize>) -> Matrix<'a> {
        self.part(self.key_column(kv), tokens)
    }

    fn values(&self, kv: usize, tokens: Range<usize>) -> Matrix<'a> {
        self.part(self.value_column(kv), tokens)
    }

    fn query_column(&self, head: usize) -> usize {
        head * self.heads.dim
    }

    fn key_column(&self, kv: usize) -> usize {
        (self.heads.query + kv) * self.heads.dim
    }

    fn value_column(&self, kv: usize) -> usize {
        (self.heads.query + self.heads.kv + kv) * self.heads.dim
    }

    /// Keys that any of `queries` sees.
    fn seen(&self, queries: &Range<usize>) -> Range<usize> {
        let spans = &self.spans[queries.clone()];
        let start = spans.iter().map(|span| span[0]).min().unwrap_or(0);
        let end = spans.iter().map(|span| span[1]).max().unwrap_or(0);
        start as usize..end as usize
    }

    /// Where of `keys`, counted from their start, query `i` sees.
    fn window(&self, i: usize, keys: &Range<usize>) -> Range<usize> {
        let [start, end, ..] = self.spans[i];
        let clamp = |at: u32| (at as usize).clamp(keys.start, keys.end) - keys.start;
        clamp(start)..clamp(end)
    }

    /// Runs of tokens that see only each other: sequences.
    fn sequences(&self) -> Vec<Range<usize>> {
        let n = self.spans.len();
        let starts: Vec<usize> = (0..n).filter(|&i| i == 0 || self.spans[i][0] >= self.spans[i - 1][1]).collect();
        starts.iter().zip(starts[1..].iter().chain([&n])).map(|(&start, &end)| start..end).collect()
    }
}

fn tiles(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

/// `[n, h·e]`, and the logarithm of each softmax's denominator `[n, h]`.
pub(super) fn forward(call: Call) -> (Vec<f32>, Vec<f32>) {
    let (n, heads) = (call.spans.len(), call.heads);
    let columns = heads.query * heads.dim;
    let (mut out, mut log_sums) = (vec![0.0; n * columns], vec![0.0; n * heads.query]);
    let (out_at, sums_at) = (Target { at: out.as_mut_ptr(), rs: columns }, Target { at: log_sums.as_mut_ptr(), rs: heads.query });
    let tasks: Vec<(Range<usize>, usize)> = call
        .sequences()
        .into_iter()
        .flat_map(|sequence| tiles(sequence, QUERIES))
        .flat_map(|tile| (0..heads.query).map(move |head| (tile.clone(), head)))
        .collect();
    tasks.into_par_iter().for_each(|(queries, head)| {
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: each task writes its own rows and columns of `out` and `log_sums`.
            unsafe { forward_tile(call, queries, head, scratch, out_at, sums_at) }
        });
    });
    (out, log_sums)
}

/// # Safety
/// Rows `queries` of `head`'s columns of `out`, and of `log_sums`, must be this task's alone.
unsafe fn forward_tile(call: Call, queries: Range<usize>, head: usize, scratch: &mut Scratch, out: Target, log_sums: Target) {
    let Heads { query, kv, dim } = call.heads;
    let group = head / (query / kv);
    let out_at = |i: usize| {
        // SAFETY: row `i` of this task's part of `out`.
        unsafe { std::slice::from_raw_parts_mut(out.at.add(i * out.rs + head * dim), dim) }
    };
    let seen = call.seen(&queries);
    scratch.sums[..queries.len()].fill((f32::NEG_INFINITY, 0.0));
    for (turn, keys) in tiles(seen, KEYS).enumerate() {
        let p = Target { at: scratch.p.as_mut_ptr(), rs: keys.len() };
        // SAFETY: `p` holds QUERIES x KEYS.
        unsafe { small(call.queries(head, queries.clone()), call.keys(group, keys.clone()).transposed(), false, p) };
        for (row, i) in queries.clone().enumerate() {
            let window = call.window(i, &keys);
            let row_p = &mut scratch.p[row * keys.len()..(row + 1) * keys.len()];
            row_p[..window.start].fill(0.0);
            row_p[window.end..].fill(0.0);
            if window.is_empty() {
                continue;
            }
            let (best, sum) = &mut scratch.sums[row];
            let row_p = &mut row_p[window];
            let above = largest(row_p) * call.scale;
            if above > *best {
                let shrink = (*best - above).exp();
                *sum *= shrink;
                if turn > 0 {
                    scale(out_at(i), shrink);
                }
                *best = above;
            }
            *sum += exp_in_place(row_p, call.scale, *best);
        }
        let p = Matrix::new(&scratch.p, queries.len(), keys.len(), keys.len(), 1);
        // SAFETY: this task's part of `out`.
        unsafe {
            let at = out.at.add(queries.start * out.rs + head * dim);
            small(p, call.values(group, keys), turn > 0, Target { at, rs: out.rs });
        }
    }
    for (row, i) in queries.enumerate() {
        let (best, sum) = scratch.sums[row];
        scale(out_at(i), 1.0 / sum);
        // SAFETY: this task's element.
        unsafe { *log_sums.at.add(i * log_sums.rs + head) = best + sum.ln() };
    }
}

/// Gradient of `qkv`.
pub(super) fn backward(call: Call, out: &[f32], log_sums: &[f32], grad: &[f32]) -> Vec<f32> {
    let (n, heads) = (call.spans.len(), call.heads);
    let mut d_qkv = vec![0.0; n * heads.columns()];
    let target = Target { at: d_qkv.as_mut_ptr(), rs: heads.columns() };
    let tasks: Vec<(Range<usize>, usize)> =
        call.sequences().into_iter().flat_map(|sequence| (0..heads.kv).map(move |kv| (sequence.clone(), kv))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(sequence, kv)| {
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: each task writes the rows of its sequence in the columns of its key head and of the queries that share it.
            unsafe { backward_sequence(call, &sequence, kv, out, log_sums, grad, scratch, target) }
        });
    });
    d_qkv
}

/// # Safety
/// Rows `sequence` of the columns of `kv` and its query heads must be this task's alone.
#[allow(clippy::too_many_arguments, reason = "the inputs of a gradient are many")]
unsafe fn backward_sequence(
    call: Call,
    sequence: &Range<usize>,
    kv: usize,
    out: &[f32],
    log_sums: &[f32],
    grad: &[f32],
    scratch: &mut Scratch,
    target: Target,
) {
    let Heads { query, dim, .. } = call.heads;
    let (group, columns) = (query / call.heads.kv, query * dim);
    let at = |token: usize, column: usize| {
        // SAFETY: within this task's part of the gradient.
        Target { at: unsafe { target.at.add(token * target.rs + column) }, rs: target.rs }
    };
    for (head, queries) in (kv * group..(kv + 1) * group).flat_map(|head| tiles(sequence.clone(), QUERIES).map(move |q| (head, q))) {
        let upstream = Matrix::new(&grad[queries.start * columns + head * dim..], queries.len(), dim, columns, 1);
        for (row, i) in queries.clone().enumerate() {
            let place = i * columns + head * dim..i * columns + (head + 1) * dim;
            scratch.sums[row] = (log_sums[i * query + head], dot(&grad[place.clone()], &out[place]));
        }
        for keys in tiles(call.seen(&queries), KEYS) {
            let (m, n) = (queries.len(), keys.len());
            let (q, k, v) = (call.queries(head, queries.clone()), call.keys(kv, keys.clone()), call.values(kv, keys.clone()));
            // SAFETY: both scratches hold QUERIES x KEYS.
            unsafe {
                small(q, k.transposed(), false, Target { at: scratch.p.as_mut_ptr(), rs: n });
                small(upstream, v.transposed(), false, Target { at: scratch.dp.as_mut_ptr(), rs: n });
            }
            for (row, i) in queries.clone().enumerate() {
                let (log_sum, through) = scratch.sums[row];
                let (p, dp) = (&mut scratch.p[row * n..(row + 1) * n], &mut scratch.dp[row * n..(row + 1) * n]);
                let window = call.window(i, &keys);
                for unseen in [0..window.start, window.end..n] {
                    p[unseen.clone()].fill(0.0);
                    dp[unseen].fill(0.0);
                }
                exp_in_place(&mut p[window.clone()], call.scale, log_sum);
                softmax_backward(&p[window.clone()], &mut dp[window], through, call.scale);
            }
            let (p, ds) = (Matrix::new(&scratch.p, m, n, n, 1), Matrix::new(&scratch.dp, m, n, n, 1));
            // SAFETY: parts of this task's rows and columns, which start from zero.
            unsafe {
                small(p.transposed(), upstream, true, at(keys.start, call.value_column(kv)));
                small(ds, k, true, at(queries.start, call.query_column(head)));
                small(ds.transposed(), q, true, at(keys.start, call.key_column(kv)));
            }
        }
    }
}
