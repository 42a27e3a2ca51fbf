//! The agent beside one engine: probes it, follows its KV events and tells the router, never in
//! the data path.

pub mod probe;
pub mod rank;
pub mod ranks;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, warn, warn_span};

use crate::block::BlockSize;
use crate::discovery::{Change, Completeness, EngineRelease, Update, WorkerRecord};
use crate::events::zmq::{self, Source};
use crate::health::Verdict;
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::KvEvent;
use crate::index::gap::BEFORE_FIRST;
use crate::ledger::counts::Counts;
use crate::ledger::{Ledger, Options};
use crate::telemetry::labels::AlarmLabels;
use crate::telemetry::metrics::Metrics;
use crate::worker::probe::{EngineFacts, Probe};
use crate::worker::rank::{Rank, RankStatus};
use crate::worker::ranks::Ranks;

/// How often the engine's health is asked, and the record sent again if it changed.
const TICK: Duration = Duration::from_secs(1);

/// Waits between probes while the engine starts.
const START_POLL: Duration = Duration::from_millis(200);

/// Failed probes in a row after which the worker is taken out. A refused connection needs none:
/// nobody listens there.
const FAILURES_MAX: u32 = 3;

/// Batches between a source and its ledger. A full queue leaves the rest in the engine's own
/// buffers; more would only hide that the ledger is too slow.
const FEED_MAX: usize = 256;

/// What an agent is told of its engine.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    pub worker: WorkerId,
    /// Where the engine answers, as `http://127.0.0.1:8100`.
    pub address: String,
    /// The model's base name, as hashed.
    pub model: String,
    /// Other names requests may use; those the engine says are added.
    pub aliases: Vec<String>,
    /// The engine's kind, as `vllm`.
    pub kind: String,
    /// Where each data-parallel rank publishes its events, rank 0 first; empty for an engine that
    /// publishes none.
    pub sources: Vec<Source>,
    /// See [`WorkerRecord::media_dir`].
    pub media_dir: Option<String>,
    /// See [`Options::placeholder`].
    pub placeholder: Option<u32>,
}

/// Why following an engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Stopped,
    EngineGone,
}

/// Follows one engine through all its lives, until `stop` or until nobody takes the updates: `Up`
/// once it answers, its KV events in order, `Down` when it is gone or the agent stops.
pub async fn run(
    spec: AgentSpec,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<Update>,
    stop: CancellationToken,
) {
    let probe = Probe::new(&spec.address);
    loop {
        let facts = tokio::select! {
            () = stop.cancelled() => return,
            facts = wait_until_healthy(&probe) => facts,
        };
        let ended = follow(
            Engine {
                spec: &spec,
                probe: &probe,
                metrics: &metrics,
            },
            facts,
            &updates,
            &stop,
        )
        .await;
        match ended {
            Ended::Stopped => info!(worker = %spec.worker, "worker stopped"),
            Ended::EngineGone => warn!(worker = %spec.worker, "engine gone, worker down"),
        }
        let down = Update::Change(Change::Down(spec.worker.clone()));
        if updates.send(down).await.is_err() || ended == Ended::Stopped {
            return;
        }
    }
}

async fn wait_until_healthy(probe: &Probe) -> EngineFacts {
    loop {
        match probe.health().await {
            Ok(()) => match probe.facts().await {
                Ok(facts) => return facts,
                Err(error) => warn!(%error, "engine is healthy but does not describe itself"),
            },
            Err(error) => debug!(%error, "engine does not answer yet"),
        }
        sleep(START_POLL).await;
    }
}

/// An engine and how it is followed.
#[derive(Clone, Copy)]
struct Engine<'a> {
    spec: &'a AgentSpec,
    probe: &'a Probe,
    metrics: &'a Metrics,
}

/// One life of an engine: from its first healthy answer to its end.
async fn follow(
    engine: Engine<'_>,
    facts: EngineFacts,
    updates: &mpsc::Sender<Update>,
    stop: &CancellationToken,
) -> Ended {
    let spec = engine.spec;
    let ranks: Vec<_> = (0..spec.sources.len())
        .map(|rank| new_rank(spec, &facts, DpRank(rank as u32)))
        .collect();
    let mut record = first_record(spec, facts);
    if let Some(rank) = ranks.first() {
        record.incarnation = rank.incarnation();
    }
    let up = |record: &WorkerRecord| Update::Change(Change::Up(Box::new(record.clone())));
    if updates.send(up(&record)).await.is_err() {
        return Ended::Stopped;
    }
    info!(
        worker = %spec.worker,
        model = %record.model,
        engine = %record.engine.version,
        block_size = record.block_size.map(BlockSize::tokens),
        capacity_blocks = record.capacity_blocks,
        "worker ready"
    );
    let mut followed = Ranks::default();
    for (number, (rank, source)) in ranks.into_iter().zip(spec.sources.clone()).enumerate() {
        let (status_tx, status_rx) = watch::channel(rank.status());
        let span = warn_span!("kv_events", worker = %spec.worker, rank = number);
        let task = follow_rank(rank, source, updates.clone(), status_tx);
        followed.follow(status_rx, task.instrument(span));
    }
    let mut watched = Watched::new(engine, followed.statuses().len());
    let ended = loop {
        let update = tokio::select! {
            () = stop.cancelled() => break Ended::Stopped,
            (rank, error) = followed.failure() => {
                error!(worker = %spec.worker, rank = rank.0, %error, "kv events of a rank no longer followed");
                Some(forgotten(spec, rank))
            }
            alive = watched.next_tick() => {
                if !alive {
                    break Ended::EngineGone;
                }
                let changed = watched.update(&mut record, &followed.statuses());
                changed.then(|| up(&record))
            }
        };
        if let Some(update) = update
            && updates.send(update).await.is_err()
        {
            break Ended::Stopped;
        }
    };
    // Joined, so that no event follows the worker's Down.
    followed.stop().await;
    ended
}

