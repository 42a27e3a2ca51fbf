//! What a rank is assumed to hold, from what it was sent: for an engine that does not tell, or whose
//! blocks have other names than ours.

use std::collections::VecDeque;
use std::time::Duration;

use crate::block::{BlockMap, SequenceHash};

/// How long, and how much, is assumed to stay in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Since a block was last sent; `None` where only room counts.
    pub time_max: Option<Duration>,
    pub blocks_max: usize,
}

/// One use of a block.
#[derive(Clone, Copy, Debug)]
struct Use {
    number: u64,
    /// Since the owner's beginning.
    at: Duration,
    hash: SequenceHash,
}

/// The blocks that one rank is assumed to hold: the ones sent last. As in the engines, a prompt's
/// later blocks go before its earlier ones, so that whoever has a block has all before it.
#[derive(Debug, Default)]
pub struct Assumed {
    /// The number of each block's last use.
    blocks: BlockMap<u64>,
    /// In order; of a block used again the former uses are void.
    uses: VecDeque<Use>,
    number: u64,
}

impl Assumed {
    /// Notes that a prompt was sent at `now`.
    pub fn sent(&mut self, hashes: &[SequenceHash], now: Duration, stay: Stay) {
        for hash in hashes.iter().rev() {
            self.number += 1;
            self.blocks.insert(*hash, self.number);
            self.uses.push_back(Use {
                number: self.number,
                at: now,
                hash: *hash,
            });
        }
        self.expire(now, stay);
        // Void uses must not outgrow the others.
        if self.uses.len() > 2 * self.blocks.len() + hashes.len() {
            let blocks = &self.blocks;
            self.uses
                .retain(|used| blocks.get(&used.hash) == Some(&used.number));
        }
    }

    /// Forgets what can no longer be there.
    pub fn expire(&mut self, now: Duration, stay: Stay) {
        while let Some(oldest) = self.uses.front() {
            let is_void = self.blocks.get(&oldest.hash) != Some(&oldest.number);
            let is_old = stay.time_max.is_some_and(|most| oldest.at + most <= now);
            if !is_void && !is_old && self.blocks.len() <= stay.blocks_max {
                return;
            }
            if !is_void {
                self.blocks.remove(&oldest.hash);
            }
            self.uses.pop_front();
        }
    }

    /// Counts the leading blocks of a prompt that are assumed to be there.
    pub fn overlap_blocks(&self, hashes: &[SequenceHash]) -> u32 {
        hashes.partition_point(|hash| self.blocks.contains_key(hash)) as u32
    }

    /// Counts all blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether nothing is assumed.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(hashes: &[u64]) -> Vec<SequenceHash> {
        hashes.iter().copied().map(SequenceHash).collect()
    }

    #[test]
    fn what_was_sent_last_is_assumed_to_be_there() {
        let seconds = Duration::from_secs;
        for (sent, asked_at, blocks) in [
            (&[(0, &[1, 2, 3][..])][..], 1, 3),
            (&[(0, &[1, 2, 3])], 10, 0),               // too long ago
            (&[(0, &[1, 2, 3]), (9, &[1, 2])], 10, 2), // two of them sent again
            (&[(0, &[1, 2, 3]), (1, &[7, 8])], 2, 2),  // no room for the last
            (&[(0, &[1, 2, 3]), (1, &[6, 7, 8, 9])], 2, 0),
            (&[(0, &[1, 9])], 1, 1),
        ] {
            let stay = Stay {
                time_max: Some(seconds(10)),
                blocks_max: 4,
            };
            let mut assumed = Assumed::default();
            for (at, hashes) in sent {
                assumed.sent(&names(hashes), seconds(*at), stay);
            }
            assumed.expire(seconds(asked_at), stay);
            assert_eq!(
                assumed.overlap_blocks(&names(&[1, 2, 3])),
                blocks,
                "{sent:?}"
            );
        }
    }

    proptest! {
        /// Whoever has a block has all before it, and neither blocks nor uses outgrow their bounds.
        #[test]
        fn leads_stay_whole_and_memory_bounded(
            prompts in prop::collection::vec((0_u64..4, 1_u64..9, 0_u64..5), 1..60),
            blocks_max in 0_usize..24,
        ) {
            let stay = Stay { time_max: Some(Duration::from_secs(20)), blocks_max };
            let mut assumed = Assumed::default();
            let mut now = Duration::ZERO;
            for (root, length, pause) in prompts {
                now += Duration::from_secs(pause);
                // Prompts of one root share their lead.
                let prompt: Vec<u64> = (0..length).map(|block| 100 * root + block).collect();
                assumed.sent(&names(&prompt), now, stay);
                prop_assert!(assumed.len() <= blocks_max);
                prop_assert!(assumed.uses.len() <= 2 * assumed.len() + 9);
                for root in 0..4_u64 {
                    let all: Vec<u64> = (0..9).map(|block| 100 * root + block).collect();
                    let held: Vec<bool> = names(&all).iter().map(|hash| assumed.blocks.contains_key(hash)).collect();
                    prop_assert!(held.is_sorted_by(|a, b| a >= b), "{held:?}");
                }
            }
        }
    }
}
