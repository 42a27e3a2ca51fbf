//! The worker behind one feed, as its router holds it: by its agent's word, and without it.

mod absence;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::discovery::feed::{Snapshot, Standing, Told};
use crate::discovery::{Change, Update, WorkerRecord};
use crate::health::Verdict;
use crate::id::WorkerId;
use crate::router::feed::{Broken, Feeds};
use crate::router::held::absence::Away;
use crate::router::link::LinkError;

/// How often the engine of a worker whose agent is away is asked whether it is well.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Longest time for requests in flight on a worker that leaves.
const LEAVE_MAX: Duration = Duration::from_secs(30);

/// How often is looked whether they have ended.
const LEAVE_POLL: Duration = Duration::from_millis(100);

/// Why a worker is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Its agent has said so.
    Deregistered,
    /// Its agent is named no more.
    Unnamed,
}

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
                self.feeds.release(worker, &self.source);
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
        let events = match self.feeds.with_blocks {
            true => &snapshot.events[..],
            false => &[],
        };
        self.feeds.router.replace(record.clone(), events);
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
                if self.feeds.with_blocks {
                    self.feeds.router.apply(Update::Kv(event));
                }
                Ok(())
            }
            Told::Heartbeat(ranks) => self.compare(&ranks),
            Told::Down => Err(LinkError::Deregistered),
        }
    }

    /// Notes that the feed broke off: the worker stays, unless its agent has taken it out.
    pub(crate) async fn lose(&mut self, Broken { error, was_open }: &Broken) {
        let source = &self.source;
        if matches!(error, LinkError::Deregistered) {
            return self.leave(Leaving::Deregistered).await;
        }
        if *was_open && error.is_gap() {
            info!(source, %error, "feed starts again with a snapshot");
            self.feeds.router.feed_gap();
            return;
        }
        match (self.is_told, &self.record) {
            _ if matches!(error, LinkError::Unready) => {
                debug!(source, %error, "agent is not ready");
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

    /// Whether nothing is known of a worker, or no more.
    pub(crate) fn is_empty(&self) -> bool {
        self.record.is_none()
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

    /// Lets a worker finish what it has, then takes it out.
    pub(crate) async fn leave(&mut self, reason: Leaving) {
        let Some(record) = self.record.clone() else {
            return;
        };
        let worker = record.worker.clone();
        let cause = match reason {
            Leaving::Deregistered => {
                info!(%worker, "agent has deregistered its worker");
                "deregistered"
            }
            Leaving::Unnamed => {
                let source = &self.source;
                info!(%worker, source, "agent is named no more, its worker is taken out");
                "its agent is named no more in the file of workers"
            }
        };
        let leaving = WorkerRecord {
            verdict: Verdict::Draining,
            cause: Some(cause.to_owned()),
            ..record
        };
        self.record = Some(leaving.clone());
        self.publish(leaving);
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
            self.feeds.release(&record.worker, &self.source);
            self.feeds.rules.forget(&record.worker);
            let down = Change::Down(record.worker);
            self.feeds.router.apply(Update::Change(down));
        }
    }
}
