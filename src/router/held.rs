//! The worker behind one feed, as its router holds it: by its agent's word, and without it.

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::discovery::feed::{Snapshot, Standing, Told};
use crate::discovery::{Change, Completeness, Update, WorkerRecord};
use crate::dispatch::DispatchError;
use crate::health::Verdict;
use crate::id::WorkerId;
use crate::router::feed::Feeds;
use crate::router::link::LinkError;

/// How often the engine of a worker whose agent is away is asked whether it is well.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Longest wait for its answer. A busy engine answers `/health` late, not never.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);

/// An agent that is silent for so long may be cut off together with its engine: three of its heartbeats
/// are missing.
const QUIET_MAX: Duration = Duration::from_millis(650);

/// Longest wait for the word of such an engine. One that is there and busy is passed over meanwhile,
/// which costs little; one that is not there must not be given anything.
const GLANCE_DEADLINE: Duration = Duration::from_millis(300);

/// How often it is asked.
const GLANCE_EVERY: Duration = Duration::from_millis(500);

/// Questions in a row without a good answer after which it gets nothing new. A refused connection
/// needs none: nobody listens there.
const FAILURES_MAX: u32 = 3;

/// Longest time for requests in flight on a worker that is deregistered.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// How often is looked whether they have ended.
const LEAVE_POLL: Duration = Duration::from_millis(100);

/// What a follower knows of its worker.
#[derive(Debug)]
pub(crate) struct Held {
    feeds: Arc<Feeds>,
    /// Where the feed is, for claims and logs.
    source: String,
    /// As the agent said last.
    told: Option<WorkerRecord>,
    /// The same as it counts here.
    record: Option<WorkerRecord>,
    /// When it has to be judged again.
    turns: watch::Receiver<u64>,
    /// While the agent is not heard.
    away: Option<Away>,
    ticks: Interval,
    /// Neither the agent nor the engine was heard when they were last listened to.
    is_silent: bool,
    /// Whether the log says already that the feed cannot be read.
    is_told: bool,
}

/// An agent's absence.
#[derive(Clone, Debug, PartialEq)]
struct Away {
    since: Instant,
    /// The same for a person.
    since_text: String,
    failures: u32,
    /// What we found ourselves, where that is worse than what the agent said last.
    found: Option<(Verdict, String)>,
    /// Whether its blocks are still in the index.
    is_indexed: bool,
}

