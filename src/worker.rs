//! The agent beside one engine: probes it, follows its KV events and tells the router, never in
//! the data path.

mod beside;
pub mod broadcast;
pub mod engine_load;
pub mod engine_watch;
pub mod feed;
pub mod follow;
pub mod gpus;
mod model_files;
mod pages;
pub mod parity;
mod planes;
pub mod probe;
pub mod rank;
pub mod ranks;
pub mod record;
pub mod reset;
pub mod role;
pub mod spec;
mod standing;
pub mod state_file;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, warn, warn_span};

use crate::block::BlockSize;
use crate::discovery::{Change, Update, WorkerRecord};
use crate::id::{DpRank, Incarnation};
use crate::index::KvEvent;
use crate::index::gap::BEFORE_FIRST;
use crate::ledger::counts::Counts;
use crate::ledger::tier::Tiers;
use crate::ledger::{Ledger, Options};
use crate::telemetry::labels::AlarmLabels;
use crate::telemetry::metrics::Metrics;
use crate::worker::engine_watch::{EngineWatch, Sighting};
use crate::worker::follow::{Order, Told, new_incarnation};
use crate::worker::gpus::States;
use crate::worker::gpus::advance::Advance;
use crate::worker::gpus::verdict::with_gpus;
use crate::worker::probe::{EngineFacts, Probe};
use crate::worker::rank::{Rank, RankStatus};
use crate::worker::ranks::{ORDERS_MAX, Ranks};
use crate::worker::record::Standing;
use crate::worker::reset::Command;
use crate::worker::spec::AgentSpec;
use crate::worker::state_file::{SavedRank, StateFile};

/// How often the record is sent again if the ledgers changed it.
const TICK: Duration = Duration::from_secs(1);

/// How often the ranks are looked at while an engine that came back waits for them.
const PROOF_POLL: Duration = Duration::from_millis(20);

/// How long an engine that came back waits for its ranks to show what they hold; then it takes
/// requests without.
const PROOF_MAX: Duration = Duration::from_secs(5);

/// Sightings that wait for the agent; it takes them as they come.
const SIGHTINGS_MAX: usize = 8;

/// Follows one engine through all its lives, until `stop` or until nobody takes the updates.
///
/// Its worker is there from the start, whatever the engine does: `Up` with a verdict and its cause,
/// KV events in order while they are known to be the engine's own, `Down` when the agent stops.
pub async fn run(
    spec: AgentSpec,
    commands: &mut mpsc::Receiver<Command>,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<Update>,
    stop: CancellationToken,
) {
    let probe = Probe::new(&spec.address);
    let (worker, process) = (spec.worker.clone(), spec.process.clone());
    let facts_due = Arc::new(Notify::new());
    let mut agent = Agent::new(spec, metrics, updates, facts_due.clone());
    // First, because a router takes no event of a worker that it does not know.
    if agent.tell_record().await.is_err() {
        return;
    }
    agent.start_ranks();
    let ranks = agent.ranks.orders();
    let (sighted, sightings) = mpsc::channel(SIGHTINGS_MAX);
    let watch = EngineWatch::new(&probe, &facts_due).run(process, sighted);
    let _ = tokio::select! {
        () = stop.cancelled() => Ok(()),
        told = agent.live(sightings) => told,
        () = watch => Ok(()),
        never = reset::serve(&worker, commands, &probe, &ranks) => match never {},
    };
    agent.end().await;
}

/// Nobody takes an agent's updates any more.
#[derive(Debug)]
struct Unwanted;

/// What an agent knows of its engine.
struct Agent {
    spec: AgentSpec,
    metrics: Arc<Metrics>,
    updates: mpsc::Sender<Update>,
    /// Woken when the engine may be another one.
    facts_due: Arc<Notify>,
    standing: Standing,
    /// When an engine that is being proven takes requests all the same.
    proof_until: Instant,
    /// The last proof asked of the ranks.
    proof: u64,
    facts: EngineFacts,
    /// What the ranks were told of the facts.
    described: Option<(Option<u64>, Option<BlockSize>)>,
    advance: Advance,
    gpus: States,
    record: WorkerRecord,
    /// The record as it was told last, and when.
    told: Option<(WorkerRecord, Instant)>,
    ranks: Ranks,
    /// The alarms and gaps of each rank that are counted already.
    counted: Vec<(Counts, u64)>,
    /// Under which the engine reports to us.
    session: Arc<str>,
    parity: parity::Check,
    /// The life of the engine whose prompts were compared last.
    compared: Option<Incarnation>,
}

