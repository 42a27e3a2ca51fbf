//! What engines tell: KV events, and answers that say which blocks an event must name.

use std::time::Instant;

use crate::discovery::{Completeness, ParityScope};
use crate::index::gap::Step;
use crate::index::{Applied, KvEvent};
use crate::router::confirm::Confirm;
use crate::router::member::Member;
use crate::router::state::{BookingKey, State};
use crate::router::{Answered, ParityTurn};

impl State {
    /// Applies one event; one of a worker we do not know is dropped, for its blocks could never be
    /// placed on.
    pub(crate) fn apply_event(
        &mut self,
        event: &KvEvent,
        now: Instant,
    ) -> (Applied, Option<ParityTurn>) {
        let Some(member) = self.workers.get_mut(&event.worker) else {
            return (Applied::Duplicate, None);
        };
        let applied = self.index.apply(event);
        let Applied::Yes(step) = applied else {
            return (applied, None);
        };
        let before = member.confirm.failed();
        if step == Step::NewIncarnation {
            // Another process, and maybe another release, that has shown nothing yet.
            member.confirm = Confirm::default();
        }
        member.confirm.observe(event);
        if let Some(rank) = member.ranks.get_mut(event.rank.0 as usize) {
            rank.note_stored(&event.stored, now);
        }
        (applied, turn(member, before, now))
    }

    /// Holds an answer against the events. Of the blocks that were not cached, and so were computed,
    /// two must be stored under our names: the last one before any image, whose name covers the
    /// text, and the prompt's last one, whose name covers everything.
    pub(crate) fn answered(
        &mut self,
        key: BookingKey,
        answered: Answered,
        now: Instant,
    ) -> Option<ParityTurn> {
        if let Some(outbox) = &mut self.outbox {
            outbox.answered(key, answered);
        }
        if !self.hears_events {
            return None;
        }
        let (worker, rank) = self.seats.get(&key)?;
        let member = self.workers.get_mut(worker)?;
        let state = member.ranks.get(rank.0 as usize)?;
        let booked = state.booked.get(&key)?;
        let hashes = &booked.share.hashes;
        let first = answered.block_size.full_blocks(answered.cached_tokens) as usize;
        let text_blocks = answered.block_size.full_blocks(answered.text_tokens) as usize;
        let slot = self.index.slot(worker, *rank);
        let before = member.confirm.failed();
        for (blocks, scope) in [
            (first..text_blocks.min(hashes.len()), ParityScope::Text),
            (first.max(text_blocks)..hashes.len(), ParityScope::Media),
        ] {
            let Some(hash) = blocks.last().and_then(|at| hashes.get(at)) else {
                continue;
            };
            let holders = self.index.overlap(std::slice::from_ref(hash));
            let is_held = holders.iter().any(|held| Some(held.slot) == slot);
            match is_held
                .then_some(true)
                .or_else(|| state.was_stored(*hash, booked))
            {
                Some(true) => member.confirm.confirm(scope),
                Some(false) => member.confirm.expect((*rank, *hash), scope, now),
                // It came and went, or never came.
                None => {}
            }
        }
        turn(member, before, now)
    }
}

