//! Everything that happened, as one number, and the end of it as text.
//!
//! Two runs with the same number did the same. A test that fails prints the seed and the last lines.

use std::collections::VecDeque;
use std::fmt::{Arguments, Write};

/// Lines that a failing seed prints.
const LINES_MAX: usize = 40;

/// FNV-1a, 64 bits: fixed for ever, and enough to tell two traces apart.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash of all lines so far, and the last of them.
pub struct Trace {
    seed: u64,
    hash: u64,
    lines: VecDeque<String>,
    events: u64,
    /// Print each line as it comes: for replaying one seed.
    loud: bool,
}

impl Trace {
    pub fn new(seed: u64, loud: bool) -> Self {
        Self { seed, hash: FNV_BASIS, lines: VecDeque::new(), events: 0, loud }
    }

    pub fn note(&mut self, now_ms: u64, what: Arguments<'_>) {
        let mut line = if self.lines.len() == LINES_MAX { self.lines.pop_front().unwrap_or_default() } else { String::new() };
        line.clear();
        write!(line, "{now_ms:>8} ms  {what}").expect("a String takes all that it is given");
        self.hash(line.as_bytes());
        if self.loud {
            eprintln!("{line}");
        }
        self.lines.push_back(line);
        self.events += 1;
    }

    /// Adds bytes to the hash that no line shows.
    pub fn hash(&mut self, bytes: &[u8]) {
        self.hash = fnv(self.hash, bytes);
    }

    pub fn digest(&self) -> u64 {
        self.hash
    }

    /// Lines noted.
    pub fn events(&self) -> u64 {
        self.events
    }
}

/// A hash of bytes, fixed for ever.
pub fn hash_of(bytes: &[u8]) -> u64 {
    fnv(FNV_BASIS, bytes)
}

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} failed after {} events; the last {}:", self.seed, self.events, self.lines.len());
            self.lines.iter().for_each(|line| eprintln!("{line}"));
            eprintln!(
                "replay: SIM_SEED={} cargo test --release -p cutlayer-federation --test simulation -- one_seed --nocapture",
                self.seed
            );
        }
    }
}
