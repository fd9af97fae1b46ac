//! Attention over cached keys and values on the CPU, read where they lie in their pages.
//!
//! A tile is a few tokens of one sequence, all query heads of one key head, and 128 keys from a multiple of 128 on. What a query gives does
//! not depend on the tokens beside it, to the bit: tiles stand where the position says and not where the step began, keys that a query
//! does not see add exactly nothing, and where a run of pages ends changes no sum (see `gemm.rs`).

use super::crew;
use super::gemm::{Matrix, Target, fetch, small};
use super::rows::{exp_in_place, largest, scale as scale_by};
use crate::ops::Heads;
use crate::ops::cache::{CachePlan, Sequence};
use std::cell::RefCell;
use std::ops::Range;

/// Most queries of a tile: tokens times the heads that share a key head.
const QUERIES: usize = 128;
/// Keys of a tile.
const KEYS: usize = 128;
/// Fewest products of a query's and a key's features that are worth several threads.
const TASK_PRODUCTS: usize = 1 << 16;

/// Most queries that wait for memory rather than for products: keys and values are then asked for ahead.
const FEW_QUERIES: usize = 32;

/// Inputs of one attention, its new keys and values written.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub qkv: &'a [f32],
    pub pool: &'a [f32],
    pub plan: &'a CachePlan,
    pub heads: Heads,
    pub scale: f32,
}

/// Some rows of a sequence, and the query heads of one key head.
struct Tile<'a> {
    sequence: &'a Sequence,
    rows: Range<usize>,
    kv: usize,
}

/// Queries, probabilities, sums of values, and a maximum and a denominator for each query.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    p: Vec<f32>,
    out: Vec<f32>,
    sums: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Writes the new keys and values of `qkv` to their slots.
pub(super) fn write(qkv: &[f32], pool: &mut [f32], plan: &CachePlan, heads: Heads) {
    let (columns, from, width) = (heads.columns(), heads.query * heads.dim, 2 * heads.kv * heads.dim);
    for sequence in plan.sequences() {
        for row in sequence.rows.clone() {
            let slot = sequence.slot(sequence.position_of(row));
            pool[slot * width..(slot + 1) * width].copy_from_slice(&qkv[row * columns + from..(row + 1) * columns]);
        }
    }
}

/// The keys from `next` to the end of its tile.
fn tile_from(next: usize, end: usize) -> Range<usize> {
    next..end.min((next / KEYS + 1) * KEYS)
}

/// `[n, h·e]`.
pub(super) fn forward(call: Call) -> Vec<f32> {
    let Heads { query, kv, dim } = call.heads;
    let mut out = vec![0.0; call.plan.rows() * query * dim];
    let rows = (QUERIES / (query / kv)).max(1);
    let tiles: Vec<Tile> = call
        .plan
        .sequences()
        .iter()
        .flat_map(|sequence| sequence.rows.clone().step_by(rows).map(move |row| (sequence, row..sequence.rows.end.min(row + rows))))
        .flat_map(|(sequence, rows)| (0..kv).map(move |kv| Tile { sequence, rows: rows.clone(), kv }))
        .collect();
    let products: usize = call.plan.sequences().iter().map(|sequence| sequence.rows.len() * sequence.end()).sum();
    let to = Target { at: out.as_mut_ptr(), rs: query * dim };
    let one = |tile: usize| {
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: each tile writes its own rows and columns of `out`.
            unsafe { call.tile(&tiles[tile], tiles.get(tile + 1), scratch, to) }
        });
    };
    if products * query * dim < TASK_PRODUCTS {
        (0..tiles.len()).for_each(one)
    } else {
        crew::each(tiles.len(), one)
    }
    out
}

