//! Whether an engine stores the blocks it computes under the names that we give them.
//!
//! What an answer's usage does not count as cached, the engine has computed, and so has stored. Where
//! events flow and yet never name such a block, the engine makes other prompts than we do.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::block::SequenceHash;
use crate::discovery::ParityScope;
use crate::id::DpRank;
use crate::index::KvEvent;

/// Longest wait for a block's event after its answer. An engine sends events with each step, so
/// that most come before the answer ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Most blocks waited for at once; further ones are not. A sample is enough, and a wait must not
/// cost memory where an engine is busy.
const EXPECTED_MAX: usize = 1_024;

/// Blocks in a row that never came, after which the names are known to differ. One may have been
/// evicted before anybody saw it.
pub(crate) const MISSED_MAX: u32 = 3;

type Block = (DpRank, SequenceHash);

#[derive(Debug)]
struct Expected {
    scope: ParityScope,
    deadline: Instant,
    /// Events of the rank that had been applied when the wait began.
    events: u64,
}

/// The blocks that one worker's engine must name.
#[derive(Debug, Default)]
pub(crate) struct Confirm {
    expected: HashMap<Block, Expected>,
    /// By deadline, those that have come since included.
    order: VecDeque<(Instant, Block)>,
    /// Events applied of each rank.
    events: HashMap<DpRank, u64>,
    // Missed in a row: blocks before any image, and blocks that an image is part of.
    missed_text: u32,
    missed_media: u32,
}

impl Confirm {
    /// Which prompts the engine has shown to make otherwise than we do.
    pub(crate) fn failed(&self) -> Option<ParityScope> {
        if self.missed_text >= MISSED_MAX {
            return Some(ParityScope::Text);
        }
        (self.missed_media >= MISSED_MAX).then_some(ParityScope::Media)
    }

    /// Waits for an event that names a block that the engine has computed. `scope` is `Media` for a
    /// block that an image touches or precedes.
    pub(crate) fn expect(&mut self, block: Block, scope: ParityScope, now: Instant) {
        // A wait that has begun is not begun again: the same prompt, asked again and again, would
        // put off its end for ever.
        if self.order.len() >= EXPECTED_MAX || self.expected.contains_key(&block) {
            return;
        }
        let deadline = now + PATIENCE;
        let expected = Expected {
            scope,
            deadline,
            events: self.events_of(block.0),
        };
        self.expected.insert(block, expected);
        self.order.push_back((deadline, block));
    }

    /// Notes a block that the engine named: its name covers all before it, so an image's proves the
    /// text around it too, and a text's nothing of images.
    pub(crate) fn confirm(&mut self, scope: ParityScope) {
        self.missed_text = 0;
        if scope == ParityScope::Media {
            self.missed_media = 0;
        }
    }

    /// Takes note of an applied event.
    pub(crate) fn observe(&mut self, event: &KvEvent) {
        *self.events.entry(event.rank).or_default() += 1;
        if self.expected.is_empty() {
            return;
        }
        for hash in &event.stored {
            if let Some(found) = self.expected.remove(&(event.rank, *hash)) {
                self.confirm(found.scope);
            }
        }
        if event.cleared {
            // What the rank held is gone, named or not.
            self.expected.retain(|(rank, _), _| *rank != event.rank);
            self.order.retain(|(_, (rank, _))| *rank != event.rank);
        }
    }

    /// Ends waits that have lasted too long. They count as missed only while the ledger names all
    /// that the engine holds, and where the rank's events went on meanwhile.
    pub(crate) fn expire(&mut self, now: Instant, is_complete: bool) {
        while let Some((deadline, block)) = self.order.front().copied()
            && deadline <= now
        {
            self.order.pop_front();
            // Another wait for the same block may have begun since.
            let is_same = |expected: &Expected| expected.deadline == deadline;
            if !self.expected.get(&block).is_some_and(is_same) {
                continue;
            }
            let Some(missed) = self.expected.remove(&block) else {
                continue;
            };
            if !is_complete || self.events_of(block.0) == missed.events {
                continue;
            }
            let count = match missed.scope {
                ParityScope::Text => &mut self.missed_text,
                ParityScope::Media => &mut self.missed_media,
            };
            *count = count.saturating_add(1);
        }
    }

    fn events_of(&self, rank: DpRank) -> u64 {
        self.events.get(&rank).copied().unwrap_or_default()
    }
}