/// Ends waits that are over; what the router must say of the worker, if anything has changed since
/// `before`.
fn turn(member: &mut Member, before: Option<ParityScope>, now: Instant) -> Option<ParityTurn> {
    let is_complete = member.record.ledger.completeness == Completeness::Complete;
    member.confirm.expire(now, is_complete);
    let failed = member.confirm.failed();
    (failed != before).then(|| ParityTurn {
        worker: member.record.worker.clone(),
        failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, SequenceHash};
    use crate::config::router::RouterConfig;
    use crate::discovery::{Parity, WorkerRecord};
    use crate::health::Verdict;
    use crate::id::{DpRank, Incarnation, WorkerId};
    use crate::ledger::tier::Tiers;
    use crate::router::confirm::PATIENCE;
    use crate::router::footprint::Footprint;
    use crate::router::footprint::Wish;

    const SIZE: u32 = 16;

    /// A router's state with one worker, and a clock.
    struct World {
        state: State,
        now: Instant,
        sequence: u64,
    }

    fn record() -> WorkerRecord {
        let worker = WorkerId::new("w").unwrap();
        let mut record = WorkerRecord::new(worker, "http://w", "m");
        record.block_size = BlockSize::new(SIZE);
        record.verdict = Verdict::Healthy;
        record.ledger.completeness = Completeness::Complete;
        record
    }

    fn hashes(hashes: &[u64]) -> Vec<SequenceHash> {
        hashes.iter().copied().map(SequenceHash).collect()
    }

    impl World {
        fn new() -> Self {
            let mut state = State::new(&RouterConfig::default());
            state.upsert(record());
            Self {
                state,
                now: Instant::now(),
                sequence: 0,
            }
        }

        fn event(
            &mut self,
            incarnation: u64,
            stored: &[u64],
            removed: &[u64],
        ) -> Option<ParityTurn> {
            self.sequence += 1;
            let event = KvEvent {
                worker: record().worker,
                rank: DpRank(0),
                incarnation: Incarnation(incarnation),
                sequence: self.sequence,
                cleared: false,
                removed: hashes(removed),
                stored: hashes(stored),
                lower: Tiers::default(),
            };
            self.state.apply_event(&event, self.now).1
        }

        /// Places a prompt of these blocks and one token, its first image after `text_blocks`.
        fn place(&mut self, blocks: &[u64], text_blocks: u32) -> Asked {
            let size = BlockSize::new(SIZE).unwrap();
            let prompt_tokens = blocks.len() as u32 * SIZE + 1;
            let text_tokens = prompt_tokens.min(text_blocks * SIZE + 3);
            let footprint = Footprint {
                hashes: vec![(size, hashes(blocks).into())],
                text_tokens,
                ..Footprint::new("m", prompt_tokens)
            };
            let chosen = self
                .state
                .place(&footprint, &Wish::default(), self.now)
                .unwrap();
            Asked {
                key: chosen.booking,
                text_tokens,
                seen: (chosen.overlap_blocks, chosen.parity_failed),
            }
        }

        fn answer(&mut self, asked: &Asked, cached_blocks: u32) -> Option<ParityTurn> {
            let answered = Answered {
                block_size: BlockSize::new(SIZE).unwrap(),
                text_tokens: asked.text_tokens,
                cached_tokens: cached_blocks * SIZE,
            };
            let turn = self.state.answered(asked.key, answered, self.now);
            self.state.free(asked.key);
            turn
        }

        /// Three prompts with these lengths of text and cached leads, of which nothing is stored.
        fn unnamed(&mut self, text_blocks: u32, cached_blocks: u32) -> Option<ParityTurn> {
            for prompt in 1..=3 {
                let blocks = [1, 2, 3].map(|block| 1_000 * prompt + block);
                let asked = self.place(&blocks, text_blocks);
                assert_eq!(self.answer(&asked, cached_blocks), None);
            }
            self.event(1, &[7], &[]);
            self.now += PATIENCE;
            self.event(1, &[8], &[])
        }

        fn shown(&self) -> Parity {
            self.state.worker_views(Instant::now())[0]
                .record
                .parity
                .clone()
        }
    }

    struct Asked {
        key: BookingKey,
        text_tokens: u32,
        /// Overlap and failed parity of the placement.
        seen: (u32, Option<ParityScope>),
    }

    fn turned(failed: Option<ParityScope>) -> Option<ParityTurn> {
        let worker = record().worker;
        Some(ParityTurn { worker, failed })
    }

    #[test]
    fn an_engine_that_names_other_blocks_is_found_out_and_heals() {
        use ParityScope::{Media, Text};
        for (text_blocks, cached_blocks, scope) in
            [(9, 0, Text), (9, 2, Text), (1, 1, Media), (0, 0, Media)]
        {
            let mut world = World::new();
            world.event(1, &[1, 2, 3], &[]);
            let turn = world.unnamed(text_blocks, cached_blocks);
            assert_eq!(turn, turned(Some(scope)), "{text_blocks} {cached_blocks}");
            let shown = world.shown();
            assert!(
                matches!(&shown, Parity::Failed { scope: s, reason } if *s == scope && reason.contains("3 blocks")),
                "{shown:?}"
            );
            // What the index holds counts only as far as its names are right.
            let asked = world.place(&[1, 2, 3, 4], 1);
            let text_overlap = u32::from(scope == Media);
            assert_eq!(asked.seen, (text_overlap, Some(scope)));
            // Block 4 is stored under our name: it follows an image, so all names are right.
            assert_eq!(world.event(1, &[4], &[]), None);
            assert_eq!(world.answer(&asked, 3), turned(None));
            assert_eq!(world.shown(), Parity::Unchecked);
            assert_eq!(world.place(&[1, 2, 3, 4], 1).seen, (4, None));
        }
    }

    #[test]
    fn blocks_that_came_in_time_are_no_difference() {
        type Come = fn(&mut World, &[u64; 3]);
        let before: Come = |world, blocks| drop(world.event(1, blocks, &[]));
        let evicted: Come = |world, blocks| {
            world.event(1, blocks, &[]);
            world.event(1, &[], blocks);
        };
        let nothing: Come = |_, _| {};
        for (come, afterwards) in [(before, nothing), (evicted, nothing), (nothing, before)] {
            let mut world = World::new();
            for prompt in 1..=4 {
                let blocks = [1, 2, 3].map(|block| 1_000 * prompt + block);
                let asked = world.place(&blocks, 9);
                come(&mut world, &blocks);
                assert_eq!(world.answer(&asked, 0), None);
                afterwards(&mut world, &blocks);
            }
            world.now += PATIENCE;
            assert_eq!(world.event(1, &[8], &[]), None);
            assert_eq!(world.shown(), Parity::Unchecked);
        }
    }

    #[test]
    fn an_image_is_judged_by_what_comes_after_it() {
        let mut world = World::new();
        for prompt in 1..=3 {
            let blocks = [1, 2, 3].map(|block| 1_000 * prompt + block);
            let asked = world.place(&blocks, 1);
            // All but the last: an image that is too long differs only where it ends.
            world.event(1, &blocks[..2], &[]);
            assert_eq!(world.answer(&asked, 0), None);
        }
        world.event(1, &[7], &[]);
        world.now += PATIENCE;
        let turn = world.event(1, &[8], &[]);
        assert_eq!(turn, turned(Some(ParityScope::Media)));
    }

    #[test]
    fn nothing_follows_without_events_of_a_complete_ledger() {
        let mut world = World::new();
        let mut partial = record();
        partial.ledger.completeness = Completeness::Partial;
        world.state.upsert(partial);
        assert_eq!(world.unnamed(9, 0), None);
        world.state.upsert(record());
        // All was cached, as the engine says: it computed no full block.
        assert_eq!(world.unnamed(9, 3), None);
        assert_eq!(world.unnamed(9, 0), turned(Some(ParityScope::Text)));
    }

    #[test]
    fn another_process_has_shown_nothing_yet() {
        let mut world = World::new();
        world.unnamed(9, 0);
        world.sequence = 0;
        assert_eq!(world.event(2, &[], &[]), turned(None));
        let asked = world.place(&[1, 2], 9);
        world.answer(&asked, 0);
        world.event(3, &[], &[]);
        assert_eq!(world.shown(), Parity::Unchecked);
    }

    #[test]
    fn what_the_agent_found_is_not_healed_by_blocks() {
        let mut world = World::new();
        let failed = |scope| Parity::Failed {
            scope,
            reason: "token 3 differs".to_owned(),
        };
        let mut found = record();
        found.parity = failed(ParityScope::Media);
        world.state.upsert(found.clone());
        assert_eq!(world.unnamed(9, 0), turned(Some(ParityScope::Text)));
        assert!(
            matches!(world.shown(), Parity::Failed { scope, .. } if scope == ParityScope::Text)
        );
        let asked = world.place(&[4], 9);
        world.event(1, &[4], &[]);
        assert_eq!(world.answer(&asked, 0), turned(None));
        assert_eq!(world.shown(), found.parity);
    }
}
