//! Bookings shared between routers, so that each knows what the others have sent where: told as they
//! are made and freed, and all of them again each second, because the bus loses some.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::block::{BlockSize, SequenceHash};
use crate::bus::wire::MESSAGE_HASHES_MAX;
use crate::bus::{Bus, subjects, wire};
use crate::id::{DpRank, RouterId, WorkerId};
use crate::router::state::State;
use crate::router::{Answered, Router};

/// How often all live bookings are told again.
const REPUBLISH: Duration = Duration::from_secs(1);

/// What a note takes beside its hashes, in hashes.
const NOTE_WEIGHT: usize = 24;

/// Most leading hashes that are told of one prompt. The blocks behind them count as nobody else's.
pub(crate) const NOTE_HASHES_MAX: usize = MESSAGE_HASHES_MAX - NOTE_WEIGHT;

/// One live booking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Booked {
    /// Names it among those of its router.
    pub(crate) key: u64,
    pub(crate) worker: WorkerId,
    pub(crate) rank: DpRank,
    pub(crate) prefill_tokens: u64,
    pub(crate) is_whole: bool,
    pub(crate) output_tokens: u32,
    pub(crate) block_size: BlockSize,
    pub(crate) blocks: u32,
    /// Of its prompt's leading blocks; none where it is told again.
    #[serde(with = "crate::block::packed", default)]
    pub(crate) hashes: Vec<SequenceHash>,
}

/// What has become of a booking.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    Booked(Box<Booked>),
    PrefillDone(u64),
    Answered(u64, Answered),
    Freed(u64),
}

/// One message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Message {
    /// Of the router: bookings of a former one of its name are over.
    pub(crate) life: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum What {
    Notes(Vec<Note>),
    /// A part of all that is live; what no part of a round names is over.
    Live {
        round: u64,
        parts: u32,
        bookings: Vec<Booked>,
    },
}

/// A router that tells of its own bookings.
#[derive(Debug)]
pub struct Sharing {
    router: Arc<Router>,
    bus: Bus,
    id: RouterId,
    life: u64,
    wake: Arc<Notify>,
}

impl Sharing {
    /// Begins to note what `router` books, to be told under its name.
    pub fn new(router: Arc<Router>, bus: Bus, id: RouterId) -> Self {
        let wake = Arc::new(Notify::new());
        router.note_bookings(wake.clone());
        Self {
            router,
            bus,
            id,
            life: uuid::Uuid::new_v4().as_u64_pair().0,
            wake,
        }
    }

    /// By what others tell this router's bookings from those of a former one of its name.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Tells others until `stop`.
    pub async fn tell(self, stop: CancellationToken) {
        let mut again = interval(REPUBLISH);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subject = subjects::bookings(self.id.as_str());
        let mut round = 0;
        let telling = async {
            loop {
                let messages = tokio::select! {
                    () = self.wake.notified() => notes(self.router.take_notes()),
                    _ = again.tick() => {
                        round += 1;
                        // Notes first: a booking that is told as live must not be told as new after.
                        let mut messages = notes(self.router.take_notes());
                        messages.extend(live(round, self.router.live_bookings()));
                        messages
                    }
                };
                for what in messages {
                    let told = Message {
                        life: self.life,
                        what,
                    };
                    if let Err(error) = self.bus.publish(subject.clone(), &told).await {
                        debug!(%error, "bookings not told on the bus");
                    }
                }
            }
        };
        stop.run_until_cancelled::<_>(telling).await.unwrap_or(());
    }
}

/// Takes in what other routers tell of their bookings until `stop`.
pub async fn hear(router: Arc<Router>, bus: Bus, id: RouterId, stop: CancellationToken) {
    let mut looks = interval(REPUBLISH);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let hearing = async {
        loop {
            let mut told = bus.hear(subjects::ALL_BOOKINGS.to_owned()).await;
            loop {
                let heard = tokio::select! {
                    heard = told.next() => heard,
                    _ = looks.tick() => {
                        router.forget_silent();
                        continue;
                    }
                };
                let Some(heard) = heard else {
                    break;
                };
                let name = heard.subject.rsplit('.').next().unwrap_or_default();
                match (
                    RouterId::new(name),
                    wire::decode("bookings", &heard.payload),
                ) {
                    (Ok(from), _) if from == id => {}
                    (Ok(from), Ok(message)) => router.hear(&from, message),
                    (_, Err(error)) => router.misheard(&heard.subject, &error.to_string()),
                    (Err(error), _) => router.misheard(&heard.subject, &error.to_string()),
                }
            }
        }
    };
    stop.run_until_cancelled::<_>(hearing).await.unwrap_or(());
}

