//! The tokens that penalties count: those of the prompt, where it is known, and those generated since.
//!
//! It must stay cheap to add a token and to take one back: speculation does both at every turn.

use std::collections::BTreeMap;

/// How often a token was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) prompt: bool,
    pub(crate) generated: u32,
}

/// The tokens of one sequence before the one to be drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Position of the first generated token.
    first: u32,
    generated: Vec<u32>,
    seen: BTreeMap<u32, Seen>,
}

impl History {
    /// Before the first token after `prompt`.
    pub fn new(prompt: &[u32]) -> Self {
        let seen = prompt.iter().map(|id| (*id, Seen { prompt: true, generated: 0 })).collect();
        let first = u32::try_from(prompt.len()).expect("positions are u32");
        Self { first, generated: Vec::new(), seen }
    }

    /// Before a first token at `first`, of a prompt that is not known here: a server sees no tokens of it, and counts only what it drew.
    pub fn unseen(first: u32) -> Self {
        Self { first, ..Self::default() }
    }

    /// The next token, whether drawn or proposed.
    pub fn push(&mut self, id: u32) {
        self.generated.push(id);
        self.seen.entry(id).or_default().generated += 1;
    }

    /// Forgets the generated tokens at `position` and after it. What stands before the first generated token stays.
    pub fn truncate(&mut self, position: u32) {
        let kept = position.saturating_sub(self.first) as usize;
        while self.generated.len() > kept {
            let id = self.generated.pop().expect("more than are kept");
            let seen = self.seen.get_mut(&id).expect("each generated token was counted");
            seen.generated -= 1;
            if *seen == Seen::default() {
                self.seen.remove(&id);
            }
        }
    }

    /// Position of the first generated token.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// Position of the token that comes next.
    pub fn position(&self) -> u32 {
        self.first + u32::try_from(self.generated.len()).expect("positions are u32")
    }

    /// The generated tokens, first to last.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// Each token that was there before, once.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (u32, Seen)> {
        self.seen.iter().map(|(id, seen)| (*id, *seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: a rollback leaves no trace. Method: a history that was truncated and grown again equals one that never held the rest.
    #[test]
    fn a_truncated_history_is_the_shorter_one() {
        let tokens = || proptest::collection::vec(0_u32..8, 0..20);
        proptest!(|(prompt in tokens(), kept in tokens(), dropped in tokens(), after in tokens())| {
            let mut history = History::new(&prompt);
            kept.iter().chain(&dropped).for_each(|id| history.push(*id));
            history.truncate((prompt.len() + kept.len()) as u32);
            after.iter().for_each(|id| history.push(*id));
            let mut plain = History::new(&prompt);
            kept.iter().chain(&after).for_each(|id| plain.push(*id));
            prop_assert_eq!(history.position() as usize, prompt.len() + kept.len() + after.len());
            prop_assert_eq!(history, plain);
        });
    }

    #[test]
    fn the_prompt_cannot_be_forgotten() {
        let mut history = History::new(&[1, 2]);
        history.push(2);
        history.truncate(0);
        assert_eq!(history, History::new(&[1, 2]));
        assert_eq!(history.seen().count(), 2);
    }

    #[test]
    fn an_unseen_prompt_counts_for_positions_only() {
        let mut history = History::unseen(10);
        history.push(4);
        history.truncate(12);
        assert_eq!((history.position(), history.generated(), history.seen().count()), (11, &[4][..], 1));
        history.truncate(10);
        assert_eq!(history, History::unseen(10));
    }
}
