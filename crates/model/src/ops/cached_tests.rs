//! Goal: attention over a cache is that of the whole sequence, and what a token gives does not depend on how its sequence came to be there.
//! Method: random sequences, cut into steps in many ways, on pages in any order; held against f64, and to the bit against one another.

use super::cache::PAGE;
use super::{CachePlan, Heads, Kernels, Sequence};
use crate::device::DeviceChoice;
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const POOL_PAGES: usize = 96;

fn device_name() -> String {
    std::env::var("CUTLAYER_TEST_DEVICE").unwrap_or("cpu".into())
}

fn device() -> Device {
    device_name().parse::<DeviceChoice>().expect("a device").open().expect("the device under test")
}

/// Whether a row's results must be the same to the bit whatever stands beside it.
fn is_exact() -> bool {
    device_name() == "cpu" && super::flex::has_own_products()
}

/// Sequences of random queries, keys and values.
struct World {
    heads: Heads,
    window: Option<usize>,
    rows: Vec<Vec<Vec<f32>>>,
}

impl World {
    fn new(heads: Heads, window: Option<usize>, lengths: &[usize], seed: u64) -> Self {
        let random = &mut ChaCha8Rng::seed_from_u64(seed);
        let row = |random: &mut ChaCha8Rng| (0..heads.columns()).map(|_| random.random_range(-2.0..2.0)).collect::<Vec<f32>>();
        let rows = lengths.iter().map(|&length| (0..length).map(|_| row(random)).collect()).collect();
        Self { heads, window, rows }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    /// What each token of each sequence gives when `steps` say how many tokens of which sequences come together. Pages are shuffled by `seed`.
    fn run(&self, kernels: Kernels, steps: &[Vec<(usize, usize)>], seed: u64) -> Vec<Vec<f32>> {
        let mut free: Vec<u32> = (0..POOL_PAGES as u32).collect();
        free.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let device = device();
        let width = 2 * self.heads.kv * self.heads.dim;
        // What was there before must not matter.
        let mut pool = Tensor::<2>::full([POOL_PAGES * PAGE, width], 77.0, &device);
        let mut tables = vec![vec![]; self.rows.len()];
        let mut outs = vec![vec![]; self.rows.len()];
        let mut done = vec![0; self.rows.len()];
        for step in steps {
            let (mut values, mut sequences) = (vec![], vec![]);
            for &(which, count) in step {
                let start = sequences.last().map_or(0, |last: &Sequence| last.rows.end);
                let position = done[which];
                done[which] += count;
                while tables[which].len() * PAGE < done[which] {
                    tables[which].push(free.pop().expect("enough pages"));
                }
                values.extend(self.rows[which][position..done[which]].iter().flatten().copied());
                sequences.push(Sequence { rows: start..start + count, position: position as u32, pages: tables[which].clone() });
            }
            let n = values.len() / self.heads.columns();
            let qkv = Tensor::from_data(TensorData::new(values, [n, self.heads.columns()]), &device);
            let plan = CachePlan::new(sequences.clone(), self.window);
            let (out, written) = kernels.cached_attention(qkv, pool, plan, self.heads, self.scale());
            pool = written;
            let columns = self.heads.query * self.heads.dim;
            let all = crate::lora::download(out);
            for (Sequence { rows, .. }, &(which, _)) in sequences.iter().zip(step) {
                outs[which].extend_from_slice(&all[rows.start * columns..rows.end * columns]);
            }
        }
        outs
    }

    /// Each sequence by itself, in one step.
    fn whole(&self, kernels: Kernels) -> Vec<Vec<f32>> {
        let steps: Vec<_> = self.rows.iter().enumerate().map(|(which, rows)| vec![(which, rows.len())]).collect();
        self.run(kernels, &steps, 0)
    }

    /// The definition, in f64.
    fn exact(&self, which: usize) -> Vec<f64> {
        let Heads { query, kv, dim } = self.heads;
        let rows = &self.rows[which];
        let part = |row: usize, head: usize| rows[row][head * dim..(head + 1) * dim].iter().map(|&v| f64::from(v));
        let mut out = vec![];
        for i in 0..rows.len() {
            let first = self.window.map_or(0, |window| (i + 1).saturating_sub(window));
            for head in 0..query {
                let group = head / (query / kv);
                let score = |j: usize| part(i, head).zip(part(j, query + group)).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
                let weights: Vec<f64> = (first..=i).map(|j| score(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut mixed = vec![0.0; dim];
                for (weight, j) in weights.iter().zip(first..=i) {
                    mixed.iter_mut().zip(part(j, query + kv + group)).for_each(|(mixed, v)| *mixed += weight / sum * v);
                }
                out.extend(mixed);
            }
        }
        out
    }
}

const SHAPES: [Heads; 6] = [
    Heads { query: 2, kv: 2, dim: 8 },
    Heads { query: 9, kv: 3, dim: 64 },
    Heads { query: 4, kv: 1, dim: 20 },
    Heads { query: 3, kv: 3, dim: 64 },
    Heads { query: 8, kv: 2, dim: 128 },
    Heads { query: 14, kv: 2, dim: 64 },
];

fn assert_near(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = if device_name() == "cpu" { 1e-5 } else { 1e-4 };
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < tolerance, "{what}, element {at}: {found} is not {expected}");
    }
}

#[test]
fn a_sequence_in_one_step_is_attention_by_its_definition() {
    // Less where a GPU is only emulated.
    let (shapes, longest) = if device_name() == "cpu" { (&SHAPES[..], 300) } else { (&SHAPES[..2], 40) };
    for (seed, &heads) in shapes.iter().enumerate() {
        for window in [None, Some(1), Some(20), Some(150)] {
            let world = World::new(heads, window, &[1, 17, longest], seed as u64);
            for kernels in [Kernels::Fused, Kernels::Composed] {
                for (which, found) in world.whole(kernels).iter().enumerate() {
                    assert_near(&format!("{heads:?}, window {window:?}, {kernels:?}"), found, &world.exact(which));
                }
            }
        }
    }
}

#[test]
fn a_cached_token_matches_the_definition_under_both_kernels() {
    let world = World::new(SHAPES[1], Some(40), &[70, 33], 5);
    let steps: Vec<Vec<(usize, usize)>> = [vec![(0, 37), (1, 30)], vec![(1, 1), (0, 1)], vec![(0, 32)], vec![(1, 2)]].into();
    for kernels in [Kernels::Fused, Kernels::Composed] {
        for (which, found) in world.run(kernels, &steps, 3).iter().enumerate() {
            assert_near(&format!("{kernels:?}"), found, &world.exact(which));
        }
    }
}

#[test]
fn no_rows_give_none_and_leave_the_pool() {
    let heads = SHAPES[0];
    for kernels in [Kernels::Fused, Kernels::Composed] {
        let pool = Tensor::<2>::full([PAGE, 2 * heads.kv * heads.dim], 3.0, &device());
        let qkv = Tensor::<2>::zeros([0, heads.columns()], &device());
        let (out, pool) = kernels.cached_attention(qkv, pool, CachePlan::new(vec![], None), heads, 1.0);
        assert_eq!(out.dims(), [0, heads.query * heads.dim]);
        assert!(crate::lora::download(pool).iter().all(|&v| v == 3.0));
    }
}

#[test]
#[should_panic(expected = "every page is in the pool of 2")]
fn a_page_beyond_the_pool_is_refused() {
    let heads = SHAPES[0];
    let (qkv, pool) =
        (Tensor::<2>::zeros([1, heads.columns()], &device()), Tensor::<2>::zeros([2 * PAGE, 2 * heads.kv * heads.dim], &device()));
    let plan = CachePlan::new(vec![Sequence { rows: 0..1, position: 0, pages: vec![2] }], None);
    let _ = Kernels::Fused.cached_attention(qkv, pool, plan, heads, 1.0);
}

/// The pool's memory stays where it is: a copy would cost more than the step.
#[test]
fn the_pool_is_written_in_place() {
    if !super::is_cpu(&device()) {
        eprintln!("SKIPPED: only the CPU's memory has an address");
        return;
    }
    let heads = SHAPES[0];
    let mut pool = burn_flex::FlexTensor::from_data(TensorData::new(vec![0.0f32; 4 * PAGE * 32], [4 * PAGE, 32]));
    let address = pool.storage::<f32>().as_ptr();
    for position in 0..20 {
        let qkv = burn_flex::FlexTensor::from_data(TensorData::new(vec![1.0f32; heads.columns()], [1, heads.columns()]));
        let plan = CachePlan::new(vec![Sequence { rows: 0..1, position, pages: vec![3, 1] }], None);
        (_, pool) = <burn::backend::Flex as super::Fused>::cached_attention(qkv, pool, plan, heads, 1.0);
    }
    assert_eq!(pool.storage::<f32>().as_ptr(), address);
    let written = pool.storage::<f32>().chunks_exact(32).map(|slot| slot == [1.0; 32]).collect::<Vec<_>>();
    let expected = (0..4 * PAGE).map(|slot| (48..64).contains(&slot) || (16..20).contains(&slot)).collect::<Vec<_>>();
    assert_eq!(written, expected);
}

/// A way to get through sequences of `lengths`: steps of several of them, some tokens each.
fn steps(lengths: &[usize], random: &mut ChaCha8Rng) -> Vec<Vec<(usize, usize)>> {
    let (mut left, mut steps) = (lengths.to_vec(), vec![]);
    while left.iter().any(|&left| left > 0) {
        let mut step = vec![];
        for (which, left) in left.iter_mut().enumerate() {
            if *left > 0 && random.random_bool(0.7) {
                let most = [1, 1, 7, 40, 300][random.random_range(0..5)];
                let count = random.random_range(1..=most.min(*left));
                step.push((which, count));
                *left -= count;
            }
        }
        step.shuffle(random);
        steps.push(step);
    }
    steps
}

/// Fewer where a GPU is only emulated.
fn config() -> ProptestConfig {
    let cases = if device_name() == "cpu" { 48 } else { 2 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn however_a_sequence_comes_its_tokens_give_the_same_bits(
        shape in 0..SHAPES.len(),
        window in prop_oneof![Just(None), (1..200usize).prop_map(Some)],
        lengths in prop::collection::vec(1..290usize, 1..4),
        seed in 0..u64::MAX,
    ) {
        let world = World::new(SHAPES[shape], window, &lengths, seed);
        let (random, expected) = (&mut ChaCha8Rng::seed_from_u64(seed), world.whole(Kernels::Fused));
        let found = world.run(Kernels::Fused, &steps(&lengths, random), seed);
        if is_exact() {
            prop_assert_eq!(found, expected);
        } else {
            for (which, found) in found.iter().enumerate() {
                assert_near("a cached sequence", found, &world.exact(which));
            }
        }
    }

    #[test]
    fn token_by_token_gives_the_same_bits(shape in 0..SHAPES.len(), length in 1..200usize, seed in 0..u64::MAX) {
        let world = World::new(SHAPES[shape], None, &[length], seed);
        let found = world.run(Kernels::Fused, &vec![vec![(0, 1)]; length], seed);
        if is_exact() {
            prop_assert_eq!(found, world.whole(Kernels::Fused));
        } else {
            assert_near("token by token", &found[0], &world.exact(0));
        }
    }
}
