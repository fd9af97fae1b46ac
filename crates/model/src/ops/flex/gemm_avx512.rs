//! The AVX-512 kernel of `gemm.rs`: one panel of `C`, at most 48 columns wide, in tiles of 8 rows held in 24 registers.

use super::gemm::{Kind, Target, Term, sizes};
use half::bf16;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::transmute;

const TILE_ROWS: usize = sizes().0;
const PANEL: usize = sizes().1;
const DEPTH: usize = sizes().2;
/// Rows of `A` from which on there is time to ask for what comes next while a panel is multiplied; with fewer that happens while it is packed.
const MANY_ROWS: usize = 16;

#[repr(align(64))]
struct Packed([f32; DEPTH * PANEL]);

thread_local! {
    static PACKED: RefCell<Box<Packed>> = RefCell::new(Box::new(Packed([0.0; DEPTH * PANEL])));
}

/// What is packed next, asked for while this chunk is multiplied: some cache lines at each step of the contraction. Distances are in bytes.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const u8,
    /// From step to step, and further after each sixteen.
    steps: [isize; 2],
    /// From a line of a step to its neighbour, and to the one after.
    apart: [isize; 2],
    /// Lines of a step: the first, and the one after the last.
    lines: (usize, usize),
}

impl Ahead {
    /// Nothing.
    const NOTHING: Self = Self { at: std::ptr::null(), steps: [0; 2], apart: [0; 2], lines: (0, 0) };

    /// `n` columns of `B` from row `from` and column `column` on, as many rows as this chunk has steps.
    fn new((b, rs, cs): (*const f32, usize, usize), kind: Kind, from: usize, column: usize, n: usize) -> Self {
        let unit = if kind == Kind::SplitPairs { 2 } else { 4 };
        let at = b.cast::<u8>().wrapping_add((from * rs + column * cs) * unit);
        let (row, columns, vectors) = ((rs * unit) as isize, (cs * unit) as isize, n.div_ceil(16));
        match (kind, cs) {
            // Two stored rows of bf16 for each row of pairs, half as long.
            (Kind::SplitPairs, _) => Self { at, steps: [row, 0], apart: [row / 2, 64], lines: (0, 2 * n.div_ceil(32)) },
            (_, 1) => Self { at, steps: [row, 0], apart: [64, 128], lines: (0, vectors) },
            _ => Self { at, steps: [columns, 64 - 16 * columns], apart: [16 * columns, 32 * columns], lines: (0, vectors) },
        }
    }

    /// What tile `index` of `count` asks for.
    fn part(self, index: usize, count: usize) -> Self {
        let lines = self.lines.1;
        Self { lines: (lines * index / count, lines * (index + 1) / count), ..self }
    }

    /// Asks for the lines of a step. A hint: it cannot fault, wherever it points.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fetch(self) {
        for line in self.lines.0..self.lines.1 {
            let away = (line as isize & 1) * self.apart[0] + (line as isize >> 1) * self.apart[1];
            _mm_prefetch::<_MM_HINT_T1>(self.at.wrapping_offset(away).cast());
        }
    }

    /// From step `k` to the next.
    #[inline]
    fn advance(&mut self, k: usize) {
        self.at = self.at.wrapping_offset(self.steps[0] + if k % 16 == 15 { self.steps[1] } else { 0 });
    }
}

/// A tile's place: `A`, the packed panel, where `C` starts from (null for zero), and `C`.
#[derive(Clone, Copy)]
struct Tile {
    depth: usize,
    a: *const f32,
    a_rs: usize,
    a_cs: usize,
    b: *const f32,
    start: *const f32,
    start_rs: usize,
    c: *mut f32,
    c_rs: usize,
    /// Columns in use of the last vector.
    mask: __mmask16,
    ahead: Ahead,
}

