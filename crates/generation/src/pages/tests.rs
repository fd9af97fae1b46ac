//! Goal: every sequence reads what it wrote, whatever others do. Method: cases by hand, and a cache of real cells under random work.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const PAGE: u32 = PAGE_TOKENS;

/// Names of the pages of a text that is told apart by one number.
fn names(text: u8, pages: u32) -> Vec<PageDigest> {
    (0..pages).map(|page| PageDigest([text, page as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])).collect()
}

/// A sequence of so many full pages with names.
fn published(pool: &mut PagePool, scope: u64, text: u8, pages: u32) -> SequenceId {
    let (id, held) = pool.open(scope, &names(text, pages)).unwrap();
    assert_eq!(held, 0);
    pool.grow(id, pages * PAGE).unwrap();
    assert_eq!(pool.publish(id, &[]), Ok(pages));
    id
}

#[test]
fn a_prefix_is_shared_from_its_first_page_on() {
    let mut pool = PagePool::new(8);
    let first = published(&mut pool, 1, 0, 3);
    let (second, held) = pool.open(1, &names(0, 5)).unwrap();
    assert_eq!((held, pool.table(second), pool.available()), (3 * PAGE, &pool.table(first).to_vec()[..], 5));
    // Without its first page, or from elsewhere, nothing is found.
    assert_eq!(pool.open(1, &names(0, 5)[1..]).unwrap().1, 0);
    assert_eq!(pool.open(2, &names(0, 5)).unwrap().1, 0);
    assert_eq!(pool.reclaimable(first), 0);
    pool.close(first);
    assert_eq!((pool.reclaimable(second), pool.available()), (3, 5));
}

#[test]
fn what_is_closed_can_be_found_until_it_is_reused() {
    let mut pool = PagePool::new(4);
    let first = published(&mut pool, 1, 0, 2);
    pool.close(first);
    let second = published(&mut pool, 1, 1, 1);
    pool.close(second);
    assert_eq!(pool.available(), 4);
    // One page was never used; then the last page of what was closed first goes.
    let (other, _) = pool.open(3, &[]).unwrap();
    pool.grow(other, 2 * PAGE).unwrap();
    assert_eq!(pool.open(1, &names(0, 2)).unwrap().1, PAGE);
    assert_eq!(pool.open(1, &names(1, 1)).unwrap().1, PAGE);
    assert_eq!(pool.available(), 0);
}

#[test]
fn growing_is_whole_or_not_at_all() {
    let mut pool = PagePool::new(3);
    let (first, _) = pool.open(1, &[]).unwrap();
    pool.grow(first, PAGE + 1).unwrap();
    let (second, _) = pool.open(1, &[]).unwrap();
    assert_eq!(pool.grow(second, 2 * PAGE), Err(OutOfPages { needed: 2, available: 1 }));
    assert_eq!((pool.tokens(second), pool.available()), (0, 1));
    pool.grow(first, 2 * PAGE).unwrap();
    assert_eq!(pool.available(), 1);
    // Less than is there is no growth, and no loss.
    pool.grow(first, 1).unwrap();
    assert_eq!(pool.tokens(first), 2 * PAGE);
    pool.evict(first);
    assert_eq!(pool.grow(second, 3 * PAGE), Ok(()));
}

#[test]
fn what_is_final_is_not_truncated() {
    let mut pool = PagePool::new(4);
    let id = published(&mut pool, 1, 0, 2);
    pool.grow(id, 2 * PAGE + 5).unwrap();
    assert_eq!(pool.truncate(id, 2 * PAGE - 1), Err(PageError::Published { tokens: 2 * PAGE - 1, published: 2 * PAGE }));
    assert_eq!(pool.tokens(id), 2 * PAGE + 5);
    pool.truncate(id, 2 * PAGE + 9).unwrap();
    pool.truncate(id, 2 * PAGE + 3).unwrap();
    assert_eq!((pool.tokens(id), pool.table(id).len()), (2 * PAGE + 3, 3));
    pool.truncate(id, 2 * PAGE).unwrap();
    assert_eq!((pool.tokens(id), pool.table(id).len(), pool.available()), (2 * PAGE, 2, 2));
    // But it is given back, page by page, and found again.
    assert_eq!(pool.rewind(id, 2 * PAGE - 1), PAGE);
    assert_eq!((pool.published(id), pool.available()), (1, 3));
    assert_eq!(pool.open(1, &names(0, 2)).unwrap().1, 2 * PAGE);
}

#[test]
fn an_evicted_sequence_finds_what_is_left() {
    let mut pool = PagePool::new(4);
    let id = published(&mut pool, 1, 0, 3);
    assert_eq!(pool.resume(id), 3 * PAGE);
    pool.evict(id);
    assert_eq!((pool.tokens(id), pool.published(id), pool.available()), (0, 0, 4));
    let (other, _) = pool.open(2, &[]).unwrap();
    pool.grow(other, 2 * PAGE).unwrap();
    assert_eq!(pool.resume(id), 2 * PAGE);
    // The rest gets its name again once it is full.
    pool.close(other);
    pool.grow(id, 3 * PAGE).unwrap();
    assert_eq!(pool.publish(id, &[]), Ok(3));
    assert_eq!(pool.open(1, &names(0, 3)).unwrap().1, 3 * PAGE);
}

