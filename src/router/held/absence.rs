//! A worker whose agent is not heard: its engine is asked itself, and what it held is believed in for a
//! while.

use std::time::Duration;

use ::http::StatusCode;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::discovery::{Completeness, WorkerRecord};
use crate::dispatch::DispatchError;
use crate::health::Verdict;
use crate::router::held::Held;
use crate::router::link::LinkError;

/// Longest wait for an engine's answer. A busy one answers `/health` late, not never.
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

/// An agent's absence.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Away {
    pub(super) since: Instant,
    /// The same for a person.
    since_text: String,
    failures: u32,
    /// What we found ourselves, where that is worse than what the agent said last.
    pub(super) found: Option<(Verdict, String)>,
    /// Whether its blocks are still in the index.
    is_indexed: bool,
}

impl Held {
    /// Goes on without the agent.
    pub(super) fn go_away(&mut self) {
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
    pub(crate) fn take_registered(&mut self, record: &WorkerRecord) {
        if self.record.is_none() {
            self.record = Some(self.judged(record.clone()));
            self.go_away();
        }
    }

    /// Takes a record that was registered while the agent was not heard: it says more than is known.
    pub(crate) fn take_news(&mut self, record: &WorkerRecord) {
        if self.away.is_some() {
            self.record = Some(self.judged(record.clone()));
            self.publish_away();
        }
    }

    /// Waits for what the feed tells; an engine whose agent is quiet is looked at meanwhile.
    pub(crate) async fn hearing<T>(
        &mut self,
        next: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let mut next = std::pin::pin!(next);
        let mut quiet = QUIET_MAX;
        loop {
            tokio::select! {
                biased;
                told = &mut next => {
                    if told.is_ok() {
                        self.note_silence(false);
                    }
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
        self.note_silence(is_silence(&answer));
    }

    pub(super) fn note_silence(&mut self, is_silent: bool) {
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

    pub(super) fn publish_away(&self) {
        let Some(record) = self.away_record() else {
            return;
        };
        self.publish(record);
    }

    /// The record while the agent is away.
    fn away_record(&self) -> Option<WorkerRecord> {
        let (record, away) = (self.record.clone()?, self.away.as_ref()?);
        let mut record = record;
        let bus = self.feeds.bus.as_ref();
        let cause = match bus.is_some_and(|bus| !bus.is_up()) {
            true => format!("NATS away, agent not heard since {}", away.since_text),
            false => format!("agent away since {}", away.since_text),
        };
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

    /// Asks the engine itself, and publishes what that changes.
    pub(super) async fn look(&mut self) {
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
        self.note_silence(is_silence(&answer));
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
}

/// Whether nobody was there to answer. Who refuses a connection has a host that is there.
fn is_silence<T>(answer: &Result<T, DispatchError>) -> bool {
    match answer {
        Ok(_) | Err(DispatchError::Refused { .. }) => false,
        Err(_) => true,
    }
}