/// `C = start + A·B`, of at most 48 columns. A panel as wide as this one may follow `next` columns to the right.
///
/// # Safety
/// Needs AVX-512F, for pairs AVX-512-BF16 too. `c` and, unless null, `start` must reach over as many rows and columns as the term has.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn panel(Term { a, b, .. }: Term, start: *const f32, start_rs: usize, c: Target, next: Option<usize>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let rest = n % 16;
    let mask: __mmask16 = if rest == 0 { 0xffff } else { (1 << rest) - 1 };
    let (mut start, mut start_rs) = (start, start_rs);
    let (a_at, a_rs, a_cs) = a.raw();
    let depth = k.div_ceil(k.div_ceil(DEPTH)).next_multiple_of(16).min(DEPTH);
    PACKED.with_borrow_mut(|packed| {
        let packed = packed.0.as_mut_ptr();
        for from in (0..k).step_by(depth) {
            let depth = depth.min(k - from);
            let (_, rs, cs) = b.raw();
            let after = from + depth;
            let place = if after < k { Some((after, 0)) } else { next.map(|next| (0, next)) };
            let (near, ahead) = match place {
                Some((row, column)) if m < MANY_ROWS => (Some((row * rs + column * cs) as isize - (from * rs) as isize), Ahead::NOTHING),
                Some((row, column)) => (None, Ahead::new(b.raw(), b.kind(), row, column, n)),
                None => (None, Ahead::NOTHING),
            };
            // SAFETY: within the views; the buffer holds DEPTH x PANEL.
            unsafe {
                match b.kind() {
                    Kind::SplitPairs => pack_split(b.raw(), from, depth, n, packed, near),
                    _ => pack(b.raw(), from, depth, n, packed, near),
                }
                let a_from = a_at.add(from * a_cs);
                let tile = Tile { depth, a: a_from, a_rs, a_cs, b: packed, start, start_rs, c: c.at, c_rs: c.rs, mask, ahead };
                match (a.kind(), n.div_ceil(16)) {
                    (Kind::F32, 1) => f32s::rows::<1>(m, tile),
                    (Kind::F32, 2) => f32s::rows::<2>(m, tile),
                    (Kind::F32, _) => f32s::rows::<3>(m, tile),
                    (_, 1) => bf16s::rows::<1>(m, tile),
                    (_, 2) => bf16s::rows::<2>(m, tile),
                    (_, _) => bf16s::rows::<3>(m, tile),
                }
            }
            (start, start_rs) = (c.at, c.rs);
        }
    });
}

