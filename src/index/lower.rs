//! What ranks hold in slower tiers than their GPUs. A lead may have holes there: a block may go before
//! those that follow it.

use crate::block::SequenceHash;
use crate::id::{DpRank, WorkerId};
use crate::index::holders::{Holders, Slot};
use crate::index::table::Key;
use crate::index::{AHEAD, Index, KvEvent};
use crate::ledger::tier::{Tier, Tiers};

/// Most blocks that one prompt is looked for on one rank, of 16 tokens each 131,072 tokens; those after
/// them count as not held. It bounds the time under the router's lock to some 0.3 ms a rank that has
/// them all.
const RUN_BLOCKS_MAX: usize = 1 << 13;

impl Index {
    /// The slot of a tier of a worker's rank; `None` when it never held a block.
    pub fn lower_slot(&self, worker: &WorkerId, rank: DpRank, tier: Tier) -> Option<Slot> {
        self.slots.get(worker, (rank, Some(tier)))
    }

    /// Counts the blocks that a worker holds in a tier of all its ranks.
    pub fn lower_blocks(&self, worker: &WorkerId, tier: Tier) -> u64 {
        self.blocks_in(worker, Some(tier))
    }

    /// How many of these blocks, up to the first that is in no slower tier, a rank holds in each. One
    /// that is in both counts where it is loaded sooner.
    pub fn lower_run(
        &self,
        worker: &WorkerId,
        rank: DpRank,
        hashes: &[SequenceHash],
    ) -> Tiers<u32> {
        let mut run = Tiers::default();
        if self.slots.has_no_lower() {
            return run;
        }
        let slots = Tiers::from_fn(|tier| {
            let slot = self.lower_slot(worker, rank, tier);
            slot.filter(|slot| self.blocks(*slot) > 0)
        });
        if slots == Tiers::default() {
            return run;
        }
        let hashes = &hashes[..hashes.len().min(RUN_BLOCKS_MAX)];
        self.touch(hashes.iter().take(AHEAD));
        for (at, hash) in hashes.iter().enumerate() {
            self.touch(hashes.get(at + AHEAD));
            let holders = self.holders(Key::of(*hash));
            let is_in = |tier: &Tier| slots[*tier].is_some_and(|slot| self.is_held(holders, slot));
            let Some(tier) = Tier::ALL.into_iter().find(is_in) else {
                return run;
            };
            run[tier] += 1;
        }
        run
    }

    /// Notes that a rank holds these blocks in a tier too, as [`Index::hold`] does.
    pub fn hold_lower(
        &mut self,
        worker: &WorkerId,
        rank: DpRank,
        tier: Tier,
        hashes: &[SequenceHash],
    ) {
        match self.slots.get_or_take(worker, (rank, Some(tier))) {
            Some(slot) => self.hold(slot, hashes),
            None => self.room.losses.left_out_blocks += hashes.len() as u64,
        }
    }

    pub(super) fn apply_lower(&mut self, event: &KvEvent) {
        for tier in Tier::ALL {
            let changes = &event.lower[tier];
            if changes.is_empty() {
                continue;
            }
            if let Some(slot) = self.lower_slot(&event.worker, event.rank, tier) {
                self.drop(slot, &changes.removed);
            }
            if !changes.stored.is_empty() {
                self.hold_lower(&event.worker, event.rank, tier, &changes.stored);
            }
        }
    }

    pub(super) fn clear_lower(&mut self, worker: &WorkerId, rank: DpRank) {
        for tier in Tier::ALL {
            if let Some(slot) = self.lower_slot(worker, rank, tier) {
                self.clear(slot);
            }
        }
    }

    fn is_held(&self, holders: Holders, slot: Slot) -> bool {
        self.bitmaps.word(holders, slot.page()) & slot.bit() != 0
    }

    pub(super) fn blocks_in(&self, worker: &WorkerId, tier: Option<Tier>) -> u64 {
        let places = self.slots.of(worker).iter();
        let here = places.filter(|((_, of), _)| *of == tier);
        here.map(|(_, slot)| self.blocks(*slot)).sum()
    }
}
