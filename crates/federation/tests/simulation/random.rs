//! Where all chance comes from. It must never ask anything but its seed.

/// The increment of SplitMix64 (Steele et al. 2014).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator that is the same on every machine, for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Another stream, which does not move when this one does.
    pub fn fork(&mut self) -> Self {
        Self::new(self.draw())
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[(self.draw() % items.len() as u64) as usize]
    }
}

/// A number in -1..1 that depends on all of `parts` and on nothing else.
pub fn noise(parts: &[u64]) -> f32 {
    let mixed = parts.iter().fold(GAMMA, |state, part| mix(state ^ part.wrapping_mul(GAMMA)));
    (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