/// The tiles of a panel, for one way to multiply and add.
macro_rules! tiles {
    ($name:ident, $features:literal, $multiply_add:expr) => {
        mod $name {
            use super::*;

            /// # Safety
            /// As `panel`.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn rows<const V: usize>(m: usize, tile: Tile) {
                let at = |i: usize| {
                    // SAFETY: row i of m.
                    unsafe {
                        let start = if tile.start.is_null() { tile.start } else { tile.start.add(i * tile.start_rs) };
                        Tile { a: tile.a.add(i * tile.a_rs), start, c: tile.c.add(i * tile.c_rs), ..tile }
                    }
                };
                let whole = m - m % TILE_ROWS;
                // SAFETY: as the caller promises.
                unsafe {
                    for i in (0..whole).step_by(TILE_ROWS) {
                        let ahead = tile.ahead.part(i / TILE_ROWS, whole / TILE_ROWS);
                        kernel::<TILE_ROWS, V>(Tile { ahead, ..at(i) });
                    }
                    let last = Tile { ahead: Ahead::NOTHING, ..at(whole) };
                    match m - whole {
                        0 => {}
                        1 => kernel::<1, V>(last),
                        2 => kernel::<2, V>(last),
                        3 => kernel::<3, V>(last),
                        4 => kernel::<4, V>(last),
                        5 => kernel::<5, V>(last),
                        6 => kernel::<6, V>(last),
                        _ => kernel::<7, V>(last),
                    }
                }
            }

            /// `R` rows by `V` vectors.
            ///
            /// # Safety
            /// As `panel`.
            #[allow(clippy::needless_range_loop, reason = "a tile is counted in rows and vectors")]
            #[target_feature(enable = $features)]
            unsafe fn kernel<const R: usize, const V: usize>(tile: Tile) {
                let mask = |v: usize| if v + 1 == V { tile.mask } else { 0xffff };
                let mut sums = [[_mm512_setzero_ps(); V]; R];
                // SAFETY: the masks keep every access within the views.
                unsafe {
                    if !tile.start.is_null() {
                        for i in 0..R {
                            for v in 0..V {
                                sums[i][v] = _mm512_maskz_loadu_ps(mask(v), tile.start.add(i * tile.start_rs + 16 * v));
                            }
                        }
                    }
                    let (mut a, mut b, mut ahead) = (tile.a, tile.b, tile.ahead);
                    for k in 0..tile.depth {
                        if R == TILE_ROWS {
                            ahead.fetch();
                            ahead.advance(k);
                        }
                        let mut columns = [_mm512_setzero_ps(); V];
                        for (v, column) in columns.iter_mut().enumerate() {
                            *column = _mm512_load_ps(b.add(16 * v));
                        }
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let x = _mm512_set1_ps(*a.add(i * tile.a_rs));
                            for v in 0..V {
                                sums[v] = $multiply_add(x, columns[v], sums[v]);
                            }
                        }
                        (a, b) = (a.wrapping_add(tile.a_cs), b.wrapping_add(PANEL));
                    }
                    for i in 0..R {
                        for v in 0..V {
                            _mm512_mask_storeu_ps(tile.c.add(i * tile.c_rs + 16 * v), mask(v), sums[i][v]);
                        }
                    }
                }
            }
        }
    };
}

tiles!(f32s, "avx512f", _mm512_fmadd_ps);
tiles!(bf16s, "avx512f,avx512bf16", |x: __m512, y: __m512, sum: __m512| {
    _mm512_dpbf16_ps(sum, transmute::<__m512, __m512bh>(x), transmute::<__m512, __m512bh>(y))
});

/// Copies `depth x n` of `B`, from row `from`, into the panel; vectors are filled up with zeros. What is `near`, so many floats further on,
/// is asked for on the way.
///
/// # Safety
/// Within the view and the buffer.
#[target_feature(enable = "avx512f")]
unsafe fn pack((b, rs, cs): (*const f32, usize, usize), from: usize, depth: usize, n: usize, packed: *mut f32, near: Option<isize>) {
    let mask = |left: usize| -> __mmask16 { if left >= 16 { 0xffff } else { (1 << left) - 1 } };
    // SAFETY: masked to the view.
    unsafe {
        if cs == 1 || n == 1 {
            for k in 0..depth {
                let row = b.add((from + k) * rs);
                for j in (0..n).step_by(16) {
                    if let Some(near) = near {
                        _mm_prefetch::<_MM_HINT_T0>(row.wrapping_offset(j as isize + near).cast());
                    }
                    _mm512_store_ps(packed.add(k * PANEL + j), _mm512_maskz_loadu_ps(mask(n - j), row.add(j)));
                }
            }
        } else {
            for j in (0..n).step_by(16) {
                for k in (0..depth).step_by(16) {
                    if let Some(near) = near {
                        let at = b.wrapping_offset((j * cs + from + k) as isize + near);
                        (0..16).for_each(|i| _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(i * cs).cast()));
                    }
                    transpose(b.add(j * cs + from + k), cs, (n - j).min(16), mask(depth - k), packed.add(k * PANEL + j), depth - k);
                }
            }
        }
    }
}