impl Router {
    /// Notes from now on what is booked here, to be told to other routers.
    pub(crate) fn note_bookings(&self, wake: Arc<Notify>) {
        self.lock().note_bookings(wake);
    }

    /// What other routers are to be told.
    pub(crate) fn take_notes(&self) -> Vec<Note> {
        self.lock().take_notes()
    }

    /// All of our own bookings that are live.
    pub(crate) fn live_bookings(&self) -> Vec<Booked> {
        self.lock().live_bookings()
    }

    /// Takes in what another router tells of its bookings.
    pub(crate) fn hear(&self, from: &RouterId, told: Message) {
        self.note_withdrawn(from, &told);
        let turns = self.make_room(|state, now| state.hear(from, told, now));
        turns.into_iter().for_each(|turn| self.report(Some(turn)));
    }

    /// Frees what routers have booked that are silent.
    pub(crate) fn forget_silent(&self) {
        self.make_room(State::forget_silent);
        let routers = self.lock().foreign_routers();
        self.metrics.other_routers.set(routers as i64);
    }

    /// Counts a message on the bus that cannot be read.
    pub(crate) fn misheard(&self, subject: &str, error: &str) {
        self.metrics.bad_messages.inc();
        warn!(subject, error, "message on the bus not understood");
    }
}

/// Notes in messages that stay small.
fn notes(notes: Vec<Note>) -> Vec<What> {
    let weight = |note: &Note| match note {
        Note::Booked(booked) => booked.hashes.len() + NOTE_WEIGHT,
        _ => NOTE_WEIGHT / 4,
    };
    parts(notes, weight).into_iter().map(What::Notes).collect()
}

fn live(round: u64, bookings: Vec<Booked>) -> Vec<What> {
    let mut lists = parts(bookings, |_| NOTE_WEIGHT);
    if lists.is_empty() {
        // Whoever has nothing says so: it is there.
        lists.push(Vec::new());
    }
    let parts = lists.len() as u32;
    let list = |bookings| What::Live {
        round,
        parts,
        bookings,
    };
    lists.into_iter().map(list).collect()
}

fn parts<T>(items: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let weight = weight(&item);
        match parts.last_mut() {
            Some(part) if weight <= room => {
                room -= weight;
                part.push(item);
            }
            _ => {
                room = MESSAGE_HASHES_MAX.saturating_sub(weight);
                parts.push(vec![item]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booked(key: u64, hashes: usize) -> Booked {
        Booked {
            key,
            worker: WorkerId::new("a-name-of-some-length-as-hosts-have").unwrap(),
            rank: DpRank(0),
            prefill_tokens: u64::MAX,
            is_whole: true,
            output_tokens: u32::MAX,
            block_size: BlockSize::new(16).unwrap(),
            blocks: u32::MAX,
            hashes: vec![SequenceHash(u64::MAX); hashes],
        }
    }

    #[test]
    fn every_message_stays_within_sixteen_kilobytes() {
        let all = [3, NOTE_HASHES_MAX, 700, 700, 700, 0].map(|hashes| booked(u64::MAX, hashes));
        let many = (0..1_000).map(|key| booked(key, 0));
        let freed = (0..3_000).map(|_| Note::Freed(u64::MAX));
        let fresh = all.into_iter().map(|booked| Note::Booked(Box::new(booked)));
        let mut messages = notes(fresh.chain(freed).collect());
        messages.extend(live(7, many.collect()));
        assert!(messages.len() > 10);
        for what in messages {
            let bytes = wire::encode(&Message {
                life: u64::MAX,
                what,
            })
            .len();
            assert!(bytes <= 16 << 10, "{bytes}");
        }
        assert_eq!(live(1, Vec::new()).len(), 1);
    }
}
