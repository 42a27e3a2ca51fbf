//! The router: answers placements, and takes in what workers hold and which of them there are.

pub(crate) mod admission;
pub mod answers;
mod asked;
pub mod basis;
pub mod booking;
mod circuit;
mod confirm;
pub mod feed;
pub mod footprint;
mod held;
mod link;
mod member;
pub mod members;
mod outcome;
mod own;
mod rank_state;
pub mod remote;
pub mod role;
pub mod rules;
pub mod sharing;
mod snapshot;
pub mod state;
pub mod view;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::block::BlockSize;
use crate::config::router::RouterConfig;
use crate::discovery::{Change, Completeness, ParityScope, Update};
use crate::health::Verdict;
use crate::id::{DpRank, RouterId, WorkerId};
use crate::index::gap::Step;
use crate::index::{Applied, KvEvent};
use crate::router::basis::Basis;
use crate::router::booking::Booking;
use crate::router::footprint::{Footprint, Wish};
use crate::router::remote::Chooser;
use crate::router::state::disproof::Disproved;
use crate::router::state::{BookingKey, Chosen, State};
use crate::router::view::{CandidateView, ModelView, WorkerView};
use crate::select::RouterMode;
use crate::select::cost::{Cost, formula};
use crate::select::queue::QueueFull;
use crate::telemetry::labels::{
    KvEventKind, KvEventLabels, Ledger, LedgerLabels, ParityCheck, ParityLabels, VerdictLabels,
};
use crate::telemetry::metrics::Metrics;

/// Most updates from agents that wait for the router; agents then wait too, and lose nothing.
pub const UPDATES_MAX: usize = 4_096;

/// Where a request goes. Dropping its booking frees what it holds there.
#[derive(Debug)]
pub struct Placement {
    pub worker: WorkerId,
    pub rank: DpRank,
    /// Data-parallel ranks of the worker's engine.
    pub ranks: u32,
    /// Where the worker's engine answers, as `http://host:port`.
    pub address: Arc<str>,
    pub block_size: BlockSize,
    /// Leading blocks of the prompt that the worker holds, capped at what a cache can answer.
    pub overlap_blocks: u32,
    /// Blocks right behind them that the worker would load from slower tiers.
    pub lower_blocks: u32,
    /// Full blocks of the prompt.
    pub prompt_blocks: u32,
    pub cost: Cost,
    /// How long the request waited for room.
    pub queued: Duration,
    /// The worker's [`WorkerRecord::media_dir`](crate::discovery::WorkerRecord::media_dir).
    pub media_dir: Option<Arc<str>>,
    /// The session id under which the engine is asked to report the blocks it reuses; see
    /// [`LedgerState`](crate::discovery::LedgerState).
    pub report_session: Option<Arc<str>>,
    /// Which prompts the worker's engine is known to make otherwise than we do.
    pub parity_failed: Option<ParityScope>,
    /// From what its overlap is told.
    pub basis: Basis,
    /// Who chose it.
    pub chooser: Chooser,
    /// Cancelled when the worker is taken out: nothing more is to be expected of it.
    pub gone: CancellationToken,
    pub booking: Booking,
}

/// What an engine said, at the end of an answer, of a prompt that is known to the last token.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Answered {
    /// The placement's own.
    pub block_size: BlockSize,
    /// Tokens of the prompt before its first image.
    pub text_tokens: u32,
    /// Tokens that the engine found in its cache; it computed the rest.
    pub cached_tokens: u32,
}

/// A worker's parity has turned, by what its engine stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParityTurn {
    pub(crate) worker: WorkerId,
    /// Which prompts differ now; `None` where blocks are named as ours again.
    pub(crate) failed: Option<ParityScope>,
}

