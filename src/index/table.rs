//! One table of the index: blocks by hash, open addressing in buckets of one cache line, grown in
//! small steps so that it stays well filled at every size.

use prefetch_index::prefetch_index;

use crate::block::SequenceHash;
use crate::index::holders::{Holders, Packed};

/// Bits of a key that choose its table. With 1,024 tables the largest moves some 0.7 MB when it grows
/// in an index of 1 GiB: about 0.3 ms, which is what one event can cost at most; and where the tables
/// are stays in the processor's first cache.
pub const TABLE_BITS: u32 = 10;

/// Blocks of one bucket: with their holders they fill a cache line, so that most look-ups wait for
/// memory once.
const LANES: usize = 4;

/// A bucket's size.
pub const BUCKET_BYTES: u64 = size_of::<Bucket>() as u64;

/// A sequence hash, spread: an odd factor maps hashes one to one, and those that come in patterns
/// (an engine's, a test's) do not crowd one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a block.
    pub fn of(hash: SequenceHash) -> Self {
        // 2^64 divided by the golden ratio, which spreads runs of numbers most evenly.
        Self(hash.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The number of its table.
    pub fn table(self) -> usize {
        (self.0 >> (64 - TABLE_BITS)) as usize
    }

    /// Where its bucket is among `buckets`, by bits that do not choose the table.
    fn home(self, buckets: usize) -> usize {
        let bits = (self.0 << TABLE_BITS) >> 32;
        ((bits * buckets as u64) >> 32) as usize
    }
}

/// A lane without holders is free.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Bucket {
    keys: [Key; LANES],
    holders: [Packed; LANES],
    counts: [u8; LANES],
    /// Counts the blocks that passed by because all lanes were taken, and are further on. One that
    /// has reached [`STRAYED_MAX`] stays there, and look-ups go on for nothing.
    strayed: u8,
}

const STRAYED_MAX: u8 = u8::MAX;

impl Bucket {
    fn lane_of(&self, key: Key) -> Option<usize> {
        // All lanes at once: where a block lies cannot be foreseen, and a wrong guess of the
        // processor costs more than four comparisons.
        self.first(|lane| (self.keys[lane] == key) & (self.counts[lane] != 0))
    }

    fn free_lane(&self) -> Option<usize> {
        self.first(|lane| self.counts[lane] == 0)
    }

    fn first(&self, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let found = (0..LANES).fold(0_u32, |found, lane| found | u32::from(is_it(lane)) << lane);
        (found != 0).then(|| found.trailing_zeros() as usize)
    }

    fn holders(&self, lane: usize) -> Holders {
        Holders::unpack(self.holders[lane], self.counts[lane])
    }

    fn set(&mut self, lane: usize, key: Key, holders: Holders) {
        self.keys[lane] = key;
        (self.holders[lane], self.counts[lane]) = holders.pack();
    }

    fn blocks(&self) -> impl Iterator<Item = (Key, Holders)> {
        let lanes = (0..LANES).filter(|lane| self.counts[*lane] != 0);
        lanes.map(|lane| (self.keys[lane], self.holders(lane)))
    }
}

/// Where a block is in a table; good until the table is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    bucket: usize,
    lane: usize,
}

/// Blocks and their holders. A block lies in its home bucket or in one after it, round the end; every
/// bucket that it passed by counts it.
#[derive(Debug, Default)]
pub struct Table {
    buckets: Box<[Bucket]>,
    blocks: usize,
}

impl Table {
    /// Counts the blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// What its buckets take.
    pub fn bytes(&self) -> u64 {
        self.buckets.len() as u64 * BUCKET_BYTES
    }

    /// Asks for the cache lines where a block should be, without waiting for them: its home's, and the
    /// next one's, where most of those are that strayed.
    pub fn touch(&self, key: Key) {
        let home = key.home(self.buckets.len());
        prefetch_index(&self.buckets, home);
        prefetch_index(&self.buckets, home + 1);
    }

