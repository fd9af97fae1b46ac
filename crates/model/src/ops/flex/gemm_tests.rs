//! Goal: an element of a product is the same to the bit whatever stands beside its row, on threads awake or not: a token that is decoded
//! alone, verified among others or computed again in a prompt gives the same. Method: some rows of a product against each row alone.

use super::crew::muster;
use super::gemm::{Init, Matrix, Term, has_own_kernel, multiplies_bf16, product};
use half::bf16;
use rand::{Rng, SeedableRng};

const SHAPES: [(usize, usize); 5] = [(48, 96), (130, 576), (960, 290), (576, 1536), (50, 6200)];
const ROWS: usize = 37;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// `first` rows of the product, for each count of rows, equal those of one row at a time.
fn check(n: usize, rows_of: impl Fn(usize, usize) -> Vec<f32>) {
    let alone: Vec<f32> = (0..ROWS).flat_map(|i| rows_of(i, 1)).collect();
    for count in [2, 3, 4, 5, 7, 8, 9, 16, 31, 33, ROWS] {
        assert!(rows_of(0, count) == alone[..count * n], "{count} rows of {n}");
        assert!(muster(|| rows_of(ROWS - count, count)) == alone[(ROWS - count) * n..], "the last {count} rows of {n}");
    }
}

#[test]
fn a_row_gives_the_same_bits_whatever_stands_beside_it() {
    if !has_own_kernel() {
        eprintln!("SKIPPED: products are not our own here");
        return;
    }
    for (seed, (n, k)) in SHAPES.into_iter().enumerate() {
        let (x, w, bias) = (random(ROWS * k, seed as u64), random(k * n, 50), random(n, 60));
        for b in [Matrix::new(&w, k, n, n, 1), Matrix::new(&w, k, n, 1, k)] {
            check(n, |first, count| {
                let a = Matrix::new(&x[first * k..(first + count) * k], count, k, k, 1);
                product(count, n, vec![Term::new(a, b)], Init::Row(&bias))
            });
        }
    }
}

#[test]
fn and_so_it_does_in_bf16() {
    if !multiplies_bf16() {
        eprintln!("SKIPPED: this machine does not multiply bf16");
        return;
    }
    let round = |x: &[f32]| x.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    for (seed, (n, k)) in SHAPES.into_iter().enumerate() {
        let (x, w, residual) = (round(&random(ROWS * k, seed as u64)), round(&random(k * n, 50)), random(ROWS * n, 60));
        for b in [Matrix::pairs_down(&w, k, n, n, 1), Matrix::pairs_down(&w, k, n, 1, k)] {
            check(n, |first, count| {
                let a = Matrix::pairs(&x[first * k..(first + count) * k], count, k);
                product(count, n, vec![Term::new(a, b)], Init::Dense(&residual[first * n..(first + count) * n]))
            });
        }
    }
}
