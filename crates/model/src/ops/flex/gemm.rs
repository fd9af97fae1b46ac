//! Matrix products on the CPU: `C = init + Σ A·B` over a few terms, in f32, or from bf16 with sums in f32.
//!
//! A LoRA projection is one product of two terms, `x·W + low·up`, so that the low-rank term costs its share of the contraction and no pass
//! over memory. Where the machine has AVX-512 the kernel is ours: panels of 48 columns of `B` are packed into the first-level cache
//! (transposed on the way where `B` is stored so), and `A` is read where it lies. Elsewhere it is the `gemm` crate's.

use super::crew;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows of a tile of `C`.
const TILE_ROWS: usize = 8;
/// Columns of a packed panel: three vectors of 16.
const PANEL: usize = 48;
/// Depth of a packed panel; 144 x 48 floats are 27 KiB of a first-level cache of 32 or 48.
const DEPTH: usize = 144;
/// Contraction in one sweep over `C`: bounds how much of `A` must stay in the shared cache.
const SWEEP: usize = 3072;
/// Fewest multiplications worth several threads that are awake; to wake them takes four times as many.
const TASK_PRODUCTS: usize = 1 << 17;
/// Fewest rows worth a task of their own.
const TASK_ROWS: usize = 32;

/// A matrix somewhere in memory: element `(i, j)` at `i·rs + j·cs`.
///
/// A matrix of pairs holds two bf16 in the place of one f32: neighbours in the contraction, the first in the low half. `A` then has half
/// its columns and `B` half its rows.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    at: *const u8,
    pub rows: usize,
    pub cols: usize,
    rs: usize,
    cs: usize,
    kind: Kind,
    lives: PhantomData<&'a [f32]>,
}

/// What a matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    /// Pairs that lie side by side, in units of a pair.
    Pairs,
    /// Pairs whose second half is one stored row below the first, in units of one bf16.
    SplitPairs,
}

// SAFETY: a shared view of floats; `new` ties it to the slice it looks at.
unsafe impl Send for Matrix<'_> {}
// SAFETY: as above.
unsafe impl Sync for Matrix<'_> {}

impl<'a> Matrix<'a> {
    /// A view of `data`; panics where it would reach beyond.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * rs + (cols - 1) * cs < data.len(), "a {rows} x {cols} view reaches beyond its data");
        Self { at: data.as_ptr().cast(), rows, cols, rs, cs, kind: Kind::F32, lives: PhantomData }
    }

    /// Pairs from rows of an even number of bf16: the `A` of a product.
    pub fn pairs(data: &'a [bf16], rows: usize, cols: usize) -> Self {
        assert!(cols.is_multiple_of(2) && data.len() == rows * cols, "rows of whole pairs");
        Self { at: data.as_ptr().cast(), rows, cols: cols / 2, rs: cols / 2, cs: 1, kind: Kind::Pairs, lives: PhantomData }
    }

    /// Pairs along the rows of a `B` of bf16, `rows` even, that is dense in one direction.
    pub fn pairs_down(data: &'a [bf16], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        assert!(rows.is_multiple_of(2) && (rows - 1) * rs + (cols - 1) * cs < data.len(), "whole pairs within the data");
        let (rows, at) = (rows / 2, data.as_ptr().cast());
        if cs == 1 {
            return Self { at, rows, cols, rs: 2 * rs, cs, kind: Kind::SplitPairs, lives: PhantomData };
        }
        assert!(rs == 1 && cs.is_multiple_of(2), "stored rows of whole pairs");
        Self { at, rows, cols, rs: 1, cs: cs / 2, kind: Kind::Pairs, lives: PhantomData }
    }

    /// Some rows and columns of it.
    pub fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols && self.kind == Kind::F32, "a part of what there is");
        Self { at: self.skip(rows.start, cols.start), rows: rows.len(), cols: cols.len(), ..self }
    }

    /// The same memory, rows for columns.
    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }

    fn skip(self, rows: usize, cols: usize) -> *const u8 {
        let unit = if self.kind == Kind::SplitPairs { 2 } else { 4 };
        // SAFETY: callers stay within `rows` and `cols`, which were checked when it was made.
        unsafe { self.at.add((rows * self.rs + cols * self.cs) * unit) }
    }
}

