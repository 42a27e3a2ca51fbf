//! A full-block prefix cache with vLLM's order of storing, reusing and evicting.

use std::collections::HashMap;
use std::sync::Arc;

use crate::mock::free::{BlockId, FreeQueue};
use crate::mock::hash::{BlockHash, ExtraKey, Lora};
use crate::mock::host::HostTier;

/// A change of the cache, as published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Stored(Stored),
    Removed(BlockHash),
    Cleared,
    /// A block was copied to host memory.
    Offloaded(BlockHash),
    /// A block made room there.
    OffloadedRemoved(BlockHash),
}

/// Consecutive full blocks of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub hashes: Vec<BlockHash>,
    pub parent: Option<BlockHash>,
    pub tokens: Vec<u32>,
    /// One entry per block; an empty one is published as nil.
    pub extra_keys: Vec<Vec<ExtraKey>>,
    pub lora: Option<Arc<Lora>>,
    pub session: Option<Arc<str>>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    hash: Option<BlockHash>,
    holders: u32,
}

/// All blocks of one engine rank.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Slot>,
    free: FreeQueue,
    /// Copies in the order they were stored; the first one is reused.
    cached: HashMap<BlockHash, Copies>,
    host: HostTier,
    events: Vec<Event>,
    /// Those of host memory, which vLLM tells of behind a step's others.
    host_events: Vec<Event>,
    published: bool,
}

// Nearly every hash has one copy, so that copy costs no allocation.
#[derive(Debug)]
enum Copies {
    One(BlockId),
    Many(Vec<BlockId>),
}

impl Pool {
    /// A pool of `blocks`, of which block 0 is never used, and so many in host memory. Without
    /// `published` no event is kept.
    pub fn new(blocks: u32, host_blocks: usize, published: bool) -> Self {
        Self {
            slots: vec![Slot::default(); blocks as usize],
            free: FreeQueue::new(blocks),
            cached: HashMap::new(),
            host: HostTier::new(host_blocks),
            events: Vec::new(),
            host_events: Vec::new(),
            published,
        }
    }

    /// Blocks that no request holds, cached ones included.
    pub fn free_blocks(&self) -> usize {
        self.free.count()
    }

    /// Part of the usable blocks that requests hold.
    pub fn usage(&self) -> f64 {
        let usable = self.slots.len().saturating_sub(1).max(1);
        1.0 - self.free.count() as f64 / usable as f64
    }

    /// The cached blocks of the longest known prefix of `hashes`.
    pub fn hits(&self, hashes: &[BlockHash]) -> Vec<BlockId> {
        let first = |hash| self.cached.get(hash).map(Copies::first);
        hashes.iter().map_while(first).collect()
    }

    /// How many leading blocks of `hashes` are in host memory; they are the last that will leave it.
    pub fn host_hits(&mut self, hashes: &[BlockHash]) -> usize {
        let hits = hashes.iter().take_while(|hash| self.host.touch(**hash));
        hits.count()
    }

    /// How many of `hits` wait in the free queue, and so no longer count as free once reused.
    pub fn free_among(&self, hits: &[BlockId]) -> usize {
        let is_free = |block: &&BlockId| self.slots[**block as usize].holders == 0;
        hits.iter().filter(is_free).count()
    }

    /// Holds cached blocks for one more request.
    pub fn reuse(&mut self, hits: &[BlockId]) {
        for &block in hits {
            let slot = &mut self.slots[block as usize];
            if slot.holders == 0 {
                self.free.remove(block);
            }
            slot.holders += 1;
        }
    }

    /// Appends `count` blocks to `taken`, evicting what they still cache; all or nothing.
    pub fn take(&mut self, count: usize, taken: &mut Vec<BlockId>) -> bool {
        if count > self.free.count() {
            return false;
        }
        for _ in 0..count {
            let Some(block) = self.free.pop_front() else {
                return false;
            };
            self.evict(block);
            self.slots[block as usize].holders = 1;
            taken.push(block);
        }
        true
    }

    /// Makes `blocks` findable under the hashes of `stored`.
    pub fn store(&mut self, blocks: &[BlockId], hashes: &[BlockHash]) {
        debug_assert_eq!(blocks.len(), hashes.len(), "one hash per block");
        for (&block, &hash) in blocks.iter().zip(hashes) {
            self.slots[block as usize].hash = Some(hash);
            match self.cached.get_mut(&hash) {
                Some(copies) => copies.push(block),
                None => {
                    self.cached.insert(hash, Copies::One(block));
                }
            }
        }
    }

    /// Publishes an event with the present step's; built only when somebody listens.
    pub fn publish(&mut self, event: impl FnOnce() -> Event) {
        if self.published {
            self.events.push(event());
        }
    }

    /// Gives a request's blocks back, its last block first in line to be evicted; blocks that cache
    /// nothing go before all others.
    pub fn release(&mut self, blocks: &[BlockId]) {
        let mut empty = Vec::new();
        for &block in blocks.iter().rev() {
            let slot = &mut self.slots[block as usize];
            slot.holders -= 1;
            match (slot.holders, slot.hash) {
                (0, Some(_)) => self.free.push_back(block),
                (0, None) => empty.push(block),
                _ => {}
            }
        }
        self.free.push_all_front(&empty);
    }

    /// Forgets every cached block; refused while a request holds any.
    pub fn clear(&mut self) -> bool {
        if self.free.count() + 1 < self.slots.len() {
            return false;
        }
        self.cached.clear();
        self.slots.iter_mut().for_each(|slot| slot.hash = None);
        self.publish(|| Event::Cleared);
        true
    }

    /// The events since the last call, in the order they happened, those of host memory last.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.append(&mut self.host_events);
        std::mem::take(&mut self.events)
    }

    fn evict(&mut self, block: BlockId) {
        let Some(hash) = self.slots[block as usize].hash.take() else {
            return;
        };
        if let Some(copies) = self.cached.get_mut(&hash)
            && copies.remove(block)
        {
            self.cached.remove(&hash);
        }
        self.publish(|| Event::Removed(hash));
        let stored = self.host.store(hash);
        if self.published {
            self.host_events.extend(stored);
        }
    }
}

impl Copies {
    fn first(&self) -> BlockId {
        match self {
            Self::One(block) => *block,
            Self::Many(blocks) => blocks[0],
        }
    }

    fn push(&mut self, block: BlockId) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, block]),
            Self::Many(blocks) => blocks.push(block),
        }
    }

    /// Removes one copy; true when it was the last.
    fn remove(&mut self, block: BlockId) -> bool {
        match self {
            Self::One(_) => true,
            Self::Many(blocks) => {
                blocks.retain(|&copy| copy != block);
                if let [last] = blocks[..] {
                    *self = Self::One(last);
                }
                false
            }
        }
    }
}
