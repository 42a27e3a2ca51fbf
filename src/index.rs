//! Which worker holds which blocks: applies KV events and answers how much of a prompt each holds.

pub mod assumed;
pub mod bitmaps;
mod evict;
pub mod gap;
pub mod holders;
mod lower;
mod overlap;
pub mod room;
mod slots;
pub mod table;

use serde::{Deserialize, Serialize};

use crate::block::SequenceHash;
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::bitmaps::{Added, Bitmaps};
use crate::index::gap::{Progress, Step};
use crate::index::holders::{Holders, Slot};
use crate::index::room::{Losses, Room};
use crate::index::slots::Slots;
use crate::index::table::{Key, TABLE_BITS, Table};
use crate::ledger::change::Changes;
use crate::ledger::tier::Tiers;

/// Most (worker, rank) pairs at once, those of slower tiers counted too; slots are numbered in 16 bits,
/// so that three fit an entry.
pub const SLOTS_MAX: usize = 1 << 16;

/// Most blocks of one slot. At 16 tokens a block this is 268 M tokens, more than an engine's
/// memory can hold, so only a broken agent meets it.
pub const SLOT_BLOCKS_MAX: u64 = 1 << 24;

/// Blocks whose memory is asked for before it is needed: about as many as are gone through in the
/// time that memory takes, and fewer than a processor waits for at once.
const AHEAD: usize = 8;

/// What changed in one worker's cache, net: applied as cleared, then removed, then stored. Carries
/// no tokens, salts or parents. After it the rank holds of every block told of all before it too; see
/// [`Closed`](crate::ledger::closed::Closed).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEvent {
    pub worker: WorkerId,
    pub rank: DpRank,
    pub incarnation: Incarnation,
    /// The sequence number of the engine's batch that this event ends with.
    pub sequence: u64,
    /// Every tier was.
    pub cleared: bool,
    /// From the GPU.
    pub removed: Vec<SequenceHash>,
    /// On the GPU.
    pub stored: Vec<SequenceHash>,
    #[serde(default)]
    pub lower: Tiers<Changes>,
}

impl KvEvent {
    /// Counts the hashes that it carries.
    pub fn hashes(&self) -> usize {
        let gpu = self.removed.len() + self.stored.len();
        gpu + self.lower.host.len() + self.lower.disk.len()
    }
}

/// How many leading blocks of a prompt one slot holds.
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
    /// It was skipped: [`SLOTS_MAX`] slots are taken, or as many as there is memory for.
    NoSlot,
}

/// Knows for every block which workers hold it. Pure and single-threaded; its owner puts it behind
/// a lock.
///
/// A rank that keeps blocks in slower tiers than its GPU has a slot more for each: so one limit holds
/// for all tiers, they share what is known of a block, and a fleet without them pays nothing. Where
/// that limit is reached no block makes room for one in a slower tier.
///
/// 23 to 31 bytes a block, up to a limit. Where that is reached, the blocks of the slot whose last
/// event is oldest make room, a few at a time; see [`Index::take_losses`]. What is lost so is predicted
/// too little, never too much.
///
/// An overlap takes 2 to 4 us for prompts of 32 to 8,192 blocks, in an index of a million.
///
/// Removing or clearing a worker that holds blocks scans all entries: about 8 ms per million.
#[derive(Debug)]
pub struct Index {
    tables: Box<[Table]>,
    bitmaps: Bitmaps,
    slots: Slots,
    room: Room,
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An index of no workers, which takes at most [`room::BYTES_MAX`] of memory.
    pub fn new() -> Self {
        Self::capped(room::BYTES_MAX)
    }

    /// An index of no workers, which takes at most `bytes_max` of memory. Below
    /// [`room::BYTES_MAX_LEAST`] it may have no room for anything.
    pub fn capped(bytes_max: u64) -> Self {
        let room = Room::new(bytes_max);
        Self {
            tables: std::iter::repeat_with(Table::default)
                .take(1 << TABLE_BITS)
                .collect(),
            bitmaps: Bitmaps::new(room.bitmaps_bytes_max),
            slots: Slots::new(room.slots_max),
            room,
        }
    }

    /// Applies one event: cleared, then removed, then stored. An event of a new incarnation clears
    /// what the former one held, whether it says so or not. After a gap the event is applied all the
    /// same; the caller asks the worker for a snapshot.
    pub fn apply(&mut self, event: &KvEvent) -> Applied {
        let Some(slot) = self.slots.get_or_take(&event.worker, (event.rank, None)) else {
            return Applied::NoSlot;
        };
        let step =
            self.slots[slot]
                .progress
                .observe(event.incarnation, event.sequence, event.cleared);
        if step == Step::Duplicate {
            return Applied::Duplicate;
        }
        if event.cleared || step == Step::NewIncarnation {
            self.clear(slot);
            self.clear_lower(&event.worker, event.rank);
        }
        self.drop(slot, &event.removed);
        self.hold(slot, &event.stored);
        self.apply_lower(event);
        Applied::Yes(step)
    }

