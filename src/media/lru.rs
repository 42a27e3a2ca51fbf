//! A map of bounded weight.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A map whose weights sum to at most `weight_max`; the least recently used go first.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_age: BTreeMap<u64, K>,
    clock: u64,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    used: u64,
    weight: usize,
    value: V,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    /// An empty map of at most so much.
    pub(crate) fn new(weight_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
            weight: 0,
            weight_max,
        }
    }

    /// The value of `key`, which is now the most recently used.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        self.by_age.remove(&entry.used);
        self.by_age.insert(self.clock, *key);
        entry.used = self.clock;
        Some(&entry.value)
    }

    /// Puts `value` in the place of an older one. One heavier than the whole map is not kept.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        if weight > self.weight_max {
            return;
        }
        while self.weight_max - self.weight < weight {
            let Some(oldest) = self.by_age.first_key_value().map(|(_, key)| *key) else {
                break;
            };
            self.remove(&oldest);
        }
        self.clock += 1;
        let used = self.clock;
        self.by_age.insert(used, key);
        let entry = Entry {
            used,
            weight,
            value,
        };
        self.entries.insert(key, entry);
        self.weight += weight;
    }

    /// Takes out the value of `key`.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.by_age.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// Takes out the least recently used value that may go; `None` where none may.
    pub(crate) fn remove_oldest(&mut self, may_go: impl Fn(&V) -> bool) -> Option<V> {
        let may_go = |key: &K| self.entries.get(key).is_some_and(|e| may_go(&e.value));
        let key = self.by_age.values().copied().find(may_go)?;
        self.remove(&key)
    }

    /// Takes out what `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let dropped: Vec<K> = self
            .entries
            .keys()
            .filter(|key| !keep(key))
            .copied()
            .collect();
        for key in dropped {
            self.remove(&key);
        }
    }

    /// The sum of the weights.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_entries_agree_whatever_is_done() {
        let mut lru = Lru::new(50);
        for step in 0_usize..2000 {
            let key = step * 7 % 31;
            match step % 3 {
                0 => drop(lru.get(&key).copied()),
                1 if step % 5 == 0 => drop(lru.remove_oldest(|value| value % 2 == 0)),
                _ => lru.insert(key, step, step * 13 % 60),
            }
            let weights: usize = lru.entries.values().map(|entry| entry.weight).sum();
            assert_eq!(weights, lru.weight);
            assert_eq!(lru.entries.len(), lru.by_age.len());
            assert!(lru.weight <= 50);
        }
    }
}
