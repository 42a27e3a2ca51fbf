//! One data-parallel rank as its agent sees it: from what its source gives to what the router is
//! told.

use std::sync::Arc;

use tracing::warn;

use crate::block::{BlockSize, HashKey};
use crate::events::codec::{self, CodecError};
use crate::events::zmq::{Feed, Last};
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::KvEvent;
use crate::index::gap::BEFORE_FIRST;
use crate::ledger::counts::{Alarm, Counts};
use crate::ledger::tier::Tier;
use crate::ledger::{EngineEvent, Ledger, Published};
use crate::telemetry::causes::told;
use crate::worker::state_file::SavedRank;

/// What the worker's record and the log say of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankStatus {
    pub incarnation: Incarnation,
    /// Of the last batch applied; 0 before the first.
    pub sequence: u64,
    /// Blocks that the ledger names; the router is told of them while the source is caught up.
    pub blocks: u64,
    pub is_caught_up: bool,
    /// Whether the engine may hold blocks that are not published: always before its source is
    /// caught up.
    pub is_partial: bool,
    /// Why it is partial, for a person.
    pub cause: Option<Arc<str>>,
    pub block_size: Option<BlockSize>,
    pub counts: Counts,
    /// Times that messages were found to be lost.
    pub gaps: u64,
    /// The last proof asked for; see [`Rank::ask_proof`].
    pub proof: u64,
}

/// A clearing of the engine's cache that was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearing {
    /// None was.
    No,
    /// It was asked, and has not said whether it did.
    Asked { was_seen: bool },
    /// It did. Its event of that comes with its next step: what it stored before is void.
    Due,
}

/// The ledger of one rank and where its events stand. It lives as long as its agent: whether an
/// engine is still the same process is its source's to prove.
///
/// The router is told of its blocks only while the source is caught up: falling behind takes them
/// back, and being caught up again tells them all at once.
#[derive(Debug)]
pub struct Rank {
    worker: WorkerId,
    rank: DpRank,
    incarnation: Incarnation,
    sequence: u64,
    ledger: Ledger,
    /// The last batch taken in.
    last: Option<Last>,
    /// Why its source is not caught up; `None` while it is.
    behind: Option<Arc<str>>,
    /// What was lost, while the ledger is partial of it.
    lost: Option<Arc<str>>,
    /// Whether the last batch could not be read.
    is_unreadable: bool,
    clearing: Clearing,
    gaps: u64,
    proof: u64,
    /// Seals the names of blocks in what the router is told.
    key: Option<HashKey>,
}

impl Rank {
    /// A rank of which nothing has been seen.
    pub fn new(worker: WorkerId, rank: DpRank, incarnation: Incarnation, ledger: Ledger) -> Self {
        Self {
            worker,
            rank,
            incarnation,
            sequence: BEFORE_FIRST,
            ledger,
            last: None,
            behind: Some(not_followed("their source was not reached yet")),
            lost: None,
            is_unreadable: false,
            clearing: Clearing::No,
            gaps: 0,
            proof: 0,
            key: None,
        }
    }

    /// The same with the names of blocks sealed in what the router is told.
    #[must_use]
    pub fn sealed_by(self, key: Option<HashKey>) -> Self {
        Self { key, ..self }
    }

    /// A rank as a former agent kept it, its ledger restored: the source has to show that the engine
    /// is still the same.
    pub fn restored(saved: &SavedRank, worker: WorkerId, rank: DpRank, ledger: Ledger) -> Self {
        Self {
            sequence: saved.last.sequence,
            last: Some(saved.last),
            ..Self::new(worker, rank, saved.incarnation, ledger)
        }
    }

    /// The rank as it can be kept; `None` before the first batch.
    pub fn save(&self) -> Option<SavedRank> {
        let (worker, ledger) = (self.worker.clone(), self.ledger.save());
        let saved = |last| SavedRank::new(worker, self.rank, self.incarnation, last, ledger);
        self.last.map(saved)
    }

    /// The last batch taken in, where a source goes on.
    pub fn last(&self) -> Option<Last> {
        self.last
    }

    /// The life of the engine that is followed.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the router is told of its blocks.
    pub fn is_caught_up(&self) -> bool {
        self.behind.is_none()
    }

    /// Where the rank stands.
    pub fn status(&self) -> RankStatus {
        let is_partial = !self.is_caught_up() || self.ledger.is_partial();
        let cause = self.behind.as_ref().or(self.lost.as_ref());
        RankStatus {
            incarnation: self.incarnation,
            sequence: match self.sequence {
                BEFORE_FIRST => 0,
                sequence => sequence,
            },
            blocks: self.ledger.blocks(),
            is_caught_up: self.is_caught_up(),
            is_partial,
            cause: cause.filter(|_| is_partial).cloned(),
            block_size: self.ledger.block_size(),
            counts: *self.ledger.counts(),
            gaps: self.gaps,
            proof: self.proof,
        }
    }

