//! What one rank holds, as its agent has told it.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use crate::block::{SequenceHash, Uniform};
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::KvEvent;
use crate::ledger::tier::{Tier, Tiers};

/// What a rank holds.
#[derive(Debug)]
pub(super) struct Rank {
    pub(super) incarnation: Incarnation,
    pub(super) sequence: u64,
    pub(super) hashes: Hashes,
    pub(super) lower: Tiers<Hashes>,
}

pub(super) type Hashes = HashSet<SequenceHash, BuildHasherDefault<Uniform>>;

impl Rank {
    pub(super) fn new(event: &KvEvent) -> Self {
        Self {
            incarnation: event.incarnation,
            sequence: event.sequence,
            hashes: Hashes::default(),
            lower: Tiers::default(),
        }
    }

    /// As the index does: cleared, then removed, then stored.
    pub(super) fn apply(&mut self, event: &KvEvent) {
        if event.cleared || event.incarnation != self.incarnation {
            self.hashes.clear();
            self.lower = Tiers::default();
        }
        for hash in &event.removed {
            self.hashes.remove(hash);
        }
        self.hashes.extend(&event.stored);
        for tier in Tier::ALL {
            let (hashes, changes) = (&mut self.lower[tier], &event.lower[tier]);
            for hash in &changes.removed {
                hashes.remove(hash);
            }
            hashes.extend(&changes.stored);
        }
        self.incarnation = event.incarnation;
        self.sequence = event.sequence;
    }

    pub(super) fn cleared(&self, worker: &WorkerId, rank: DpRank) -> KvEvent {
        KvEvent {
            worker: worker.clone(),
            rank,
            incarnation: self.incarnation,
            sequence: self.sequence,
            cleared: true,
            removed: Vec::new(),
            stored: Vec::new(),
            lower: Tiers::default(),
        }
    }
}
