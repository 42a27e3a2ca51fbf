//! The router's state and every change to it; no await, no I/O.

pub(crate) mod disproof;
mod events;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::block::BlockSize;
use crate::discovery::{Completeness, ParityScope, WorkerRecord};
use crate::health::Verdict;
use crate::id::{DpRank, WorkerId};
use crate::index::Index;
use crate::index::holders::Slot;
use crate::index::room::Losses;
use crate::router::member::{Member, RankState};
use crate::router::view::CandidateView;
use crate::router::{Footprint, RouteError};
use crate::select::load::Share;
use crate::select::{Ask, Candidate, Cost, Policy, Room, cost, select};

/// Names one booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BookingKey(u64);

/// A placement without its booking's life.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) worker: WorkerId,
    pub(crate) rank: DpRank,
    pub(crate) ranks: u32,
    pub(crate) address: Arc<str>,
    pub(crate) block_size: BlockSize,
    pub(crate) overlap_blocks: u32,
    pub(crate) prompt_blocks: u32,
    pub(crate) cost: Cost,
    pub(crate) media_dir: Option<Arc<str>>,
    pub(crate) report_session: Option<Arc<str>>,
    pub(crate) parity_failed: Option<ParityScope>,
    pub(crate) gone: CancellationToken,
    pub(crate) booking: BookingKey,
}

/// What the index takes.
#[derive(Debug)]
pub(crate) struct IndexView {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) new_losses: Losses,
}

/// One rank of one worker as a request sees it.
#[derive(Debug)]
struct Seat {
    worker: WorkerId,
    rank: DpRank,
    prompt_blocks: u32,
    not_eligible: Option<&'static str>,
    /// As much of the overlap as the index vouches for.
    indexed_blocks: u32,
    candidate: Candidate,
}

/// The only owner of index, load and the set of workers.
#[derive(Debug)]
pub(crate) struct State {
    policy: Policy,
    pub(crate) workers: BTreeMap<WorkerId, Member>,
    pub(crate) index: Index,
    /// Which rank each booking in flight stands on.
    seats: HashMap<BookingKey, (WorkerId, DpRank)>,
    next_booking: u64,
    /// Counts placements.
    turn: u64,
    /// How often the caches of all ranks together were filled anew.
    turnovers: f64,
}

impl State {
    pub(crate) fn new(policy: Policy, index: Index) -> Self {
        Self {
            policy,
            workers: BTreeMap::new(),
            index,
            seats: HashMap::new(),
            next_booking: 0,
            turn: 0,
            turnovers: 0.0,
        }
    }

    /// Chooses and books; see [`crate::router::Router::place`].
    pub(crate) fn place(
        &mut self,
        footprint: &Footprint,
        excluded: &[WorkerId],
        now: Instant,
    ) -> Result<Chosen, RouteError> {
        let seats = self.seats(footprint, now);
        if seats.is_empty() {
            return Err(RouteError::UnknownModel {
                model: footprint.model.to_string(),
            });
        }
        let workers = seats.len();
        let eligible: Vec<Seat> = seats
            .into_iter()
            .filter(|seat| seat.not_eligible.is_none() && !excluded.contains(&seat.worker))
            .collect();
        let Some((seat, cost)) = self.choose(eligible, footprint) else {
            return Err(RouteError::NoEligibleWorker {
                model: footprint.model.to_string(),
                workers,
            });
        };
        self.turn += 1;
        Ok(self.book(seat, cost, footprint))
    }

    /// Every candidate with its cost; see [`crate::router::Router::explain`].
    pub(crate) fn explain(&self, footprint: &Footprint, now: Instant) -> Vec<CandidateView> {
        let seats = self.seats(footprint, now);
        let eligible = seats.iter().filter(|seat| seat.not_eligible.is_none());
        let candidates: Vec<_> = eligible.clone().map(|seat| seat.candidate).collect();
        let ask = Ask::of(footprint.all_tokens(), candidates.iter());
        let costs = self.costs(ask, &candidates);
        let chosen = select(&candidates, &costs, self.policy, self.turn).and_then(|at| {
            eligible
                .map(|seat| (seat.worker.clone(), seat.rank))
                .nth(at)
        });
        let view = |seat: Seat| CandidateView {
            chosen: chosen
                .as_ref()
                .is_some_and(|(w, r)| *w == seat.worker && *r == seat.rank),
            worker: seat.worker,
            rank: seat.rank,
            not_eligible: seat.not_eligible,
            overlap_blocks: seat.candidate.overlap_blocks,
            prompt_blocks: seat.prompt_blocks,
            load: seat.candidate.load,
            cost: cost(ask, &seat.candidate, self.policy),
        };
        seats.into_iter().map(view).collect()
    }

