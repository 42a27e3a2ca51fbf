//! What a worker rank has in hand, counted from bookings.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::block::{BlockMap, BlockSize, SequenceHash};
use crate::select::prompts::Prompts;

/// The load of one worker rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Uncached tokens of requests whose first token has not come.
    pub prefill_tokens: u64,
    /// Blocks of the prompts in flight; one that several prompts share counts once.
    pub decode_blocks: u64,
    /// Blocks of their answers: those that have come, and those that are expected to.
    pub output_blocks: u64,
    /// Requests in flight.
    pub requests: u32,
}

/// What one request adds to the load of the rank it is placed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Zero once the first token has come.
    pub prefill_tokens: u64,
    /// Nobody sees its first token: the answer comes in one piece.
    pub is_whole: bool,
    pub output: Output,
    /// Blocks of the prompt, the part-filled last one included.
    pub blocks: u32,
    /// Names of the full ones; empty where they have none, and then they are shared with nobody.
    pub hashes: Arc<[SequenceHash]>,
    /// Leading blocks that the index said the rank held when the request was booked.
    pub indexed_blocks: u32,
}

/// A request's answer, as far as it takes room beside the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Tokens that it is expected to have; 0 where nobody said.
    pub expected_tokens: u32,
    /// Tokens that have come.
    pub seen_tokens: u32,
    pub block_size: BlockSize,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            expected_tokens: 0,
            seen_tokens: 0,
            block_size: BlockSize::ONE,
        }
    }
}

impl Output {
    /// What it takes in the end, as far as is known: what is still to come shrinks by what comes.
    fn blocks(self) -> u64 {
        let tokens = self.expected_tokens.max(self.seen_tokens);
        u64::from(tokens.div_ceil(self.block_size.tokens()))
    }
}

/// The requests in flight on one rank.
#[derive(Debug, Default)]
pub struct InFlight {
    load: Load,
    prompts: Prompts,
    /// The last blocks of prompts whose first token nobody sees.
    ends: BlockMap<End>,
}

/// A block that ends prompts.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    prompts: u32,
    /// Whether the engine has said since that it stored it.
    is_stored: bool,
}

impl InFlight {
    /// The load they make together.
    pub fn load(&self) -> Load {
        self.load
    }

    /// Adds a request's share.
    pub fn book(&mut self, share: &Share) {
        self.load.prefill_tokens += share.prefill_tokens;
        self.load.requests += 1;
        self.load.output_blocks += share.output.blocks();
        self.load.decode_blocks += u64::from(share.unnamed_blocks());
        self.load.decode_blocks += self.prompts.add(&share.hashes);
        if let Some(end) = share.end() {
            self.ends.entry(end).or_default().prompts += 1;
        }
    }

    /// Notes how many tokens of a booked share's answer have come.
    pub fn progress(&mut self, share: &mut Share, seen_tokens: u32) {
        let before = share.output.blocks();
        share.output.seen_tokens = share.output.seen_tokens.max(seen_tokens);
        self.load.output_blocks = self.load.output_blocks + share.output.blocks() - before;
    }

    /// Takes the prefill out of a booked share: its first token has come.
    pub fn prefill_done(&mut self, share: &mut Share) {
        self.load.prefill_tokens = self
            .load
            .prefill_tokens
            .saturating_sub(share.prefill_tokens);
        share.prefill_tokens = 0;
    }

    /// Takes back what is left of a booked share.
    pub fn free(&mut self, share: &Share) {
        self.load.prefill_tokens = self
            .load
            .prefill_tokens
            .saturating_sub(share.prefill_tokens);
        self.load.requests = self.load.requests.saturating_sub(1);
        self.load.output_blocks = self
            .load
            .output_blocks
            .saturating_sub(share.output.blocks());
        let freed_blocks = u64::from(share.unnamed_blocks()) + self.prompts.remove(&share.hashes);
        self.load.decode_blocks = self.load.decode_blocks.saturating_sub(freed_blocks);
        if let Some(end) = share.end()
            && let Entry::Occupied(mut entry) = self.ends.entry(end)
        {
            entry.get_mut().prompts -= 1;
            if entry.get().prompts == 0 {
                entry.remove();
            }
        }
    }

    /// Notes what the engine has stored; true when a block of it ends a prompt whose first token
    /// nobody sees.
    pub fn note_stored(&mut self, stored: &[SequenceHash]) -> bool {
        if self.ends.is_empty() {
            return false;
        }
        let mut is_end = false;
        for hash in stored {
            if let Some(end) = self.ends.get_mut(hash) {
                (end.is_stored, is_end) = (true, true);
            }
        }
        is_end
    }

    /// Whether the prefill of a booked share is over, as the engine's events show: it has stored the
    /// prompt's last full block.
    pub fn is_computed(&self, share: &Share) -> bool {
        let end = share.end().and_then(|end| self.ends.get(&end));
        end.is_some_and(|end| end.is_stored)
    }

    /// Counts the leading blocks of a prompt that a prompt in flight has too: the engine holds
    /// them, or is about to.
    pub fn shared_blocks(&self, hashes: &[SequenceHash]) -> u32 {
        self.prompts.shared_blocks(hashes)
    }
}