/// As `pack`, for pairs whose halves lie in two rows: `rs` and `cs` count bf16.
///
/// # Safety
/// Within the view and the buffer.
#[target_feature(enable = "avx512f")]
unsafe fn pack_split((b, rs, _): (*const f32, usize, usize), from: usize, depth: usize, n: usize, packed: *mut f32, near: Option<isize>) {
    let b: *const u16 = b.cast();
    for k in 0..depth {
        for j in (0..n).step_by(16) {
            // SAFETY: columns that exist are read; the panel has room for whole vectors.
            unsafe {
                let first = b.add((from + k) * rs + j);
                if let Some(near) = near {
                    _mm_prefetch::<_MM_HINT_T0>(first.wrapping_offset(near).cast());
                    _mm_prefetch::<_MM_HINT_T0>(first.wrapping_offset((rs / 2) as isize + near).cast());
                }
                let (low, high) = (sixteen(first, n - j), sixteen(first.add(rs / 2), n - j));
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_store_ps(packed.add(k * PANEL + j), _mm512_castsi512_ps(pairs));
            }
        }
    }
}

/// Up to sixteen bf16, each in the low half of a lane.
///
/// # Safety
/// `count` of them must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sixteen(from: *const u16, count: usize) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        if count >= 16 {
            return _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        }
        let mut few = [0u16; 16];
        std::ptr::copy_nonoverlapping(from, few.as_mut_ptr(), count);
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(few.as_ptr().cast()))
    }
}

/// Up to 16 x 16 floats, rows for columns.
///
/// # Safety
/// `from` must reach over `count` rows `stride` apart, `to` over `rows` rows of the panel.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: *const f32, stride: usize, count: usize, mask: __mmask16, to: *mut f32, rows: usize) {
    let mut x = [_mm512_setzero_ps(); 16];
    // SAFETY: as the caller promises. Loops of fixed length keep all sixteen in registers.
    unsafe {
        if count == 16 && rows >= 16 {
            for (i, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_ps(from.add(i * stride));
            }
            for (i, x) in turned(x).iter().enumerate() {
                _mm512_store_ps(to.add(i * PANEL), *x);
            }
        } else {
            for (i, x) in x.iter_mut().enumerate().take(count) {
                *x = _mm512_maskz_loadu_ps(mask, from.add(i * stride));
            }
            for (i, x) in turned(x).iter().enumerate().take(rows) {
                _mm512_store_ps(to.add(i * PANEL), *x);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn turned(mut x: [__m512; 16]) -> [__m512; 16] {
    let mut y = [_mm512_setzero_ps(); 16];
    let (wide, narrow) = (|v| _mm512_castps_pd(v), |v| _mm512_castpd_ps(v));
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for i in 0..4 {
        for half in 0..2 {
            let (low, high) = (wide(y[4 * i + half]), wide(y[4 * i + half + 2]));
            x[4 * i + 2 * half] = narrow(_mm512_unpacklo_pd(low, high));
            x[4 * i + 2 * half + 1] = narrow(_mm512_unpackhi_pd(low, high));
        }
    }
    for i in 0..4 {
        for half in 0..2 {
            let (low, high) = (x[8 * half + i], x[8 * half + i + 4]);
            y[8 * half + i] = _mm512_shuffle_f32x4::<0x88>(low, high);
            y[8 * half + i + 4] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        }
    }
    for i in 0..8 {
        x[i] = _mm512_shuffle_f32x4::<0x88>(y[i], y[i + 8]);
        x[i + 8] = _mm512_shuffle_f32x4::<0xdd>(y[i], y[i + 8]);
    }
    x
}

/// Rounds to bf16, ties to even. Both are of one length.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round(x: &[f32], out: &mut [bf16]) {
    let whole = x.len() - x.len() % 16;
    for i in (0..whole).step_by(16) {
        // SAFETY: sixteen of each.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr().add(i)));
            _mm256_storeu_si256(out.as_mut_ptr().add(i).cast(), transmute::<__m256bh, __m256i>(rounded));
        }
    }
    out[whole..].iter_mut().zip(&x[whole..]).for_each(|(out, &x)| *out = bf16::from_f32(x));
}
