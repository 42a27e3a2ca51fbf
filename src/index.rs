//! Which worker holds which blocks: applies KV events and answers how much of a prompt each holds.

pub mod assumed;
pub mod gap;
pub mod holders;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::block::{BlockMap, SequenceHash};
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::gap::{Progress, Step};
use crate::index::holders::{Bitmaps, Holders, Slot};

/// Most (worker, rank) pairs at once; slots are numbered in 16 bits, so that three fit an entry.
pub const SLOTS_MAX: usize = 1 << 16;

/// Most blocks of one slot. At 16 tokens a block this is 268 M tokens, more than an engine's
/// memory can hold, so only a broken agent meets it.
pub const SLOT_BLOCKS_MAX: u64 = 1 << 24;

/// Tables the hashes are spread over. Each grows by itself, so that no single event pays for moving
/// every entry while the router waits.
const TABLES: usize = 64;

/// What changed in one worker's cache, net: applied as cleared, then removed, then stored. Carries
/// no tokens, salts or parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEvent {
    pub worker: WorkerId,
    pub rank: DpRank,
    pub incarnation: Incarnation,
    /// The sequence number of the engine's batch that this event ends with.
    pub sequence: u64,
    pub cleared: bool,
    pub removed: Vec<SequenceHash>,
    pub stored: Vec<SequenceHash>,
}

/// How many leading blocks of a prompt one slot holds without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    pub slot: Slot,
    /// At least 1.
    pub blocks: u32,
}

/// What [`Index::apply`] did with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was applied, and follows what came before as this says.
    Yes(Step),
    /// It was skipped: its sequence number had been applied before.
    Duplicate,
    /// It was skipped: [`SLOTS_MAX`] slots are taken.
    NoSlot,
}

type Table = BlockMap<Holders>;

#[derive(Debug)]
struct SlotState {
    progress: Progress,
    blocks: u64,
}

/// Knows for every block which workers hold it. Pure and single-threaded; its owner puts it behind
/// a lock.
///
/// About 36 MB for a million blocks. Removing or clearing a worker that holds blocks scans all
/// entries: about 10 ms per million.
#[derive(Debug)]
pub struct Index {
    tables: Vec<Table>,
    bitmaps: Bitmaps,
    /// `None` where a slot is free to be taken again.
    slots: Vec<Option<SlotState>>,
    by_name: HashMap<WorkerId, HashMap<DpRank, Slot>>,
    entries: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index of no workers.
    pub fn new() -> Self {
        Self {
            tables: (0..TABLES).map(|_| Table::default()).collect(),
            bitmaps: Bitmaps::default(),
            slots: Vec::new(),
            by_name: HashMap::new(),
            entries: 0,
        }
    }

    /// Applies one event: cleared, then removed, then stored. An event of a new incarnation clears
    /// what the former one held, whether it says so or not. After a gap the event is applied all the
    /// same; the caller asks the worker for a snapshot.
    pub fn apply(&mut self, event: &KvEvent) -> Applied {
        let Some(slot) = self.slot_or_new(&event.worker, event.rank) else {
            return Applied::NoSlot;
        };
        let Some(state) = &mut self.slots[slot.index()] else {
            return Applied::NoSlot;
        };
        let step = state
            .progress
            .observe(event.incarnation, event.sequence, event.cleared);
        if step == Step::Duplicate {
            return Applied::Duplicate;
        }
        if event.cleared || step == Step::NewIncarnation {
            self.clear(slot);
        }
        let removed = event
            .removed
            .iter()
            .filter(|hash| self.drop_holder(**hash, slot))
            .count();
        let blocks = self.blocks(slot).saturating_sub(removed as u64);
        self.set_blocks(slot, blocks);
        self.hold(slot, &event.stored);
        Applied::Yes(step)
    }

    /// Notes that a slot holds these blocks too; those over [`SLOT_BLOCKS_MAX`] are left out.
    pub fn hold(&mut self, slot: Slot, hashes: &[SequenceHash]) {
        let mut blocks = self.blocks(slot);
        for hash in hashes {
            if blocks < SLOT_BLOCKS_MAX && self.add_holder(*hash, slot) {
                blocks += 1;
            }
        }
        self.set_blocks(slot, blocks);
    }

