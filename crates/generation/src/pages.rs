//! Which pages of a cache a sequence holds (Kwon et al. 2023), without the memory itself: tables and counts, no tensor.
//!
//! Pages that are full and final get names, and are found again by whoever opens a sequence that begins alike in the same scope: that
//! of one peer and one adapter. What has a name is never written, and no page is ever found from another scope.

use cutlayer_wire::{PAGE_TOKENS, PREFIX_PAGES_MAX, PageDigest};
use std::collections::{BTreeMap, HashMap};

/// One open sequence of a [`PagePool`]; never used again once closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// A sequence needs more pages than can be had. Evict another one, or let it wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} pages are needed and {available} can be had")]
pub struct OutOfPages {
    /// How many more.
    pub needed: u32,
    /// How many are free, or hold only what nobody uses.
    pub available: u32,
}

/// Why pages of a sequence cannot be named or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// Others may read them: what has a name is final.
    #[error("{published} tokens are final, and cannot be truncated to {tokens}; rewind to give the pages back")]
    Published {
        /// Where to.
        tokens: u32,
        /// Tokens in pages with names.
        published: u32,
    },
    /// More names than a sequence can have.
    #[error("{names} pages have names; a sequence has at most {PREFIX_PAGES_MAX}")]
    Names {
        /// How many.
        names: usize,
    },
}

/// The pages of one device's memory.
#[derive(Clone, Debug)]
pub struct PagePool {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// Pages with a name that nobody holds, the one that was let go longest ago first.
    idle: BTreeMap<u64, u32>,
    named: HashMap<Name, u32>,
    sequences: HashMap<SequenceId, Sequence>,
    sequences_opened: u64,
    releases: u64,
}

/// Scope, place in the sequence, digest. The digest is of the page and all before it; the place keeps a peer that names its pages wrongly
/// from reading rows that were computed for other positions.
type Name = (u64, u32, PageDigest);

#[derive(Clone, Debug, Default)]
struct Page {
    holders: u32,
    name: Option<Name>,
    /// Its key in `idle`.
    released: u64,
}

#[derive(Clone, Debug)]
struct Sequence {
    scope: u64,
    table: Vec<u32>,
    tokens: u32,
    /// Names of its pages from the first on: those that it holds and those that it may hold yet, or held before it was evicted.
    names: Vec<PageDigest>,
    /// How many of the pages that it holds are final.
    published: u32,
}

impl PagePool {
    /// `pages` free pages of [`PAGE_TOKENS`] tokens.
    pub fn new(pages: u32) -> Self {
        Self {
            pages: vec![Page::default(); pages as usize],
            free: (0..pages).rev().collect(),
            idle: BTreeMap::new(),
            named: HashMap::new(),
            sequences: HashMap::new(),
            sequences_opened: 0,
            releases: 0,
        }
    }

    /// Opens a sequence of `scope` whose first pages have these names. It shares the longest run of them that is still here, from the
    /// first on, and holds so many tokens; the other names are kept for when those pages fill.
    pub fn open(&mut self, scope: u64, prefix: &[PageDigest]) -> Result<(SequenceId, u32), PageError> {
        check_names(prefix.len())?;
        let id = SequenceId(self.sequences_opened);
        self.sequences_opened += 1;
        self.sequences.insert(id, Sequence { scope, table: Vec::new(), tokens: 0, names: prefix.to_vec(), published: 0 });
        let held = self.resume(id);
        Ok((id, held))
    }

    /// Finds again what it can of an evicted sequence; returns the tokens that it holds. One that holds tokens is left as it is.
    pub fn resume(&mut self, id: SequenceId) -> u32 {
        let sequence = open_mut(&mut self.sequences, id);
        if sequence.tokens > 0 {
            return sequence.tokens;
        }
        for (place, digest) in (0..).zip(&sequence.names) {
            let Some(page) = self.named.get(&(sequence.scope, place, *digest)) else { break };
            hold(&mut self.pages[*page as usize], &mut self.idle);
            sequence.table.push(*page);
        }
        sequence.published = sequence.table.len() as u32;
        sequence.tokens = sequence.published * PAGE_TOKENS;
        sequence.tokens
    }

    /// Makes room for `tokens` in all; all of it or, with [`OutOfPages`], nothing. Pages with a name that nobody holds are reused where
    /// none is free, those let go longest ago first.
    pub fn grow(&mut self, id: SequenceId, tokens: u32) -> Result<(), OutOfPages> {
        let held = self.sequence(id).table.len() as u32;
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(held);
        let available = self.available();
        if needed > available {
            return Err(OutOfPages { needed, available });
        }
        let taken: Vec<u32> = (0..needed).map(|_| self.take()).collect();
        let sequence = open_mut(&mut self.sequences, id);
        sequence.table.extend(taken);
        sequence.tokens = sequence.tokens.max(tokens);
        Ok(())
    }

    /// Forgets the tokens from `tokens` on, which cannot be final. Where there are no more than that, nothing happens.
    pub fn truncate(&mut self, id: SequenceId, tokens: u32) -> Result<(), PageError> {
        let sequence = self.sequence(id);
        let published = sequence.published * PAGE_TOKENS;
        if tokens < published {
            return Err(PageError::Published { tokens, published });
        }
        self.cut(id, tokens);
        Ok(())
    }