impl<'a> Call<'a> {
    /// Some slots of the pool, one of the `2·k` parts of each.
    fn slots(&self, first: usize, count: usize, part: usize) -> Matrix<'a> {
        let (dim, width) = (self.heads.dim, 2 * self.heads.kv * self.heads.dim);
        Matrix::new(&self.pool[first * width + part * dim..], count, dim, width, 1)
    }

    /// The keys that a tile sees.
    fn seen(&self, Tile { sequence, rows, .. }: &Tile) -> Range<usize> {
        self.plan.seen(sequence.position_of(rows.start)).start..sequence.position_of(rows.end)
    }

    /// Asks for a part of each slot of some keys.
    fn fetch(&self, sequence: &Sequence, keys: Range<usize>, part: usize) {
        sequence.runs(keys).for_each(|(positions, slot)| fetch(self.slots(slot, positions.len(), part)));
    }

    /// One tile; `next_tile` is likely this thread's next.
    ///
    /// # Safety
    /// The tile's rows of its heads' columns of `out` must be this task's alone.
    unsafe fn tile(&self, tile: &Tile, next_tile: Option<&Tile>, scratch: &mut Scratch, out: Target) {
        let Tile { sequence, rows, kv } = tile;
        let (dim, group) = (self.heads.dim, self.heads.query / self.heads.kv);
        let (count, first_column) = (rows.len() * group, kv * group * dim);
        let Scratch { q, p, out: sums_of_values, sums } = scratch;
        q.clear();
        rows.clone().for_each(|row| q.extend_from_slice(&self.qkv[row * self.heads.columns() + first_column..][..group * dim]));
        p.resize(count.max(QUERIES) * KEYS, 0.0);
        sums_of_values.clear();
        sums_of_values.resize(count * dim, 0.0);
        sums.clear();
        sums.resize(count, (f32::NEG_INFINITY, 0.0));
        let seen = self.seen(tile);
        let few = count <= FEW_QUERIES;
        let q = Matrix::new(q, count, dim, dim, 1);
        let mut next = seen.start;
        while next < seen.end {
            let keys = tile_from(next, seen.end);
            if few {
                self.fetch(sequence, keys.clone(), self.heads.kv + kv);
            }
            for (positions, slot) in sequence.runs(keys.clone()) {
                let keys_of_run = self.slots(slot, positions.len(), *kv).transposed();
                let at = p[positions.start - keys.start..].as_mut_ptr();
                // SAFETY: `p` has KEYS columns for each query.
                unsafe { small(q, keys_of_run, false, Target { at, rs: KEYS }) };
            }
            for (i, row) in rows.clone().flat_map(|row| std::iter::repeat_n(row, group)).enumerate() {
                let own = self.plan.seen(sequence.position_of(row));
                let clamp = |at: usize| at.clamp(keys.start, keys.end) - keys.start;
                let values = &mut sums_of_values[i * dim..(i + 1) * dim];
                self.soften(&mut p[i * KEYS..][..keys.len()], clamp(own.start)..clamp(own.end), &mut sums[i], values);
            }
            if few && keys.end < seen.end {
                self.fetch(sequence, tile_from(keys.end, seen.end), *kv);
            } else if let (true, Some(tile)) = (few, next_tile) {
                let seen = self.seen(tile);
                self.fetch(tile.sequence, tile_from(seen.start, seen.end), tile.kv);
            }
            let to = Target { at: sums_of_values.as_mut_ptr(), rs: dim };
            for (positions, slot) in sequence.runs(keys.clone()) {
                let weights = Matrix::new(&p[positions.start - keys.start..], count, positions.len(), KEYS, 1);
                // SAFETY: a row of `dim` for each query, which hold values.
                unsafe { small(weights, self.slots(slot, positions.len(), self.heads.kv + kv), true, to) };
            }
            next = keys.end;
        }
        for (i, values) in sums_of_values.chunks_exact_mut(dim).enumerate() {
            scale_by(values, 1.0 / sums[i].1);
            let (row, head) = (rows.start + i / group, kv * group + i % group);
            // SAFETY: this task's part of `out`.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out.at.add(row * out.rs + head * dim), dim) };
        }
    }

    /// Scores become `e^(scale·score - largest so far)`, and zero where they are not `seen`; what was summed before follows the largest.
    fn soften(&self, p: &mut [f32], seen: Range<usize>, (best, sum): &mut (f32, f32), values: &mut [f32]) {
        p[..seen.start].fill(0.0);
        p[seen.end..].fill(0.0);
        if seen.is_empty() {
            return;
        }
        let p = &mut p[seen];
        let above = largest(p) * self.scale;
        if above > *best {
            let shrink = (*best - above).exp();
            *sum *= shrink;
            scale_by(values, shrink);
            *best = above;
        }
        *sum += exp_in_place(p, self.scale, *best);
    }
}