/// Takes back all that was told of a rank that is no longer followed.
fn forgotten(spec: &AgentSpec, rank: DpRank) -> Update {
    Update::Kv(KvEvent {
        worker: spec.worker.clone(),
        rank,
        incarnation: new_incarnation(),
        sequence: BEFORE_FIRST,
        cleared: true,
        removed: Vec::new(),
        stored: Vec::new(),
    })
}

/// The health and the ledgers of a running engine, looked at once per tick.
struct Watched<'a> {
    engine: Engine<'a>,
    /// The alarms of each rank that are counted already.
    seen: Vec<Counts>,
    ticks: tokio::time::Interval,
    failures: u32,
}

impl<'a> Watched<'a> {
    fn new(engine: Engine<'a>, ranks: usize) -> Self {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            seen: vec![Counts::default(); ranks],
            engine,
            ticks,
            failures: 0,
        }
    }

    /// Waits for the next tick and asks the engine's health; false once it counts as gone.
    async fn next_tick(&mut self) -> bool {
        self.ticks.tick().await;
        let asked = Instant::now();
        let Err(error) = self.engine.probe.health().await else {
            self.failures = 0;
            return true;
        };
        self.failures += 1;
        let waited = asked.elapsed();
        warn!(worker = %self.engine.spec.worker, %error, failures = self.failures, ?waited, "engine probe failed");
        !error.is_refused() && self.failures < FAILURES_MAX
    }

    /// Brings the record up to date with the ledgers; true when that changed it.
    fn update(&mut self, record: &mut WorkerRecord, statuses: &[RankStatus]) -> bool {
        let before = record.clone();
        for (rank, (status, seen)) in statuses.iter().zip(&mut self.seen).enumerate() {
            for (alarm, times) in status.counts.since(seen) {
                let labels = AlarmLabels { alarm };
                self.engine
                    .metrics
                    .ledger_alarms
                    .get_or_create(&labels)
                    .inc_by(times);
                if alarm.is_fault() {
                    warn!(worker = %self.engine.spec.worker, rank, ?alarm, times, "kv ledger alarm");
                }
            }
            *seen = status.counts;
        }
        if let Some(first) = statuses.first() {
            record.incarnation = first.incarnation;
            record.ledger.sequence = first.sequence;
        }
        record.ledger.blocks = statuses.iter().map(|status| status.blocks).sum();
        let is_partial = statuses.iter().any(|status| status.is_partial);
        record.ledger.completeness = if is_partial || statuses.is_empty() {
            Completeness::Partial
        } else {
            Completeness::Complete
        };
        let size = statuses.iter().find_map(|status| status.block_size);
        record.block_size = size.or(record.block_size);
        *record != before
    }
}

/// Follows one rank until its engine's life ends with the task.
async fn follow_rank(
    mut rank: Rank,
    source: Source,
    updates: mpsc::Sender<Update>,
    status: watch::Sender<RankStatus>,
) {
    let (feed, mut fed) = mpsc::channel(FEED_MAX);
    let relay = async {
        while let Some(next) = fed.recv().await {
            let event = rank.take(next, new_incarnation);
            status.send_replace(rank.status());
            if let Some(event) = event
                && updates.send(Update::Kv(event)).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = zmq::follow(&source, None, &feed) => {}
        () = relay => {}
    }
}

fn new_rank(spec: &AgentSpec, facts: &EngineFacts, rank: DpRank) -> Rank {
    let options = Options {
        placeholder: spec.placeholder,
        capacity_blocks: facts.capacity_blocks,
        block_size: facts.block_size,
        session_id: None,
    };
    let ledger = Ledger::new(&spec.model, options);
    Rank::new(spec.worker.clone(), rank, new_incarnation(), ledger)
}

fn first_record(spec: &AgentSpec, facts: EngineFacts) -> WorkerRecord {
    let mut aliases = spec.aliases.clone();
    for served in facts.models {
        if served != spec.model && !aliases.contains(&served) {
            aliases.push(served);
        }
    }
    WorkerRecord {
        incarnation: new_incarnation(),
        aliases,
        adapters: facts.adapters,
        engine: EngineRelease {
            kind: spec.kind.clone(),
            version: facts.version,
        },
        block_size: facts.block_size,
        capacity_blocks: facts.capacity_blocks,
        context_tokens_max: facts.context_tokens_max,
        ranks: spec.sources.len().max(1) as u32,
        verdict: Verdict::Healthy,
        media_dir: spec.media_dir.clone(),
        ..WorkerRecord::new(spec.worker.clone(), &spec.address, &spec.model)
    }
}

fn new_incarnation() -> Incarnation {
    Incarnation(uuid::Uuid::new_v4().as_u64_pair().0)
}
