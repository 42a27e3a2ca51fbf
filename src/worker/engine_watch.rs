//! Whether the engine is there: asks its health, and heeds who runs its process.

use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::worker::probe::{EngineFacts, Probe, ProbeError};
use crate::worker::spec::ProcessState;

/// How often the health of an engine that answers is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Waits between two questions to an engine that does not answer yet.
const START_POLL: Duration = Duration::from_millis(200);

/// How often an engine is asked what it is: adapters come and go.
const FACTS_PERIOD: Duration = Duration::from_secs(10);

/// How often an engine is asked what it does. It makes a page of hundreds of lines each time.
const LOAD_PERIOD: Duration = Duration::from_secs(2);

/// Questions in a row without a good answer after which the engine counts as failed. A refused
/// connection needs none: nobody listens there.
const FAILURES_MAX: u32 = 3;

/// What was seen of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It is well; with what it says of itself and the page of its metrics, where it was asked for
    /// them.
    Well {
        facts: Option<Box<EngineFacts>>,
        metrics: Option<String>,
    },
    /// It starts, and does not answer yet.
    NotYet { cause: String },
    /// It gives no good answer, but its process may be there and hold its blocks.
    Silent { cause: String },
    /// Its process has ended, and what it held with it.
    Ended { cause: String },
}

/// Watches one engine.
#[derive(Debug)]
pub struct EngineWatch<'a> {
    probe: &'a Probe,
    /// Asked for when the engine may be another one.
    facts_due: &'a Notify,
    /// Whether it answered since its process last ended.
    is_well: bool,
    /// Whether it may be starting: not where a foreign one has ended.
    is_starting: bool,
    failures: u32,
    described: Option<Instant>,
    /// When it was asked what it does.
    measured: Option<Instant>,
    /// How its process ended last, until it answers again.
    last_end: Option<String>,
}

impl<'a> EngineWatch<'a> {
    /// A watch on an engine of which nothing is known.
    pub fn new(probe: &'a Probe, facts_due: &'a Notify) -> Self {
        Self {
            probe,
            facts_due,
            is_well: false,
            is_starting: true,
            failures: 0,
            described: None,
            measured: None,
            last_end: None,
        }
    }

    /// Tells what it sees, until nobody takes it. `process` is who runs the engine, if we do.
    pub async fn run(
        mut self,
        mut process: Option<watch::Receiver<ProcessState>>,
        sightings: mpsc::Sender<Sighting>,
    ) {
        if let Some(process) = &mut process {
            process.mark_changed();
        }
        let facts_due = self.facts_due;
        let mut is_running = true;
        let mut next = Instant::now();
        loop {
            let sighting = tokio::select! {
                biased;
                state = changed(&mut process) => {
                    next = Instant::now();
                    is_running = !matches!(state, ProcessState::Ended { .. });
                    self.heed(state)
                }
                () = facts_due.notified() => {
                    self.described = None;
                    next = Instant::now();
                    None
                }
                sighting = self.ask_at(next), if is_running => {
                    next = Instant::now() + if self.is_well { PERIOD } else { START_POLL };
                    sighting
                }
            };
            if let Some(sighting) = sighting
                && sightings.send(sighting).await.is_err()
            {
                return;
            }
        }
    }

    fn heed(&mut self, state: ProcessState) -> Option<Sighting> {
        match state {
            ProcessState::Unknown => None,
            ProcessState::Running => {
                self.is_starting = true;
                None
            }
            ProcessState::Ended { cause } => {
                self.end();
                self.last_end = Some(cause.clone());
                Some(Sighting::Ended { cause })
            }
        }
    }

    fn end(&mut self) {
        (self.is_well, self.is_starting) = (false, false);
        (self.failures, self.described) = (0, None);
    }

    /// Asks the engine when it is time. Losing the future loses no more than its answer.
    async fn ask_at(&mut self, next: Instant) -> Option<Sighting> {
        sleep_until(next).await;
        match self.probe.health().await {
            Ok(()) => self.describe().await,
            Err(error) => self.doubt(&error),
        }
    }

    async fn describe(&mut self) -> Option<Sighting> {
        self.failures = 0;
        let is_due = |at: Instant| at.elapsed() >= FACTS_PERIOD;
        if self.is_well && !self.described.is_none_or(is_due) {
            let metrics = self.measure().await;
            let facts = None;
            return Some(Sighting::Well { facts, metrics });
        }
        match self.probe.facts().await {
            Ok(facts) => {
                (self.is_well, self.described) = (true, Some(Instant::now()));
                self.last_end = None;
                let metrics = self.measure().await;
                let facts = Some(Box::new(facts));
                Some(Sighting::Well { facts, metrics })
            }
            Err(error) if self.is_well => {
                warn!(%error, "engine does not describe itself any more");
                self.described = Some(Instant::now());
                let (facts, metrics) = (None, None);
                Some(Sighting::Well { facts, metrics })
            }
            Err(error) => {
                debug!(%error, "engine is healthy but does not describe itself");
                let cause = format!("it is healthy but does not describe itself: {error}");
                Some(Sighting::NotYet { cause })
            }
        }
    }

    /// The page of its metrics, when it is time.
    async fn measure(&mut self) -> Option<String> {
        let is_early = |at: Instant| at.elapsed() < LOAD_PERIOD;
        if self.measured.is_some_and(is_early) {
            return None;
        }
        self.measured = Some(Instant::now());
        self.probe.metrics().await.ok()
    }

    /// What a question without a good answer means.
    fn doubt(&mut self, error: &ProbeError) -> Option<Sighting> {
        let cause = error.to_string();
        if !self.is_well {
            debug!(cause, "engine does not answer yet");
            let cause = match &self.last_end {
                Some(end) => format!("{cause}; its last life: {end}"),
                None => cause,
            };
            return self.is_starting.then_some(Sighting::NotYet { cause });
        }
        self.failures += 1;
        warn!(cause, failures = self.failures, "engine probe failed");
        if error.is_refused() {
            self.end();
            return Some(Sighting::Ended { cause });
        }
        (self.failures >= FAILURES_MAX).then_some(Sighting::Silent { cause })
    }
}

/// The next state of the engine's process; never, where nobody knows it.
async fn changed(process: &mut Option<watch::Receiver<ProcessState>>) -> ProcessState {
    if let Some(process) = process
        && process.changed().await.is_ok()
    {
        return process.borrow_and_update().clone();
    }
    std::future::pending().await
}
