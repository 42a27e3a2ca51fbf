//! An engine's prefix cache: blocks by name, those that no request holds in the order of eviction.

use crate::block::{BlockMap, SequenceHash};

/// The end of a list.
const NONE: u32 = u32::MAX;

/// A prefix cache of a fixed number of blocks, kept as vLLM keeps its own: blocks of requests in
/// flight stay; the others go in the order in which they were given up, of one prompt the last
/// first, so that no block is held without all before it.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    capacity_blocks: u64,
    by_name: BlockMap<u32>,
    /// Places of named blocks; those in `free` hold none.
    blocks: Vec<Block>,
    free: Vec<u32>,
    // The blocks that no request holds, a list through `blocks`.
    oldest: u32,
    newest: u32,
    idle_blocks: u64,
    /// Held by requests without a name: part-filled last blocks and answers.
    unnamed_blocks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    name: SequenceHash,
    /// Requests in flight that hold it.
    requests: u32,
    older: u32,
    newer: u32,
}

/// What one request holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    named: Vec<u32>,
    unnamed_blocks: u64,
}

/// What a cache did for one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) held: Held,
    /// Leading blocks of the prompt that were there.
    pub(crate) found_blocks: u32,
    /// Names that were pushed out.
    pub(crate) evicted: Vec<SequenceHash>,
}

impl PrefixCache {
    pub(crate) fn new(capacity_blocks: u64) -> Self {
        Self {
            capacity_blocks,
            by_name: BlockMap::default(),
            blocks: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
            idle_blocks: 0,
            unnamed_blocks: 0,
        }
    }

    /// Counts the leading blocks of a prompt that it holds.
    pub(crate) fn found_blocks(&self, names: &[SequenceHash]) -> u32 {
        let found = names.iter().take_while(|n| self.by_name.contains_key(n));
        found.count() as u32
    }

    /// Takes the blocks of a prompt and some without names, and pushes out what must go for them;
    /// `None`, and nothing done, when requests in flight hold too much.
    pub(crate) fn take(&mut self, names: &[SequenceHash], unnamed_blocks: u64) -> Option<Taken> {
        let found_blocks = self.found_blocks(names);
        let (found, new) = names.split_at(found_blocks as usize);
        let is_idle = |name: &&SequenceHash| {
            let at = self.by_name.get(name);
            at.is_some_and(|at| self.blocks[*at as usize].requests == 0)
        };
        let idle_found = found.iter().filter(is_idle).count() as u64;
        let wanted = new.len() as u64 + unnamed_blocks;
        let unused = self.capacity_blocks - self.by_name.len() as u64 - self.unnamed_blocks;
        if wanted > unused + self.idle_blocks - idle_found {
            return None;
        }
        let mut taken = Taken {
            found_blocks,
            ..Taken::default()
        };
        taken.held.unnamed_blocks = unnamed_blocks;
        for name in found {
            if let Some(at) = self.by_name.get(name).copied() {
                self.hold(at);
                taken.held.named.push(at);
            }
        }
        for _ in unused..wanted {
            taken.evicted.extend(self.evict());
        }
        for name in new {
            taken.held.named.push(self.add(*name));
        }
        self.unnamed_blocks += unnamed_blocks;
        Some(taken)
    }

    /// Gives up what a request holds: names stay until they are pushed out.
    pub(crate) fn give_up(&mut self, held: &Held) {
        self.unnamed_blocks -= held.unnamed_blocks;
        for at in held.named.iter().rev() {
            let block = &mut self.blocks[*at as usize];
            block.requests -= 1;
            if block.requests == 0 {
                self.push_newest(*at);
            }
        }
    }

    /// Counts the blocks that requests in flight hold.
    pub(crate) fn held_blocks(&self) -> u64 {
        self.by_name.len() as u64 - self.idle_blocks + self.unnamed_blocks
    }

    fn hold(&mut self, at: u32) {
        if self.blocks[at as usize].requests == 0 {
            self.unlink(at);
        }
        self.blocks[at as usize].requests += 1;
    }

    fn add(&mut self, name: SequenceHash) -> u32 {
        let block = Block {
            name,
            requests: 1,
            older: NONE,
            newer: NONE,
        };
        let at = self.free.pop().unwrap_or(self.blocks.len() as u32);
        match self.blocks.get_mut(at as usize) {
            Some(place) => *place = block,
            None => self.blocks.push(block),
        }
        self.by_name.insert(name, at);
        at
    }

    fn evict(&mut self) -> Option<SequenceHash> {
        let at = self.oldest;
        let name = self.blocks.get(at as usize)?.name;
        self.unlink(at);
        self.by_name.remove(&name);
        self.free.push(at);
        Some(name)
    }

    fn push_newest(&mut self, at: u32) {
        let before = self.newest;
        self.blocks[at as usize].older = before;
        self.blocks[at as usize].newer = NONE;
        match self.blocks.get_mut(before as usize) {
            Some(block) => block.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
        self.idle_blocks += 1;
    }

    fn unlink(&mut self, at: u32) {
        let Block { older, newer, .. } = self.blocks[at as usize];
        match self.blocks.get_mut(older as usize) {
            Some(block) => block.newer = newer,
            None => self.oldest = newer,
        }
        match self.blocks.get_mut(newer as usize) {
            Some(block) => block.older = older,
            None => self.newest = older,
        }
        self.idle_blocks -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[u64]) -> Vec<SequenceHash> {
        names.iter().copied().map(SequenceHash).collect()
    }

    #[test]
    fn what_was_given_up_first_goes_first_and_tails_before_heads() {
        let mut cache = PrefixCache::new(6);
        // Prompts one after the other: what is found, what goes for it.
        for (prompt, found, evicted) in [
            (&[1, 2, 3][..], 0, &[][..]),
            (&[1, 4], 1, &[]),
            (&[5, 6], 0, &[]),
            (&[7], 0, &[3]),
            (&[1, 2], 2, &[]),
            (&[8, 9], 0, &[4, 6]),
            (&[5, 6], 1, &[7]),
        ] {
            let taken = cache.take(&names(prompt), 0).unwrap();
            assert_eq!(taken.found_blocks, found, "{prompt:?}");
            assert_eq!(taken.evicted, names(evicted), "{prompt:?}");
            cache.give_up(&taken.held);
        }
    }

    #[test]
    fn what_requests_hold_stays() {
        let mut cache = PrefixCache::new(4);
        let first = cache.take(&names(&[1, 2]), 1).unwrap();
        let second = cache.take(&names(&[1]), 1).unwrap();
        assert_eq!(second.found_blocks, 1);
        assert_eq!(cache.held_blocks(), 4);
        assert_eq!(cache.take(&names(&[3]), 0), None);
        assert_eq!(cache.take(&names(&[]), 1), None);
        cache.give_up(&first.held);
        assert_eq!(cache.held_blocks(), 2);
        // Block 1 is still held; block 2 and the nameless one are not.
        assert_eq!(cache.take(&names(&[3, 4, 5]), 0), None);
        // Nothing was done by those that were refused.
        assert_eq!(cache.found_blocks(&names(&[1, 2])), 2);
        let third = cache.take(&names(&[3, 4]), 0).unwrap();
        assert_eq!(third.evicted, names(&[2]));
        cache.give_up(&second.held);
        cache.give_up(&third.held);
        assert_eq!(cache.held_blocks(), 0);
    }
}
