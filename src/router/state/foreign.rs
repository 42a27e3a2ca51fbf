//! Bookings of other routers: they weigh on the workers as our own do, until they are freed or their
//! router is silent.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::id::RouterId;
use crate::router::ParityTurn;
use crate::router::sharing::{Booked, Message, Note, What};
use crate::router::state::{BookingKey, State};
use crate::select::load::{Output, Share};

/// A router that has not been heard for so long has nothing in flight any more, as far as we go.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Most routers that are heard: many times a rack's frontends.
const ROUTERS_MAX: usize = 1_024;

/// Most bookings of one router: more than a frontend has connections.
const BOOKINGS_MAX: usize = 1 << 17;

/// What one other router has booked.
#[derive(Debug)]
pub(crate) struct Foreign {
    life: u64,
    heard: Instant,
    /// Its keys and ours.
    keys: HashMap<u64, BookingKey>,
    listed: Listed,
}

/// A round of all that is live, as far as its parts have come.
#[derive(Debug, Default)]
struct Listed {
    round: u64,
    parts: u32,
    keys: HashSet<u64>,
}

impl State {
    /// Takes in what another router tells; what its engine's answers show of workers' parity.
    pub(crate) fn hear(&mut self, from: &RouterId, told: Message, now: Instant) -> Vec<ParityTurn> {
        if !self.know(from, told.life, now) {
            return Vec::new();
        }
        if let Some(foreign) = self.foreign.get_mut(from) {
            foreign.heard = now;
        }
        match told.what {
            What::Notes(notes) => {
                let turns = notes.into_iter().map(|note| self.note(from, note, now));
                turns.collect::<Vec<_>>().into_iter().flatten().collect()
            }
            What::Live {
                round,
                parts,
                bookings,
            } => {
                self.list(from, (round, parts), &bookings, now);
                Vec::new()
            }
        }
    }

    /// Counts a booking of ours as that of another router, for which it was made.
    pub(crate) fn adopt(
        &mut self,
        from: &RouterId,
        (life, key): (u64, u64),
        booking: BookingKey,
        now: Instant,
    ) {
        let is_known = self.know(from, life, now);
        let foreign = self.foreign.get_mut(from).filter(|_| is_known);
        let Some(foreign) = foreign.filter(|foreign| foreign.keys.len() < BOOKINGS_MAX) else {
            return self.free(booking);
        };
        if let Some(former) = foreign.keys.insert(key, booking) {
            self.free(former);
        }
    }

    /// Frees what routers have booked that are silent.
    pub(crate) fn forget_silent(&mut self, now: Instant) {
        let is_silent =
            |foreign: &Foreign| now.saturating_duration_since(foreign.heard) >= SILENCE_MAX;
        let silent = self
            .foreign
            .iter()
            .filter(|(_, foreign)| is_silent(foreign));
        let silent: Vec<RouterId> = silent.map(|(id, _)| id.clone()).collect();
        for id in silent {
            self.forget(&id);
        }
    }

    /// Counts other routers that are heard.
    pub(crate) fn foreign_routers(&self) -> usize {
        self.foreign.len()
    }

    /// Whether a router may be heard; a new life of it has nothing of the former one's.
    fn know(&mut self, from: &RouterId, life: u64, now: Instant) -> bool {
        if self
            .foreign
            .get(from)
            .is_some_and(|known| known.life != life)
        {
            self.forget(from);
        }
        let is_full = self.foreign.len() >= ROUTERS_MAX;
        match self.foreign.entry(from.clone()) {
            // To ask is not to be heard: only what it tells says what it still holds.
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(free) => {
                free.insert(Foreign {
                    life,
                    heard: now,
                    keys: HashMap::new(),
                    listed: Listed::default(),
                });
            }
        }
        true
    }

    fn forget(&mut self, id: &RouterId) {
        for key in self
            .foreign
            .remove(id)
            .into_iter()
            .flat_map(|foreign| foreign.keys)
        {
            self.free(key.1);
        }
    }

    fn note(&mut self, from: &RouterId, note: Note, now: Instant) -> Option<ParityTurn> {
        let ours = |state: &Self, key: &u64| state.foreign.get(from)?.keys.get(key).copied();
        match note {
            Note::Booked(booked) => self.book_foreign(from, &booked, now),
            Note::PrefillDone(key) => {
                let key = ours(self, &key)?;
                self.prefill_done(key, now);
            }
            Note::Answered(key, answered) => {
                let key = ours(self, &key)?;
                return self.answered(key, answered, now);
            }
            Note::Freed(key) => {
                let key = self.foreign.get_mut(from)?.keys.remove(&key)?;
                self.free(key);
            }
        }
        None
    }

    /// Takes in a part of all that is live.
    fn list(
        &mut self,
        from: &RouterId,
        (round, parts): (u64, u32),
        bookings: &[Booked],
        now: Instant,
    ) {
        let named: Vec<u64> = bookings.iter().map(|booked| booked.key).collect();
        for booked in bookings {
            self.book_foreign(from, booked, now);
        }
        let Some(foreign) = self.foreign.get_mut(from) else {
            return;
        };
        if foreign.listed.round != round {
            foreign.listed = Listed {
                round,
                ..Listed::default()
            };
        }
        foreign.listed.parts += 1;
        foreign.listed.keys.extend(named);
        if foreign.listed.parts < parts {
            return;
        }
        let listed = std::mem::take(&mut foreign.listed);
        let over: Vec<BookingKey> = foreign
            .keys
            .extract_if(|key, _| !listed.keys.contains(key))
            .map(|(_, ours)| ours)
            .collect();
        over.into_iter().for_each(|key| self.free(key));
    }