impl Agent {
    fn new(
        spec: AgentSpec,
        metrics: Arc<Metrics>,
        updates: mpsc::Sender<Update>,
        facts_due: Arc<Notify>,
    ) -> Self {
        let mut record = record::first(&spec);
        record.incarnation = new_incarnation();
        Self {
            counted: vec![Default::default(); spec.sources.len()],
            session: format!("kvlens-{}", uuid::Uuid::new_v4().simple()).into(),
            parity: parity::Check::none(&spec.worker),
            compared: None,
            gpus: States::of(spec.watched.as_ref()),
            spec,
            metrics,
            updates,
            facts_due,
            standing: record::not_asked(),
            proof_until: Instant::now(),
            proof: 0,
            facts: EngineFacts::default(),
            described: None,
            advance: Advance::default(),
            record,
            told: None,
            ranks: Ranks::default(),
        }
    }

    fn start_ranks(&mut self) {
        for (number, source) in self.spec.sources.iter().enumerate() {
            let dp_rank = DpRank(number as u32);
            let folder = self.spec.state_dir.as_deref();
            let state_file =
                folder.map(|folder| StateFile::new(folder, &self.spec.worker, dp_rank));
            let saved = state_file.as_ref().and_then(StateFile::load);
            let rank = self.rank(dp_rank, saved);
            let (status_tx, status_rx) = watch::channel(rank.status());
            let (orders_tx, orders_rx) = mpsc::channel(ORDERS_MAX);
            let told = Told {
                updates: self.updates.clone(),
                status: status_tx,
                state_file,
            };
            let span = warn_span!("kv_events", worker = %self.spec.worker, rank = number);
            let task = follow::follow(rank, source.clone(), orders_rx, told);
            self.ranks
                .follow(status_rx, orders_tx, task.instrument(span));
        }
    }

    /// A rank as it was kept, or one of which nothing is known.
    fn rank(&self, number: DpRank, saved: Option<SavedRank>) -> Rank {
        let AgentSpec { worker, model, .. } = &self.spec;
        let options = Options {
            placeholder: self.spec.placeholder,
            session_id: Some(self.session.clone()),
            ..Options::default()
        };
        if let Some(saved) = saved {
            match Ledger::restore(model, options.clone(), saved.ledger.clone()) {
                Ok(ledger) => {
                    let rank = Rank::restored(&saved, worker.clone(), number, ledger);
                    return rank.sealed_by(self.spec.hash_key);
                }
                Err(error) => {
                    warn!(%worker, rank = number.0, %error, "kept ledger is not used");
                }
            }
        }
        let ledger = Ledger::new(model, options);
        let rank = Rank::new(worker.clone(), number, new_incarnation(), ledger);
        rank.sealed_by(self.spec.hash_key)
    }

    /// Keeps the record true to what is seen, until nobody takes it.
    async fn live(&mut self, mut sightings: mpsc::Receiver<Sighting>) -> Result<(), Unwanted> {
        loop {
            let look_again = match self.standing {
                Standing::Proving => PROOF_POLL,
                _ => TICK,
            };
            tokio::select! {
                // First: a sick GPU is to leave the route at once.
                biased;
                () = self.gpus.changed() => {}
                (rank, error) = self.ranks.failure() => {
                    error!(worker = %self.spec.worker, rank = rank.0, %error, "kv events of a rank no longer followed");
                    self.tell(self.forgotten(rank)).await?;
                }
                Some(sighting) = sightings.recv() => self.take(sighting).await,
                parity = self.parity.outcome(&self.metrics) => self.record.parity = parity,
                () = sleep_until(Instant::now() + look_again) => {}
            }
            self.look().await;
            self.tell_record().await?;
        }
    }

    async fn take(&mut self, sighting: Sighting) {
        let worker = &self.spec.worker;
        match sighting {
            Sighting::Well { facts, metrics } => {
                if let Some(facts) = facts {
                    self.learn(*facts).await;
                }
                if let Some(metrics) = metrics {
                    let capacity_blocks = self.facts.capacity_blocks;
                    self.record.engine_load = engine_load::parse(&metrics, capacity_blocks);
                    self.record.engine_readings += 1;
                    self.advance.note(engine_load::progress(&metrics));
                }
                if !matches!(self.standing, Standing::Well | Standing::Proving) {
                    self.standing = Standing::Proving;
                    self.proof_until = Instant::now() + PROOF_MAX;
                    // Those that tried in vain till now try again at once.
                    if !self.is_proven(&self.ranks.statuses()) {
                        self.ask_proof().await;
                    }
                }
            }
            Sighting::NotYet { cause } => self.standing = Standing::Starting { cause },
            Sighting::Silent { cause } => {
                if self.standing == Standing::Well {
                    warn!(%worker, cause, "engine does not answer, worker failed");
                }
                self.standing = Standing::Failed { cause };
            }
            Sighting::Ended { cause } => {
                warn!(%worker, cause, "engine gone, worker failed");
                self.standing = Standing::Failed { cause };
                if self.spec.sources.is_empty() {
                    self.record.incarnation = new_incarnation();
                }
                self.ask_proof().await;
            }
        }
    }

