//! A worker taken in anew from its agent's snapshot, and where its events stand.

use std::time::Instant;

use tracing::info;

use crate::block::SequenceHash;
use crate::discovery::WorkerRecord;
use crate::discovery::feed::Standing;
use crate::id::{DpRank, WorkerId};
use crate::index::KvEvent;
use crate::ledger::tier::{Tier, Tiers};
use crate::router::Router;
use crate::router::state::State;

/// Blocks put into the index under one hold of the lock: less than a millisecond.
const PIECE_BLOCKS: usize = 4_096;

impl Router {
    /// Puts what an agent knows now (an event that clears for each rank) in place of all that was
    /// known of its worker; what is in flight there goes on. Nobody else may tell of that worker
    /// meanwhile.
    pub fn replace(&self, record: WorkerRecord, events: &[KvEvent]) {
        let (worker, verdict) = (record.worker.clone(), record.verdict);
        if self.lock().begin_again(record, events, Instant::now()) {
            info!(%worker, ?verdict, "worker joined");
        }
        for event in events {
            // A placement waits for one piece of a million blocks, not for all.
            for hashes in event.stored.chunks(PIECE_BLOCKS) {
                self.lock().hold(&worker, event.rank, hashes);
            }
            for tier in Tier::ALL {
                for hashes in event.lower[tier].stored.chunks(PIECE_BLOCKS) {
                    let index = &mut self.lock().index;
                    index.hold_lower(&worker, event.rank, tier, hashes);
                }
            }
        }
        self.show_blocks();
        self.show_verdicts();
    }

    /// Where the index stands with each rank of a worker, rank 0 first; ranks of which no event was
    /// applied are left out.
    pub fn standings(&self, worker: &WorkerId) -> Vec<Standing> {
        self.lock().standings(worker)
    }

    /// Counts a feed that broke off.
    pub(crate) fn feed_broke(&self) {
        self.metrics.feed_breaks.inc();
    }

    /// Counts lines of a feed that were lost on their way.
    pub(crate) fn feed_gap(&self) {
        self.metrics.feed_gaps.inc();
    }

    /// Notes whether neither a worker's agent nor its engine is heard.
    pub(crate) fn note_silence(&self, worker: &WorkerId, is_silent: bool) {
        self.change_workers(|state, _| {
            if let Some(member) = state.workers.get_mut(worker) {
                member.is_silent = is_silent;
            }
        });
    }

    /// Whether nothing is in flight on a worker.
    pub fn is_idle(&self, worker: &WorkerId) -> bool {
        self.lock().is_idle(worker)
    }
}

impl State {
    /// Takes in the record and where each rank stands, as yet without its blocks; true when the
    /// worker is new.
    fn begin_again(&mut self, record: WorkerRecord, events: &[KvEvent], now: Instant) -> bool {
        // The numbers of a former agent must not make the events of this one look old.
        self.index.remove(&record.worker);
        let is_new = self.upsert(record);
        for event in events {
            let cleared = KvEvent {
                worker: event.worker.clone(),
                removed: Vec::new(),
                stored: Vec::new(),
                lower: Tiers::default(),
                ..*event
            };
            self.apply_event(&cleared, now);
        }
        is_new
    }

    fn hold(&mut self, worker: &WorkerId, rank: DpRank, hashes: &[SequenceHash]) {
        if let Some(slot) = self.index.slot(worker, rank) {
            self.index.hold(slot, hashes);
        }
    }

    fn standings(&self, worker: &WorkerId) -> Vec<Standing> {
        let ranks = self
            .workers
            .get(worker)
            .map_or(0, |member| member.ranks.len());
        let standing = |rank: DpRank| {
            let slot = self.index.slot(worker, rank)?;
            let (incarnation, sequence) = self.index.progress(slot)?.last()?;
            Some(Standing {
                rank,
                incarnation,
                sequence,
                blocks: self.index.told_blocks(slot),
                lower_blocks: Tiers::from_fn(|tier| {
                    let slot = self.index.lower_slot(worker, rank, tier);
                    slot.map_or(0, |slot| self.index.told_blocks(slot))
                }),
            })
        };
        let ranks = (0..ranks).map(|rank| DpRank(rank as u32));
        ranks.filter_map(standing).collect()
    }

    fn is_idle(&self, worker: &WorkerId) -> bool {
        let member = self.workers.get(worker);
        let mut ranks = member.into_iter().flat_map(|member| &member.ranks);
        ranks.all(|rank| rank.booked.is_empty())
    }
}