/// What `C` starts from.
#[derive(Clone, Copy)]
pub(super) enum Init<'a> {
    /// Nothing.
    Zero,
    /// What it holds.
    Keep,
    /// The same row everywhere: a bias.
    Row(&'a [f32]),
    /// Another matrix, dense: a residual.
    Dense(&'a [f32]),
}

/// One `A·B`, added to the rows of `C` from `row` on that `A` has.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub row: usize,
    pub a: Matrix<'a>,
    pub b: Matrix<'a>,
}

impl<'a> Term<'a> {
    /// On all rows.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>) -> Self {
        Self { row: 0, a, b }
    }

    /// What it adds to `rows` and `columns` of `C`.
    fn part(self, rows: &Range<usize>, columns: &Range<usize>) -> Self {
        let (start, end) = (rows.start.max(self.row), rows.end.min(self.row + self.a.rows));
        let a = Matrix { at: self.a.skip(start.saturating_sub(self.row).min(self.a.rows), 0), rows: end.saturating_sub(start), ..self.a };
        let b = Matrix { at: self.b.skip(0, columns.start), cols: columns.len(), ..self.b };
        Self { row: start, a, b }
    }
}

/// One product: `init + Σ A·B` into `c`, `m x n`.
pub(super) struct Job<'a> {
    pub m: usize,
    pub n: usize,
    /// A term that adds to all rows comes first, where there is one.
    pub terms: Vec<Term<'a>>,
    pub init: Init<'a>,
    pub c: Target,
}

/// Memory of `C` that tasks share: each writes rows and columns of its own.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub at: *mut f32,
    pub rs: usize,
}

impl Target {
    /// From row `row` on.
    pub fn below(self, row: usize) -> Self {
        Self { at: self.at.wrapping_add(row * self.rs), ..self }
    }
}

// SAFETY: tasks write disjoint parts.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `init + Σ A·B` as a new dense matrix of `m x n`, on all threads.
pub(super) fn product(m: usize, n: usize, terms: Vec<Term>, init: Init) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    let c = Target { at: out.as_mut_ptr(), rs: n };
    assert!(!matches!(init, Init::Keep), "a new matrix holds nothing");
    // SAFETY: `c` has room for m x n; every element of it is written before the length is set.
    unsafe {
        run(&[Job { m, n, terms, init, c }]);
        out.set_len(m * n);
    }
    out
}

/// Products that do not depend on each other, on all threads. What one gives does not depend on the others.
///
/// # Safety
/// Each `c` must be writable for its `m` rows of `n` floats, nobody else's, and hold them if `init` is `Keep`.
pub(super) unsafe fn run(jobs: &[Job]) {
    jobs.iter().for_each(check);
    let jobs: Vec<&Job> = jobs.iter().filter(|job| job.m > 0 && job.n > 0).collect();
    let threads = rayon::current_num_threads();
    let size = |job: &&Job| job.m * job.n * job.terms.iter().map(|term| term.b.rows).sum::<usize>();
    let products: usize = jobs.iter().map(size).sum();
    let enough = if crew::is_awake() { TASK_PRODUCTS } else { 4 * TASK_PRODUCTS };
    let panels: usize = jobs.iter().map(|job| job.n.div_ceil(panel_width(job.n))).sum();
    let sweeps: Vec<Vec<(Vec<Term>, Init)>> = jobs.iter().map(|job| sweeps(&job.terms, job.init)).collect();
    let mut tasks = vec![];
    for (index, job) in jobs.iter().enumerate() {
        let columns = panel_width(job.n);
        let splits = (4 * threads).div_ceil(panels).min(job.m.div_ceil(TASK_ROWS));
        let rows = job.m.div_ceil(splits).next_multiple_of(TILE_ROWS);
        tasks.extend((0..job.n).step_by(columns).flat_map(|j| (0..job.m).step_by(rows).map(move |i| (index, i, j, rows, columns))));
    }
    for sweep in 0..sweeps.iter().map(Vec::len).max().unwrap_or(0) {
        let one = |task: usize| {
            let (index, i, j, rows, columns): (usize, usize, usize, usize, usize) = tasks[task];
            let (Some((terms, init)), Job { m, n, c, .. }) = (sweeps[index].get(sweep), jobs[index]) else { return };
            // SAFETY: each task writes its own rows and columns of its job's `c`.
            unsafe { block(i..(*m).min(i + rows), j..(*n).min(j + columns), terms, *init, *c) }
        };
        if products < enough { (0..tasks.len()).for_each(one) } else { crew::each(tasks.len(), one) }
    }
}