impl Share {
    /// Its blocks that the index was wrong about, when the engine found the first `cached_blocks`
    /// in its cache.
    pub fn disproved(&self, cached_blocks: u32) -> &[SequenceHash] {
        let indexed_blocks = self.hashes.len().min(self.indexed_blocks as usize);
        let cached_blocks = indexed_blocks.min(cached_blocks as usize);
        &self.hashes[cached_blocks..indexed_blocks]
    }

    fn unnamed_blocks(&self) -> u32 {
        self.blocks.saturating_sub(self.hashes.len() as u32)
    }

    /// The block whose storing shows that the prefill is over, where nothing else does.
    fn end(&self) -> Option<SequenceHash> {
        self.hashes.last().copied().filter(|_| self.is_whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(prefill_tokens: u64, blocks: u32, hashes: &[u64]) -> Share {
        let hashes = hashes.iter().copied().map(SequenceHash).collect();
        Share {
            prefill_tokens,
            blocks,
            hashes,
            ..Share::default()
        }
    }

    fn load(prefill_tokens: u64, decode_blocks: u64, requests: u32) -> Load {
        Load {
            prefill_tokens,
            decode_blocks,
            output_blocks: 0,
            requests,
        }
    }

    #[test]
    fn what_is_booked_is_given_back() {
        let mut in_flight = InFlight::default();
        let mut first = share(100, 4, &[1, 2, 3]);
        let second = share(50, 3, &[1, 2]);
        in_flight.book(&first);
        in_flight.book(&second);
        // Blocks 1 and 2 are shared; each prompt has a part-filled last block of its own.
        assert_eq!(in_flight.load(), load(150, 5, 2));
        in_flight.prefill_done(&mut first);
        in_flight.prefill_done(&mut first); // once only
        assert_eq!(in_flight.load(), load(50, 5, 2));
        in_flight.free(&first);
        assert_eq!(in_flight.load(), load(50, 3, 1));
        in_flight.free(&second);
        assert_eq!(in_flight.load(), Load::default());
        assert!(in_flight.prompts.is_empty());
    }

    #[test]
    fn answers_take_what_is_expected_or_what_has_come() {
        let block_size = BlockSize::new(16).unwrap();
        for (expected_tokens, seen, output_blocks) in [
            (0, &[][..], 0),
            (0, &[1], 1),
            (0, &[16, 17], 2),
            (40, &[], 3),
            (40, &[16, 32], 3), // what comes is no longer expected
            (40, &[64], 4),
            (40, &[64, 1], 4), // never less than was seen
        ] {
            let mut in_flight = InFlight::default();
            let mut share = Share {
                output: Output {
                    expected_tokens,
                    seen_tokens: 0,
                    block_size,
                },
                ..share(0, 1, &[1])
            };
            in_flight.book(&share);
            for tokens in seen {
                in_flight.progress(&mut share, *tokens);
            }
            assert_eq!(in_flight.load().output_blocks, output_blocks, "{seen:?}");
            in_flight.free(&share);
            assert_eq!(in_flight.load(), Load::default());
        }
    }

    #[test]
    fn a_stored_last_block_ends_the_prefill_of_whole_answers() {
        for (is_whole, stored, ends) in [
            (true, &[3][..], true),
            (true, &[1, 2], false),
            (true, &[], false),
            (false, &[3], false),
        ] {
            let stored: Vec<_> = stored.iter().copied().map(SequenceHash).collect();
            let mut in_flight = InFlight::default();
            let share = Share {
                is_whole,
                ..share(48, 4, &[1, 2, 3])
            };
            in_flight.book(&share);
            assert_eq!(in_flight.note_stored(&stored), ends, "{stored:?}");
            assert_eq!(in_flight.is_computed(&share), ends, "{stored:?}");
            in_flight.free(&share);
            assert!(!in_flight.note_stored(&stored));
        }
    }

    #[test]
    fn what_the_index_held_and_the_engine_did_not_is_disproved() {
        for (indexed_blocks, cached_blocks, disproved) in [
            (3, 3, &[][..]),
            (3, 4, &[]),
            (3, 1, &[2, 3]),
            (2, 0, &[1, 2]),
            (0, 0, &[]),
            (9, 3, &[4]), // more than have a name
        ] {
            let booked = Share {
                indexed_blocks,
                ..share(0, 5, &[1, 2, 3, 4])
            };
            let disproved: Vec<_> = disproved.iter().copied().map(SequenceHash).collect();
            assert_eq!(booked.disproved(cached_blocks), disproved);
        }
    }

    #[test]
    fn prompts_share_their_lead() {
        let mut in_flight = InFlight::default();
        in_flight.book(&share(0, 4, &[1, 2, 3]));
        for (asked, blocks) in [(&[1, 2, 3][..], 3), (&[1, 2, 9], 2), (&[9], 0), (&[], 0)] {
            let asked: Vec<_> = asked.iter().copied().map(SequenceHash).collect();
            assert_eq!(in_flight.shared_blocks(&asked), blocks, "{asked:?}");
        }
    }
}
