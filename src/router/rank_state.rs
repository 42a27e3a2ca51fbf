//! What is booked on one rank of a worker, and what its engine says beside that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::block::SequenceHash;
use crate::discovery::EngineLoad;
use crate::index::assumed::Assumed;
use crate::router::state::BookingKey;
use crate::select::affinity::Affinity;
use crate::select::churn::Churn;
use crate::select::drift::Drift;
use crate::select::load::{InFlight, Load, Share};
use crate::select::stored::{Mark, StoredLog};

/// The share of the newest prefill in what is known of a rank's pace.
const PACE_NEWEST: f64 = 0.2;

/// Tokens a second that an engine is taken to compute before it has shown its pace: few for a GPU, so
/// that a prefill is hardly ever over sooner than it is taken to be, and yet none counts for as long
/// as its answer takes.
const PACE_ASSUMED: f64 = 1_000.0;

/// Prefills that say something of the pace: below, what an engine does beside computing counts more.
const PACE_TOKENS_MIN: u64 = 64;

/// How many times as long as its pace says a prefill may take before it is taken to be over.
const PREFILL_SLACK: f64 = 2.0;

/// Longest time that a prefill counts without any sign of it: none is this long.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// What is booked on one rank.
#[derive(Debug, Default)]
pub(crate) struct RankState {
    /// Each request in flight is a tentative holder of its prompt's blocks.
    pub(crate) in_flight: InFlight,
    pub(crate) booked: BTreeMap<BookingKey, Booked>,
    /// What its engine has stored since the first of them was booked.
    stored: StoredLog,
    /// When prefills whose end nobody sees are taken to be over.
    due: BTreeSet<(Instant, BookingKey)>,
    /// Tokens a second that its engine computes of prompts; 0 where that is not known yet.
    pace: f64,
    /// When a prefill ended last.
    last_end: Option<Instant>,
    /// The new blocks it was sent.
    pub(crate) churn: Churn,
    /// What it is assumed to hold while its engine does not tell.
    pub(crate) assumed: Assumed,
    /// The images it was sent last.
    pub(crate) affinity: Affinity,
    requests_drift: Drift,
    blocks_drift: Drift,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Booked {
    pub(crate) share: Share,
    pub(crate) at: Instant,
    /// Where its engine's stores stood then.
    stored: Mark,
}

impl RankState {
    /// Its load, corrected by what its engine says.
    pub(crate) fn load(&self) -> Load {
        let load = self.in_flight.load();
        let requests = self.requests_drift.corrected(u64::from(load.requests));
        if requests == 0 {
            return Load::default();
        }
        let ours = load.decode_blocks + load.output_blocks;
        let blocks = self.blocks_drift.corrected(ours);
        Load {
            requests: u32::try_from(requests).unwrap_or(u32::MAX),
            decode_blocks: blocks.saturating_sub(load.output_blocks),
            output_blocks: load.output_blocks.min(blocks),
            ..load
        }
    }

    /// Tokens that it has to compute, as far as their end will show: where neither events tell of it nor
    /// the pace is known, answers in one piece may be long past their prefill.
    pub(crate) fn shown_prefill_tokens(&self, has_events: bool) -> u64 {
        if has_events || self.pace > 0.0 {
            return self.in_flight.load().prefill_tokens;
        }
        let shares = self.booked.values().map(|booked| &booked.share);
        let streams = shares.filter(|share| !share.is_whole);
        streams.map(|share| share.prefill_tokens).sum()
    }

    /// Takes in what its engine says of its own load; `None` where it says nothing any more.
    pub(crate) fn observe(&mut self, engine: Option<EngineLoad>) {
        let Some(engine) = engine else {
            self.requests_drift.forget();
            self.blocks_drift.forget();
            return;
        };
        let load = self.in_flight.load();
        let requests = engine.running + engine.waiting;
        self.requests_drift
            .observe(requests, u64::from(load.requests));
        match engine.used_blocks {
            // What waits there holds no blocks yet, and is booked all the same.
            Some(used_blocks) if engine.waiting == 0 => {
                let ours = load.decode_blocks + load.output_blocks;
                self.blocks_drift.observe(used_blocks, ours);
            }
            _ => self.blocks_drift.forget(),
        }
    }