/// The product a sweep of the contraction at a time; only the first starts from `init`.
fn sweeps<'a>(terms: &[Term<'a>], init: Init<'a>) -> Vec<(Vec<Term<'a>>, Init<'a>)> {
    let mut sweeps: Vec<(Vec<Term>, Init)> = vec![(vec![], init)];
    let mut room = SWEEP;
    for &Term { row, a, b } in terms {
        let mut done = 0;
        while done < a.cols {
            if room == 0 {
                sweeps.push((vec![], Init::Keep));
                room = SWEEP;
            }
            let depth = room.min(a.cols - done);
            let (a, b) = (Matrix { at: a.skip(0, done), cols: depth, ..a }, Matrix { at: b.skip(done, 0), rows: depth, ..b });
            sweeps.last_mut().expect("starts with one").0.push(Term { row, a, b });
            (done, room) = (done + depth, room - depth);
        }
    }
    sweeps
}

fn check(Job { m, n, terms, init, c }: &Job) {
    for Term { row, a, b } in terms {
        assert!(row + a.rows <= *m && b.cols == *n && a.cols == b.rows, "{}x{} by {}x{} is not {m}x{n}", a.rows, a.cols, b.rows, b.cols);
        assert!((a.kind == Kind::F32) == (b.kind == Kind::F32) && a.kind != Kind::SplitPairs, "both are f32 or both are pairs");
        assert!(b.rs == 1 || b.cs == 1 || b.rows <= 1 || b.cols <= 1, "B is dense in one direction");
    }
    match init {
        Init::Zero | Init::Keep => {}
        Init::Row(values) => assert_eq!(values.len(), *n, "a bias has n values"),
        Init::Dense(values) => assert!(values.len() == m * n && c.rs == *n, "a residual is m x n"),
    }
}

/// Even panels of whole vectors.
fn panel_width(n: usize) -> usize {
    n.div_ceil(n.div_ceil(PANEL)).next_multiple_of(16)
}

/// Part `rows x columns` of a product, on this thread.
///
/// # Safety
/// The part of `c` must be writable, nobody else's, and hold values if `init` is `Keep`; shapes must have been checked.
unsafe fn block(rows: Range<usize>, columns: Range<usize>, terms: &[Term], init: Init, c: Target) {
    // SAFETY: within `c`, as the caller promises.
    let place = |row: usize| Target { at: unsafe { c.at.add(row * c.rs + columns.start) }, rs: c.rs };
    let n = columns.len();
    let start = match init {
        Init::Zero => Start { at: std::ptr::null(), rs: 0 },
        Init::Keep => Start { at: place(rows.start).at, rs: c.rs },
        Init::Row(values) => Start { at: values[columns.clone()].as_ptr(), rs: 0 },
        Init::Dense(values) => Start { at: values[rows.start * c.rs + columns.start..].as_ptr(), rs: c.rs },
    };
    let mut start = Some(start);
    for (index, term) in terms.iter().enumerate() {
        let next = (columns.end + n <= term.b.cols).then_some(n);
        let term = term.part(&rows, &columns);
        if index == 0 && term.a.rows < rows.len() {
            // SAFETY: as the caller promises.
            unsafe { begin(rows.len(), n, start.take().expect("the first"), place(rows.start)) };
        }
        if term.a.rows > 0 {
            let c = place(term.row);
            let start = start.take().unwrap_or(Start { at: c.at, rs: c.rs });
            // SAFETY: as the caller promises.
            unsafe { panel(term, start, c, next) }
        }
    }
    if let Some(start) = start {
        // SAFETY: as the caller promises.
        unsafe { begin(rows.len(), n, start, place(rows.start)) };
    }
}