impl Held {
    /// Nothing is known yet of the worker whose feed is at `source`.
    pub(crate) fn new(feeds: Arc<Feeds>, source: String) -> Self {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            turns: feeds.rules.turns(),
            feeds,
            source,
            told: None,
            record: None,
            away: None,
            ticks,
            is_silent: false,
            is_told: false,
        }
    }

    /// Runs `task`; meanwhile an engine whose agent is away is asked itself, and the worker is judged
    /// again when that is due.
    pub(crate) async fn watching<T>(&mut self, task: impl Future<Output = T>) -> T {
        let mut task = std::pin::pin!(task);
        loop {
            tokio::select! {
                biased;
                done = &mut task => return done,
                Ok(()) = self.turns.changed() => self.judge_again(),
                _ = self.ticks.tick(), if self.away.is_some() => self.look().await,
            }
        }
    }

    /// Puts an agent's snapshot in place of all that was known.
    pub(crate) fn take_in(
        &mut self,
        worker: &WorkerId,
        snapshot: Snapshot,
    ) -> Result<(), LinkError> {
        self.feeds.claim(worker, &self.source)?;
        if self
            .record
            .as_ref()
            .is_some_and(|record| record.worker != *worker)
        {
            self.remove();
        }
        if snapshot.is_down {
            if self.record.is_none() {
                self.feeds.release(worker);
            }
            return Err(LinkError::Deregistered);
        }
        let record = snapshot.record.ok_or(LinkError::Unready)?;
        // An agent that has just come back has not asked its engine yet; we have.
        if record.verdict == Verdict::Starting && self.serves_without_agent() {
            return Err(LinkError::Unready);
        }
        if let Some(away) = self.away.take() {
            info!(%worker, source = %self.source, waited = ?away.since.elapsed(), "agent is back");
        }
        self.is_told = false;
        let record = self.judged(*record);
        self.feeds.router.replace(record.clone(), &snapshot.events);
        self.record = Some(record);
        Ok(())
    }

    /// Takes in what the feed tells next.
    pub(crate) fn take(&mut self, told: Told) -> Result<(), LinkError> {
        match told {
            Told::Record(record) => {
                let record = self.judged(*record);
                self.record = Some(record.clone());
                self.publish(record);
                Ok(())
            }
            Told::Kv(event) => {
                self.feeds.router.apply(Update::Kv(event));
                Ok(())
            }
            Told::Heartbeat(ranks) => self.compare(&ranks),
            Told::Down => Err(LinkError::Deregistered),
        }
    }

    /// Notes that the feed broke off: the worker stays, unless its agent has taken it out.
    pub(crate) async fn lose(&mut self, error: &LinkError) {
        let source = &self.source;
        if matches!(error, LinkError::Deregistered) {
            return self.leave().await;
        }
        if error.is_gap() {
            info!(source, %error, "feed starts again with a snapshot");
            self.feeds.router.feed_gap();
            return;
        }
        match (self.is_told, &self.record) {
            _ if matches!(error, LinkError::Unready) => {
                debug!(source, %error, "agent is not ready")
            }
            (true, _) => debug!(source, %error, "feed still cannot be read"),
            (false, Some(record)) => {
                let worker = &record.worker;
                warn!(source, %worker, %error, "feed broke off, its worker stays");
            }
            (false, None) => warn!(source, %error, "feed cannot be read"),
        }
        self.is_told |= !matches!(error, LinkError::Unready);
        if self.record.is_some() && self.away.is_none() {
            self.feeds.router.feed_broke();
            self.go_away();
        }
    }

    /// Goes on without the agent.
    fn go_away(&mut self) {
        self.away = Some(Away {
            since: Instant::now(),
            since_text: Timestamp::now().strftime("%FT%TZ").to_string(),
            failures: 0,
            found: None,
            is_indexed: true,
        });
        self.ticks.reset();
        self.publish_away();
    }

    /// Takes a worker from its record alone, where the agent that told it is not heard.
    ///
    /// # Errors
    /// When another feed tells of the worker.
    pub(crate) fn take_registered(&mut self, record: &WorkerRecord) -> Result<(), LinkError> {
        if self.record.is_some() {
            return Ok(());
        }
        self.feeds.claim(&record.worker, &self.source)?;
        self.record = Some(self.judged(record.clone()));
        self.go_away();
        Ok(())
    }

    /// Whether nothing is known of a worker, or no more.
    pub(crate) fn is_empty(&self) -> bool {
        self.record.is_none()
    }

    /// Waits for what the feed tells; an engine whose agent is quiet is looked at meanwhile.
    pub(crate) async fn hearing<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = std::pin::pin!(next);
        let mut quiet = QUIET_MAX;
        loop {
            tokio::select! {
                biased;
                told = &mut next => {
                    self.note_silence(false);
                    return told;
                }
                Ok(()) = self.turns.changed() => {
                    self.judge_again();
                    continue;
                }
                () = sleep(quiet) => self.glance().await,
            }
            quiet = GLANCE_EVERY;
        }
    }

    /// Looks whether the engine answers at all.
    async fn glance(&mut self) {
        let Some(record) = &self.record else {
            return;
        };
        // The question would show our key.
        if !self.feeds.rules.reaches(&record.address) {
            return;
        }
        let client = &self.feeds.client;
        let at = (&record.worker, record.address.as_str());
        let answer = client.look(at, "/health", GLANCE_DEADLINE).await;
        self.note_silence(answer.is_err());
    }

    fn note_silence(&mut self, is_silent: bool) {
        if let Some(record) = &self.record
            && std::mem::replace(&mut self.is_silent, is_silent) != is_silent
        {
            let worker = &record.worker;
            match is_silent {
                true => warn!(%worker, "neither agent nor engine is heard, nothing new goes there"),
                false => info!(%worker, "worker is heard again"),
            }
            self.feeds.router.note_silence(worker, is_silent);
        }
    }

    fn serves_without_agent(&self) -> bool {
        let (Some(record), Some(away)) = (&self.record, &self.away) else {
            return false;
        };
        record.verdict.takes_requests() && away.found.is_none()
    }

    /// A record as it counts here.
    fn judged(&mut self, record: WorkerRecord) -> WorkerRecord {
        self.told = Some(record.clone());
        // An operator named it; what the record says may hold on the agent's own host alone.
        let source = &self.source;
        let is_agent = source.starts_with("http://") || source.starts_with("unix:");
        let agent = is_agent.then_some(source.as_str());
        self.feeds.rules.judged(record, agent)
    }

    /// Judges the record again after the rules have changed.
    fn judge_again(&mut self) {
        let Some(told) = self.told.clone() else {
            return;
        };
        let record = self.judged(told);
        if self.record.as_ref() == Some(&record) {
            return;
        }
        self.record = Some(record.clone());
        match self.away {
            Some(_) => self.publish_away(),
            None => self.publish(record),
        }
    }

    fn publish(&self, record: WorkerRecord) {
        let up = Change::Up(Box::new(record));
        self.feeds.router.apply(Update::Change(up));
    }

    fn publish_away(&self) {
        let Some(record) = self.away_record() else {
            return;
        };
        self.publish(record);
    }

    /// The record while the agent is away.
    fn away_record(&self) -> Option<WorkerRecord> {
        let (record, away) = (self.record.clone()?, self.away.as_ref()?);
        let mut record = record;
        let cause = format!("agent away since {}", away.since_text);
        record.ledger.completeness = Completeness::Partial;
        record.ledger.cause = Some(cause.clone());
        record.ledger.is_followed = false;
        // Nobody listens to what the engine would report.
        record.ledger.report_session = None;
        let cause = match &away.found {
            Some((verdict, found)) => {
                record.verdict = *verdict;
                format!("{cause}; {found}")
            }
            None => match &record.cause {
                Some(before) => format!("{cause}; before that: {before}"),
                None => cause,
            },
        };
        record.cause = Some(cause);
        Some(record)
    }

    /// Holds the heartbeat against the index.
    fn compare(&self, ranks: &[Standing]) -> Result<(), LinkError> {
        let Some(record) = self.record.as_ref().filter(|_| self.feeds.with_blocks) else {
            return Ok(());
        };
        let standings = self.feeds.router.standings(&record.worker);
        for told in ranks {
            let held = standings
                .iter()
                .find(|held| held.rank == told.rank)
                .copied();
            if held != Some(*told) {
                return Err(LinkError::Astray { held, told: *told });
            }
        }
        Ok(())
    }

    /// Asks the engine itself, and publishes what that changes.
    async fn look(&mut self) {
        let (Some(record), Some(before)) = (self.record.clone(), self.away.clone()) else {
            return;
        };
        let stale_after = self.feeds.stale_after;
        // The question would show our key.
        if !self.feeds.rules.reaches(&record.address) {
            if before.since.elapsed() >= stale_after {
                self.remove();
            }
            return;
        }
        let client = &self.feeds.client;
        let at = (&record.worker, record.address.as_str());
        let answer = client.look(at, "/health", LOOK_DEADLINE).await;
        self.note_silence(answer.is_err());
        let is_well = matches!(answer, Ok((StatusCode::OK, _)));
        let mut away = before.clone();
        away.failures = if is_well { 0 } else { away.failures + 1 };
        let is_refused = matches!(answer, Err(DispatchError::Refused { .. }));
        if is_well {
            away.found = None;
        } else if is_refused || away.failures >= FAILURES_MAX {
            let found = match answer {
                Ok((status, _)) => format!("engine answered {status} to /health"),
                Err(error) => error.to_string(),
            };
            // One that hangs may still finish what it has; one that refuses has lost it.
            let verdict = match is_refused {
                true => Verdict::Failed,
                false => Verdict::Draining,
            };
            away.found = Some((verdict, found));
        }
        let is_stale = away.since.elapsed() >= stale_after;
        if is_stale && away.found.is_some() {
            info!(worker = %record.worker, "neither agent nor engine came back, worker is removed");
            return self.remove();
        }
        let forgets = (is_refused || is_stale) && before.is_indexed;
        away.is_indexed &= !forgets;
        self.away = Some(away);
        if let (true, Some(record)) = (forgets, self.away_record()) {
            self.feeds.router.replace(record, &[]);
        } else if self.away != Some(before) {
            self.publish_away();
        }
    }

    /// Lets a deregistered worker finish what it has, then takes it out.
    pub(crate) async fn leave(&mut self) {
        let Some(record) = self.record.clone() else {
            return;
        };
        let worker = record.worker.clone();
        info!(%worker, "agent has deregistered its worker");
        self.publish(WorkerRecord {
            verdict: Verdict::Draining,
            cause: Some("deregistered".to_owned()),
            ..record
        });
        let latest = Instant::now() + LEAVE_MAX;
        while !self.feeds.router.is_idle(&worker) && Instant::now() < latest {
            sleep(LEAVE_POLL).await;
        }
        self.remove();
    }

    /// Forgets the worker and all it holds.
    fn remove(&mut self) {
        (self.away, self.told) = (None, None);
        self.is_silent = false;
        if let Some(record) = self.record.take() {
            self.feeds.release(&record.worker);
            self.feeds.rules.forget(&record.worker);
            let down = Change::Down(record.worker);
            self.feeds.router.apply(Update::Change(down));
        }
    }
}
