//! Guesses at the next tokens, which the server verifies many at once. A wrong guess costs time and never changes the output.

use std::collections::HashMap;

/// Longest n-gram that may be looked up: each token costs as many entries of an index as there are lengths.
pub const NGRAM_MAX: usize = 16;

/// Proposes what may come next.
pub trait Draft: Send {
    /// At most `count` tokens after `tokens`, the likeliest first guess; fewer or none where it knows nothing.
    fn propose(&mut self, tokens: &[u32], count: usize) -> Vec<u32>;
}

/// Why an n-gram draft cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("n-grams from {shortest} to {longest} tokens; choose a shortest of at least 1 and a longest from there to {NGRAM_MAX}")]
pub struct NgramError {
    /// The shortest asked for.
    pub shortest: usize,
    /// The longest.
    pub longest: usize,
}

/// Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): where the last tokens were there before, what
/// followed them may follow again. The longest match wins, and of equal ones the most recent.
///
/// An index grows by each new token, and shrinks where tokens that it knew are no longer there, so that a look-up costs the same
/// however long the text is, but for one comparison of memory.
#[derive(Clone, Debug)]
pub struct NgramDraft {
    shortest: usize,
    longest: usize,
    /// The tokens that are indexed.
    tokens: Vec<u32>,
    /// Where the n-gram of this hash last ended, of those that something follows.
    ends: HashMap<u64, u32>,
    /// For each end from 1 on and each length: where the same n-gram ended before, or 0; so that the last can be taken back.
    before: Vec<u32>,
}

impl NgramDraft {
    /// Of n-grams from `shortest` to `longest` tokens.
    pub fn new(shortest: usize, longest: usize) -> Result<Self, NgramError> {
        if shortest == 0 || shortest > longest || longest > NGRAM_MAX {
            return Err(NgramError { shortest, longest });
        }
        Ok(Self { shortest, longest, tokens: Vec::new(), ends: HashMap::new(), before: Vec::new() })
    }

    /// The n-grams that end at `end`, shortest first, by their hashes. A start that is cut short has fewer.
    fn hashes(&self, end: usize) -> impl Iterator<Item = u64> + use<> {
        let mut hash = 0;
        let mut hashes = [0; NGRAM_MAX];
        let count = self.longest.min(end);
        for (place, token) in self.tokens[..end].iter().rev().take(count).enumerate() {
            hash = mix(hash ^ u64::from(*token).wrapping_add(GOLDEN_GAMMA));
            hashes[place] = hash;
        }
        hashes.into_iter().take(count).skip(self.shortest - 1)
    }

    fn push(&mut self, token: u32) {
        let end = self.tokens.len();
        if end > 0 {
            let start = self.before.len();
            self.before.resize(start + self.lengths(), 0);
            for (place, hash) in self.hashes(end).enumerate() {
                let end = u32::try_from(end).expect("positions are u32");
                self.before[start + place] = self.ends.insert(hash, end).unwrap_or(0);
            }
        }
        self.tokens.push(token);
    }

    fn pop(&mut self) {
        self.tokens.pop();
        let end = self.tokens.len();
        if end == 0 {
            return;
        }
        let start = self.before.len() - self.lengths();
        for (place, hash) in self.hashes(end).enumerate() {
            match self.before[start + place] {
                0 => self.ends.remove(&hash),
                before => self.ends.insert(hash, before),
            };
        }
        self.before.truncate(start);
    }

    fn lengths(&self) -> usize {
        self.longest - self.shortest + 1
    }

    fn follow(&mut self, tokens: &[u32]) {
        let alike = if tokens.starts_with(&self.tokens) {
            self.tokens.len()
        } else {
            self.tokens.iter().zip(tokens).take_while(|(old, new)| old == new).count()
        };
        while self.tokens.len() > alike {
            self.pop();
        }
        tokens[alike..].iter().for_each(|token| self.push(*token));
    }

