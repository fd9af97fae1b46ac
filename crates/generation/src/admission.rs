//! Which sequences may run, by memory: the one who came first always finishes, so everyone does.
//!
//! A sequence is let in by the pages that it is sure to need now, not by all that it may grow to; so pages can run out, and then the one
//! that came last gives its own back and waits. It counts pages and never holds one: see [`crate::PagePool`].

use std::collections::{BTreeMap, HashMap};

/// Why a sequence is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// It could not finish even alone.
    #[error("it may need {pages_max} pages and there are {pages}; ask for fewer tokens")]
    TooLarge {
        /// What it may grow to.
        pages_max: u32,
        /// All there are.
        pages: u32,
    },
    /// The queue is full.
    #[error("{waiting_max} sequences wait already; come again later")]
    Busy {
        /// Its bound.
        waiting_max: usize,
    },
}

/// Who runs and who waits, in the order in which they came.
///
/// Only those who run may hold pages: open a sequence in the pool once it is let in, and evict it there as soon as it is named here.
#[derive(Clone, Debug)]
pub struct Admission {
    pages: u32,
    reserve_pages: u32,
    waiting_max: usize,
    tickets_drawn: u64,
    tickets: HashMap<u64, u64>,
    running: BTreeMap<u64, Entry>,
    waiting: BTreeMap<u64, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    sequence: u64,
    /// Pages that it is sure to need.
    pages_now: u32,
}

impl Admission {
    /// Of `pages` in all, `reserve_pages` stay free for those who run when another is let in; at most `waiting_max` new ones wait.
    pub fn new(pages: u32, reserve_pages: u32, waiting_max: usize) -> Self {
        let (running, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self { pages, reserve_pages, waiting_max, tickets_drawn: 0, tickets: HashMap::new(), running, waiting }
    }

    /// A new sequence gets in line: it is sure to need `pages_now`, and never needs more than `pages_max`.
    pub fn ask(&mut self, sequence: u64, pages_now: u32, pages_max: u32) -> Result<(), AdmissionError> {
        // Both come of what a peer says, which need not fit together.
        let pages_max = pages_max.max(pages_now);
        if pages_max > self.pages {
            return Err(AdmissionError::TooLarge { pages_max, pages: self.pages });
        }
        if self.waiting.len() >= self.waiting_max {
            return Err(AdmissionError::Busy { waiting_max: self.waiting_max });
        }
        let ticket = self.tickets_drawn;
        self.tickets_drawn += 1;
        assert!(self.tickets.insert(sequence, ticket).is_none(), "a sequence asks once");
        self.waiting.insert(ticket, Entry { sequence, pages_now });
        Ok(())
    }

    /// Lets in who can be, first come first: `available` pages can be had, and `holds` says how many a running sequence has of those that
    /// it was let in for. Nobody overtakes: a large prompt would wait for ever.
    pub fn admit(&mut self, available: u32, holds: &dyn Fn(u64) -> u32) -> Vec<u64> {
        let owed = self.running.values().map(|entry| u64::from(entry.pages_now.saturating_sub(holds(entry.sequence)))).sum();
        let mut room = u64::from(available).saturating_sub(owed);
        let mut admitted = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            let entry = *first.get();
            // Where nobody runs there is nobody to keep a reserve for.
            let reserve = if self.running.is_empty() { 0 } else { u64::from(self.reserve_pages) };
            if u64::from(entry.pages_now) + reserve > room {
                break;
            }
            room -= u64::from(entry.pages_now);
            self.running.insert(*first.key(), entry);
            first.remove();
            admitted.push(entry.sequence);
        }
        admitted
    }

    /// Who gives its pages back so that `needing` can have one more: of those who hold any, the last to come that has nothing to do now,
    /// or else the last to come after `needing`, or else `needing` itself. So the first who has something to do is never named by another.
    pub fn victim(&self, needing: u64, holds: &dyn Fn(u64) -> u32, rests: &dyn Fn(u64) -> bool) -> u64 {
        let ticket = self.tickets[&needing];
        let holders = || self.running.iter().rev().filter(|(_, entry)| entry.sequence != needing && holds(entry.sequence) > 0);
        let resting = holders().find(|(_, entry)| rests(entry.sequence));
        let later = || holders().find(|(other, _)| **other > ticket);
        resting.or_else(later).map_or(needing, |(_, entry)| entry.sequence)
    }

