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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, WorkerId};
    use crate::ledger::tier::Tiers;

    use ParityScope::{Media, Text};

    /// What happens to a worker's blocks, at rank 0 unless said.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Expect(u64, ParityScope),
        /// An event that stores this block.
        Stored(u64),
        /// The same of rank 1.
        StoredElsewhere(u64),
        Cleared,
        /// Five seconds.
        Wait,
        /// The same while the ledger is partial.
        WaitPartial,
        /// Half of it.
        HalfWait,
        /// A block that was there already.
        Named(ParityScope),
    }
    use Act::*;

    fn failed_after(acts: &[Act]) -> Option<ParityScope> {
        let mut confirm = Confirm::default();
        let mut now = Instant::now();
        let event = |rank, cleared, stored: Option<u64>| KvEvent {
            worker: WorkerId::new("w").unwrap(),
            rank: DpRank(rank),
            incarnation: Incarnation(1),
            sequence: 0,
            cleared,
            removed: Vec::new(),
            stored: stored.into_iter().map(SequenceHash).collect(),
            lower: Tiers::default(),
        };
        for act in acts {
            match *act {
                Expect(hash, scope) => confirm.expect((DpRank(0), SequenceHash(hash)), scope, now),
                Stored(hash) => confirm.observe(&event(0, false, Some(hash))),
                StoredElsewhere(hash) => confirm.observe(&event(1, false, Some(hash))),
                Cleared => confirm.observe(&event(0, true, None)),
                Wait | WaitPartial | HalfWait => {
                    now += match act {
                        HalfWait => PATIENCE / 2,
                        _ => PATIENCE,
                    };
                    confirm.expire(now, !matches!(act, WaitPartial));
                }
                Named(scope) => confirm.confirm(scope),
            }
        }
        confirm.failed()
    }

    #[test]
    fn three_blocks_that_never_come_show_a_difference() {
        let three = |scope| [1, 2, 3].map(|hash| Expect(hash, scope));
        let [a, b, c] = three(Text);
        let [x, y, z] = three(Media);
        let other = Stored(99);
        for (acts, failed) in [
            (&[a, b, c, other, Wait][..], Some(Text)),
            (&[x, y, z, other, Wait], Some(Media)),
            (&[a, b, c, other], None), // not yet
            (&[a, b, other, Wait], None),
            (&[a, b, c, Wait], None), // no events: nothing follows from their silence
            (&[other, a, b, c, Wait], None), // none since
            (&[a, b, c, StoredElsewhere(9), Wait], None),
            (&[a, b, c, StoredElsewhere(1), other, Wait], Some(Text)),
            (&[a, b, c, other, WaitPartial], None),
            (&[a, b, c, Stored(2), Wait], None),
            (&[a, b, c, Cleared, other, Wait], None),
            // Late, but before anybody looked.
            (
                &[a, b, Expect(4, Text), Stored(1), Stored(2), Stored(4), Wait],
                None,
            ),
            // In a row, over any time.
            (
                &[a, other, Wait, b, other, Wait, c, other, Wait],
                Some(Text),
            ),
            (
                &[a, other, Wait, b, other, Wait, Named(Text), c, other, Wait],
                None,
            ),
            (
                &[x, other, Wait, y, other, Wait, Named(Media), z, other, Wait],
                None,
            ),
            // Text that is right says nothing of images; an image that is right says all.
            (&[x, y, z, other, Wait, Named(Text)], Some(Media)),
            (
                &[x, other, Wait, y, other, Wait, Named(Text), z, other, Wait],
                Some(Media),
            ),
            (&[x, y, z, other, Wait, Named(Media)], None),
            (&[a, b, c, other, Wait, Named(Text)], None),
            (&[a, b, c, other, Wait, Named(Media)], None),
            (&[x, y, a, other, Wait], None),
            // One prompt asked again and again is waited for once.
            (&[a, a, a, other, Wait], None),
        ] {
            assert_eq!(failed_after(acts), failed, "{acts:?}");
        }
    }

    #[test]
    fn a_block_expected_anew_has_its_own_time() {
        let [a, b, c] = [1, 2, 3].map(|hash| Expect(hash, Text));
        let again = [a, b, c, Stored(99)];
        for (end, failed) in [(HalfWait, Some(Text)), (Stored(1), None)] {
            // The time of the first wait is over while the second goes on.
            let mut acts = vec![a, Stored(1), HalfWait];
            acts.extend(again);
            acts.extend([HalfWait, end, HalfWait]);
            assert_eq!(failed_after(&acts), failed, "{end:?}");
        }
    }

    #[test]
    fn only_so_many_are_waited_for() {
        let mut confirm = Confirm::default();
        let now = Instant::now();
        for hash in 0..2 * EXPECTED_MAX as u64 {
            confirm.expect((DpRank(0), SequenceHash(hash)), Text, now);
        }
        assert_eq!(confirm.expected.len(), EXPECTED_MAX);
        confirm.expire(now + PATIENCE, true);
        assert!(confirm.expected.is_empty() && confirm.order.is_empty());
    }
}