#[test]
fn two_pages_of_one_name_become_one() {
    let mut pool = PagePool::new(4);
    let (first, _) = pool.open(1, &names(0, 2)).unwrap();
    let (second, _) = pool.open(1, &names(0, 2)).unwrap();
    pool.grow(first, 2 * PAGE).unwrap();
    pool.grow(second, 2 * PAGE).unwrap();
    assert_eq!((pool.publish(first, &[]), pool.publish(second, &[])), (Ok(2), Ok(2)));
    assert_eq!((pool.table(second), pool.available()), (&pool.table(first).to_vec()[..], 2));
}

#[test]
fn names_wait_for_full_pages_and_are_bounded() {
    let mut pool = PagePool::new(4);
    let (id, _) = pool.open(1, &[]).unwrap();
    pool.grow(id, PAGE + 1).unwrap();
    assert_eq!(pool.publish(id, &names(0, 2)), Ok(1));
    pool.grow(id, 2 * PAGE).unwrap();
    assert_eq!(pool.publish(id, &[]), Ok(2));
    let many = vec![PageDigest([0; 16]); PREFIX_PAGES_MAX + 1];
    assert_eq!(pool.open(1, &many).unwrap_err(), PageError::Names { names: PREFIX_PAGES_MAX + 1 });
    assert_eq!(pool.publish(id, &many[2..]), Err(PageError::Names { names: PREFIX_PAGES_MAX + 1 }));
}

#[test]
#[should_panic(expected = "not used once closed")]
fn a_closed_sequence_is_gone() {
    let mut pool = PagePool::new(1);
    let (id, _) = pool.open(1, &[]).unwrap();
    pool.close(id);
    pool.tokens(id);
}

const PAGES: u32 = 10;
/// What stands in a cell: who wrote it, and the token.
type Cell = (u64, u8);
/// A guess of a draft.
const WRONG: u8 = 255;

/// Work on one of the open sequences, by its place among them.
#[derive(Clone, Debug)]
enum Work {
    Open { scope: u64, text: u8, named: u32 },
    Write { which: usize, tokens: u32 },
    Guess { which: usize, tokens: u32 },
    Publish { which: usize, names: u32 },
    Rewind { which: usize, tokens: u32 },
    Evict { which: usize },
    Resume { which: usize },
    Close { which: usize },
}

/// Texts share their first pages: 0 and 1 the first two, 0 and 2 the first.
fn token(text: u8, position: u32) -> u8 {
    let apart = [u32::MAX, 2 * PAGE, PAGE][usize::from(text)];
    if position < apart { (position % 7) as u8 } else { 10 * text + (position % 7) as u8 }
}

