//! The router's state and every change to it; no await, no I/O.

mod bookings;
pub(crate) mod disproof;
mod eligible;
mod events;
pub(crate) mod foreign;
pub(crate) mod outbox;
mod seats;
mod told;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::block::BlockSize;
use crate::config::router::RouterConfig;
use crate::discovery::{Completeness, ParityScope, WorkerRecord};
use crate::health::Verdict;
use crate::id::{DpRank, RouterId, WorkerId};
use crate::index::Index;
use crate::index::room::Losses;
use crate::router::RouteError;
use crate::router::admission::Admission;
use crate::router::basis::Basis;
use crate::router::footprint::{Footprint, Wish};
use crate::router::member::Member;
use crate::router::state::foreign::Foreign;
use crate::router::state::outbox::Outbox;
use crate::router::state::seats::Seat;
use crate::router::view::CandidateView;
use crate::select::choose::select;
use crate::select::cost::{Cost, cost};
use crate::select::{Ask, Candidate, Policy, RouterMode};

/// Names one booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BookingKey(pub(crate) u64);

/// A placement without its booking's life.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) worker: WorkerId,
    pub(crate) rank: DpRank,
    pub(crate) ranks: u32,
    pub(crate) address: Arc<str>,
    pub(crate) block_size: BlockSize,
    pub(crate) overlap_blocks: u32,
    pub(crate) lower_blocks: u32,
    pub(crate) prompt_blocks: u32,
    pub(crate) cost: Cost,
    pub(crate) media_dir: Option<Arc<str>>,
    pub(crate) report_session: Option<Arc<str>>,
    pub(crate) parity_failed: Option<ParityScope>,
    pub(crate) basis: Basis,
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

/// The only owner of index, load and the set of workers.
#[derive(Debug)]
pub(crate) struct State {
    config: RouterConfig,
    policy: Policy,
    /// Weights of labels, from the configuration.
    preferences: HashMap<String, f64>,
    /// When this state began; assumptions count their time from here.
    began: Instant,
    pub(crate) workers: BTreeMap<WorkerId, Member>,
    pub(crate) index: Index,
    /// Which rank each booking in flight stands on.
    seats: HashMap<BookingKey, (WorkerId, DpRank)>,
    next_booking: u64,
    /// What other routers have booked.
    foreign: HashMap<RouterId, Foreign>,
    /// `None` where nobody is told of our bookings.
    outbox: Option<Outbox>,
    /// Whether KV events come here at all.
    pub(crate) hears_events: bool,
    /// Counts placements.
    turn: u64,
    /// How often the caches of all ranks together were filled anew.
    turnovers: f64,
    /// Requests that wait for room.
    pub(crate) admission: Admission,
}

impl State {
    pub(crate) fn new(config: &RouterConfig) -> Self {
        Self {
            config: config.clone(),
            policy: config.policy(),
            preferences: config.preferences().into_iter().collect(),
            began: Instant::now(),
            workers: BTreeMap::new(),
            index: Index::capped(config.index_bytes_max),
            seats: HashMap::new(),
            next_booking: 0,
            foreign: HashMap::new(),
            outbox: None,
            hears_events: true,
            turn: 0,
            turnovers: 0.0,
            admission: Admission::new(config),
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Chooses and books; see [`crate::router::Router::place`].
    pub(crate) fn place(
        &mut self,
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
    ) -> Result<Chosen, RouteError> {
        self.settle(now);
        let policy = self.policy_of(wish)?;
        let seats = self.seats(footprint, now);
        if seats.is_empty() {
            return Err(RouteError::UnknownModel {
                model: footprint.model.to_string(),
            });
        }
        let eligible = self.eligible(&seats, footprint, wish, now)?;
        let workers = seats.len();
        let eligible = seats.into_iter().zip(eligible);
        let eligible = eligible.filter_map(|(seat, may)| may.then_some(seat));
        let Some((seat, cost)) = self.choose(eligible.collect(), footprint, policy) else {
            return Err(RouteError::NoEligibleWorker {
                model: footprint.model.to_string(),
                workers,
            });
        };
        self.turn += 1;
        let chosen = self.book(seat, cost, footprint, now);
        if let Some(member) = self.workers.get_mut(&chosen.worker) {
            member.circuit.placed(chosen.booking, now);
        }
        Ok(chosen)
    }

    /// The policy with the way of choosing that is wished for.
    fn policy_of(&self, wish: &Wish) -> Result<Policy, RouteError> {
        let policy = Policy {
            mode: wish.mode.unwrap_or(self.policy.mode),
            ..self.policy
        };
        match (policy.mode, &wish.worker) {
            (RouterMode::Direct, None) => Err(RouteError::WorkerNotNamed),
            _ => Ok(policy),
        }
    }

    /// Every candidate with its cost; see [`crate::router::Router::explain`].
    pub(crate) fn explain(
        &self,
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
    ) -> Vec<CandidateView> {
        // One that names no worker where it must has no choice, but candidates all the same.
        let policy = self.policy_of(wish).ok();
        let seats = self.seats(footprint, now);
        let eligible = self.eligible(&seats, footprint, wish, now);
        let eligible = eligible.unwrap_or_default();
        let open = || {
            let eligible = seats.iter().zip(&eligible).filter(|(_, may)| **may);
            eligible.map(|(seat, _)| seat)
        };
        let candidates: Vec<_> = open().map(|seat| seat.candidate).collect();
        let ask = Ask::of(footprint.all_tokens(), candidates.iter());
        let costs = self.costs(ask, &candidates);
        let chosen = policy
            .and_then(|policy| select(&candidates, &costs, policy, self.turn))
            .and_then(|at| open().map(|seat| (seat.worker.clone(), seat.rank)).nth(at));
        let view = |seat: Seat| CandidateView {
            chosen: chosen
                .as_ref()
                .is_some_and(|(w, r)| *w == seat.worker && *r == seat.rank),
            worker: seat.worker,
            rank: seat.rank,
            not_eligible: seat.not_eligible,
            basis: seat.basis,
            overlap_blocks: seat.candidate.overlap_blocks,
            host_blocks: seat.candidate.host_blocks,
            disk_blocks: seat.candidate.disk_blocks,
            encoded_tokens: seat.candidate.encoded_tokens,
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
                self.workers.insert(
                    record.worker.clone(),
                    Member::new(record, self.config.circuit),
                );
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

    fn choose(
        &self,
        mut eligible: Vec<Seat>,
        footprint: &Footprint,
        policy: Policy,
    ) -> Option<(Seat, Cost)> {
        let candidates: Vec<_> = eligible.iter().map(|seat| seat.candidate).collect();
        let ask = Ask::of(footprint.all_tokens(), candidates.iter());
        let costs = self.costs(ask, &candidates);
        let at = select(&candidates, &costs, policy, self.turn)?;
        Some((eligible.swap_remove(at), costs[at]))
    }

    fn costs(&self, ask: Ask, candidates: &[Candidate]) -> Vec<Cost> {
        let costs = candidates.iter().map(|c| cost(ask, c, self.policy));
        costs.collect()
    }
}
