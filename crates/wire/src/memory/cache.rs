//! Values by sample, within a bound: the samples longest unseen make room. No clock: a visit counts one.

use std::collections::BTreeMap;

use super::MemoryBound;

/// What is remembered of one sample.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// How often it came by, from 1: both sides count alike, or have lost each other.
    pub visit: u32,
    pub values: Vec<f32>,
    turn: u64,
}

/// A bounded map from samples to values.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    bound: MemoryBound,
    held: BTreeMap<u64, Entry>,
    /// Who was put when, the longest unseen first.
    turns: BTreeMap<u64, u64>,
    turn: u64,
    values: usize,
}

impl Cache {
    pub fn new(bound: MemoryBound) -> Self {
        Self { bound, held: BTreeMap::new(), turns: BTreeMap::new(), turn: 0, values: 0 }
    }

    /// Values held.
    pub fn values(&self) -> usize {
        self.values
    }

    /// What is remembered of a sample of so many values. One of another length is another sample.
    pub fn get(&self, id: u64, length: usize) -> Option<&Entry> {
        self.held.get(&id).filter(|entry| entry.values.len() == length)
    }

    /// Remembers `values` of a sample's `visit`, unless they are not finite or exceed the bound alone: then it is forgotten.
    pub fn put(&mut self, id: u64, visit: u32, values: Vec<f32>) {
        self.forget(id);
        if values.len() > self.bound.values_max || !values.iter().all(|value| value.is_finite()) {
            return;
        }
        self.turn += 1;
        self.values += values.len();
        self.turns.insert(self.turn, id);
        self.held.insert(id, Entry { visit, values, turn: self.turn });
        while self.values > self.bound.values_max {
            let Some((_, oldest)) = self.turns.first_key_value() else { break };
            self.forget(*oldest);
        }
    }

    /// Forgets a sample.
    pub fn forget(&mut self, id: u64) {
        if let Some(entry) = self.held.remove(&id) {
            self.turns.remove(&entry.turn);
            self.values -= entry.values.len();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the bound holds and the longest unseen goes first. Method: three samples in room for two.
    #[test]
    fn the_longest_unseen_goes_first() {
        let mut cache = Cache::new(MemoryBound { values_max: 4 });
        cache.put(1, 1, vec![1.0; 2]);
        cache.put(2, 1, vec![2.0; 2]);
        cache.put(1, 2, vec![3.0; 2]);
        cache.put(3, 1, vec![4.0; 2]);
        assert_eq!((cache.values(), cache.get(2, 2).is_some()), (4, false));
        assert_eq!(cache.get(1, 2).map(|entry| entry.visit), Some(2));
        assert!(cache.get(1, 3).is_none());
        cache.put(4, 1, vec![0.0; 5]);
        cache.put(3, 2, vec![f32::NAN, 0.0]);
        assert_eq!((cache.values(), cache.get(4, 5).is_some(), cache.get(3, 2).is_some()), (2, false, false));
    }
}
