//! Names for what a cache holds: a chain of keyed hashes, one for each full page of tokens.
//!
//! The key never leaves the device, so that a server learns from a name only whether this device sent the same tokens before.

use cutlayer_wire::{PAGE_TOKENS, PageDigest};

/// Makes the names of one sequence's pages.
#[derive(Clone, Debug)]
pub(crate) struct PrefixNames {
    key: [u8; 32],
    names: Vec<PageDigest>,
}

impl PrefixNames {
    /// Under `key`; `about` tells apart what computes differently: the model, the adapter, the cut.
    pub fn new(key: &[u8; 32], about: &str) -> Self {
        Self { key: *blake3::keyed_hash(key, about.as_bytes()).as_bytes(), names: vec![] }
    }

    /// Those of the full pages among `tokens`, which begin as they did at the last call.
    pub fn of(&mut self, tokens: &[u32]) -> &[PageDigest] {
        let full = tokens.len() / PAGE_TOKENS as usize;
        for page in self.names.len()..full {
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            if let Some(before) = self.names.last() {
                hasher.update(&before.0);
            }
            for id in &tokens[page * PAGE_TOKENS as usize..(page + 1) * PAGE_TOKENS as usize] {
                hasher.update(&id.to_le_bytes());
            }
            let mut name = [0; 16];
            name.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
            self.names.push(PageDigest(name));
        }
        &self.names[..full]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_all_tokens_before_it_and_on_the_key() {
        let tokens: Vec<u32> = (0..40).collect();
        let names = |key: u8, tokens: &[u32]| PrefixNames::new(&[key; 32], "base").of(tokens).to_vec();
        let all = names(1, &tokens);
        assert_eq!(all.len(), 2, "only full pages have names");
        assert_eq!(names(1, &tokens[..16]), all[..1]);
        assert_ne!(names(2, &tokens), all);
        assert_ne!(PrefixNames::new(&[1; 32], "another").of(&tokens), all);
        let mut other = tokens.clone();
        other[3] = 99;
        assert_ne!(names(1, &other)[1], all[1], "a change before shows after");
        let mut growing = PrefixNames::new(&[1; 32], "base");
        growing.of(&tokens[..20]);
        assert_eq!(growing.of(&tokens), all);
    }
}