    /// Nothing of a former process may count as the next one's.
    async fn ask_proof(&mut self) {
        self.proof += 1;
        self.ranks.order(Order::Prove(self.proof)).await;
    }

    async fn learn(&mut self, facts: EngineFacts) {
        record::learn(&mut self.record, &self.spec, &facts);
        let described = Some((facts.capacity_blocks, facts.block_size));
        if self.described != described {
            self.described = described;
            let order = Order::Describe {
                capacity_blocks: facts.capacity_blocks,
                block_size: facts.block_size,
            };
            self.ranks.order(order).await;
        }
        // Another process may be another release, with other prompts.
        let life = self.record.incarnation;
        if self.compared != Some(life) {
            self.compared = Some(life);
            self.parity = parity::Check::start(&self.spec, &facts.models);
        }
        self.facts = facts;
    }

    /// Brings the record up to date with the ranks.
    async fn look(&mut self) {
        let statuses = self.ranks.statuses();
        self.count(&statuses);
        let life = self.record.incarnation;
        record::note_ledgers(&mut self.record, &self.facts, &statuses);
        record::note_reports(&mut self.record, &self.session);
        if life != self.record.incarnation {
            // Another process may be another engine, and its ledgers know nothing of it yet.
            self.described = None;
            self.facts_due.notify_one();
        }
        let is_late = Instant::now() >= self.proof_until;
        if self.standing == Standing::Proving && (is_late || self.is_proven(&statuses)) {
            self.standing = Standing::Well;
            record::tell_operator(&self.record);
        }
        let misfit = record::misfit(&self.spec, &self.facts);
        let verdict = record::verdict(&self.standing, misfit.as_deref());
        self.record.gpus = self.gpus.take();
        (self.record.verdict, self.record.cause) = with_gpus(verdict, &self.record.gpus);
        if let Some(gpus) = &self.spec.watched {
            gpus.tell(record::engine_seen(
                &self.spec,
                &self.standing,
                (&self.facts, self.advance.progress()),
            ));
        }
    }

    fn is_proven(&self, statuses: &[RankStatus]) -> bool {
        let is_proven = |status: &RankStatus| status.is_caught_up && status.proof == self.proof;
        statuses.iter().all(is_proven)
    }

    /// Counts the ranks' alarms and gaps since the last look.
    fn count(&mut self, statuses: &[RankStatus]) {
        for (rank, (status, counted)) in statuses.iter().zip(&mut self.counted).enumerate() {
            for (alarm, times) in status.counts.since(&counted.0) {
                let labels = AlarmLabels { alarm };
                let alarms = &self.metrics.ledger_alarms;
                alarms.get_or_create(&labels).inc_by(times);
                if alarm.is_fault() {
                    warn!(worker = %self.spec.worker, rank, ?alarm, times, "kv ledger alarm");
                }
            }
            self.metrics.kv_event_gaps.inc_by(status.gaps - counted.1);
            *counted = (status.counts, status.gaps);
        }
    }

    /// Takes back all that was told of a rank that is no longer followed.
    fn forgotten(&self, rank: DpRank) -> Update {
        Update::Kv(KvEvent {
            worker: self.spec.worker.clone(),
            rank,
            incarnation: new_incarnation(),
            sequence: BEFORE_FIRST,
            cleared: true,
            removed: Vec::new(),
            stored: Vec::new(),
            lower: Tiers::default(),
        })
    }

    /// Tells the record, if it is another than was told last; where only the ledgers go on, not too
    /// often.
    async fn tell_record(&mut self) -> Result<(), Unwanted> {
        if let Some((told, at)) = &self.told {
            let is_pressing = told.verdict != self.record.verdict
                || told.cause != self.record.cause
                || told.gpus != self.record.gpus;
            if *told == self.record || (!is_pressing && at.elapsed() < TICK / 2) {
                return Ok(());
            }
        }
        self.told = Some((self.record.clone(), Instant::now()));
        self.tell(Update::Change(Change::Up(Box::new(self.record.clone()))))
            .await
    }

    async fn tell(&self, update: Update) -> Result<(), Unwanted> {
        self.updates.send(update).await.map_err(|_| Unwanted)
    }

    /// Signs off.
    async fn end(self) {
        // Joined, so that no event follows the worker's Down.
        self.ranks.stop().await;
        let down = Update::Change(Change::Down(self.spec.worker.clone()));
        // Nobody is left to tell where the updates are not wanted any more.
        let _ = self.updates.send(down).await;
        info!(worker = %self.spec.worker, "worker stopped");
    }
}