    /// Where the longest n-gram at the end of the text ended last before.
    fn last_end(&self) -> Option<usize> {
        let hashes: Vec<u64> = self.hashes(self.tokens.len()).collect();
        hashes.iter().enumerate().rev().find_map(|(place, hash)| {
            let (end, length) = (*self.ends.get(hash)? as usize, self.shortest + place);
            // Hashes may collide; the text does not.
            self.tokens[..end].ends_with(&self.tokens[self.tokens.len() - length..]).then_some(end)
        })
    }
}

impl Draft for NgramDraft {
    fn propose(&mut self, tokens: &[u32], count: usize) -> Vec<u32> {
        self.follow(tokens);
        let Some(start) = self.last_end() else { return Vec::new() };
        let mut proposed: Vec<u32> = Vec::with_capacity(count);
        for place in start..start + count {
            // Where the text ends its continuation is what was just proposed: a text that repeats itself goes on doing so.
            let token = self.tokens.get(place).copied().unwrap_or_else(|| proposed[place - self.tokens.len()]);
            proposed.push(token);
        }
        proposed
    }
}

/// The step of SplitMix64 (Steele et al. 2014).
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(shortest: usize, longest: usize, tokens: &[u32], count: usize, proposed: &[u32]) {
        assert_eq!(NgramDraft::new(shortest, longest).unwrap().propose(tokens, count), proposed, "{tokens:?}");
    }

    #[test]
    fn what_followed_before_is_proposed() {
        check(1, 3, &[1, 2, 3, 4, 1, 2], 2, &[3, 4]);
        check(1, 3, &[1, 2, 3, 4, 1, 2], 0, &[]);
        check(1, 3, &[], 4, &[]);
        check(1, 3, &[1, 2, 3], 4, &[]);
        // The longest match, not the most recent one of its end.
        check(1, 3, &[1, 2, 3, 9, 2, 4, 1, 2], 1, &[3]);
        // Of equal ones the most recent.
        check(1, 1, &[1, 2, 3, 9, 2, 4, 1, 2], 1, &[4]);
        // Nothing shorter than the shortest.
        check(3, 3, &[1, 2, 3, 4, 1, 2], 2, &[]);
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on() {
        check(1, 4, &[5, 5], 3, &[5, 5, 5]);
        check(2, 4, &[7, 1, 2, 3, 1, 2, 3], 7, &[1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn lengths_are_checked() {
        for (shortest, longest) in [(0, 2), (3, 2), (1, NGRAM_MAX + 1)] {
            assert_eq!(NgramDraft::new(shortest, longest).unwrap_err(), NgramError { shortest, longest });
        }
        assert!(NgramDraft::new(1, NGRAM_MAX).is_ok());
    }

    /// Every place where an n-gram could have been, longest first, most recent first.
    fn naive(shortest: usize, longest: usize, tokens: &[u32], count: usize) -> Vec<u32> {
        for length in (shortest..=longest.min(tokens.len())).rev() {
            let suffix = &tokens[tokens.len() - length..];
            if let Some(end) = (length..tokens.len()).rev().find(|end| &tokens[end - length..*end] == suffix) {
                let mut text = tokens.to_vec();
                (0..count).for_each(|place| text.push(text[end + place]));
                return text.split_off(tokens.len());
            }
        }
        Vec::new()
    }

    /// Goal: an index that lives through changes finds what a search of the text does. Method: one draft over texts that grow, are cut
    /// and change, of few tokens.
    #[test]
    fn the_index_finds_what_a_search_does() {
        let changes = proptest::collection::vec((0_usize..40, proptest::collection::vec(0_u32..4, 0..12)), 1..20);
        proptest!(|(changes in changes, shortest in 1_usize..4, more in 0_usize..4, count in 0_usize..6)| {
            let longest = shortest + more;
            let mut draft = NgramDraft::new(shortest, longest).unwrap();
            let mut tokens: Vec<u32> = Vec::new();
            for (kept, added) in changes {
                tokens.truncate(kept);
                tokens.extend(added);
                prop_assert_eq!(draft.propose(&tokens, count), naive(shortest, longest, &tokens, count));
            }
            draft.propose(&[], count);
            prop_assert!(draft.ends.is_empty() && draft.before.is_empty());
        });
    }
}