    /// Takes in a worker's record; true when the worker is new.
    pub(crate) fn upsert(&mut self, record: WorkerRecord) -> bool {
        match self.workers.get_mut(&record.worker) {
            Some(member) => {
                member.update(record);
                false
            }
            None => {
                self.workers
                    .insert(record.worker.clone(), Member::new(record));
                true
            }
        }
    }

    /// Forgets a worker, its blocks and its bookings; true when it was known.
    pub(crate) fn remove(&mut self, worker: &WorkerId) -> bool {
        self.index.remove(worker);
        self.seats.retain(|_, (on, _)| on != worker);
        let removed = self.workers.remove(worker);
        removed.inspect(|member| member.gone.cancel()).is_some()
    }

    pub(crate) fn pause(&mut self, worker: &WorkerId, until: Instant) {
        if let Some(member) = self.workers.get_mut(worker) {
            member.paused_until = Some(until);
        }
    }

    pub(crate) fn prefill_done(&mut self, key: BookingKey) {
        if let Some(rank) = self.rank_of(key)
            && let Some(share) = rank.shares.get_mut(&key)
        {
            rank.in_flight.prefill_done(share);
        }
    }

    pub(crate) fn free(&mut self, key: BookingKey) {
        if let Some(rank) = self.rank_of(key)
            && let Some(share) = rank.shares.remove(&key)
        {
            rank.in_flight.free(&share);
        }
        self.seats.remove(&key);
    }

    /// What the index takes, and what it lost since the last call.
    pub(crate) fn index_view(&mut self) -> IndexView {
        IndexView {
            blocks: self.index.total_blocks(),
            bytes: self.index.bytes(),
            new_losses: self.index.take_losses(),
        }
    }

    /// Counts the workers whose ledger may not name all that their engine holds.
    pub(crate) fn partial_ledgers(&self) -> i64 {
        let is_partial =
            |member: &&Member| member.record.ledger.completeness == Completeness::Partial;
        self.workers.values().filter(is_partial).count() as i64
    }

    /// Counts the workers of each verdict, those of none included.
    pub(crate) fn verdicts(&self) -> [(Verdict, i64); Verdict::ALL.len()] {
        let of = |verdict| {
            self.workers
                .values()
                .filter(move |m| m.record.verdict == verdict)
        };
        Verdict::ALL.map(|verdict| (verdict, of(verdict).count() as i64))
    }

    fn choose(&self, mut eligible: Vec<Seat>, footprint: &Footprint) -> Option<(Seat, Cost)> {
        let candidates: Vec<_> = eligible.iter().map(|seat| seat.candidate).collect();
        let ask = Ask::of(footprint.all_tokens(), candidates.iter());
        let costs = self.costs(ask, &candidates);
        let at = select(&candidates, &costs, self.policy, self.turn)?;
        Some((eligible.swap_remove(at), costs[at]))
    }

    fn costs(&self, ask: Ask, candidates: &[Candidate]) -> Vec<Cost> {
        let costs = candidates.iter().map(|c| cost(ask, c, self.policy));
        costs.collect()
    }

    fn book(&mut self, seat: Seat, cost: Cost, footprint: &Footprint) -> Chosen {
        let key = BookingKey(self.next_booking);
        self.next_booking += 1;
        let block_size = seat.candidate.block_size;
        let cached_tokens = seat.candidate.overlap_blocks * block_size.tokens();
        let hashes = footprint.hashes_for(block_size).cloned();
        let share = Share {
            prefill_tokens: u64::from(footprint.all_tokens().saturating_sub(cached_tokens)),
            blocks: footprint.all_tokens().div_ceil(block_size.tokens()),
            hashes: hashes.unwrap_or_default(),
            indexed_blocks: seat.indexed_blocks,
        };
        let mut chosen = Chosen {
            worker: seat.worker,
            rank: seat.rank,
            ranks: 1,
            address: Arc::default(),
            block_size,
            overlap_blocks: seat.candidate.overlap_blocks,
            prompt_blocks: seat.prompt_blocks,
            cost,
            media_dir: None,
            report_session: None,
            parity_failed: None,
            gone: CancellationToken::new(),
            booking: key,
        };
        let new_blocks = share.blocks.saturating_sub(chosen.overlap_blocks);
        self.turn_over(new_blocks);
        if let Some(member) = self.workers.get_mut(&chosen.worker) {
            member.describe(&mut chosen);
            if let Some(rank) = member.ranks.get_mut(chosen.rank.0 as usize) {
                rank.churn.add(new_blocks, self.turnovers);
                rank.in_flight.book(&share);
                rank.shares.insert(key, share);
            }
        }
        self.seats.insert(key, (chosen.worker.clone(), chosen.rank));
        chosen
    }

