//! Whose rows are computed next: continuous batching (Yu et al. 2022, Orca) with prompts in pieces between (Agrawal et al. 2024, Sarathi).
//!
//! Decodes come first, because they are small and someone reads along; what is left of a turn goes to prompts. Owners, the peers, take
//! turns with each other and their sequences among themselves, so that many sequences of one peer do not starve the only one of another.
//! Everyone who waits is served within a number of turns that depends on who else waits, never on who comes later.

use std::collections::BTreeMap;

/// Turns without a row of any prompt, after which prompts come first for one: decodes that fill every turn do not keep them out.
pub const PREFILLS_PASSED_MAX: u32 = 4;

/// Rows of a sequence that wait to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The sequence.
    pub sequence: u64,
    /// Who it belongs to; always the same for a sequence.
    pub owner: u64,
    /// How many.
    pub rows: u32,
    /// Whether they are of a prompt, and may be cut; tokens to decode, or to verify, stay together where a turn can hold them.
    pub is_prefill: bool,
}

/// Who waits, and since when.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    items: BTreeMap<u64, Item>,
    /// Of those who wait, prompts and decodes apart: when each was served last, or came. If one counted for the other, who reads along with
    /// one sequence would never get to the prompt of the next.
    owners: BTreeMap<(bool, u64), Owner>,
    /// Counts arrivals and services: the order of events, not a clock.
    events: u64,
    prefills_passed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    owner: u64,
    rows: u32,
    is_prefill: bool,
    since: u64,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    since: u64,
    items: u32,
}

/// What a turn has taken so far.
struct Turn {
    rows_max: u32,
    left: u32,
    taken: Vec<(u64, u32)>,
}

impl Turns {
    /// Adds rows to those of a sequence that wait. They are of a prompt if any of them is.
    pub fn push(&mut self, work: Work) {
        if work.rows == 0 {
            return;
        }
        self.events += 1;
        let since = self.events;
        if let Some(item) = self.items.get_mut(&work.sequence) {
            assert_eq!(item.owner, work.owner, "a sequence does not change hands");
            let before = *item;
            item.rows = item.rows.saturating_add(work.rows);
            item.is_prefill |= work.is_prefill;
            let now = *item;
            if now.queue() != before.queue() {
                self.leave(before);
                self.join(now, since);
            }
            return;
        }
        let Work { sequence, owner, rows, is_prefill } = work;
        let item = Item { owner, rows, is_prefill, since };
        self.items.insert(sequence, item);
        self.join(item, since);
    }