    /// Notes that a slot holds these blocks too; those over [`SLOT_BLOCKS_MAX`], and those for which
    /// there is no memory though all older blocks made room, are left out.
    pub fn hold(&mut self, slot: Slot, hashes: &[SequenceHash]) {
        self.slots.touch(slot);
        let most = SLOT_BLOCKS_MAX.saturating_sub(self.blocks(slot));
        let (mut new, mut left_out) = (0, 0);
        self.touch(hashes.iter().take(AHEAD));
        for (at, hash) in hashes.iter().enumerate() {
            self.touch(hashes.get(at + AHEAD));
            let added = match new < most {
                true => self.add_holder(Key::of(*hash), slot),
                false => Added::NoRoom,
            };
            match added {
                Added::Yes => new += 1,
                Added::Already => {}
                Added::NoRoom => left_out += 1,
            }
        }
        self.slots.add(slot, new);
        self.slots[slot].lost_blocks += left_out;
        self.room.losses.left_out_blocks += left_out;
    }

    fn drop(&mut self, slot: Slot, hashes: &[SequenceHash]) {
        let mut held = 0;
        self.touch(hashes.iter().take(AHEAD));
        for (at, hash) in hashes.iter().enumerate() {
            self.touch(hashes.get(at + AHEAD));
            held += u64::from(self.drop_holder(Key::of(*hash), slot));
        }
        self.slots.drop(slot, held);
        // The others are most likely some of those that had to make room.
        let state = &mut self.slots[slot];
        state.lost_blocks = state.lost_blocks.saturating_sub(hashes.len() as u64 - held);
    }

    /// Forgets a worker and everything its ranks held.
    pub fn remove(&mut self, worker: &WorkerId) {
        for (_, slot) in self.slots.of(worker).to_vec() {
            self.clear(slot);
        }
        self.slots.give_back(worker);
    }

    /// Forgets the blocks of one slot; the slot stays.
    pub fn clear(&mut self, slot: Slot) {
        self.slots[slot].lost_blocks = 0;
        let blocks = self.blocks(slot);
        self.slots.drop(slot, blocks);
        // A new worker's first event clears nothing, and must not scan what the others hold.
        if blocks == 0 {
            return;
        }
        for at in 0..self.tables.len() {
            let bitmaps = &mut self.bitmaps;
            self.tables[at].retain(|holders| {
                bitmaps.remove(holders, slot);
            });
            self.room.shrink(&mut self.tables[at]);
        }
    }

    /// The slot of a worker's rank; `None` when no event of it was applied.
    pub fn slot(&self, worker: &WorkerId, rank: DpRank) -> Option<Slot> {
        self.slots.get(worker, (rank, None))
    }

    /// Where a slot's events stand, to be held against its worker's heartbeat.
    pub fn progress(&self, slot: Slot) -> Option<Progress> {
        Some(self.slots.at(slot)?.progress)
    }

    /// Counts the blocks one slot holds, as far as the index knows them.
    pub fn blocks(&self, slot: Slot) -> u64 {
        self.slots.at(slot).map_or(0, |state| state.blocks)
    }

    /// Counts the blocks that one slot's events have told of: those held, and those for which there
    /// was no memory. What an agent counts is held against this, so that no link takes a full index
    /// for a broken one.
    pub fn told_blocks(&self, slot: Slot) -> u64 {
        let state = self.slots.at(slot);
        state.map_or(0, |state| state.blocks + state.lost_blocks)
    }

    /// Counts the blocks a worker holds on the GPUs of all its ranks.
    pub fn worker_blocks(&self, worker: &WorkerId) -> u64 {
        self.blocks_in(worker, None)
    }

    /// Counts (slot, block) pairs over all workers and tiers.
    pub fn total_blocks(&self) -> u64 {
        self.slots.total_blocks()
    }

    /// The memory it takes; never more than it was given.
    pub fn bytes(&self) -> u64 {
        self.room.table_bytes + self.bitmaps.bytes() + self.slots.bytes()
    }

    /// What it lost for want of memory since this was asked last.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.room.losses)
    }

    /// Asks for the memory of blocks that are looked at next.
    fn touch<'a>(&self, hashes: impl IntoIterator<Item = &'a SequenceHash>) {
        for key in hashes.into_iter().map(|hash| Key::of(*hash)) {
            self.tables[key.table()].touch(key);
        }
    }

    fn holders(&self, key: Key) -> Holders {
        let table = &self.tables[key.table()];
        table
            .find(key)
            .map_or(Holders::default(), |place| table.holders(place))
    }

    fn add_holder(&mut self, key: Key, slot: Slot) -> Added {
        let table = &mut self.tables[key.table()];
        if let Some(place) = table.find(key) {
            let mut holders = table.holders(place);
            let added = match self.bitmaps.insert(&mut holders, slot) {
                Added::NoRoom => self.replace_oldest(&mut holders, slot),
                added => added,
            };
            if added == Added::Yes {
                self.tables[key.table()].set_holders(place, holders);
            }
            return added;
        }
        if table.is_crowded() && !self.room.grow(table) && !self.evict(key, slot) {
            return Added::NoRoom;
        }
        self.tables[key.table()].put(key, Holders::one(slot));
        Added::Yes
    }

    fn drop_holder(&mut self, key: Key, slot: Slot) -> bool {
        let table = &mut self.tables[key.table()];
        let Some(place) = table.find(key) else {
            return false;
        };
        let mut holders = table.holders(place);
        let held = self.bitmaps.remove(&mut holders, slot);
        if holders.is_empty() {
            table.remove(place);
            self.room.shrink(table);
        } else {
            table.set_holders(place, holders);
        }
        held
    }
}
