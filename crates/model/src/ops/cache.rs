//! Where the keys and values of growing sequences lie: pages of a pool, and which of them each sequence of a step reads and writes.
//!
//! A pool `[pages·PAGE_TOKENS, 2·k·e]` belongs to one block. A row is a slot: the keys of all key heads of one token, then its values.
//! Pages that no table names are never touched, so that a pool may be larger than the memory that is in use.

use super::Heads;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Slice, TensorData};
use cutlayer_wire::PAGE_TOKENS;
use std::ops::Range;
use std::sync::Arc;

/// Slots of a page.
pub(crate) const PAGE: usize = PAGE_TOKENS as usize;
/// What hides a score, as in the masks of `rows.rs`.
const HIDDEN_SCORE: f32 = -1e9;

/// The next tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Its rows of the step.
    pub rows: Range<usize>,
    /// Position of the first of them; what is before is in the pool already.
    pub position: u32,
    /// Pages of the positions from 0 on, at least to the last of its rows.
    pub pages: Vec<u32>,
}

impl Sequence {
    /// Row of the pool that holds `position`.
    pub fn slot(&self, position: usize) -> usize {
        self.pages[position / PAGE] as usize * PAGE + position % PAGE
    }

    /// Position of row `row` of the step.
    pub fn position_of(&self, row: usize) -> usize {
        self.position as usize + row - self.rows.start
    }

    /// One after the last position.
    pub fn end(&self) -> usize {
        self.position as usize + self.rows.len()
    }

    /// Runs of slots, ascending by position, that hold the positions `among`: each as its positions and its first slot.
    pub fn runs(&self, among: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let mut next = among.start;
        std::iter::from_fn(move || {
            let (start, first) = (next, (next < among.end).then(|| self.slot(next))?);
            next = (next / PAGE + 1) * PAGE;
            while next < among.end && self.slot(next) == first + (next - start) {
                next += PAGE;
            }
            next = next.min(among.end);
            Some((start..next, first))
        })
    }
}

/// What a step reads and writes of a pool.
#[derive(Clone, Debug)]
pub(crate) struct CachePlan(Arc<(Vec<Sequence>, Option<usize>)>);

impl CachePlan {
    /// Sequences whose rows follow each other, and of how many keys at most a token sees the last.
    ///
    /// No two sequences may share a page that one of them writes.
    pub fn new(sequences: Vec<Sequence>, window: Option<usize>) -> Self {
        for Sequence { rows, position, pages } in &sequences {
            let end = *position as usize + rows.len();
            assert!(end <= pages.len() * PAGE, "{} pages for {end} positions", pages.len());
        }
        assert!(sequences.first().is_none_or(|first| first.rows.start == 0), "rows from the first on");
        assert!(sequences.windows(2).all(|pair| pair[0].rows.end == pair[1].rows.start), "rows follow each other");
        assert!(window != Some(0), "a token sees itself");
        Self(Arc::new((sequences, window)))
    }

    pub fn sequences(&self) -> &[Sequence] {
        &self.0.0
    }

    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.sequences().last().map_or(0, |last| last.rows.end)
    }

    /// The positions that a token at `position` sees.
    pub fn seen(&self, position: usize) -> Range<usize> {
        let first = self.0.1.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    /// Refuses shapes that do not belong together: every implementation starts with it.
    pub fn check(&self, qkv: [usize; 2], pool: [usize; 2], heads: Heads) {
        assert_eq!(qkv, [self.rows(), heads.columns()], "a row for each token of the plan");
        assert_eq!(pool[1], 2 * heads.kv * heads.dim, "a slot holds keys and values");
        let pages = pool[0] / PAGE;
        let named = self.sequences().iter().flat_map(|sequence| &sequence.pages);
        assert!(named.copied().all(|page| (page as usize) < pages), "every page is in the pool of {pages}");
    }
}