/// `C = start`.
///
/// # Safety
/// As `block`.
unsafe fn begin(m: usize, n: usize, start: Start, c: Target) {
    if start.at == c.at {
        return;
    }
    for i in 0..m {
        for j in 0..n {
            // SAFETY: within C and its start.
            unsafe {
                let value = if start.at.is_null() { 0.0 } else { *start.at.add(i * start.rs + j) };
                *c.at.add(i * c.rs + j) = value;
            }
        }
    }
}

/// `C = init + A·B` of any width on this thread: what attention is made of.
///
/// # Safety
/// `c` must be writable for `a.rows` rows of `b.cols` floats, nobody else's, and hold them if `keep`.
pub(super) unsafe fn small(a: Matrix, b: Matrix, keep: bool, c: Target) {
    let columns = panel_width(b.cols);
    for j in (0..b.cols).step_by(columns) {
        let init = if keep { Init::Keep } else { Init::Zero };
        // SAFETY: as the caller promises.
        unsafe { block(0..a.rows, j..b.cols.min(j + columns), &[Term::new(a, b)], init, c) }
    }
}

/// Where a panel of `C` starts from; null for zero.
#[derive(Clone, Copy)]
struct Start {
    at: *const f32,
    rs: usize,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn has_own_kernel() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_own_kernel() -> bool {
    false
}

/// Whether the machine multiplies pairs of bf16.
pub(super) fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return has_own_kernel() && std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Rounds to the nearest bf16, ties to even.
pub(super) fn round(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "one for each");
    #[cfg(target_arch = "x86_64")]
    if multiplies_bf16() {
        // SAFETY: the machine has AVX-512-BF16.
        return unsafe { super::gemm_avx512::round(x, out) };
    }
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = bf16::from_f32(x));
}

/// `C = start + A·B`, of one panel's columns.
///
/// # Safety
/// As `block`.
unsafe fn panel(term: Term, start: Start, c: Target, next: Option<usize>) {
    #[cfg(target_arch = "x86_64")]
    if has_own_kernel() {
        // SAFETY: the machine has AVX-512; the rest as the caller promises.
        return unsafe { super::gemm_avx512::panel(term, start.at, start.rs, c, next) };
    }
    let _ = next; // A hint for our own kernel.
    // SAFETY: as the caller promises.
    unsafe { panel_by_crate(term, start, c) }
}