    /// Takes what the source gave; the event to tell the router, where there is one. While the
    /// source is caught up there is one for every batch, so that sequence numbers have no holes.
    /// `renew` makes the incarnation of a new engine process.
    pub fn take(&mut self, feed: Feed, renew: impl FnOnce() -> Incarnation) -> Option<KvEvent> {
        let published = match feed {
            Feed::Behind { cause } => return self.fall_behind(&cause),
            Feed::CaughtUp => return self.be_caught_up(),
            Feed::NewLife => {
                self.incarnation = renew();
                (self.sequence, self.last) = (BEFORE_FIRST, None);
                self.clearing = Clearing::No;
                self.ledger.reset()
            }
            Feed::Lost { first, count } => {
                // The number of the last one lost: the next one has no gap before it any more.
                self.sequence = first + count - 1;
                self.gaps += 1;
                self.lose(format!("the events {first} to {} were lost", self.sequence));
                self.ledger.lose()
            }
            Feed::TooLarge { sequence, bytes } => {
                self.sequence = sequence;
                self.refuse(bytes, &CodecError::TooLarge { bytes })
            }
            Feed::Message { sequence, payload } => {
                self.sequence = sequence;
                self.last = Some(Last::of(sequence, &payload));
                self.apply(&payload)
            }
        };
        self.note_loss();
        self.is_caught_up().then(|| self.event(published))
    }

    /// Takes back all that was told, until the source has shown again that it leads to the same
    /// engine; `number` says which time this is.
    pub fn ask_proof(&mut self, number: u64) -> Option<KvEvent> {
        self.proof = number;
        self.fall_behind("their source has to show that the engine is the same")
    }

    /// Takes what the engine's metrics say.
    pub fn describe(&mut self, capacity_blocks: Option<u64>, block_size: Option<BlockSize>) {
        self.ledger.describe(capacity_blocks, block_size);
    }

    /// Notes that the engine is being asked to clear its cache.
    pub fn expect_clearing(&mut self) {
        self.clearing = Clearing::Asked { was_seen: false };
    }

    /// Notes whether the engine has cleared its cache; the event that tells the router at once.
    pub fn settle_clearing(&mut self, is_done: bool) -> Option<KvEvent> {
        let asked = std::mem::replace(&mut self.clearing, Clearing::No);
        // One whose own event came meanwhile is dealt with.
        if !is_done || asked != (Clearing::Asked { was_seen: false }) {
            return None;
        }
        self.clearing = Clearing::Due;
        let published = self.ledger.clear_at_once();
        self.note_loss();
        self.is_caught_up().then(|| self.event(published))
    }

    fn fall_behind(&mut self, cause: &str) -> Option<KvEvent> {
        let told = self.behind.replace(not_followed(cause)).is_none();
        let nothing = Published {
            cleared: true,
            ..Published::default()
        };
        told.then(|| self.event(nothing))
    }

    fn be_caught_up(&mut self) -> Option<KvEvent> {
        self.behind.take()?;
        Some(self.event(self.ledger.all()))
    }

    fn event(&self, mut published: Published) -> KvEvent {
        if let Some(key) = &self.key {
            key.seal_all(&mut published.removed);
            key.seal_all(&mut published.stored);
            for tier in Tier::ALL {
                let changes = &mut published.lower[tier];
                key.seal_all(&mut changes.removed);
                key.seal_all(&mut changes.stored);
            }
        }
        KvEvent {
            worker: self.worker.clone(),
            rank: self.rank,
            incarnation: self.incarnation,
            sequence: self.sequence,
            cleared: published.cleared,
            removed: published.removed,
            stored: published.stored,
            lower: published.lower,
        }
    }

    fn apply(&mut self, payload: &[u8]) -> Published {
        let mut events = match codec::decode(payload) {
            Ok(events) => events,
            Err(error) => return self.refuse(payload.len(), &error),
        };
        self.is_unreadable = false;
        self.leave_out_void(&mut events);
        let before = (self.ledger.block_size(), self.size_alarms());
        let published = self.ledger.apply(events);
        // The first event's size wins over the metrics; one that changes later is not understood.
        if before.0 == self.ledger.block_size() && before.1 < self.size_alarms() {
            self.lose("its events changed their block size".to_owned());
            self.ledger.lose();
            return Published {
                cleared: true,
                ..Published::default()
            };
        }
        published
    }

    fn size_alarms(&self) -> u64 {
        self.ledger.counts().of(Alarm::BlockSizeChanged)
    }

    /// Leaves out what came before a clearing that has been taken in already.
    fn leave_out_void(&mut self, events: &mut Vec<EngineEvent>) {
        let cleared = events
            .iter()
            .position(|event| *event == EngineEvent::Cleared);
        match (self.clearing, cleared) {
            (Clearing::Asked { .. }, Some(_)) => {
                self.clearing = Clearing::Asked { was_seen: true };
            }
            (Clearing::Due, Some(at)) => {
                events.drain(..at);
                self.clearing = Clearing::No;
            }
            (Clearing::Due, None) => events.clear(),
            _ => {}
        }
    }

    fn refuse(&mut self, bytes: usize, error: &CodecError) -> Published {
        let (worker, rank, sequence) = (&self.worker, self.rank.0, self.sequence);
        let error = told(error);
        // One line for a run of them: an engine of another format sends nothing else.
        if !std::mem::replace(&mut self.is_unreadable, true) {
            warn!(%worker, rank, sequence, bytes, %error, "kv events can't be read");
        }
        self.lose(format!("the events {sequence} can't be read: {error}"));
        self.ledger.mark_unreadable()
    }

    /// Notes why events are missing. Whatever was awaited may be among them.
    fn lose(&mut self, cause: String) {
        self.lost = Some(cause.into());
        self.clearing = Clearing::No;
    }

    fn note_loss(&mut self) {
        if !self.ledger.is_partial() {
            self.lost = None;
        } else if self.lost.is_none() {
            self.lost = Some("blocks came whose parents were never seen".into());
        }
    }
}

fn not_followed(cause: &str) -> Arc<str> {
    format!("kv events are not followed: {cause}").into()
}
