//! The queue of free blocks, least recently freed first; any block leaves it in constant time.

/// A physical block's number; 0 is the null block, which no request ever gets.
pub type BlockId = u32;

const NONE: BlockId = 0;

/// A doubly linked list over block numbers.
#[derive(Debug)]
pub struct FreeQueue {
    next: Vec<BlockId>,
    previous: Vec<BlockId>,
    length: usize,
}

impl FreeQueue {
    /// Every block but the null block, in order.
    pub fn new(blocks: u32) -> Self {
        let empty = vec![NONE; blocks as usize];
        let mut queue = Self {
            next: empty.clone(),
            previous: empty,
            length: 0,
        };
        for block in 1..blocks {
            queue.push_back(block);
        }
        queue
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn pop_front(&mut self) -> Option<BlockId> {
        let front = self.next[NONE as usize];
        (front != NONE).then(|| {
            self.remove(front);
            front
        })
    }

    pub fn push_back(&mut self, block: BlockId) {
        let last = self.previous[NONE as usize];
        self.link(last, block, NONE);
    }

    /// Puts `blocks` before all others, keeping their order.
    pub fn push_all_front(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            let first = self.next[NONE as usize];
            self.link(NONE, block, first);
        }
    }

    /// Takes `block` out; it must be in the queue.
    pub fn remove(&mut self, block: BlockId) {
        let (previous, next) = (self.previous[block as usize], self.next[block as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
        self.length -= 1;
    }

    // The null block closes the ring, so that no end is a special case.
    fn link(&mut self, previous: BlockId, block: BlockId, next: BlockId) {
        self.next[previous as usize] = block;
        self.previous[block as usize] = previous;
        self.next[block as usize] = next;
        self.previous[next as usize] = block;
        self.length += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_leave_in_the_order_they_came() {
        let mut queue = FreeQueue::new(5);
        assert_eq!(queue.pop_front(), Some(1));
        queue.remove(3);
        queue.push_back(1);
        queue.push_all_front(&[3]);
        assert_eq!(queue.len(), 4);
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_front()).collect();
        assert_eq!(rest, [3, 2, 4, 1]);
    }
}
