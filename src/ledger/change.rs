//! What a batch changed of a set of names.

use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use crate::block::{BlockMap, SequenceHash};

/// Names that went and came, net: those that did both are in neither list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    #[serde(with = "crate::block::packed")]
    pub removed: Vec<SequenceHash>,
    #[serde(with = "crate::block::packed")]
    pub stored: Vec<SequenceHash>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.stored.is_empty()
    }

    /// Adds what is said of further names.
    pub fn extend(&mut self, more: Self) {
        self.removed.extend(more.removed);
        self.stored.extend(more.stored);
    }

    /// Counts the names in both lists.
    pub fn len(&self) -> usize {
        self.removed.len() + self.stored.len()
    }
}

/// The names that a batch touched, in order, and whether each was there before it.
#[derive(Debug, Default)]
pub struct Touched {
    order: Vec<SequenceHash>,
    was_held: BlockMap<bool>,
}

impl Touched {
    /// Notes that a name is about to come or go.
    pub fn touch(&mut self, hash: SequenceHash, is_held: bool) {
        if let Entry::Vacant(entry) = self.was_held.entry(hash) {
            entry.insert(is_held);
            self.order.push(hash);
        }
    }

    /// What changed, given what is held now; nothing is touched any more.
    pub fn take(&mut self, is_held: impl Fn(&SequenceHash) -> bool) -> Changes {
        let touched = std::mem::take(self);
        let mut changes = Changes::default();
        for hash in touched.order {
            match (touched.was_held.get(&hash), is_held(&hash)) {
                (Some(false), true) => changes.stored.push(hash),
                (Some(true), false) => changes.removed.push(hash),
                _ => {}
            }
        }
        changes
    }
}
