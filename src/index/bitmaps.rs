//! The larger sets of holders: lists of bitmaps in one shared arena, which grows by a chunk at a time
//! and never moves what is there.

use prefetch_index::prefetch_index;

use crate::index::holders::{Holders, IN_PLACE, Slot};

/// One bitmap of a list: the holders among 64 slots; never empty while in a list.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    bits: u64,
    next: u32,
    page: u16,
}

/// The end of a list.
const END: u32 = u32::MAX;

/// Nodes that are allocated at once: none is ever moved, so that no event pays for that.
const CHUNK_NODES: usize = 256;

/// What a chunk takes, its entry in the list of chunks included.
const CHUNK_BYTES: u64 = (CHUNK_NODES * size_of::<Node>() + 48) as u64;

/// What came of adding a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Yes,
    /// It was there.
    Already,
    /// The arena is as large as it may get.
    NoRoom,
}

/// The arena of the larger sets.
#[derive(Debug)]
pub struct Bitmaps {
    chunks: Vec<Box<[Node]>>,
    chunks_max: usize,
    /// The first node that no set has.
    free: u32,
    used: usize,
}

impl Bitmaps {
    /// An arena of at most `bytes_max`.
    pub fn new(bytes_max: u64) -> Self {
        // Nodes are numbered in 32 bits, the last number being none.
        let chunks_max = (bytes_max / CHUNK_BYTES).min(u64::from(END) / CHUNK_NODES as u64);
        Self {
            chunks: Vec::new(),
            chunks_max: chunks_max as usize,
            free: END,
            used: 0,
        }
    }