/// # Safety
/// As `block`.
unsafe fn panel_by_crate(Term { a, b, .. }: Term, start: Start, c: Target) {
    assert!(a.kind == Kind::F32, "pairs are for machines that multiply them: see `multiplies_bf16`");
    let strides = |x: &Matrix| (x.cs as isize, x.rs as isize);
    let ((acs, ars), (bcs, brs)) = (strides(&a), strides(&b));
    // SAFETY: shapes were checked; C is written first.
    unsafe {
        begin(a.rows, b.cols, start, c);
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c.at,
            1,
            c.rs as isize,
            true,
            a.at.cast::<f32>(),
            acs,
            ars,
            b.at.cast::<f32>(),
            bcs,
            brs,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Matrix<'_> {
    pub(super) fn raw(&self) -> (*const f32, usize, usize) {
        (self.at.cast(), self.rs, self.cs)
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

pub(super) const fn sizes() -> (usize, usize, usize) {
    (TILE_ROWS, PANEL, DEPTH)
}

/// Asks for a matrix of dense rows, to be near when it is needed. A hint.
pub(super) fn fetch(x: Matrix) {
    #[cfg(target_arch = "x86_64")]
    for row in 0..x.rows {
        for column in (0..x.cols).step_by(16) {
            // SAFETY: every x86-64 has SSE, and a hint cannot fault.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(x.skip(row, column).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
    }

    fn plain(m: usize, n: usize, terms: &[Term], start: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let value = |x: &Matrix, i: usize, j: usize| f64::from(unsafe { *x.at.cast::<f32>().add(i * x.rs + j * x.cs) });
        let sum = |i: usize, j: usize| {
            let has = |term: &&Term| (term.row..term.row + term.a.rows).contains(&i);
            let product = |Term { row, a, b }: &Term| (0..a.cols).map(|k| value(a, i - row, k) * value(b, k, j)).sum::<f64>();
            terms.iter().filter(has).map(product).sum::<f64>() + f64::from(start(i, j))
        };
        (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| sum(i, j) as f32).collect()
    }

    fn assert_close(found: &[f32], expected: &[f32], depth: usize) {
        for (at, (x, y)) in found.iter().zip(expected).enumerate() {
            assert!((x - y).abs() < 2e-6 * (depth as f32 + 8.0), "element {at}: {x} is not {y}");
        }
    }

    #[test]
    fn every_shape_and_layout_gives_the_plain_sum() {
        for (case, &(m, n, k, r)) in
            [(1, 1, 1, 1), (8, 48, 144, 8), (7, 50, 145, 3), (33, 16, 300, 16), (64, 131, 97, 8), (5, 257, 3100, 2)].iter().enumerate()
        {
            let seed = case as u64;
            let (x, w, low, up) = (random(m * k, seed), random(k * n, seed + 10), random(m * r, seed + 20), random(r * n, seed + 30));
            let (bias, residual) = (random(n, seed + 40), random(m * n, seed + 50));
            for transposed in [false, true] {
                let b = if transposed { Matrix::new(&w, n, k, k, 1).transposed() } else { Matrix::new(&w, k, n, n, 1) };
                let a = if transposed { Matrix::new(&x, k, m, m, 1).transposed() } else { Matrix::new(&x, m, k, k, 1) };
                let (low, up) = (Matrix::new(&low, m, r, r, 1), Matrix::new(&up, r, n, n, 1));
                // The second term on all rows, or on some of them.
                for rows in [0..m, m / 3..m - m / 4] {
                    let second = Term { row: rows.start, a: low.part(rows, 0..r), b: up };
                    let terms = vec![Term::new(a, b), second];
                    assert_close(&product(m, n, terms.clone(), Init::Zero), &plain(m, n, &terms, |_, _| 0.0), k);
                    assert_close(&product(m, n, terms.clone(), Init::Row(&bias)), &plain(m, n, &terms, |_, j| bias[j]), k);
                    let with_residual = plain(m, n, &terms, |i, j| residual[i * n + j]);
                    assert_close(&product(m, n, terms, Init::Dense(&residual)), &with_residual, k);
                    assert_close(&product(m, n, vec![second], Init::Row(&bias)), &plain(m, n, &[second], |_, j| bias[j]), r);
                }
                let mut by_crate = vec![0.0; m * n];
                unsafe {
                    panel_by_crate(Term::new(a, b), Start { at: residual.as_ptr(), rs: n }, Target { at: by_crate.as_mut_ptr(), rs: n });
                }
                assert_close(&by_crate, &plain(m, n, &[Term::new(a, b)], |i, j| residual[i * n + j]), k);
            }
        }
    }

    #[test]
    fn products_of_bf16_are_exact_sums_of_rounded_factors() {
        if !multiplies_bf16() {
            eprintln!("SKIPPED: this machine does not multiply bf16");
            return;
        }
        let round = |x: &[f32]| x.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
        let widen = |x: &[bf16]| x.iter().map(|v| v.to_f32()).collect::<Vec<_>>();
        for (case, &(m, n, k)) in [(1, 1, 2), (9, 50, 290), (64, 131, 576), (5, 48, 6200)].iter().enumerate() {
            let (x, w, residual) = (round(&random(m * k, case as u64)), round(&random(k * n, 90)), random(m * n, 91));
            let (x_wide, w_wide) = (widen(&x), widen(&w));
            let a = Matrix::pairs(&x, m, k);
            for (b, plain_b) in [
                (Matrix::pairs_down(&w, k, n, n, 1), Matrix::new(&w_wide, k, n, n, 1)),
                (Matrix::pairs_down(&w, k, n, 1, k), Matrix::new(&w_wide, n, k, k, 1).transposed()),
            ] {
                let expected = plain(m, n, &[Term::new(Matrix::new(&x_wide, m, k, k, 1), plain_b)], |i, j| residual[i * n + j]);
                assert_close(&product(m, n, vec![Term::new(a, b)], Init::Dense(&residual)), &expected, k);
            }
        }
    }
}