    fn rank_of(&mut self, key: BookingKey) -> Option<&mut RankState> {
        let (worker, rank) = self.seats.get(&key)?;
        let member = self.workers.get_mut(worker)?;
        member.ranks.get_mut(rank.0 as usize)
    }

    /// Every rank of every worker that serves the model.
    fn seats(&self, footprint: &Footprint, now: Instant) -> Vec<Seat> {
        let name = footprint.adapter.as_ref().unwrap_or(&footprint.model);
        let mut held: HashMap<Slot, u32> = HashMap::new();
        for (_, hashes) in &footprint.hashes {
            // Hashes of two block sizes never meet, so the answers can share one map.
            held.extend(
                self.index
                    .overlap(hashes)
                    .into_iter()
                    .map(|o| (o.slot, o.blocks)),
            );
        }
        let members = self
            .workers
            .values()
            .filter(|member| member.record.serves(name));
        let seats = members.flat_map(|member| {
            let ranks = member
                .ranks
                .iter()
                .enumerate()
                .take(member.record.ranks.max(1) as usize);
            ranks.map(move |(rank, state)| (member, DpRank(rank as u32), state))
        });
        seats
            .map(|(member, rank, state)| {
                let slot = self.index.slot(&member.record.worker, rank);
                let held = slot.and_then(|slot| held.get(&slot).copied()).unwrap_or(0);
                self.seat(footprint, (member, rank, state), held, now)
            })
            .collect()
    }

    fn seat(
        &self,
        footprint: &Footprint,
        (member, rank, state): (&Member, DpRank, &RankState),
        held_blocks: u32,
        now: Instant,
    ) -> Seat {
        let prompt_tokens = footprint.prompt_tokens;
        let block_size = member.record.block_size.unwrap_or(BlockSize::ONE);
        let hashes = footprint.hashes_for(block_size);
        let shared_blocks = hashes.map_or(0, |hashes| state.in_flight.shared_blocks(hashes));
        let nameable_blocks = match member.parity_failed() {
            None => u32::MAX,
            Some(ParityScope::Text) => 0,
            Some(ParityScope::Media) => block_size.full_blocks(footprint.text_tokens),
        };
        let most_blocks = block_size.cacheable_blocks(prompt_tokens);
        let most_blocks = most_blocks.min(nameable_blocks);
        let overlap_blocks = held_blocks.max(shared_blocks).min(most_blocks);
        let candidate = Candidate {
            block_size,
            overlap_blocks,
            shared_blocks,
            room: self.room(member, rank, state),
            load: state.in_flight.load(),
        };
        Seat {
            worker: member.record.worker.clone(),
            rank,
            prompt_blocks: block_size.full_blocks(prompt_tokens),
            not_eligible: member.not_eligible(now),
            indexed_blocks: held_blocks.min(most_blocks),
            candidate,
        }
    }

    /// What there is room for in a rank's cache; `None` where its ledger may not know all of it.
    fn room(&self, member: &Member, rank: DpRank, state: &RankState) -> Option<Room> {
        let record = &member.record;
        let (capacity, size) = (record.capacity_blocks?, record.block_size?);
        if record.ledger.completeness == Completeness::Partial {
            return None;
        }
        let slot = self.index.slot(&record.worker, rank);
        // What the index had no memory for fills the cache all the same.
        let held = slot.map_or(0, |slot| self.index.told_blocks(slot));
        let coming = state.in_flight.load().prefill_tokens / u64::from(size.tokens());
        Some(Room {
            free_blocks: capacity.saturating_sub(held + coming),
            young: state.churn.young(capacity, self.turnovers),
        })
    }

    /// Counts new blocks that are sent somewhere against what all caches hold together.
    fn turn_over(&mut self, new_blocks: u32) {
        let capacity = |member: &Member| {
            member.record.capacity_blocks.unwrap_or(0) * u64::from(member.record.ranks)
        };
        let capacity_blocks: u64 = self.workers.values().map(capacity).sum();
        self.turnovers += f64::from(new_blocks) / capacity_blocks.max(1) as f64;
    }
}