    /// For every slot that holds the first block: how many leading blocks it holds without a hole.
    pub fn overlap(&self, hashes: &[SequenceHash]) -> Vec<Overlap> {
        let mut found = Vec::new();
        let Some(first) = hashes.first().and_then(|hash| self.holders(*hash)) else {
            return found;
        };
        let words = self.bitmaps.words_per_set();
        let mut active: Vec<u64> = (0..words)
            .map(|word| self.bitmaps.word(first, word))
            .collect();
        for (depth, hash) in hashes.iter().enumerate().skip(1) {
            let holders = self.holders(*hash);
            let mut any = 0;
            for (word, bits) in active.iter_mut().enumerate() {
                if *bits == 0 {
                    continue;
                }
                let kept = *bits & holders.map_or(0, |h| self.bitmaps.word(h, word));
                push_overlaps(&mut found, word, *bits ^ kept, depth as u32);
                *bits = kept;
                any |= kept;
            }
            if any == 0 {
                return found;
            }
        }
        for (word, bits) in active.iter().enumerate() {
            push_overlaps(&mut found, word, *bits, hashes.len() as u32);
        }
        found
    }

    /// Forgets a worker and everything its ranks held.
    pub fn remove(&mut self, worker: &WorkerId) {
        for slot in self.by_name.remove(worker).into_iter().flatten() {
            self.clear(slot.1);
            self.slots[slot.1.index()] = None;
        }
    }

    /// Forgets the blocks of one slot; the slot stays.
    pub fn clear(&mut self, slot: Slot) {
        // A new worker's first event clears nothing, and must not scan what the others hold.
        if self.blocks(slot) == 0 {
            return;
        }
        for table in &mut self.tables {
            let bitmaps = &mut self.bitmaps;
            table.retain(|_, holders| {
                bitmaps.remove(holders, slot);
                !holders.is_empty()
            });
            if table.len() < table.capacity() / 4 {
                table.shrink_to_fit();
            }
        }
        self.set_blocks(slot, 0);
    }

    /// The slot of a worker's rank; `None` when no event of it was applied.
    pub fn slot(&self, worker: &WorkerId, rank: DpRank) -> Option<Slot> {
        self.by_name.get(worker)?.get(&rank).copied()
    }

    /// Where a slot's events stand, to be held against its worker's heartbeat.
    pub fn progress(&self, slot: Slot) -> Option<Progress> {
        Some(self.slots.get(slot.index())?.as_ref()?.progress)
    }

    /// Counts the blocks one slot holds.
    pub fn blocks(&self, slot: Slot) -> u64 {
        let state = self.slots.get(slot.index()).and_then(Option::as_ref);
        state.map_or(0, |state| state.blocks)
    }

    /// Counts the blocks a worker holds on all its ranks.
    pub fn worker_blocks(&self, worker: &WorkerId) -> u64 {
        let ranks = self.by_name.get(worker).into_iter().flatten();
        ranks.map(|(_, slot)| self.blocks(*slot)).sum()
    }

    /// Counts (slot, block) pairs over all workers.
    pub fn total_blocks(&self) -> u64 {
        self.entries
    }

    fn holders(&self, hash: SequenceHash) -> Option<&Holders> {
        self.tables[table_of(hash)].get(&hash)
    }

    fn add_holder(&mut self, hash: SequenceHash, slot: Slot) -> bool {
        let holders = self.tables[table_of(hash)].entry(hash).or_default();
        self.bitmaps.insert(holders, slot)
    }

    fn drop_holder(&mut self, hash: SequenceHash, slot: Slot) -> bool {
        let table = &mut self.tables[table_of(hash)];
        let Some(holders) = table.get_mut(&hash) else {
            return false;
        };
        let held = self.bitmaps.remove(holders, slot);
        if holders.is_empty() {
            table.remove(&hash);
        }
        held
    }

    fn set_blocks(&mut self, slot: Slot, blocks: u64) {
        if let Some(state) = &mut self.slots[slot.index()] {
            self.entries = self.entries - state.blocks + blocks;
            state.blocks = blocks;
        }
    }

    fn slot_or_new(&mut self, worker: &WorkerId, rank: DpRank) -> Option<Slot> {
        if let Some(slot) = self.slot(worker, rank) {
            return Some(slot);
        }
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        if index >= SLOTS_MAX {
            return None;
        }
        if index == self.slots.len() {
            self.slots.push(None);
            self.bitmaps.fit(self.slots.len());
        }
        let slot = Slot(index as u16);
        self.slots[index] = Some(SlotState {
            progress: Progress::default(),
            blocks: 0,
        });
        let ranks = self.by_name.entry(worker.clone()).or_default();
        ranks.insert(rank, slot);
        Some(slot)
    }
}

/// The table of a hash, by bits that the tables themselves do not look at first.
fn table_of(hash: SequenceHash) -> usize {
    (hash.0 >> 40) as usize % TABLES
}

fn push_overlaps(found: &mut Vec<Overlap>, word: usize, mut bits: u64, blocks: u32) {
    while bits != 0 {
        let slot = Slot((word * 64) as u16 + bits.trailing_zeros() as u16);
        found.push(Overlap { slot, blocks });
        bits &= bits - 1;
    }
}
