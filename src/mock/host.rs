//! Blocks in host memory, as an offloading connector keeps them: those evicted from the GPU, the one
//! used longest ago leaving first.

use std::collections::{BTreeMap, HashMap};

use crate::mock::hash::BlockHash;
use crate::mock::pool::Event;

/// A tier of host memory.
#[derive(Debug)]
pub struct HostTier {
    blocks_max: usize,
    /// The last use of each block, and the blocks by it.
    uses: HashMap<BlockHash, u64>,
    by_use: BTreeMap<u64, BlockHash>,
    turn: u64,
}

impl HostTier {
    /// A tier of so many blocks; none where that is 0.
    pub fn new(blocks_max: usize) -> Self {
        Self {
            blocks_max,
            uses: HashMap::new(),
            by_use: BTreeMap::new(),
            turn: 0,
        }
    }

    /// Keeps a copy of a block, and what that changed: nothing where it has one.
    pub fn store(&mut self, hash: BlockHash) -> Vec<Event> {
        let mut events = Vec::new();
        if self.blocks_max == 0 || self.touch(hash) {
            return events;
        }
        if self.uses.len() == self.blocks_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.uses.remove(&oldest);
            events.push(Event::OffloadedRemoved(oldest));
        }
        self.note_use(hash);
        events.push(Event::Offloaded(hash));
        events
    }

    /// Uses a block; false where it is not there.
    pub fn touch(&mut self, hash: BlockHash) -> bool {
        let Some(last) = self.uses.get(&hash) else {
            return false;
        };
        self.by_use.remove(last);
        self.note_use(hash);
        true
    }

    fn note_use(&mut self, hash: BlockHash) {
        self.turn += 1;
        self.uses.insert(hash, self.turn);
        self.by_use.insert(self.turn, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_used_longest_ago_makes_room() {
        let hash = |number| BlockHash([number; 32]);
        let mut tier = HostTier::new(2);
        for (number, events) in [
            (1, vec![Event::Offloaded(hash(1))]),
            (2, vec![Event::Offloaded(hash(2))]),
            (1, vec![]),
            (
                3,
                vec![Event::OffloadedRemoved(hash(2)), Event::Offloaded(hash(3))],
            ),
        ] {
            assert_eq!(tier.store(hash(number)), events, "{number}");
        }
        assert!(tier.touch(hash(1)) && !tier.touch(hash(2)));
        assert_eq!(HostTier::new(0).store(hash(1)), []);
    }
}