/// Why a request was not placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum RouteError {
    #[error("no worker serves model {model:?}")]
    UnknownModel { model: String },
    #[error("none of the {workers} workers of model {model:?} can take a request now")]
    NoEligibleWorker { model: String, workers: usize },
    #[error("no worker {worker} serves the model")]
    WorkerNotFound { worker: WorkerId },
    #[error("no worker that was asked for has a rank {rank}")]
    RankNotFound { rank: DpRank },
    #[error("worker {worker} takes no requests now: {reason}")]
    WorkerUnavailable {
        worker: WorkerId,
        reason: Cow<'static, str>,
    },
    #[error("requests must name a worker in this mode")]
    WorkerNotNamed,
    #[error("the workers of model {model:?} have too much to do: {full}")]
    QueueFull { model: String, full: QueueFull },
    #[error("no worker of model {model:?} had room within {waited:?}")]
    QueueTimeout { model: String, waited: Duration },
}

/// One router, shared by all that ask it. Its state stands behind one short synchronous lock: a
/// placement takes microseconds, and a task with a queue would add two hand-overs to each.
#[derive(Debug)]
pub struct Router {
    mode: RouterMode,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
    /// Requests of other routers that are being placed here.
    asked: Mutex<HashMap<(RouterId, u64), CancellationToken>>,
    /// This router, for the bookings of those who waited.
    this: Weak<Self>,
}

