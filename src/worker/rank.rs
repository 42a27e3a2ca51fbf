//! One data-parallel rank as its agent sees it: from what its source gives to what the router is
//! told.

use tracing::warn;

use crate::block::BlockSize;
use crate::events::codec;
use crate::events::zmq::{Feed, Last};
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::KvEvent;
use crate::index::gap::BEFORE_FIRST;
use crate::ledger::counts::Counts;
use crate::ledger::{Ledger, Published};
use crate::worker::state_file::SavedRank;

/// What the worker's record and the log say of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankStatus {
    pub incarnation: Incarnation,
    /// Of the last batch applied; 0 before the first.
    pub sequence: u64,
    pub blocks: u64,
    /// Whether the engine may hold blocks that were never published: always before its source is
    /// caught up.
    pub is_partial: bool,
    pub block_size: Option<BlockSize>,
    pub counts: Counts,
}

/// The ledger of one rank and where its events stand.
#[derive(Debug)]
pub struct Rank {
    worker: WorkerId,
    rank: DpRank,
    incarnation: Incarnation,
    sequence: u64,
    ledger: Ledger,
    /// Whether the last batch could not be read.
    is_unreadable: bool,
    is_caught_up: bool,
    /// The last batch taken in.
    last: Option<Last>,
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
            is_unreadable: false,
            is_caught_up: false,
            last: None,
        }
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

    /// The last batch taken in, where a source goes on.
    pub fn last(&self) -> Option<Last> {
        self.last
    }

    /// The rank as it can be kept; `None` before the first batch.
    pub fn save(&self) -> Option<SavedRank> {
        let (worker, ledger) = (self.worker.clone(), self.ledger.save());
        let saved = |last| SavedRank::new(worker, self.rank, self.incarnation, last, ledger);
        self.last.map(saved)
    }

    /// The life of the engine that is followed.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Where the rank stands.
    pub fn status(&self) -> RankStatus {
        RankStatus {
            incarnation: self.incarnation,
            sequence: match self.sequence {
                BEFORE_FIRST => 0,
                sequence => sequence,
            },
            blocks: self.ledger.blocks(),
            is_partial: !self.is_caught_up || self.ledger.is_partial(),
            block_size: self.ledger.block_size(),
            counts: *self.ledger.counts(),
        }
    }

    /// Takes what the source gave; the event to tell the router, which is there for every batch, so
    /// that sequence numbers have no holes. `renew` makes the incarnation of a new engine process.
    pub fn take(&mut self, feed: Feed, renew: impl FnOnce() -> Incarnation) -> Option<KvEvent> {
        let published = match feed {
            Feed::Lost { .. } => self.ledger.lose(),
            Feed::CaughtUp | Feed::Behind => {
                self.is_caught_up = feed == Feed::CaughtUp;
                return None;
            }
            Feed::NewLife => {
                self.incarnation = renew();
                self.sequence = BEFORE_FIRST;
                self.last = None;
                self.ledger.reset()
            }
            Feed::Message { sequence, payload } => {
                self.sequence = sequence;
                self.last = Some(Last::of(sequence, &payload));
                self.apply(&payload)
            }
        };
        Some(KvEvent {
            worker: self.worker.clone(),
            rank: self.rank,
            incarnation: self.incarnation,
            sequence: self.sequence,
            cleared: published.cleared,
            removed: published.removed,
            stored: published.stored,
        })
    }

    fn apply(&mut self, payload: &[u8]) -> Published {
        match codec::decode(payload) {
            Ok(events) => {
                self.is_unreadable = false;
                self.ledger.apply(events)
            }
            Err(error) => {
                // One line for a run of them: an engine of another format sends nothing else.
                if !std::mem::replace(&mut self.is_unreadable, true) {
                    let (worker, rank) = (&self.worker, self.rank.0);
                    let (sequence, bytes) = (self.sequence, payload.len());
                    warn!(%worker, rank, sequence, bytes, %error, "kv events can't be read");
                }
                self.ledger.mark_unreadable()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Options;
    use crate::ledger::counts::Alarm;

    fn message(sequence: u64, payload: &'static [u8]) -> Feed {
        Feed::Message {
            sequence,
            payload: payload.into(),
        }
    }

    #[test]
    fn a_rank_is_complete_only_while_its_source_is_caught_up_and_readable() {
        // [0.0, []]
        let empty: &[u8] = b"\x92\xcb\0\0\0\0\0\0\0\0\x90";
        let lost = Feed::Lost { first: 3, count: 1 };
        let ledger = Ledger::new("m", Options::default());
        let worker = WorkerId::new("w").unwrap();
        let mut rank = Rank::new(worker, DpRank(0), Incarnation(1), ledger);
        assert!(rank.status().is_partial, "nothing was heard of the engine");
        for (feed, is_partial, unreadable) in [
            (message(0, empty), true, 0),
            (Feed::CaughtUp, false, 0),
            (message(1, b"\xc1"), true, 1),
            (message(2, b"\x92"), true, 2),
            (Feed::NewLife, false, 2),
            (Feed::Behind, true, 2),
            (Feed::CaughtUp, false, 2),
            (lost, true, 2),
        ] {
            let about = format!("{feed:?}");
            let is_batch = matches!(
                feed,
                Feed::Message { .. } | Feed::NewLife | Feed::Lost { .. }
            );
            assert_eq!(rank.take(feed, || Incarnation(2)).is_some(), is_batch);
            let status = rank.status();
            let seen = (status.is_partial, status.counts.of(Alarm::Unreadable));
            assert_eq!(seen, (is_partial, unreadable), "after {about}");
        }
    }
}
