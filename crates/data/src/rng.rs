//! The one source of chance: ChaCha12 keyed by a seed, a purpose and an index.
//!
//! Shuffling and sampling are written out here, not taken from `rand`, so that a library upgrade can never
//! change which example a published seed trained on.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A deterministic stream of chance.
pub(crate) struct Seeded(ChaCha12Rng);

impl Seeded {
    /// The stream of `seed` for one purpose; streams of different purposes or indices are independent.
    pub(crate) fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cutlayer 2025 data seeded stream");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        hasher.update(purpose.as_bytes());
        Self(ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// A number in `0..bound`, without bias.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "nothing to choose from");
        let bound = bound as u64;
        // Lemire's multiply-and-reject: the low half is uniform once the few values that would bias it are drawn again.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// A number in the open interval (0, 1): safe to take the logarithm of.
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// One of `items`.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Puts `items` in a random order (Fisher-Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Proportions of `parts` parts, drawn from the symmetric Dirichlet distribution.
    ///
    /// Works on logarithms: at small `alpha` the gamma variates themselves underflow to zero.
    pub(crate) fn dirichlet(&mut self, alpha: f64, parts: usize) -> Vec<f64> {
        let logs: Vec<f64> = (0..parts).map(|_| self.ln_gamma(alpha)).collect();
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = logs.iter().map(|log| (log - largest).exp()).collect();
        let total: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / total).collect()
    }

    /// The logarithm of a gamma variate of shape `alpha` (Marsaglia and Tsang 2000, with their boost below 1).
    fn ln_gamma(&mut self, alpha: f64) -> f64 {
        let boost = if alpha < 1.0 { self.uniform().ln() / alpha } else { 0.0 };
        let d = if alpha < 1.0 { alpha + 1.0 } else { alpha } - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d.ln() + v.ln() + boost;
            }
        }
    }

    /// A standard normal variate (Box-Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A changed stream silently changes every published run: these numbers are frozen.
    #[test]
    fn the_stream_is_frozen() {
        let mut rng = Seeded::new(7, "test", 0);
        let drawn: Vec<usize> = (0..8).map(|_| rng.below(100)).collect();
        assert_eq!(drawn, [95, 49, 38, 61, 36, 37, 70, 25]);
    }

    #[test]
    fn purposes_and_indices_are_independent() {
        let draw = |purpose, index| (0..4).map(|_| Seeded::new(7, purpose, index).below(1 << 30)).collect::<Vec<_>>();
        assert_ne!(draw("a", 0), draw("b", 0));
        assert_ne!(draw("a", 0), draw("a", 1));
        assert_eq!(draw("a", 1), draw("a", 1));
    }

    /// Goal: the sampler is the distribution it says. Method: mean 1/n and variance (n-1)/(n²(nα+1)) of one part.
    #[test]
    fn dirichlet_has_its_moments() {
        for alpha in [0.05, 0.5, 1.0, 5.0] {
            let (parts, draws) = (4usize, 20_000);
            let mut rng = Seeded::new(3, "moments", 0);
            let first: Vec<f64> = (0..draws).map(|_| rng.dirichlet(alpha, parts)[0]).collect();
            let mean = first.iter().sum::<f64>() / draws as f64;
            let variance = first.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / draws as f64;
            let n = parts as f64;
            let expected = (n - 1.0) / (n * n * (n * alpha + 1.0));
            assert!((mean - 1.0 / n).abs() < 0.01, "alpha {alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "alpha {alpha}: variance {variance}, not {expected}");
        }
    }
}