impl Router {
    /// A router with no workers.
    pub fn new(config: &RouterConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            mode: config.mode,
            state: Mutex::new(State::new(config)),
            metrics,
            asked: Mutex::default(),
            this: this.clone(),
        })
    }

    /// How workers are chosen.
    pub fn mode(&self) -> RouterMode {
        self.mode
    }

    /// Chooses a worker as wished, and books the request there before it answers. It neither waits
    /// for room nor minds who does: see [`Router::admit`].
    ///
    /// # Errors
    /// When no worker serves the model, or none that does can take requests.
    pub fn place(
        self: &Arc<Self>,
        footprint: &Footprint,
        wish: &Wish,
    ) -> Result<Placement, RouteError> {
        let chosen = self.lock().place(footprint, wish, Instant::now())?;
        Ok(self.placement(chosen, Duration::ZERO))
    }

    fn placement(self: &Arc<Self>, chosen: Chosen, queued: Duration) -> Placement {
        Placement {
            worker: chosen.worker,
            rank: chosen.rank,
            ranks: chosen.ranks,
            address: chosen.address,
            block_size: chosen.block_size,
            overlap_blocks: chosen.overlap_blocks,
            lower_blocks: chosen.lower_blocks,
            prompt_blocks: chosen.prompt_blocks,
            cost: chosen.cost,
            queued,
            media_dir: chosen.media_dir,
            report_session: chosen.report_session,
            parity_failed: chosen.parity_failed,
            basis: chosen.basis,
            chooser: Chooser::Here,
            gone: chosen.gone,
            booking: Booking::new(self.clone(), chosen.booking),
        }
    }

    /// Every candidate a request would have now, with the terms of its cost; nothing is booked.
    pub fn explain(&self, footprint: &Footprint, wish: &Wish) -> Vec<CandidateView> {
        self.lock().explain(footprint, wish, Instant::now())
    }

    /// How a candidate's total is made of its terms, in words.
    pub fn formula(&self) -> String {
        formula(self.lock().policy())
    }

    /// The workers, as operators see them.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.lock().worker_views(Instant::now())
    }

    /// Brings the metrics up to date that follow from many things at once.
    pub fn show(&self) {
        let approximate = self.lock().approximate_workers();
        self.metrics.approximate_workers.set(approximate as i64);
    }

    /// What a request's `model` stands for; `None` when no worker serves it.
    pub fn model(&self, name: &str) -> Option<ModelView> {
        self.lock().model_view(name)
    }

    /// Every name a request may use, base names first.
    pub fn model_names(&self) -> Vec<String> {
        self.lock().model_names()
    }

    /// Takes in one update of an agent.
    pub fn apply(&self, update: Update) {
        match update {
            Update::Kv(event) => {
                let (applied, turn) = self.make_room(|state, now| state.apply_event(&event, now));
                self.report(turn);
                self.count_event(&event);
                if let Applied::Yes(Step::Gap { missed }) = applied {
                    self.metrics.kv_event_gaps.inc();
                    warn!(worker = %event.worker, rank = %event.rank, missed, "kv event gap");
                }
            }
            Update::Change(change) => self.apply_change(change),
        }
        self.show_blocks();
    }

    fn show_blocks(&self) {
        let shown = self.lock().index_view();
        self.metrics.index_blocks.set(shown.blocks as i64);
        self.metrics.index_bytes.set(shown.bytes as i64);
        let counter = &self.metrics.index_evicted_blocks;
        counter.inc_by(shown.new_losses.evicted_blocks);
        let counter = &self.metrics.index_left_out_blocks;
        counter.inc_by(shown.new_losses.left_out_blocks);
    }

    /// See [`Booking::answered`].
    pub(crate) fn answered(&self, key: BookingKey, answered: Answered) {
        let turn = self.lock().answered(key, answered, Instant::now());
        self.report(turn);
    }

    fn report(&self, turn: Option<ParityTurn>) {
        let Some(ParityTurn { worker, failed }) = turn else {
            return;
        };
        match failed {
            Some(scope) => {
                let check = ParityCheck::Operation;
                let labels = ParityLabels { check };
                self.metrics.parity_failures.get_or_create(&labels).inc();
                error!(%worker, ?scope, "engine does not store the blocks that it computes under our names");
            }
            None => info!(%worker, "engine stores blocks under our names again"),
        }
    }

    /// See [`Booking::found_cached`].
    fn disprove(&self, key: BookingKey, cached_blocks: u32) {
        let disproved = self.lock().disprove(key, cached_blocks);
        let Some(Disproved { blocks, ledger }) = disproved.filter(|found| found.blocks > 0) else {
            return;
        };
        let ledger = match ledger {
            Completeness::Complete => Ledger::Complete,
            Completeness::Partial => Ledger::Partial,
        };
        let labels = LedgerLabels { ledger };
        let counter = self.metrics.overlap_disproved_blocks.get_or_create(&labels);
        counter.inc_by(blocks as u64);
    }

    fn count_event(&self, event: &KvEvent) {
        let kinds = [
            (KvEventKind::Stored, event.stored.len()),
            (KvEventKind::Removed, event.removed.len()),
            (KvEventKind::Cleared, usize::from(event.cleared)),
        ];
        for (kind, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
            self.metrics
                .kv_events
                .get_or_create(&KvEventLabels { kind })
                .inc_by(count as u64);
        }
    }

    fn apply_change(&self, change: Change) {
        match change {
            Change::Up(record) => {
                let worker = record.worker.clone();
                let verdict: Verdict = record.verdict;
                if self.change_workers(|state, _| state.upsert(*record)) {
                    info!(%worker, ?verdict, "worker joined");
                }
            }
            Change::Down(worker) => {
                if self.change_workers(|state, _| state.remove(&worker)) {
                    info!(%worker, "worker left");
                }
            }
        }
        self.show_verdicts();
    }

    fn show_verdicts(&self) {
        let (verdicts, partial) = {
            let state = self.lock();
            (state.verdicts(), state.partial_ledgers())
        };
        for (verdict, count) in verdicts {
            self.metrics
                .workers
                .get_or_create(&VerdictLabels { verdict })
                .set(count);
        }
        self.metrics.partial_ledgers.set(partial);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves counts slightly off at worst; refusing all requests since
        // would be worse.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies the agents' updates until `stop` or until all agents are gone.
pub async fn run(
    router: Arc<Router>,
    mut updates: mpsc::Receiver<Update>,
    stop: CancellationToken,
) {
    while let Some(Some(update)) = stop.run_until_cancelled(updates.recv()).await {
        router.apply(update);
    }
}
