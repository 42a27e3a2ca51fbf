//! The router of a replay: the state that serves real requests, under a clock of ours.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::block::{BlockSize, SequenceHash};
use crate::commands::replay::prompt::MODEL;
use crate::config::router::RouterConfig;
use crate::discovery::{Completeness, WorkerRecord};
use crate::health::Verdict;
use crate::id::{DpRank, Incarnation, InvalidWorkerId, WorkerId};
use crate::index::KvEvent;
use crate::ledger::tier::Tiers;
use crate::router::RouteError;
use crate::router::admission::Decided;
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::{BookingKey, Chosen, State};
use crate::select::load::Load;
use crate::select::queue::Ticket;

/// Engines are told apart from those of another life by it; ours have one.
const INCARNATION: Incarnation = Incarnation(1);

/// Longest wait for a place: ten years. A replay refuses nothing, or its figures would be those of
/// the requests that were lucky.
const WAIT_SECS: u64 = 320_000_000;

/// The fleet that a trace is replayed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) workers: usize,
    pub(crate) capacity_blocks: u64,
    pub(crate) block_size: BlockSize,
}

/// A router of workers that are numbered.
#[derive(Debug)]
pub(crate) struct Routed {
    state: State,
    workers: Vec<Worker>,
    /// The request behind each ticket.
    waiting: HashMap<Ticket, usize>,
    /// What the virtual clock shows as zero.
    start: Instant,
}

#[derive(Debug)]
struct Worker {
    id: WorkerId,
    /// Events so far.
    sequence: u64,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Its place in the trace.
    pub(crate) request: usize,
    pub(crate) worker: usize,
    pub(crate) booking: BookingKey,
}

impl Routed {
    /// A router of a fleet with empty caches.
    pub(crate) fn new(config: &RouterConfig, fleet: Fleet) -> Result<Self, InvalidWorkerId> {
        let mut state = State::new(&RouterConfig {
            queue_requests_max: usize::MAX,
            queue_tokens_max: u64::MAX,
            queue_wait_secs: WAIT_SECS,
            ..config.clone()
        });
        let mut workers = Vec::with_capacity(fleet.workers);
        for number in 0..fleet.workers {
            // The router goes through workers by name: leading zeros keep the order of numbers.
            let id = WorkerId::new(&format!("w{number:04}"))?;
            let mut record = WorkerRecord::new(id.clone(), "http://replay", MODEL);
            record.incarnation = INCARNATION;
            record.block_size = Some(fleet.block_size);
            record.capacity_blocks = Some(fleet.capacity_blocks);
            record.verdict = Verdict::Healthy;
            record.ledger.completeness = Completeness::Complete;
            state.upsert(record);
            workers.push(Worker { id, sequence: 0 });
        }
        Ok(Self {
            state,
            workers,
            waiting: HashMap::new(),
            start: Instant::now(),
        })
    }

    /// Lets a request come.
    pub(crate) fn arrive(&mut self, request: usize, footprint: &Footprint, now: Duration) {
        let now = self.start + now;
        let (ticket, _) = self.state.arrive(footprint, &Wish::default(), now);
        self.waiting.insert(ticket, request);
    }

    /// Decides on all that have come at one instant; what is placed by this.
    ///
    /// # Errors
    /// When the router refuses one.
    pub(crate) fn receive(&mut self, now: Duration) -> Result<Vec<Placed>, RouteError> {
        let at = self.start + now;
        let count = self.state.order_arrivals(at);
        let decided = (0..count).filter_map(|_| self.state.receive(at));
        let decided = decided.flatten().collect();
        self.take(decided)
    }

    /// Gives what room there is to those who wait.
    ///
    /// # Errors
    /// When the router refuses one.
    pub(crate) fn let_in(&mut self, now: Duration) -> Result<Vec<Placed>, RouteError> {
        if self.waiting.is_empty() {
            return Ok(Vec::new());
        }
        let decided = self.state.let_in(self.start + now);
        self.take(decided)
    }

    fn take(&mut self, decided: Vec<Decided>) -> Result<Vec<Placed>, RouteError> {
        let mut placed = Vec::with_capacity(decided.len());
        for Decided {
            ticket, outcome, ..
        } in decided
        {
            let chosen = outcome?;
            if let Some(request) = self.waiting.remove(&ticket) {
                placed.push(self.placed(request, &chosen));
            }
        }
        Ok(placed)
    }

    fn placed(&self, request: usize, chosen: &Chosen) -> Placed {
        let workers = &self.workers;
        let found = workers.binary_search_by(|worker| worker.id.cmp(&chosen.worker));
        Placed {
            request,
            worker: found.unwrap_or_default(),
            booking: chosen.booking,
        }
    }

    /// Notes that a request's first token has come.
    pub(crate) fn prefill_done(&mut self, booking: BookingKey, now: Duration) {
        self.state.prefill_done(booking, self.start + now);
    }

    /// Notes that a request has ended.
    pub(crate) fn free(&mut self, booking: BookingKey) {
        self.state.free(booking);
    }

    /// Tells what one engine's cache has lost and got.
    pub(crate) fn tell(
        &mut self,
        worker: usize,
        now: Duration,
        (removed, stored): (Vec<SequenceHash>, Vec<SequenceHash>),
    ) {
        if removed.is_empty() && stored.is_empty() {
            return;
        }
        let worker = &mut self.workers[worker];
        let event = KvEvent {
            worker: worker.id.clone(),
            rank: DpRank(0),
            incarnation: INCARNATION,
            sequence: worker.sequence,
            cleared: false,
            removed,
            stored,
            lower: Tiers::default(),
        };
        worker.sequence += 1;
        self.state.apply_event(&event, self.start + now);
    }

    /// Whether no request waits or is booked anywhere.
    pub(crate) fn is_free(&self) -> bool {
        let mut loads = self.state.workers.values().flat_map(|m| m.loads());
        self.waiting.is_empty() && loads.all(|load| load == Load::default())
    }
}