    /// What the arena takes.
    pub fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK_BYTES
    }

    /// Asks for the memory of the lists of several blocks at once, so that the waits for it overlap.
    pub fn touch(&self, blocks: impl Iterator<Item = Holders>) {
        for node in blocks.filter_map(Holders::node) {
            let at = node as usize;
            prefetch_index(&self.chunks[at / CHUNK_NODES], at % CHUNK_NODES);
        }
    }

    /// The slots of one page that hold a block, as bits.
    pub fn word(&self, holders: Holders, page: u16) -> u64 {
        match holders.node() {
            None => holders.bits_in(page),
            Some(first) => self
                .list(first)
                .find(|node| node.page == page)
                .map_or(0, |node| node.bits),
        }
    }

    /// Every page with holders of a block, and which of its slots they are, as bits.
    pub fn pages(&self, holders: Holders, mut each: impl FnMut(u16, u64)) {
        if let Some(first) = holders.node() {
            for node in self.list(first) {
                each(node.page, node.bits);
            }
            return;
        }
        for (at, slot) in holders.in_place().enumerate() {
            let page = slot.page();
            // Once per page: with the first of its slots.
            if holders
                .in_place()
                .take(at)
                .all(|other| other.page() != page)
            {
                each(page, holders.bits_in(page));
            }
        }
    }

    /// Every holder of a block.
    pub fn slots(&self, holders: Holders, mut each: impl FnMut(Slot)) {
        self.pages(holders, |page, mut bits| {
            while bits != 0 {
                each(Slot::on(page, bits.trailing_zeros()));
                bits &= bits - 1;
            }
        });
    }

    /// Adds a slot.
    pub fn insert(&mut self, holders: &mut Holders, slot: Slot) -> Added {
        let Some(first) = holders.node() else {
            return self.insert_in_place(holders, slot);
        };
        let mut at = first;
        while at != END {
            let node = self.node_mut(at);
            if node.page == slot.page() {
                let was = node.bits & slot.bit() != 0;
                node.bits |= slot.bit();
                return if was { Added::Already } else { Added::Yes };
            }
            at = node.next;
        }
        match self.push(slot, first) {
            Some(node) => {
                *holders = Holders::many(node);
                Added::Yes
            }
            None => Added::NoRoom,
        }
    }

    fn insert_in_place(&mut self, holders: &mut Holders, slot: Slot) -> Added {
        if holders.in_place().any(|held| held == slot) {
            return Added::Already;
        }
        if holders.count() < IN_PLACE {
            *holders = holders.with(slot);
            return Added::Yes;
        }
        // At most one page for each of them.
        if !self.has_room(IN_PLACE + 1) {
            return Added::NoRoom;
        }
        let mut list = match self.push(slot, END) {
            Some(node) => Holders::many(node),
            None => return Added::NoRoom,
        };
        for held in holders.in_place() {
            self.insert(&mut list, held);
        }
        *holders = list;
        Added::Yes
    }

    /// Takes a slot out; false when it was not there.
    pub fn remove(&mut self, holders: &mut Holders, slot: Slot) -> bool {
        let Some(first) = holders.node() else {
            let held = holders.in_place().any(|held| held == slot);
            if held {
                *holders = holders.without(slot);
            }
            return held;
        };
        let (mut before, mut at) = (END, first);
        while at != END {
            let node = *self.node(at);
            if node.page != slot.page() {
                (before, at) = (at, node.next);
                continue;
            }
            let held = node.bits & slot.bit() != 0;
            self.node_mut(at).bits &= !slot.bit();
            if held && node.bits == slot.bit() {
                match before {
                    END => *holders = Holders::many(node.next),
                    before => self.node_mut(before).next = node.next,
                }
                self.give_back(at);
            }
            if held {
                self.settle(holders);
            }
            return held;
        }
        false
    }

    /// Forgets a set.
    pub fn release(&mut self, holders: Holders) {
        let mut at = holders.node().unwrap_or(END);
        while at != END {
            let next = self.node(at).next;
            self.give_back(at);
            at = next;
        }
    }

    /// Brings a set back in place once it is small enough. One less than fits, so that a block
    /// whose holders come and go does not move each time.
    fn settle(&mut self, holders: &mut Holders) {
        let Some(first) = holders.node() else {
            return;
        };
        let count: u32 = self.list(first).map(|node| node.bits.count_ones()).sum();
        if count as usize >= IN_PLACE {
            return;
        }
        let mut few = Holders::default();
        self.slots(*holders, |slot| few = few.with(slot));
        self.release(*holders);
        *holders = few;
    }

    fn list(&self, first: u32) -> impl Iterator<Item = &Node> {
        let node = move |at: u32| (at != END).then(|| self.node(at));
        std::iter::successors(node(first), move |before| node(before.next))
    }

    fn has_room(&self, nodes: usize) -> bool {
        self.used + nodes <= self.chunks_max * CHUNK_NODES
    }

    /// Takes a free node for a list's new head.
    fn push(&mut self, slot: Slot, next: u32) -> Option<u32> {
        if self.free == END && !self.grow() {
            return None;
        }
        let at = self.free;
        self.used += 1;
        self.free = self.node(at).next;
        *self.node_mut(at) = Node {
            bits: slot.bit(),
            next,
            page: slot.page(),
        };
        Some(at)
    }

    fn grow(&mut self) -> bool {
        if self.chunks.len() >= self.chunks_max {
            return false;
        }
        let first = self.chunks.len() * CHUNK_NODES;
        let node = |at: usize| Node {
            next: (first + at + 1) as u32,
            ..Node::default()
        };
        let mut chunk: Box<[Node]> = (0..CHUNK_NODES).map(node).collect();
        chunk[CHUNK_NODES - 1].next = END;
        self.chunks.push(chunk);
        self.free = first as u32;
        true
    }

    fn give_back(&mut self, at: u32) {
        let next = self.free;
        *self.node_mut(at) = Node {
            next,
            ..Node::default()
        };
        self.free = at;
        self.used -= 1;
        if self.used == 0 {
            self.chunks = Vec::new();
            self.free = END;
        }
    }

    fn node(&self, at: u32) -> &Node {
        &self.chunks[at as usize / CHUNK_NODES][at as usize % CHUNK_NODES]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.chunks[at as usize / CHUNK_NODES][at as usize % CHUNK_NODES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(bitmaps: &Bitmaps, holders: Holders) -> Vec<u16> {
        let mut slots = Vec::new();
        bitmaps.slots(holders, |slot| slots.push(slot.0));
        slots.sort_unstable();
        slots
    }

    #[test]
    fn an_entry_takes_eight_bytes() {
        assert_eq!((size_of::<Holders>(), size_of::<Node>()), (8, 16));
    }

    #[test]
    fn a_set_grows_into_bitmaps_and_back() {
        let mut bitmaps = Bitmaps::new(1 << 20);
        let mut holders = Holders::default();
        // Three pages, the last slot of all among them.
        let all: Vec<u16> = (0..60).chain([64, 127, u16::MAX]).collect();
        for (at, slot) in all.iter().enumerate() {
            assert_eq!(bitmaps.insert(&mut holders, Slot(*slot)), Added::Yes);
            assert_eq!(bitmaps.insert(&mut holders, Slot(*slot)), Added::Already);
            assert_eq!(slots(&bitmaps, holders), all[..=at]);
        }
        assert_eq!(bitmaps.word(holders, 1), 1 | 1 << 63);
        for (at, slot) in all.iter().enumerate().take(all.len() - 1) {
            assert!(bitmaps.remove(&mut holders, Slot(*slot)));
            assert!(!bitmaps.remove(&mut holders, Slot(*slot)));
            assert_eq!(slots(&bitmaps, holders), all[at + 1..]);
        }
        assert_eq!((bitmaps.used, bitmaps.bytes()), (0, 0), "nothing is left");
        assert!(bitmaps.remove(&mut holders, Slot(u16::MAX)));
        assert!(holders.is_empty());
    }

    #[test]
    fn a_full_arena_takes_no_more_and_loses_nothing() {
        let mut bitmaps = Bitmaps::new(CHUNK_BYTES);
        let mut sets = vec![Holders::default(); CHUNK_NODES + 1];
        let mut refused = 0;
        for holders in &mut sets {
            for slot in 0..4 {
                let added = bitmaps.insert(holders, Slot(slot));
                refused += usize::from(added == Added::NoRoom);
            }
        }
        // What the last sets might need is not there, even where one node would do.
        assert_eq!(refused, IN_PLACE + 1);
        assert_eq!(bitmaps.bytes(), CHUNK_BYTES);
        assert_eq!(slots(&bitmaps, sets[CHUNK_NODES]), [0, 1, 2]);
        for holders in sets {
            bitmaps.release(holders);
        }
        assert_eq!(bitmaps.bytes(), 0);
    }
}