    /// Forgets the tokens from `tokens` on, final or not, and returns how many it holds then: final pages are given back whole, and can
    /// still be found. Their names stay, because who named them said that the tokens there will not change.
    pub fn rewind(&mut self, id: SequenceId, tokens: u32) -> u32 {
        let published = self.sequence(id).published * PAGE_TOKENS;
        self.cut(id, if tokens < published { tokens / PAGE_TOKENS * PAGE_TOKENS } else { tokens });
        self.sequence(id).tokens
    }

    /// Takes all pages of a sequence away; it stays open. What had a name can be found until it is reused: see [`PagePool::resume`].
    pub fn evict(&mut self, id: SequenceId) {
        self.cut(id, 0);
    }

    /// Names the next pages that have none, whose tokens are final, and makes those of all named pages that are full findable. Returns how
    /// many of its pages are. Where the scope has a page of that name, that one takes the place of ours in the table.
    pub fn publish(&mut self, id: SequenceId, digests: &[PageDigest]) -> Result<u32, PageError> {
        let sequence = open_mut(&mut self.sequences, id);
        check_names(sequence.names.len() + digests.len())?;
        sequence.names.extend_from_slice(digests);
        let full = (sequence.tokens / PAGE_TOKENS).min(sequence.names.len() as u32);
        let mut spare = Vec::new();
        for place in sequence.published..full {
            let name = (sequence.scope, place, sequence.names[place as usize]);
            let place = place as usize;
            let ours = sequence.table[place];
            match self.named.get(&name) {
                Some(known) => {
                    hold(&mut self.pages[*known as usize], &mut self.idle);
                    sequence.table[place] = *known;
                    spare.push(ours);
                }
                None => {
                    self.named.insert(name, ours);
                    self.pages[ours as usize].name = Some(name);
                }
            }
        }
        sequence.published = sequence.published.max(full);
        let published = sequence.published;
        spare.into_iter().for_each(|page| self.release(page));
        Ok(published)
    }

    /// Ends a sequence. What had a name can be found until it is reused; the rest is free at once.
    pub fn close(&mut self, id: SequenceId) {
        self.cut(id, 0);
        self.sequences.remove(&id);
    }

    /// The pages of a sequence, first to last.
    pub fn table(&self, id: SequenceId) -> &[u32] {
        &self.sequence(id).table
    }

    /// Tokens that a sequence holds.
    pub fn tokens(&self, id: SequenceId) -> u32 {
        self.sequence(id).tokens
    }

    /// Pages of a sequence that are final, from the first on.
    pub fn published(&self, id: SequenceId) -> u32 {
        self.sequence(id).published
    }

    /// Pages that can be had: free ones, and those that hold only what nobody uses.
    pub fn available(&self) -> u32 {
        (self.free.len() + self.idle.len()) as u32
    }

    /// All pages.
    pub fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Pages that could be had once this sequence were evicted: those that it shares with no other.
    pub fn reclaimable(&self, id: SequenceId) -> u32 {
        let alone = |page: &&u32| self.pages[**page as usize].holders == 1;
        self.sequence(id).table.iter().filter(alone).count() as u32
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences.get(&id).expect("a sequence is not used once closed")
    }

    /// Keeps `tokens` at most. The last pages are let go first: a prefix is of more use than what follows it.
    fn cut(&mut self, id: SequenceId, tokens: u32) {
        let sequence = open_mut(&mut self.sequences, id);
        sequence.tokens = sequence.tokens.min(tokens);
        let kept = sequence.tokens.div_ceil(PAGE_TOKENS);
        sequence.published = sequence.published.min(kept);
        let dropped = sequence.table.split_off(kept as usize);
        dropped.into_iter().rev().for_each(|page| self.release(page));
    }

    /// A page for one holder, which nobody else knows of.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            let (_, page) = self.idle.pop_first().expect("as many are available as are taken");
            let name = self.pages[page as usize].name.take().expect("idle pages have names");
            self.named.remove(&name);
            page
        });
        self.pages[page as usize].holders = 1;
        page
    }

    fn release(&mut self, index: u32) {
        let page = &mut self.pages[index as usize];
        page.holders -= 1;
        if page.holders > 0 {
            return;
        }
        if page.name.is_none() {
            self.free.push(index);
            return;
        }
        self.releases += 1;
        page.released = self.releases;
        self.idle.insert(self.releases, index);
    }
}

/// Apart from [`PagePool::sequence`], so that the other fields can be borrowed beside it.
fn open_mut(sequences: &mut HashMap<SequenceId, Sequence>, id: SequenceId) -> &mut Sequence {
    sequences.get_mut(&id).expect("a sequence is not used once closed")
}

fn hold(page: &mut Page, idle: &mut BTreeMap<u64, u32>) {
    if page.holders == 0 {
        idle.remove(&page.released);
    }
    page.holders += 1;
}

fn check_names(names: usize) -> Result<(), PageError> {
    if names > PREFIX_PAGES_MAX { Err(PageError::Names { names }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
