//! The router: answers placements, and takes in what workers hold and which of them there are.

pub mod booking;
mod confirm;
pub mod feed;
mod held;
mod link;
mod member;
mod snapshot;
pub mod state;
pub mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::block::{BlockSize, SequenceHash};
use crate::discovery::{Change, Completeness, ParityScope, Update};
use crate::health::Verdict;
use crate::id::{DpRank, WorkerId};
use crate::index::gap::Step;
use crate::index::room::BYTES_MAX;
use crate::index::{Applied, Index, KvEvent};
use crate::router::booking::Booking;
use crate::router::state::disproof::Disproved;
use crate::router::state::{BookingKey, State};
use crate::router::view::{CandidateView, ModelView, WorkerView};
use crate::select::{Cost, Policy, RouterMode};
use crate::telemetry::labels::{
    KvEventKind, KvEventLabels, Ledger, LedgerLabels, ParityCheck, ParityLabels, VerdictLabels,
};
use crate::telemetry::metrics::Metrics;

/// How long a worker that refused a connection gets no requests: long enough for its agent to see
/// why, short enough that one refusal by chance costs little.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// Most updates from agents that wait for the router; agents then wait too, and lose nothing.
pub const UPDATES_MAX: usize = 4_096;

/// What the router needs to know of a request: hashes and counts, never its text or images.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// The model's base name.
    pub model: Arc<str>,
    /// The adapter asked for, where it is one.
    pub adapter: Option<Arc<str>>,
    /// Sequence hashes of the prompt's full blocks, for each block size among the model's workers.
    /// Empty for a prompt that reads no cache.
    pub hashes: Vec<(BlockSize, Arc<[SequenceHash]>)>,
    /// Tokens known for sure.
    pub prompt_tokens: u32,
    /// Those of them before the first image.
    pub text_tokens: u32,
    /// Tokens beyond those known, estimated: an image of unknown size, an embedding's input. They
    /// weigh on the worker like others, and overlap with nothing.
    pub estimated_tokens: u32,
}

impl Footprint {
    fn all_tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.estimated_tokens)
    }

    fn hashes_for(&self, size: BlockSize) -> Option<&Arc<[SequenceHash]>> {
        self.hashes
            .iter()
            .find(|(known, _)| *known == size)
            .map(|(_, hashes)| hashes)
    }
}

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
    /// Full blocks of the prompt.
    pub prompt_blocks: u32,
    pub cost: Cost,
    /// The worker's [`WorkerRecord::media_dir`](crate::discovery::WorkerRecord::media_dir).
    pub media_dir: Option<Arc<str>>,
    /// The session id under which the engine is asked to report the blocks it reuses; see
    /// [`LedgerState`](crate::discovery::LedgerState).
    pub report_session: Option<Arc<str>>,
    /// Which prompts the worker's engine is known to make otherwise than we do.
    pub parity_failed: Option<ParityScope>,
    /// Cancelled when the worker is taken out: nothing more is to be expected of it.
    pub gone: CancellationToken,
    pub booking: Booking,
}

/// What an engine said, at the end of an answer, of a prompt that is known to the last token.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no worker serves model {model:?}")]
    UnknownModel { model: String },
    #[error("none of the {workers} workers of model {model:?} can take a request now")]
    NoEligibleWorker { model: String, workers: usize },
}

/// One router, shared by all that ask it. Its state stands behind one short synchronous lock: a
/// placement takes microseconds, and a task with a queue would add two hand-overs to each.
#[derive(Debug)]
pub struct Router {
    policy: Policy,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

impl Router {
    /// A router with no workers, its index no larger than [`BYTES_MAX`].
    pub fn new(policy: Policy, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::capped(policy, BYTES_MAX, metrics)
    }

    /// A router with no workers, its index no larger than this.
    pub fn capped(policy: Policy, index_bytes_max: u64, metrics: Arc<Metrics>) -> Arc<Self> {
        let index = Index::capped(index_bytes_max);
        Arc::new(Self {
            policy,
            state: Mutex::new(State::new(policy, index)),
            metrics,
        })
    }

    /// How workers are chosen.
    pub fn mode(&self) -> RouterMode {
        self.policy.mode
    }

    /// Chooses a worker that is not among `excluded`, and books the request there before it
    /// answers.
    ///
    /// # Errors
    /// When no worker serves the model, or none that does can take requests.
    pub fn place(
        self: &Arc<Self>,
        footprint: &Footprint,
        excluded: &[WorkerId],
    ) -> Result<Placement, RouteError> {
        let chosen = self.lock().place(footprint, excluded, Instant::now())?;
        let booking = Booking::new(self.clone(), chosen.booking);
        Ok(Placement {
            worker: chosen.worker,
            rank: chosen.rank,
            ranks: chosen.ranks,
            address: chosen.address,
            block_size: chosen.block_size,
            overlap_blocks: chosen.overlap_blocks,
            prompt_blocks: chosen.prompt_blocks,
            cost: chosen.cost,
            media_dir: chosen.media_dir,
            report_session: chosen.report_session,
            parity_failed: chosen.parity_failed,
            gone: chosen.gone,
            booking,
        })
    }

    /// Every candidate a request would have now, with the terms of its cost; nothing is booked.
    pub fn explain(&self, footprint: &Footprint) -> Vec<CandidateView> {
        self.lock().explain(footprint, Instant::now())
    }

    /// The workers, as operators see them.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.lock().worker_views()
    }

    /// What a request's `model` stands for; `None` when no worker serves it.
    pub fn model(&self, name: &str) -> Option<ModelView> {
        self.lock().model_view(name)
    }

    /// Every name a request may use, base names first.
    pub fn model_names(&self) -> Vec<String> {
        self.lock().model_names()
    }

    /// Notes that a worker refused a connection: it gets no requests for a moment.
    pub fn refused(&self, worker: &WorkerId) {
        warn!(%worker, pause = ?REFUSED_PAUSE, "worker refused a connection");
        self.lock().pause(worker, Instant::now() + REFUSED_PAUSE);
    }

    /// Takes in one update of an agent.
    pub fn apply(&self, update: Update) {
        match update {
            Update::Kv(event) => {
                let (applied, turn) = self.lock().apply_event(&event, Instant::now());
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
                if self.lock().upsert(*record) {
                    info!(%worker, ?verdict, "worker joined");
                }
            }
            Change::Down(worker) => {
                if self.lock().remove(&worker) {
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