/// Cached attention from the backend's own operations: the reference, and what runs where there is no kernel.
pub(crate) fn composed<B: Backend>(
    qkv: FloatTensor<B>,
    mut pool: FloatTensor<B>,
    plan: &CachePlan,
    heads: Heads,
    scale: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (shape, slots) = (qkv.shape().dims::<2>(), pool.shape().dims::<2>());
    plan.check(shape, slots, heads);
    let (from, width) = (heads.query * heads.dim, slots[1]);
    for sequence in plan.sequences() {
        for (positions, slot) in sequence.runs(sequence.position as usize..sequence.end()) {
            let row = sequence.rows.start + positions.start - sequence.position as usize;
            let new = B::float_slice(qkv.clone(), &cut(row..row + positions.len(), from..from + width));
            pool = B::float_slice_assign(pool, &cut(slot..slot + positions.len(), 0..width), new);
        }
    }
    let each = plan.sequences().iter().filter(|sequence| !sequence.rows.is_empty());
    let outs: Vec<_> = each.map(|sequence| one::<B>(&qkv, &pool, plan, sequence, heads, scale)).collect();
    let out = match outs.len() {
        0 => B::float_slice(qkv, &cut(0..0, 0..from)),
        _ => B::float_cat(outs, 0),
    };
    (out, pool)
}

fn cut(rows: Range<usize>, columns: Range<usize>) -> [Slice; 2] {
    [rows.into(), columns.into()]
}

/// Attention of one sequence, with a score matrix a head.
fn one<B: Backend>(
    qkv: &FloatTensor<B>,
    pool: &FloatTensor<B>,
    plan: &CachePlan,
    sequence: &Sequence,
    Heads { query, kv, dim }: Heads,
    scale: f32,
) -> FloatTensor<B> {
    let (m, group, device) = (sequence.rows.len(), query / kv, qkv.device());
    let seen = plan.seen(sequence.position as usize).start..sequence.end();
    let parts = |columns: Range<usize>| {
        let run =
            |(positions, slot): (Range<usize>, usize)| B::float_slice(pool.clone(), &cut(slot..slot + positions.len(), columns.clone()));
        let all = B::float_cat(sequence.runs(seen.clone()).map(run).collect(), 0);
        B::float_swap_dims(B::float_reshape(all, [seen.len(), kv, dim].into()), 0, 1)
    };
    let (k, v) = (parts(0..kv * dim), parts(kv * dim..2 * kv * dim));
    let q = B::float_slice(qkv.clone(), &cut(sequence.rows.clone(), 0..query * dim));
    // Heads outside, so that one batched product serves all: query heads that share a key head stand side by side.
    let q = B::float_swap_dims(B::float_reshape(q, [m, query, dim].into()), 0, 1);
    let q = B::float_reshape(B::float_mul_scalar(q, scale.into()), [kv, group * m, dim].into());
    let scores = B::float_reshape(B::float_matmul(q, B::float_swap_dims(k, 1, 2)), [query, m, seen.len()].into());
    let hidden = sequence.rows.clone().flat_map(|row| {
        let own = plan.seen(sequence.position_of(row));
        seen.clone().map(move |key| if own.contains(&key) { 0.0 } else { HIDDEN_SCORE })
    });
    let hidden = TensorData::new(hidden.collect::<Vec<f32>>(), [1, m, seen.len()]).convert_dtype(scores.dtype());
    let scores = B::float_add(scores, B::float_from_data(hidden, &device));
    let largest = B::float_max_dim(scores.clone(), 2);
    let weights = B::float_exp(B::float_sub(scores, largest));
    let weights = B::float_div(weights.clone(), B::float_sum_dim(weights, 2));
    let mixed = B::float_matmul(B::float_reshape(weights, [kv, group * m, seen.len()].into()), v);
    let mixed = B::float_swap_dims(B::float_reshape(mixed, [query, m, dim].into()), 0, 1);
    B::float_reshape(mixed, [m, query * dim].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_as_long_as_the_pages_follow_each_other() {
        let sequence = Sequence { rows: 0..60, position: 0, pages: vec![4, 5, 2, 3] };
        let runs = |among| sequence.runs(among).collect::<Vec<_>>();
        assert_eq!(runs(0..60), [(0..32, 64), (32..60, 32)]);
        assert_eq!(runs(5..40), [(5..32, 69), (32..40, 32)]);
        assert_eq!(runs(17..18), [(17..18, 81)]);
        assert_eq!(runs(3..3), []);
    }

    #[test]
    fn a_token_sees_back_to_the_window() {
        let plan = |window| CachePlan::new(vec![], window);
        assert_eq!((plan(None).seen(40), plan(Some(3)).seen(40), plan(Some(3)).seen(1)), (0..41, 38..41, 0..2));
    }

    #[test]
    #[should_panic(expected = "1 pages for 17 positions")]
    fn a_table_that_is_too_short_is_refused() {
        CachePlan::new(vec![Sequence { rows: 0..2, position: 15, pages: vec![0] }], None);
    }
}
