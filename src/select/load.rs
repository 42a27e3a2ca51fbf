//! What a worker rank has in hand, counted from bookings.

use std::sync::Arc;

use crate::block::{BlockMap, BlockSize, SequenceHash};

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
    /// The blocks of the prompts in flight.
    prompts_with: BlockMap<Tentative>,
}

/// A block that prompts in flight have.
#[derive(Clone, Copy, Debug, Default)]
struct Tentative {
    /// How many of them.
    prompts: u32,
    /// How many of them end with it, and have no first token that anybody sees.
    ends: u32,
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
        for hash in &*share.hashes {
            let block = self.prompts_with.entry(*hash).or_default();
            block.prompts += 1;
            self.load.decode_blocks += u64::from(block.prompts == 1);
        }
        if let Some(block) = self.end_of(share) {
            block.ends += 1;
        }
    }

    /// Notes how many tokens of a booked share's answer have come.
    pub fn progress(&mut self, share: &mut Share, seen_tokens: u32) {
        let before = share.output.blocks();
        share.output.seen_tokens = share.output.seen_tokens.max(seen_tokens);
        self.load.output_blocks = self.load.output_blocks + share.output.blocks() - before;
    }

    fn end_of(&mut self, share: &Share) -> Option<&mut Tentative> {
        let last = share.hashes.last().filter(|_| share.is_whole)?;
        self.prompts_with.get_mut(last)
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
        if let Some(block) = self.end_of(share) {
            block.ends = block.ends.saturating_sub(1);
        }
        let mut freed_blocks = u64::from(share.unnamed_blocks());
        for hash in &*share.hashes {
            if let Some(block) = self.prompts_with.get_mut(hash) {
                block.prompts -= 1;
                if block.prompts == 0 {
                    self.prompts_with.remove(hash);
                    freed_blocks += 1;
                }
            }
        }
        self.load.decode_blocks = self.load.decode_blocks.saturating_sub(freed_blocks);
    }

    /// Notes which blocks of prompts in flight are among those that the engine has stored; true when
    /// one of them ends a prompt whose first token nobody sees.
    pub fn note_stored(&mut self, stored: &[SequenceHash]) -> bool {
        if self.prompts_with.is_empty() {
            return false;
        }
        let mut is_end = false;
        for hash in stored {
            if let Some(block) = self.prompts_with.get_mut(hash) {
                block.is_stored = true;
                is_end |= block.ends > 0;
            }
        }
        is_end
    }

    /// Whether the prefill of a booked share is over, as the engine's events show: it has stored the
    /// prompt's last full block.
    pub fn is_computed(&self, share: &Share) -> bool {
        let last = share.hashes.last().filter(|_| share.is_whole);
        last.is_some_and(|hash| self.was_stored(*hash))
    }

    /// Whether a block of a prompt in flight was stored since the first that has it was booked,
    /// even if it was removed again.
    pub fn was_stored(&self, hash: SequenceHash) -> bool {
        let block = self.prompts_with.get(&hash);
        block.is_some_and(|block| block.is_stored)
    }

    /// Counts the leading blocks of a prompt that a prompt in flight has too: the engine holds
    /// them, or is about to.
    pub fn shared_blocks(&self, hashes: &[SequenceHash]) -> u32 {
        // A sequence hash covers all before it: who has a block has all before it, so the shared
        // lead can be bisected.
        hashes.partition_point(|hash| self.prompts_with.contains_key(hash)) as u32
    }
}

impl InFlight {
    /// Which of a booked prompt's blocks the index was wrong about, when its engine found the first
    /// `cached_blocks` of them in its cache; those stored since are true again, and left out.
    pub fn disproved(&self, share: &Share, cached_blocks: u32) -> Vec<SequenceHash> {
        let indexed = share.hashes.iter().take(share.indexed_blocks as usize);
        let missing = indexed.skip(cached_blocks as usize).copied();
        missing.filter(|hash| !self.was_stored(*hash)).collect()
    }
}

impl Share {
    fn unnamed_blocks(&self) -> u32 {
        self.blocks.saturating_sub(self.hashes.len() as u32)
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
        assert!(in_flight.prompts_with.is_empty());
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
    fn what_is_stored_is_noted_while_a_prompt_has_it() {
        let mut in_flight = InFlight::default();
        let stored = [1, 9].map(SequenceHash);
        in_flight.note_stored(&stored); // nobody has it yet
        let (first, second) = (share(0, 2, &[1, 2]), share(0, 1, &[1]));
        in_flight.book(&first);
        assert!(!in_flight.was_stored(SequenceHash(1)));
        in_flight.note_stored(&stored);
        in_flight.book(&second);
        in_flight.free(&first);
        let noted = [1, 2, 9].map(|hash| in_flight.was_stored(SequenceHash(hash)));
        assert_eq!(noted, [true, false, false]);
        in_flight.free(&second);
        assert!(!in_flight.was_stored(SequenceHash(1)));
    }

    #[test]
    fn only_what_was_not_stored_since_is_disproved() {
        let names = |hashes: &[u64]| hashes.iter().copied().map(SequenceHash).collect::<Vec<_>>();
        for (indexed_blocks, cached_blocks, stored, disproved) in [
            (3, 3, &[][..], &[][..]),
            (3, 4, &[], &[]),
            (3, 1, &[], &[2, 3]),
            (2, 0, &[], &[1, 2]),
            (0, 0, &[], &[]),
            // Evicted and computed anew while the request was under way.
            (4, 1, &[2, 3, 9], &[4]),
        ] {
            let mut in_flight = InFlight::default();
            let booked = Share {
                indexed_blocks,
                ..share(0, 4, &[1, 2, 3, 4])
            };
            // What was stored for a prompt before it says nothing of this one's time.
            in_flight.note_stored(&names(&[1, 2, 3, 4]));
            in_flight.book(&booked);
            in_flight.note_stored(&names(stored));
            assert_eq!(
                in_flight.disproved(&booked, cached_blocks),
                names(disproved)
            );
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