/// The name says all tokens up to its page's end, and so is the same in texts that begin alike.
fn digest(text: u8, page: u32) -> PageDigest {
    let last = token(text, (page + 1) * PAGE - 1);
    PageDigest([page as u8, last, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

struct Simulated {
    id: SequenceId,
    scope: u64,
    text: u8,
    named: u32,
}

/// A pool, the cells of its pages, and those who use it.
struct World {
    pool: PagePool,
    cells: Vec<[Option<Cell>; PAGE as usize]>,
    open: Vec<Simulated>,
}

impl World {
    fn new() -> Self {
        Self { pool: PagePool::new(PAGES), cells: vec![[None; PAGE as usize]; PAGES as usize], open: Vec::new() }
    }

    /// Grows a sequence and writes its new cells, which must be its own alone.
    fn write(&mut self, which: usize, tokens: u32, guess: bool) -> bool {
        let Simulated { id, scope, text, .. } = self.open[which];
        let held = self.pool.tokens(id);
        let available = self.pool.available();
        if let Err(refused) = self.pool.grow(id, held + tokens) {
            assert!(refused.needed > refused.available && refused.available == available && self.pool.tokens(id) == held);
            return false;
        }
        for position in held..held + tokens {
            let page = self.pool.table(id)[(position / PAGE) as usize];
            let holders = self.open.iter().filter(|other| self.pool.table(other.id).contains(&page)).count();
            assert!(holders == 1 && self.pool.pages[page as usize].name.is_none(), "page {page} is not ours to write");
            let value = if guess { WRONG } else { token(text, position) };
            self.cells[page as usize][(position % PAGE) as usize] = Some((scope, value));
        }
        true
    }

    fn open(&mut self, scope: u64, text: u8, named: u32) {
        let prefix: Vec<PageDigest> = (0..named).map(|page| digest(text, page)).collect();
        let shared = |other: &Simulated| {
            let published = if other.scope == scope { self.pool.published(other.id) } else { 0 };
            (0..published.min(named)).take_while(|page| digest(text, *page) == digest(other.text, *page)).count() as u32
        };
        let least = self.open.iter().map(shared).max().unwrap_or(0);
        let (id, held) = self.pool.open(scope, &prefix).unwrap();
        assert!(held >= least * PAGE && held <= named * PAGE);
        self.open.push(Simulated { id, scope, text, named });
    }

    fn work(&mut self, work: Work) {
        let count = self.open.len();
        if let Work::Open { scope, text, named } = work {
            return self.open(scope, text, named);
        }
        if count == 0 {
            return;
        }
        match work {
            Work::Open { .. } => (),
            Work::Write { which, tokens } => drop(self.write(which % count, tokens, false)),
            Work::Guess { which, tokens } => {
                let id = self.open[which % count].id;
                let held = self.pool.tokens(id);
                if self.write(which % count, tokens, true) {
                    self.pool.truncate(id, held).unwrap();
                }
                let final_tokens = self.pool.published(id) * PAGE;
                assert!(final_tokens == 0 || self.pool.truncate(id, final_tokens - 1).is_err());
            }
            Work::Publish { which, names } => {
                let sequence = &mut self.open[which % count];
                let digests: Vec<_> = (sequence.named..sequence.named + names).map(|page| digest(sequence.text, page)).collect();
                sequence.named += names;
                let published = self.pool.publish(sequence.id, &digests).unwrap();
                assert_eq!(published, sequence.named.min(self.pool.tokens(sequence.id) / PAGE));
            }
            Work::Rewind { which, tokens } => {
                let id = self.open[which % count].id;
                let (held, published) = (self.pool.tokens(id), self.pool.published(id) * PAGE);
                let left = self.pool.rewind(id, tokens);
                assert_eq!(left, if tokens < published { tokens / PAGE * PAGE } else { held.min(tokens) });
            }
            Work::Evict { which } => {
                let id = self.open[which % count].id;
                let (available, reclaimable) = (self.pool.available(), self.pool.reclaimable(id));
                self.pool.evict(id);
                assert_eq!((self.pool.tokens(id), self.pool.available()), (0, available + reclaimable));
            }
            Work::Resume { which } => drop(self.pool.resume(self.open[which % count].id)),
            Work::Close { which } => self.pool.close(self.open.swap_remove(which % count).id),
        }
    }

    /// Everyone reads what they wrote, and the counts are those of the tables.
    fn check(&self) {
        let mut holders = vec![0; PAGES as usize];
        for Simulated { id, scope, text, .. } in &self.open {
            let table = self.pool.table(*id);
            assert_eq!(table.len() as u32, self.pool.tokens(*id).div_ceil(PAGE));
            for position in 0..self.pool.tokens(*id) {
                let cell = self.cells[table[(position / PAGE) as usize] as usize][(position % PAGE) as usize];
                assert_eq!(cell, Some((*scope, token(*text, position))), "position {position} of text {text}");
            }
            for (place, page) in table.iter().enumerate() {
                holders[*page as usize] += 1;
                assert_eq!(self.pool.pages[*page as usize].name.is_some(), (place as u32) < self.pool.published(*id));
            }
        }
        for (page, holders) in self.pool.pages.iter().zip(&holders) {
            assert_eq!(page.holders, *holders);
        }
        let held = holders.iter().filter(|holders| **holders > 0).count() as u32;
        assert_eq!(held + self.pool.available(), PAGES);
        assert_eq!(self.pool.named.len(), self.pool.pages.iter().filter(|page| page.name.is_some()).count());
    }
}

fn work() -> impl Strategy<Value = Work> {
    let which = 0_usize..8;
    prop_oneof![
        3 => (0_u64..2, 0_u8..3, 0_u32..5).prop_map(|(scope, text, named)| Work::Open { scope, text, named }),
        6 => (which.clone(), 1_u32..40).prop_map(|(which, tokens)| Work::Write { which, tokens }),
        3 => (which.clone(), 1_u32..20).prop_map(|(which, tokens)| Work::Guess { which, tokens }),
        5 => (which.clone(), 0_u32..3).prop_map(|(which, names)| Work::Publish { which, names }),
        1 => (which.clone(), 0_u32..80).prop_map(|(which, tokens)| Work::Rewind { which, tokens }),
        1 => which.clone().prop_map(|which| Work::Evict { which }),
        1 => which.clone().prop_map(|which| Work::Resume { which }),
        1 => which.prop_map(|which| Work::Close { which }),
    ]
}

#[test]
fn everyone_reads_what_they_wrote() {
    proptest!(ProptestConfig::with_cases(2000), |(works in proptest::collection::vec(work(), 1..60))| {
        let mut world = World::new();
        for work in works {
            world.work(work);
            world.check();
        }
        // Everything comes back, and can be had by one.
        while let Some(sequence) = world.open.pop() {
            world.pool.close(sequence.id);
        }
        prop_assert_eq!(world.pool.available(), PAGES);
        let (id, _) = world.pool.open(9, &[]).unwrap();
        world.pool.grow(id, PAGES * PAGE).unwrap();
        prop_assert!(world.pool.named.is_empty() && world.pool.idle.is_empty() && world.pool.free.is_empty());
    });
}