    /// Forgets the rows of a sequence that is over, evicted, or went back.
    pub fn cancel(&mut self, sequence: u64) {
        if let Some(item) = self.items.remove(&sequence) {
            self.leave(item);
        }
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// The next turn: sequences, each at most once, and how many of their rows; together at most `rows_max`, of prompts at most
    /// `prefill_rows_max`. Rows that are given out wait no more.
    pub fn next(&mut self, rows_max: u32, prefill_rows_max: u32) -> Vec<(u64, u32)> {
        let (decodes, prefills) = (self.order(false), self.order(true));
        let mut turn = Turn { rows_max, left: rows_max, taken: Vec::new() };
        if self.prefills_passed < PREFILLS_PASSED_MAX {
            self.take_decodes(&mut turn, &decodes);
        }
        let before = turn.taken.len();
        self.take_prefills(&mut turn, &prefills, prefill_rows_max);
        let passed = turn.taken.len() == before && !prefills.is_empty();
        if self.prefills_passed >= PREFILLS_PASSED_MAX {
            self.take_decodes(&mut turn, &decodes);
        }
        self.prefills_passed = if passed { self.prefills_passed + 1 } else { 0 };
        turn.taken
    }

    /// Those of one kind who wait: of each owner the one who waited longest, owners in the order in which they were served; then the
    /// second of each, and so on.
    fn order(&self, is_prefill: bool) -> Vec<u64> {
        let items = self.items.iter().filter(|(_, item)| item.is_prefill == is_prefill);
        let mut waiting: Vec<(u64, u64, u64)> = items.map(|(sequence, item)| (item.owner, item.since, *sequence)).collect();
        waiting.sort_unstable();
        let mut ranked: Vec<(u32, u64, u64)> = Vec::with_capacity(waiting.len());
        let (mut rank, mut last) = (0, None);
        for (owner, _, sequence) in waiting {
            rank = if last == Some(owner) { rank + 1 } else { 0 };
            last = Some(owner);
            ranked.push((rank, self.owners[&(is_prefill, owner)].since, sequence));
        }
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, sequence)| sequence).collect()
    }

    fn take_decodes(&mut self, turn: &mut Turn, decodes: &[u64]) {
        for sequence in decodes {
            let rows = self.items[sequence].rows;
            // More than any turn holds has to be cut; anything else waits for the next turn, in which it is the first.
            if rows > turn.left && turn.left < turn.rows_max {
                return;
            }
            self.take(turn, *sequence, rows.min(turn.left));
        }
    }

    fn take_prefills(&mut self, turn: &mut Turn, prefills: &[u64], rows_max: u32) {
        let mut left = rows_max;
        for sequence in prefills {
            let rows = self.items[sequence].rows.min(left).min(turn.left);
            left -= rows;
            self.take(turn, *sequence, rows);
        }
    }

    fn take(&mut self, turn: &mut Turn, sequence: u64, rows: u32) {
        if rows == 0 {
            return;
        }
        turn.left -= rows;
        turn.taken.push((sequence, rows));
        self.events += 1;
        let item = self.items.get_mut(&sequence).expect("who was ordered waits");
        item.rows -= rows;
        item.since = self.events;
        let item = *item;
        self.owners.get_mut(&item.queue()).expect("who waits has an owner").since = self.events;
        if item.rows == 0 {
            self.items.remove(&sequence);
            self.leave(item);
        }
    }

    fn join(&mut self, item: Item, since: u64) {
        self.owners.entry(item.queue()).or_insert(Owner { since, items: 0 }).items += 1;
    }

    fn leave(&mut self, item: Item) {
        let left = self.owners.get_mut(&item.queue()).expect("who waits has an owner");
        left.items -= 1;
        if left.items == 0 {
            self.owners.remove(&item.queue());
        }
    }
}

