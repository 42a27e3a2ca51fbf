//! The slots of an index: which worker and rank each stands for, and what is counted of it.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Index, IndexMut};

use crate::id::{DpRank, WorkerId};
use crate::index::gap::Progress;
use crate::index::holders::Slot;
use crate::ledger::tier::Tier;

/// What one slot is taken to need, its worker's name and what maps keep free included: more than
/// they were seen to take.
pub(super) const SLOT_BYTES: u64 = 512;

/// What a slot stands for: a worker's rank, and where the rank keeps blocks; `None` is its GPU.
pub(super) type Place = (DpRank, Option<Tier>);

/// What is known of one slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotState {
    /// It stands for a slower tier than a GPU.
    pub(super) is_lower: bool,
    pub(super) progress: Progress,
    /// Blocks in the index.
    pub(super) blocks: u64,
    /// Blocks that the slot's events told of and that had to make room, or found none.
    pub(super) lost_blocks: u64,
    /// When its last event was applied, counted in events of all slots.
    pub(super) applied_at: u64,
}

/// FNV-1a: names are short and come from the operator's own agents, and every event looks one up.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// The slots, by number and by name. A number that is not taken shows an empty state.
#[derive(Debug)]
pub(super) struct Slots {
    states: Vec<SlotState>,
    free: Vec<Slot>,
    slots_max: usize,
    by_name: HashMap<WorkerId, Vec<(Place, Slot)>, BuildHasherDefault<Fnv>>,
    /// Slots of slower tiers than a GPU.
    lower_slots: usize,
    /// Blocks of all slots.
    total_blocks: u64,
    /// Counts applied events.
    turn: u64,
}

impl Slots {
    pub(super) fn new(slots_max: usize) -> Self {
        Self {
            states: Vec::new(),
            free: Vec::new(),
            slots_max,
            by_name: HashMap::default(),
            lower_slots: 0,
            total_blocks: 0,
            turn: 0,
        }
    }

    /// The places of a worker and their slots.
    pub(super) fn of(&self, worker: &WorkerId) -> &[(Place, Slot)] {
        self.by_name.get(worker).map_or(&[], Vec::as_slice)
    }

    pub(super) fn get(&self, worker: &WorkerId, place: Place) -> Option<Slot> {
        let mut places = self.of(worker).iter();
        let (_, slot) = places.find(|(known, _)| *known == place)?;
        Some(*slot)
    }

    /// The slot of a worker's place, taken for it where it has none; `None` when all are taken.
    pub(super) fn get_or_take(&mut self, worker: &WorkerId, place: Place) -> Option<Slot> {
        if let Some(slot) = self.get(worker, place) {
            return Some(slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.states.len() >= self.slots_max => return None,
            None => {
                self.states.push(SlotState::default());
                Slot((self.states.len() - 1) as u16)
            }
        };
        self[slot].is_lower = place.1.is_some();
        self.lower_slots += usize::from(place.1.is_some());
        let places = self.by_name.entry(worker.clone()).or_default();
        places.push((place, slot));
        Some(slot)
    }

    /// Lets others take a worker's slots, which hold no blocks any more.
    pub(super) fn give_back(&mut self, worker: &WorkerId) {
        for (_, slot) in self.by_name.remove(worker).into_iter().flatten() {
            self.lower_slots -= usize::from(self[slot].is_lower);
            self[slot] = SlotState::default();
            self.free.push(slot);
        }
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&SlotState> {
        self.states.get(slot.index())
    }

    /// Whether no rank keeps blocks in a slower tier than its GPU.
    pub(super) fn has_no_lower(&self) -> bool {
        self.lower_slots == 0
    }

    /// Notes that an event of the slot is applied now.
    pub(super) fn touch(&mut self, slot: Slot) {
        self.turn += 1;
        self[slot].applied_at = self.turn;
    }

    /// Counts blocks that a slot holds from now on.
    pub(super) fn add(&mut self, slot: Slot, blocks: u64) {
        self.total_blocks += blocks;
        self[slot].blocks += blocks;
    }

    /// Counts blocks that a slot holds no more, because its events say so.
    pub(super) fn drop(&mut self, slot: Slot, blocks: u64) {
        self.total_blocks -= blocks;
        self[slot].blocks -= blocks;
    }

    /// Counts a block that a slot holds no more, because it had to make room.
    pub(super) fn lose(&mut self, slot: Slot) {
        self.drop(slot, 1);
        self[slot].lost_blocks += 1;
    }

    pub(super) fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    pub(super) fn bytes(&self) -> u64 {
        self.states.len() as u64 * SLOT_BYTES
    }
}

impl Index<Slot> for Slots {
    type Output = SlotState;
    fn index(&self, slot: Slot) -> &SlotState {
        &self.states[slot.index()]
    }
}

impl IndexMut<Slot> for Slots {
    fn index_mut(&mut self, slot: Slot) -> &mut SlotState {
        &mut self.states[slot.index()]
    }
}
