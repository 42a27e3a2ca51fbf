//! Who makes room when the index may not grow.

use crate::index::Index;
use crate::index::bitmaps::Added;
use crate::index::holders::{Holders, Slot};
use crate::index::table::Key;

/// The share of a table's blocks that makes room at once, as a divisor. Finding the oldest means to
/// look at the whole table, some 0.3 ms in the largest index: shared by all that go, 0.2 us each.
const EVICTED_SHARE: usize = 8;

impl Index {
    /// Makes room in the table of `key`, for a block of `slot`: of all blocks there, those go whose
    /// youngest holder's last event is oldest, never those of `slot` itself. False where there are
    /// no others.
    ///
    /// Only a few blocks of one table go at a time: hashes are spread evenly, so that all tables
    /// fill alike and each can make its own room, no event pays for a look at everything, and a
    /// worker that is alive loses no more than others need.
    ///
    /// None go for a block in a slower tier, which is worth less and may be one of very many.
    pub(super) fn evict(&mut self, key: Key, slot: Slot) -> bool {
        if self.slots[slot].is_lower {
            return false;
        }
        let table = &self.tables[key.table()];
        // Nothing is younger than the slot whose event is applied now.
        let own = self.slots[slot].applied_at;
        let mut others: Vec<_> = table
            .iter()
            .map(|(key, holders)| (self.youngest(holders), key))
            .filter(|(age, _)| *age < own)
            .collect();
        if others.is_empty() {
            return false;
        }
        let wanted = (table.blocks() / EVICTED_SHARE).clamp(1, others.len());
        others.select_nth_unstable_by_key(wanted - 1, |(age, _)| *age);
        for (_, key) in others.drain(..wanted) {
            self.lose(key);
        }
        true
    }

    /// Puts `slot` in the place of that holder of a block whose last event is oldest, where the
    /// block can have no more holders; none goes for a slower tier.
    pub(super) fn replace_oldest(&mut self, holders: &mut Holders, slot: Slot) -> Added {
        if self.slots[slot].is_lower {
            return Added::NoRoom;
        }
        let mut oldest = slot;
        self.bitmaps.slots(*holders, |held| {
            if self.slots[held].applied_at < self.slots[oldest].applied_at {
                oldest = held;
            }
        });
        // In a list the oldest may share its page with others, and give nothing free.
        if oldest == slot || !holders.replace(oldest, slot) {
            return Added::NoRoom;
        }
        self.slots.lose(oldest);
        self.room.losses.evicted_blocks += 1;
        Added::Yes
    }

    fn youngest(&self, holders: Holders) -> u64 {
        let mut youngest = 0;
        self.bitmaps.slots(holders, |slot| {
            youngest = youngest.max(self.slots[slot].applied_at);
        });
        youngest
    }

    fn lose(&mut self, key: Key) {
        let table = &mut self.tables[key.table()];
        let Some(place) = table.find(key) else {
            return;
        };
        let holders = table.holders(place);
        table.remove(place);
        let (slots, losses) = (&mut self.slots, &mut self.room.losses);
        self.bitmaps.slots(holders, |slot| {
            slots.lose(slot);
            losses.evicted_blocks += 1;
        });
        self.bitmaps.release(holders);
    }
}