    /// Another process is there: what the former one held, did and said is gone.
    pub(crate) fn begin_again(&mut self) {
        self.assumed.clear();
        self.affinity.clear();
        self.requests_drift.forget();
        self.blocks_drift.forget();
        self.pace = 0.0;
    }

    pub(crate) fn book(&mut self, key: BookingKey, share: Share, at: Instant) {
        self.in_flight.book(&share);
        if share.is_whole {
            self.due.insert((at + self.prefill_wait(), key));
        }
        let stored = self.stored.end();
        self.booked.insert(key, Booked { share, at, stored });
    }

    /// How long all that is queued here may take, the request booked last included.
    fn prefill_wait(&self) -> Duration {
        let pace = match self.pace > 0.0 {
            true => self.pace,
            false => PACE_ASSUMED,
        };
        let seconds = self.in_flight.load().prefill_tokens as f64 / pace * PREFILL_SLACK;
        Duration::try_from_secs_f64(seconds).map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX))
    }

    /// The prefill of a request is over, as its first token or its last block shows.
    pub(crate) fn prefill_done(&mut self, key: BookingKey, now: Instant) {
        let Some(booked) = self.booked.get_mut(&key) else {
            return;
        };
        let tokens = booked.share.prefill_tokens;
        // One at a time: it began when it came, or when the one before it was over.
        let began = self.last_end.map_or(booked.at, |end| end.max(booked.at));
        let seconds = now.saturating_duration_since(began).as_secs_f64();
        self.in_flight.prefill_done(&mut booked.share);
        if tokens >= PACE_TOKENS_MIN && seconds > 0.0 {
            let newest = tokens as f64 / seconds;
            self.pace = match self.pace > 0.0 {
                true => self.pace + PACE_NEWEST * (newest - self.pace),
                false => newest,
            };
        }
        if tokens > 0 {
            self.last_end = Some(now);
        }
    }

    /// Notes what its engine has stored, and the prefills that this ends.
    pub(crate) fn note_stored(&mut self, stored: &[SequenceHash], now: Instant) {
        if !self.booked.is_empty() {
            self.stored.note(stored);
        }
        if !self.in_flight.note_stored(stored) {
            return;
        }
        let computed = self.booked.iter().filter(|(_, booked)| {
            booked.share.prefill_tokens > 0 && self.in_flight.is_computed(&booked.share)
        });
        let computed: Vec<_> = computed.map(|(key, _)| *key).collect();
        for key in computed {
            self.prefill_done(key, now);
        }
    }

    /// Whether a block was stored while a request was in flight, even if it was removed again;
    /// `None` where that is not known any more.
    pub(crate) fn was_stored(&self, hash: SequenceHash, meanwhile: &Booked) -> Option<bool> {
        self.stored.has(hash, meanwhile.stored)
    }

    /// Counts a booked prompt's blocks that the index was wrong about, when its engine found the first
    /// `cached_blocks` of them in its cache; those stored meanwhile are true again, and left out.
    pub(crate) fn disproved(&self, booked: &Booked, cached_blocks: u32) -> usize {
        let disproved = booked.share.disproved(cached_blocks);
        self.stored.missing(disproved, booked.stored)
    }

    /// Ends the prefills whose time is over.
    pub(crate) fn settle(&mut self, now: Instant) {
        while let Some((due, key)) = self.due.first().copied()
            && due <= now
        {
            self.due.pop_first();
            if let Some(booked) = self.booked.get_mut(&key) {
                self.in_flight.prefill_done(&mut booked.share);
            }
        }
    }

    pub(crate) fn free(&mut self, key: BookingKey) {
        if let Some(booked) = self.booked.remove(&key) {
            self.in_flight.free(&booked.share);
        }
        let oldest = self.booked.first_key_value();
        let needed = oldest.map_or(self.stored.end(), |(_, booked)| booked.stored);
        self.stored.forget_before(needed);
        // Dues of requests that are over must not pile up behind one that is far away.
        if self.due.len() > 2 * self.booked.len() {
            let booked = &self.booked;
            self.due.retain(|(_, key)| booked.contains_key(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(prefill_tokens: u64, hashes: &[u64], is_whole: bool) -> Share {
        Share {
            prefill_tokens,
            is_whole,
            blocks: hashes.len() as u32,
            hashes: hashes.iter().copied().map(SequenceHash).collect(),
            ..Share::default()
        }
    }

    /// A rank, and a clock in milliseconds.
    struct World {
        rank: RankState,
        began: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                rank: RankState::default(),
                began: Instant::now(),
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.began + Duration::from_millis(millis)
        }

        fn book(&mut self, key: u64, share: Share, millis: u64) -> BookingKey {
            let (key, at) = (BookingKey(key), self.at(millis));
            self.rank.book(key, share, at);
            key
        }

        fn prefill_tokens(&self) -> u64 {
            self.rank.in_flight.load().prefill_tokens
        }
    }

    #[test]
    fn a_prefill_that_nobody_sees_ends_by_event_or_by_the_pace() {
        let mut world = World::new();
        let unknown = world.book(9, share(1_000, &[9], true), 0);
        for (millis, left) in [(1_900, 1_000), (2_000, 0)] {
            world.rank.settle(world.at(millis));
            assert_eq!(world.prefill_tokens(), left, "no pace is known yet");
        }
        let first = world.book(1, share(1_000, &[1], true), 60_000);
        let stream = world.book(2, share(1_000, &[2], false), 60_000);
        let now = world.at(61_000);
        world.rank.note_stored(&[SequenceHash(2)], now);
        assert_eq!(
            world.prefill_tokens(),
            2_000,
            "a stream shows its first token"
        );
        world.rank.prefill_done(stream, now);
        // A thousand a second.
        world.rank.note_stored(&[SequenceHash(1)], world.at(62_000));
        assert_eq!(world.prefill_tokens(), 0, "the event of its last block");
        let third = world.book(3, share(1_000, &[3], true), 62_000);
        for (millis, left) in [(63_900, 1_000), (64_000, 0)] {
            world.rank.settle(world.at(millis));
            assert_eq!(world.prefill_tokens(), left, "at {millis}");
        }
        for key in [unknown, first, stream, third] {
            world.rank.free(key);
        }
        assert_eq!(world.rank.in_flight.load(), Load::default());
        assert!(world.rank.due.is_empty() && world.rank.booked.is_empty());
    }

    #[test]
    fn the_load_heals_by_what_the_engine_says() {
        let idle = EngineLoad::default();
        let busy = EngineLoad {
            running: 3,
            waiting: 0,
            used_blocks: Some(12),
        };
        let queued = EngineLoad { waiting: 2, ..busy };
        for (readings, requests, blocks) in [
            (&[][..], 1, 2),
            (&[idle, idle], 1, 2),
            (&[idle, idle, idle], 0, 0),  // what was booked is over
            (&[busy, busy, busy], 3, 12), // others use it too
            (&[queued, queued, queued], 5, 2),
            (&[idle, idle, idle, busy], 1, 2),
        ] {
            let mut world = World::new();
            world.book(1, share(16, &[1, 2], false), 0);
            readings
                .iter()
                .for_each(|load| world.rank.observe(Some(*load)));
            let load = world.rank.load();
            assert_eq!(
                (load.requests, load.decode_blocks),
                (requests, blocks),
                "{readings:?}"
            );
            world.rank.observe(None);
            let load = world.rank.load();
            assert_eq!(
                (load.requests, load.decode_blocks),
                (1, 2),
                "it says nothing"
            );
        }
    }
}