    /// Books what another router has booked, unless that is known; where it is on another worker than
    /// was known, it has moved.
    fn book_foreign(&mut self, from: &RouterId, booked: &Booked, now: Instant) {
        let Some(foreign) = self.foreign.get(from) else {
            return;
        };
        let place = (booked.worker.clone(), booked.rank);
        let known = foreign.keys.get(&booked.key).copied();
        if known.is_none() && foreign.keys.len() >= BOOKINGS_MAX {
            return;
        }
        if let Some(known) = known {
            if self.seats.get(&known) == Some(&place) {
                if booked.prefill_tokens == 0 {
                    self.prefill_done(known, now);
                }
                return self.progress(known, booked.output_tokens);
            }
            self.free(known);
        }
        let key = self.reserve();
        let member = self.workers.get_mut(&place.0);
        let rank = member.and_then(|member| member.ranks.get_mut(place.1.0 as usize));
        let Some(rank) = rank else {
            return;
        };
        rank.book(key, share(booked), now);
        self.seats.insert(key, place);
        if let Some(foreign) = self.foreign.get_mut(from) {
            foreign.keys.insert(booked.key, key);
        }
    }
}

fn share(booked: &Booked) -> Share {
    Share {
        prefill_tokens: booked.prefill_tokens,
        is_whole: booked.is_whole,
        output: Output {
            expected_tokens: booked.output_tokens,
            seen_tokens: 0,
            block_size: booked.block_size,
        },
        blocks: booked.blocks,
        hashes: booked.hashes.as_slice().into(),
        indexed_blocks: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, SequenceHash};
    use crate::config::router::RouterConfig;
    use crate::discovery::WorkerRecord;
    use crate::health::Verdict;
    use crate::id::{DpRank, WorkerId};
    use crate::select::load::Load;

    /// A router's state with one worker, and a clock.
    struct World {
        state: State,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let mut state = State::new(&RouterConfig::default());
            let worker = WorkerId::new("w").unwrap();
            let mut record = WorkerRecord::new(worker, "http://w", "m");
            record.verdict = Verdict::Healthy;
            state.upsert(record);
            Self {
                state,
                now: Instant::now(),
            }
        }

        fn hear(&mut self, from: &str, life: u64, what: What) {
            let from = RouterId::new(from).unwrap();
            self.state.hear(&from, Message { life, what }, self.now);
        }

        fn load(&self) -> Load {
            self.state.worker_views(self.now)[0].load[0]
        }

        /// Requests, tokens of prefill and blocks.
        fn held(&self) -> (u32, u64, u64) {
            let load = self.load();
            (load.requests, load.prefill_tokens, load.decode_blocks)
        }
    }

    fn booked(key: u64, prefill_tokens: u64, hashes: &[u64]) -> Booked {
        Booked {
            key,
            worker: WorkerId::new("w").unwrap(),
            rank: DpRank(0),
            prefill_tokens,
            is_whole: false,
            output_tokens: 0,
            block_size: BlockSize::new(16).unwrap(),
            blocks: 4,
            hashes: hashes.iter().copied().map(SequenceHash).collect(),
        }
    }

    fn new(key: u64, hashes: &[u64]) -> Note {
        Note::Booked(Box::new(booked(key, 64, hashes)))
    }

    fn live(round: u64, parts: u32, bookings: Vec<Booked>) -> What {
        What::Live {
            round,
            parts,
            bookings,
        }
    }

    #[test]
    fn what_others_booked_weighs_until_it_is_freed() {
        let mut world = World::new();
        world.hear(
            "a",
            1,
            What::Notes(vec![new(7, &[1, 2, 3, 4]), new(8, &[1, 2, 9, 9])]),
        );
        world.hear("b", 1, What::Notes(vec![new(7, &[])]));
        // Of the first two, two blocks are the same.
        assert_eq!(world.held(), (3, 192, 6 + 4));
        world.hear(
            "a",
            1,
            What::Notes(vec![new(7, &[1, 2, 3, 4]), Note::PrefillDone(7)]),
        );
        assert_eq!(world.held(), (3, 128, 10), "told twice, it is one");
        world.hear("a", 1, What::Notes(vec![Note::Freed(8), Note::Freed(99)]));
        assert_eq!(world.held(), (2, 64, 8));
        world.hear("a", 2, live(1, 1, Vec::new()));
        assert_eq!(
            world.held(),
            (1, 64, 4),
            "another life has nothing of the former"
        );
    }

    #[test]
    fn what_is_not_live_any_more_is_freed_once_all_parts_have_come() {
        let mut world = World::new();
        world.hear(
            "a",
            1,
            What::Notes(vec![new(1, &[]), new(2, &[]), new(3, &[])]),
        );
        world.hear("a", 1, live(1, 2, vec![booked(1, 0, &[])]));
        assert_eq!(
            world.held(),
            (3, 128, 12),
            "the prefill of the first is over"
        );
        world.hear("a", 1, live(2, 2, vec![booked(1, 0, &[])]));
        world.hear("a", 1, live(2, 2, vec![booked(4, 64, &[])]));
        assert_eq!(
            world.held(),
            (2, 64, 8),
            "one that was not heard of is there"
        );
    }

    #[test]
    fn a_silent_router_holds_nothing() {
        let mut world = World::new();
        world.hear("a", 1, What::Notes(vec![new(1, &[])]));
        world.now += Duration::from_secs(3);
        world.hear("b", 1, What::Notes(vec![new(1, &[])]));
        world.now += Duration::from_secs(2);
        world.state.forget_silent(world.now);
        assert_eq!((world.held().0, world.state.foreign_routers()), (1, 1));
        world.now += Duration::from_secs(3);
        world.state.forget_silent(world.now);
        assert_eq!((world.held().0, world.state.foreign_routers()), (0, 0));
    }
}
