//! The set of slots that hold one block, in eight bytes: up to three slots in place, more as a
//! bitmap in one shared arena.

/// The small number of one (worker, rank) pair inside an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

impl Slot {
    /// The slot as an index into arrays.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Slots that fit an entry itself. Most blocks have one holder, the hot ones have many.
const IN_PLACE: usize = 3;

/// The slots that hold one block.
#[derive(Clone, Copy, Debug)]
pub enum Holders {
    Few {
        count: u8,
        slots: [Slot; IN_PLACE],
    },
    /// The number of a set in [`Bitmaps`].
    Many(u32),
}

impl Default for Holders {
    fn default() -> Self {
        Self::Few {
            count: 0,
            slots: [Slot(0); IN_PLACE],
        }
    }
}

impl Holders {
    /// Whether no slot holds the block.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Few { count: 0, .. })
    }
}

/// The arena of the larger sets: each as many 64-bit words as the slots need.
#[derive(Debug, Default)]
pub struct Bitmaps {
    words_per_set: usize,
    words: Vec<u64>,
    free: Vec<u32>,
}

impl Bitmaps {
    /// Words in each set.
    pub fn words_per_set(&self) -> usize {
        self.words_per_set
    }

    /// Makes every set wide enough for `slots` slots.
    pub fn fit(&mut self, slots: usize) {
        let wanted = slots.div_ceil(64);
        if wanted <= self.words_per_set {
            return;
        }
        let sets = self.words.chunks_exact(self.words_per_set.max(1));
        let mut wider = Vec::with_capacity(sets.len() * wanted);
        for set in sets {
            wider.extend_from_slice(set);
            wider.resize(wider.len() + wanted - set.len(), 0);
        }
        self.words = wider;
        self.words_per_set = wanted;
    }

    /// The 64 slots from `64 * word` on, as bits.
    pub fn word(&self, holders: &Holders, word: usize) -> u64 {
        match holders {
            Holders::Many(set) => self.words[*set as usize * self.words_per_set + word],
            Holders::Few { count, slots } => {
                let here = slots[..usize::from(*count)].iter();
                here.filter(|slot| slot.index() / 64 == word)
                    .fold(0, |bits, slot| bits | 1 << (slot.index() % 64))
            }
        }
    }

    /// Adds a slot; false when it was there.
    pub fn insert(&mut self, holders: &mut Holders, slot: Slot) -> bool {
        let Holders::Few { count, slots } = holders else {
            return self.set(holders, slot, true);
        };
        let used = usize::from(*count);
        if slots[..used].contains(&slot) {
            return false;
        }
        if used < IN_PLACE {
            slots[used] = slot;
            *count += 1;
            return true;
        }
        let few = *slots;
        *holders = Holders::Many(self.take_set());
        for slot in few {
            self.set(holders, slot, true);
        }
        self.set(holders, slot, true)
    }

    /// Takes a slot out; false when it was not there.
    pub fn remove(&mut self, holders: &mut Holders, slot: Slot) -> bool {
        if let Holders::Few { count, slots } = holders {
            let used = usize::from(*count);
            let Some(at) = slots[..used].iter().position(|held| *held == slot) else {
                return false;
            };
            slots[at] = slots[used - 1];
            *count -= 1;
            return true;
        }
        let held = self.set(holders, slot, false);
        if held {
            self.settle(holders);
        }
        held
    }

    /// Brings a set back in place once it is small enough. One less than fits, so that a block
    /// whose holders come and go does not move each time.
    fn settle(&mut self, holders: &mut Holders) {
        let Holders::Many(set) = *holders else {
            return;
        };
        let count: u32 = self.range(set).map(|at| self.words[at].count_ones()).sum();
        if count as usize >= IN_PLACE {
            return;
        }
        let mut few = Holders::default();
        for at in self.range(set) {
            let mut bits = std::mem::take(&mut self.words[at]);
            let first = (at - set as usize * self.words_per_set) * 64;
            while bits != 0 {
                let slot = Slot((first + bits.trailing_zeros() as usize) as u16);
                self.insert(&mut few, slot);
                bits &= bits - 1;
            }
        }
        self.free.push(set);
        *holders = few;
    }

    fn range(&self, set: u32) -> std::ops::Range<usize> {
        let start = set as usize * self.words_per_set;
        start..start + self.words_per_set
    }

    fn take_set(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            let set = self.words.len() / self.words_per_set;
            self.words.resize(self.words.len() + self.words_per_set, 0);
            set as u32
        })
    }

    /// Sets or unsets a slot's bit; true when that changed it.
    fn set(&mut self, holders: &Holders, slot: Slot, held: bool) -> bool {
        let Holders::Many(set) = holders else {
            return false;
        };
        let word = &mut self.words[*set as usize * self.words_per_set + slot.index() / 64];
        let bit = 1 << (slot.index() % 64);
        let was = *word & bit != 0;
        if was != held {
            *word ^= bit;
        }
        was != held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(bitmaps: &Bitmaps, holders: &Holders) -> Vec<u16> {
        let all = 0..bitmaps.words_per_set() as u16 * 64;
        let held =
            |slot: &u16| bitmaps.word(holders, usize::from(slot / 64)) >> (slot % 64) & 1 == 1;
        all.filter(held).collect()
    }

    #[test]
    fn an_entry_takes_eight_bytes() {
        assert_eq!(size_of::<Holders>(), 8);
    }

    #[test]
    fn a_set_grows_into_a_bitmap_and_back() {
        let mut bitmaps = Bitmaps::default();
        bitmaps.fit(64);
        let mut holders = Holders::default();
        for slot in 0..60 {
            assert!(bitmaps.insert(&mut holders, Slot(slot)));
            assert!(!bitmaps.insert(&mut holders, Slot(slot)));
            assert_eq!(slots(&bitmaps, &holders), (0..=slot).collect::<Vec<_>>());
        }
        bitmaps.fit(200); // sets already there must widen
        assert!(bitmaps.insert(&mut holders, Slot(199)));
        assert_eq!(slots(&bitmaps, &holders).len(), 61);
        for slot in 0..60 {
            assert!(bitmaps.remove(&mut holders, Slot(slot)));
            assert!(!bitmaps.remove(&mut holders, Slot(slot)));
        }
        assert_eq!(slots(&bitmaps, &holders), [199]);
        assert!(bitmaps.remove(&mut holders, Slot(199)));
        assert!(holders.is_empty());
        assert_eq!(bitmaps.free, [0], "the bitmap is free to be taken again");
    }
}
