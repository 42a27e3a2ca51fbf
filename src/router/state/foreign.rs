//! Bookings of other routers: they weigh on the workers as our own do, until they are freed or their
//! router is silent.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::id::RouterId;
use crate::router::ParityTurn;
use crate::router::sharing::{Booked, Note, Told, What};
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
    pub(crate) fn hear(&mut self, from: &RouterId, told: Told, now: Instant) -> Vec<ParityTurn> {
        if !self.know(from, told.life, now) {
            return Vec::new();
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
                self.list(from, (round, parts), bookings, now);
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
        let Some(foreign) = self.foreign.get_mut(from).filter(|_| is_known) else {
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
            Entry::Occupied(mut known) => known.get_mut().heard = now,
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
            Note::Booked(booked) => self.book_foreign(from, *booked, now),
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
        bookings: Vec<Booked>,
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
    fn book_foreign(&mut self, from: &RouterId, booked: Booked, now: Instant) {
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
                return;
            }
            self.free(known);
        }
        let key = self.reserve();
        let member = self.workers.get_mut(&place.0);
        let rank = member.and_then(|member| member.ranks.get_mut(place.1.0 as usize));
        let Some(rank) = rank else {
            return;
        };
        rank.book(key, share(&booked), now);
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