    /// Where a block is.
    pub fn find(&self, key: Key) -> Option<Place> {
        let mut at = key.home(self.buckets.len());
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            if let Some(lane) = bucket.lane_of(key) {
                return Some(Place { bucket: at, lane });
            }
            if bucket.strayed == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The holders of a block that was found.
    pub fn holders(&self, place: Place) -> Holders {
        self.buckets[place.bucket].holders(place.lane)
    }

    /// Gives a block that was found other holders, at least one.
    pub fn set_holders(&mut self, place: Place, holders: Holders) {
        debug_assert!(
            !holders.is_empty(),
            "a block without holders is to be removed"
        );
        let bucket = &mut self.buckets[place.bucket];
        bucket.set(place.lane, bucket.keys[place.lane], holders);
    }

    /// Whether one more block would crowd it.
    pub fn is_crowded(&self) -> bool {
        // Above seven tenths too many blocks stray, and finding one means to wait for memory twice.
        (self.blocks + 1) * 10 > self.buckets.len() * LANES * 7
    }

    /// Buckets after the next step of growth: a third more.
    pub fn next_buckets(&self) -> usize {
        self.buckets.len() + (self.buckets.len() / 3).max(1)
    }

    /// Puts in a block that is not there. The table must not be crowded.
    pub fn put(&mut self, key: Key, holders: Holders) {
        debug_assert!(!self.is_crowded() && !holders.is_empty());
        let mut at = key.home(self.buckets.len());
        // A table that is not crowded has a free lane.
        for _ in 0..self.buckets.len() {
            let next = self.after(at);
            let bucket = &mut self.buckets[at];
            if let Some(lane) = bucket.free_lane() {
                bucket.set(lane, key, holders);
                self.blocks += 1;
                return;
            }
            bucket.strayed = bucket.strayed.saturating_add(1);
            at = next;
        }
    }

    /// Takes out a block that was found.
    pub fn remove(&mut self, place: Place) {
        let found = &mut self.buckets[place.bucket];
        found.counts[place.lane] = 0;
        let mut at = found.keys[place.lane].home(self.buckets.len());
        self.blocks -= 1;
        while at != place.bucket {
            let passed = &mut self.buckets[at];
            if passed.strayed < STRAYED_MAX {
                passed.strayed -= 1;
            }
            at = self.after(at);
        }
    }

    /// Gives it so many buckets, enough not to be crowded.
    pub fn resize(&mut self, buckets: usize) {
        let wanted = vec![Bucket::default(); buckets].into_boxed_slice();
        let old = std::mem::replace(&mut self.buckets, wanted);
        self.blocks = 0;
        for (key, holders) in old.iter().flat_map(Bucket::blocks) {
            self.put(key, holders);
        }
    }

    /// Buckets that it should shrink to; `None` while it is well filled.
    pub fn spare_buckets(&self) -> Option<usize> {
        // Not as full as it may get, so that what comes next does not make it grow again.
        let wanted = (self.blocks * 5).div_ceil(3 * LANES);
        let is_spare = self.blocks * 20 < self.buckets.len() * LANES * 9;
        (is_spare && wanted < self.buckets.len()).then_some(wanted)
    }

    /// Every block.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Holders)> {
        self.buckets.iter().flat_map(Bucket::blocks)
    }

    /// Changes the holders of every block; those that are left with none go.
    pub fn retain(&mut self, mut change: impl FnMut(&mut Holders)) {
        for bucket in 0..self.buckets.len() {
            for lane in 0..LANES {
                let place = Place { bucket, lane };
                let before = self.holders(place);
                let mut holders = before;
                if !holders.is_empty() {
                    change(&mut holders);
                }
                match holders.is_empty() {
                    true if before.is_empty() => {}
                    true => self.remove(place),
                    false => self.set_holders(place, holders),
                }
            }
        }
    }

    fn after(&self, bucket: usize) -> usize {
        match bucket + 1 {
            next if next == self.buckets.len() => 0,
            next => next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::holders::Slot;

    #[test]
    fn a_bucket_fills_a_cache_line() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
    }

    #[test]
    fn what_strays_is_found_and_leaves_nothing_behind() {
        // All of one home: they fill it and those after it, round the end.
        let home = |hash: &u64| Key::of(SequenceHash(*hash)).home(100) == 98;
        let hashes: Vec<u64> = (0..).filter(home).take(30).collect();
        let key = |hash: &u64| Key::of(SequenceHash(*hash));
        let mut table = Table::default();
        table.resize(100);
        for (at, hash) in hashes.iter().enumerate() {
            assert_eq!(table.find(key(hash)), None);
            table.put(key(hash), Holders::one(Slot(at as u16)));
        }
        let found =
            |table: &Table, hash: &u64| table.find(key(hash)).map(|place| table.holders(place));
        let (odd, even): (Vec<_>, Vec<_>) = (0..30).partition(|at| at % 2 == 1);
        for at in odd {
            let place = table.find(key(&hashes[at])).unwrap();
            table.remove(place);
            assert_eq!(found(&table, &hashes[at]), None);
        }
        for at in &even {
            let one = Holders::one(Slot(*at as u16));
            assert_eq!(found(&table, &hashes[*at]), Some(one));
        }
        table.resize(21);
        assert_eq!(table.blocks(), even.len());
        for at in even {
            let place = table.find(key(&hashes[at])).unwrap();
            table.remove(place);
        }
        assert_eq!(table.blocks(), 0);
        assert!(table.buckets.iter().all(|bucket| bucket.strayed == 0));
        assert_eq!(table.spare_buckets(), Some(0));
    }
}