    /// A sequence gave its pages back. It waits again, where it stood when it came; to go on it is sure to need `pages_now`.
    pub fn evicted(&mut self, sequence: u64, pages_now: u32) {
        let ticket = self.tickets[&sequence];
        let mut entry = self.running.remove(&ticket).expect("only those who run are evicted");
        entry.pages_now = pages_now.min(self.pages);
        self.waiting.insert(ticket, entry);
    }

    /// A sequence is over, wherever it stood.
    pub fn finished(&mut self, sequence: u64) {
        if let Some(ticket) = self.tickets.remove(&sequence) {
            self.running.remove(&ticket);
            self.waiting.remove(&ticket);
        }
    }

    /// Whether it was let in.
    pub fn runs(&self, sequence: u64) -> bool {
        self.tickets.get(&sequence).is_some_and(|ticket| self.running.contains_key(ticket))
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait, evicted ones among them.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{PagePool, SequenceId};
    use cutlayer_wire::PAGE_TOKENS;
    use proptest::prelude::*;

    const NONE: &dyn Fn(u64) -> u32 = &|_| 0;

    #[test]
    fn the_first_are_let_in_while_there_is_room() {
        let mut admission = Admission::new(10, 2, 8);
        [(1, 3), (2, 3), (3, 5), (4, 1)].into_iter().for_each(|(sequence, pages)| admission.ask(sequence, pages, 10).unwrap());
        // Three would leave four, of which two are reserved; nobody overtakes them.
        assert_eq!(admission.admit(10, NONE), [1, 2]);
        assert_eq!(admission.admit(10, NONE), [0; 0]);
        assert_eq!((admission.running(), admission.waiting(), admission.runs(2), admission.runs(3)), (2, 2, true, false));
        admission.finished(2);
        assert_eq!(admission.admit(10, NONE), [3]);
        admission.finished(4);
        admission.finished(4);
        // What was let in for three pages and holds them leaves all that can be had.
        admission.ask(5, 1, 1).unwrap();
        assert_eq!(admission.admit(3, &|sequence| if sequence == 1 { 3 } else { 5 }), [5]);
    }

    #[test]
    fn a_reserve_keeps_nobody_out_who_is_alone() {
        let mut admission = Admission::new(4, 100, 1);
        admission.ask(1, 4, 4).unwrap();
        assert_eq!(admission.admit(4, NONE), [1]);
    }

    #[test]
    fn too_many_and_too_large_are_refused() {
        let mut admission = Admission::new(4, 0, 1);
        assert_eq!(admission.ask(1, 1, 5), Err(AdmissionError::TooLarge { pages_max: 5, pages: 4 }));
        assert_eq!(admission.ask(1, 5, 1), Err(AdmissionError::TooLarge { pages_max: 5, pages: 4 }));
        admission.ask(1, 4, 4).unwrap();
        assert_eq!(admission.ask(2, 1, 1), Err(AdmissionError::Busy { waiting_max: 1 }));
        assert_eq!(admission.admit(4, NONE), [1]);
        admission.ask(2, 1, 1).unwrap();
        // Who was evicted waits however many do.
        admission.evicted(1, 4);
        assert_eq!((admission.waiting(), admission.ask(3, 1, 1)), (2, Err(AdmissionError::Busy { waiting_max: 1 })));
        assert_eq!(admission.admit(4, NONE), [1]);
    }

    #[test]
    fn the_last_to_come_gives_way() {
        let mut admission = Admission::new(10, 0, 8);
        (1..5).for_each(|sequence| admission.ask(sequence, 1, 10).unwrap());
        assert_eq!(admission.admit(10, NONE), [1, 2, 3, 4]);
        let victim = |needing: u64, resting: &[u64]| {
            let resting = resting.to_vec();
            admission.victim(needing, &|sequence| u32::from(sequence != 4), &move |sequence| resting.contains(&sequence))
        };
        // Four holds nothing.
        assert_eq!([victim(1, &[]), victim(2, &[]), victim(3, &[]), victim(4, &[])], [3, 3, 3, 4]);
        assert_eq!([victim(3, &[1]), victim(1, &[2, 1]), victim(3, &[1, 2])], [1, 2, 2]);
    }

    /// A sequence that wants `total` tokens, of which the first are its prompt.
    #[derive(Clone, Copy, Debug)]
    struct Wants {
        prompt: u32,
        total: u32,
    }

    const PAGES: u32 = 12;
    const REST_STEPS: u32 = 60;

    struct Runner {
        pool: PagePool,
        admission: Admission,
        ids: Vec<Option<SequenceId>>,
        /// Tokens that each had computed once; an evicted one computes them again.
        done: Vec<u32>,
    }

    impl Runner {
        fn holds(&self, sequence: u64) -> u32 {
            self.ids[sequence as usize].map_or(0, |id| self.pool.table(id).len() as u32)
        }

        fn admit(&mut self) {
            let held: Vec<u32> = (0..self.ids.len() as u64).map(|sequence| self.holds(sequence)).collect();
            let admitted = self.admission.admit(self.pool.available(), &|sequence| held[sequence as usize]);
            for sequence in admitted {
                self.ids[sequence as usize] = Some(self.pool.open(sequence, &[]).unwrap().0);
            }
        }

        /// One more token, or all that it had again; whoever is named gives way.
        fn step(&mut self, sequence: u64, wants: Wants, rests: &dyn Fn(u64) -> bool) {
            let place = sequence as usize;
            while let Some(id) = self.ids[place] {
                let held = self.pool.tokens(id);
                let next = if held < self.done[place] { self.done[place] } else { held + 1 };
                if self.pool.grow(id, next).is_ok() {
                    self.done[place] = next;
                    break;
                }
                let victim = self.admission.victim(sequence, &|other| self.holds(other), rests);
                let gone = self.ids[victim as usize].take().expect("a victim holds pages");
                self.pool.close(gone);
                self.admission.evicted(victim, self.done[victim as usize].div_ceil(PAGE_TOKENS));
            }
            if let (Some(id), true) = (self.ids[place], self.done[place] >= wants.total) {
                self.pool.close(id);
                self.ids[place] = None;
                self.admission.finished(sequence);
            }
        }
    }

    /// Goal: any mix of sequences that each fit alone finishes. Method: random sizes, orders and rests, on real page counts; each step moves
    /// at least the first by a token, so their sum bounds the steps.
    #[test]
    fn everyone_finishes() {
        let wants = (1_u32..=PAGES * PAGE_TOKENS, 0.0_f64..1.0)
            .prop_map(|(total, share)| Wants { total, prompt: 1 + (f64::from(total - 1) * share) as u32 });
        let mixes = proptest::collection::vec(wants, 1..10);
        proptest!(|(mix in mixes, reserve in 0_u32..20, shuffle in any::<[u8; 16]>(), resting in any::<[u16; REST_STEPS as usize]>())| {
            let count = mix.len();
            let mut runner = Runner {
                pool: PagePool::new(PAGES),
                admission: Admission::new(PAGES, reserve, count),
                ids: vec![None; count],
                done: mix.iter().map(|wants| wants.prompt).collect(),
            };
            for (sequence, wants) in mix.iter().enumerate() {
                let pages = |tokens: u32| tokens.div_ceil(PAGE_TOKENS);
                runner.admission.ask(sequence as u64, pages(wants.prompt), pages(wants.total)).unwrap();
            }
            let steps_max = REST_STEPS + mix.iter().map(|wants| wants.total + 1).sum::<u32>();
            let mut steps = 0;
            while runner.admission.running() + runner.admission.waiting() > 0 {
                prop_assert!(steps < steps_max, "{} of {count} still run", runner.admission.running());
                runner.admit();
                let mask = resting.get(steps as usize).copied().unwrap_or(0);
                let rests = |sequence: u64| mask >> sequence & 1 == 1;
                let mut order: Vec<usize> = (0..count).filter(|sequence| !rests(*sequence as u64)).collect();
                order.sort_by_key(|sequence| shuffle[(sequence + steps as usize) % 16]);
                for sequence in order {
                    runner.step(sequence as u64, mix[sequence], &rests);
                }
                steps += 1;
            }
            prop_assert_eq!(runner.pool.available(), PAGES);
        });
    }
}
