//! Numbers by chance that are the same everywhere: a function of a seed and a position, with no state between them.

/// A stream of numbers; each is found by its index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    low: u32,
    high: u32,
}

impl Stream {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        let mixed = mix64(seed);
        Self { low: mixed as u32, high: (mixed >> 32) as u32 }
    }

    /// The number at `index`. Two rounds, so that streams of different seeds are no shifts of each other.
    pub fn word(self, index: u32) -> u32 {
        mix32(mix32(index.wrapping_add(self.low)) ^ self.high)
    }

    /// The number at `index`, strictly between -1/2 and 1/2, in steps that are exact in f32.
    pub fn centred(self, index: u32) -> f32 {
        ((self.word(index) >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32) - 0.5
    }
}

/// Wellons' `lowbias32`: two multiplications that leave no bit where it was.
fn mix32(mut word: u32) -> u32 {
    word = (word ^ (word >> 16)).wrapping_mul(0x7feb_352d);
    word = (word ^ (word >> 15)).wrapping_mul(0x846c_a68b);
    word ^ (word >> 16)
}

/// SplitMix64's last step.
pub(super) fn mix64(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the numbers are spread evenly, whatever the seed. Method: mean, variance and neighbours of a long stretch.
    #[test]
    fn numbers_are_uniform() {
        for seed in 0..8 {
            let stream = Stream::new(seed);
            let count = 40_000_u32;
            let all: Vec<f64> = (0..count).map(|index| f64::from(stream.centred(index))).collect();
            let mean = all.iter().sum::<f64>() / f64::from(count);
            let square = all.iter().map(|value| value * value).sum::<f64>() / f64::from(count);
            let neighbours = all.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / f64::from(count);
            assert!(mean.abs() < 0.006 && (square - 1.0 / 12.0).abs() < 0.002 && neighbours.abs() < 0.002, "{seed}: {mean} {square}");
            assert!(all.iter().all(|value| value.abs() < 0.5));
        }
    }
}