impl Item {
    /// Its place among the owners.
    fn queue(&self) -> (bool, u64) {
        (self.is_prefill, self.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(sequence: u64, owner: u64, rows: u32) -> Work {
        Work { sequence, owner, rows, is_prefill: false }
    }

    fn prefill(sequence: u64, owner: u64, rows: u32) -> Work {
        Work { sequence, owner, rows, is_prefill: true }
    }

    fn turns(works: &[Work]) -> Turns {
        let mut turns = Turns::default();
        works.iter().for_each(|work| turns.push(*work));
        turns
    }

    #[test]
    fn decodes_come_first_and_prompts_take_what_is_left() {
        let mut turns = turns(&[prefill(1, 1, 100), decode(2, 2, 1), decode(3, 1, 5)]);
        assert_eq!(turns.next(32, 512), [(2, 1), (3, 5), (1, 26)]);
        assert_eq!(turns.next(32, 20), [(1, 20)]);
        assert_eq!(turns.next(64, 512), [(1, 54)]);
        assert_eq!((turns.next(64, 512), turns.waiting()), (vec![], 0));
    }

    #[test]
    fn a_run_to_verify_stays_together_where_it_can() {
        let mut turns = turns(&[decode(1, 1, 3), decode(2, 2, 3), decode(3, 3, 9)]);
        assert_eq!(turns.next(5, 5), [(1, 3)]);
        assert_eq!(turns.next(5, 5), [(2, 3)]);
        assert_eq!(turns.next(5, 5), [(3, 5)]);
        assert_eq!(turns.next(5, 5), [(3, 4)]);
    }

    #[test]
    fn prompts_share_and_are_cut() {
        let mut turns = turns(&[prefill(1, 1, 10), prefill(2, 2, 10)]);
        assert_eq!(turns.next(6, 6), [(1, 6)]);
        assert_eq!(turns.next(6, 6), [(2, 6)]);
        assert_eq!(turns.next(6, 6), [(1, 4), (2, 2)]);
        turns.push(prefill(2, 2, 5));
        turns.cancel(2);
        turns.cancel(7);
        assert_eq!((turns.next(6, 6), turns.waiting(), turns.owners.len()), (vec![], 0, 0));
    }

    /// Goal: fifty sequences of one peer are not fifty times as important. Method: two peers, always with work, and turns of two rows.
    #[test]
    fn owners_alternate() {
        let mut turns = Turns::default();
        (0..50).for_each(|sequence| turns.push(decode(sequence, 1, 1)));
        for turn in 0..100_u64 {
            turns.push(decode(99, 2, 1));
            let taken = turns.next(2, 0);
            // Those of one peer take turns too.
            assert!(taken.contains(&(99, 1)) && taken.contains(&(turn % 50, 1)), "turn {turn}: {taken:?}");
            turns.push(decode(turn % 50, 1, 1));
        }
    }

    #[test]
    fn prompts_are_not_kept_out_by_decodes() {
        let mut turns = turns(&[prefill(9, 9, 8)]);
        (0..4).for_each(|sequence| turns.push(decode(sequence, sequence, 1)));
        let mut served = Vec::new();
        for turn in 0..12 {
            let taken = turns.next(4, 4);
            if taken == [(9, 4)] {
                served.push(turn);
            } else {
                taken.iter().for_each(|(sequence, _)| turns.push(decode(*sequence, *sequence, 1)));
            }
        }
        assert_eq!(served, [PREFILLS_PASSED_MAX, 2 * PREFILLS_PASSED_MAX + 1]);
    }

    /// Goal: whose decodes are served still gets to prompts. Method: turns of one row; one peer has both, another only prompts.
    #[test]
    fn decodes_do_not_count_against_prompts() {
        let mut turns = turns(&[prefill(1, 1, 2), prefill(2, 2, 100)]);
        let mut left = 2;
        for _ in 0..20 {
            turns.push(decode(3, 1, 1));
            left -= turns.next(1, 1).iter().filter(|(sequence, _)| *sequence == 1).count();
        }
        assert_eq!(left, 0);
    }

    const SEQUENCES: u64 = 8;

    /// Goal: nobody waits for ever, and no row is lost or computed twice. Method: random work that never ends, and a count of the turns
    /// that each waited.
    #[test]
    fn everyone_is_served_within_a_bound() {
        let work = (0..SEQUENCES, 1_u32..12, any::<bool>());
        let arrivals = proptest::collection::vec(proptest::collection::vec(work, 0..6), 250);
        proptest!(|(arrivals in arrivals, rows_max in 1_u32..10, prefill_rows_max in 1_u32..10)| {
            let (mut turns, mut waited) = (Turns::default(), [0_u64; SEQUENCES as usize]);
            let mut rows = [0_u32; SEQUENCES as usize];
            let mut serve = |turns: &mut Turns, rows: &mut [u32]| {
                let taken = turns.next(rows_max, prefill_rows_max);
                prop_assert!(taken.iter().map(|(_, rows)| rows).sum::<u32>() <= rows_max);
                prop_assert!(!taken.is_empty() || rows.iter().all(|rows| *rows == 0));
                waited.iter_mut().zip(rows.iter()).for_each(|(waited, rows)| *waited += u64::from(*rows > 0));
                for (sequence, taken) in &taken {
                    waited[*sequence as usize] = 0;
                    rows[*sequence as usize] = rows[*sequence as usize].checked_sub(*taken).expect("only rows that wait");
                }
                prop_assert!(waited.iter().all(|waited| *waited <= 2 * (u64::from(PREFILLS_PASSED_MAX) + 1) * SEQUENCES), "{:?}", waited);
                Ok(())
            };
            for works in arrivals {
                for (sequence, more, is_prefill) in works {
                    turns.push(Work { sequence, owner: sequence % 3, rows: more, is_prefill });
                    rows[sequence as usize] += more;
                }
                serve(&mut turns, &mut rows)?;
            }
            while turns.waiting() > 0 {
                serve(&mut turns, &mut rows)?;
            }
            prop_assert!(rows.iter().all(|rows| *rows == 0) && turns.owners.is_empty());
        });
    }
}
