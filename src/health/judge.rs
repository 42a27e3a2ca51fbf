//! The judge of one GPU: from what is seen of it, one observation after the other, to what is held of it.

mod answers;
mod book;
mod conditions;
mod events;
mod finding;
mod links;
mod past;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::health::Verdict;
use crate::health::incident::Incident;
use crate::health::judge::book::Book;
use crate::health::judge::finding::Finding;
use crate::health::judge::past::Past;
use crate::health::limits::Limits;
use crate::health::reading::{Observation, Processes, Reading};
use crate::health::signal::Signal;

/// What is true around a GPU while it is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Context {
    /// An engine of the worker is up, so that it can be asked for a canary and be restarted. While none is,
    /// an incident that keeps it from starting ends without a canary.
    pub has_engine: bool,
    /// The engine of the worker is about to take the GPU's memory, or takes it.
    pub is_engine_starting: bool,
    /// How many GPUs compute together in the worker.
    pub gpus_of_worker: usize,
    /// The share of the GPU's memory that the starting engine needs.
    pub memory_needed: Option<f64>,
    /// The worker is to compute on an instance of a GPU that is cut into some.
    pub expects_mig: bool,
    /// What the engine says it does.
    pub progress: Option<Progress>,
    /// Uncorrected errors over the GPU's life, when it was last looked at before this start.
    pub lifetime_before: Option<u64>,
}

/// How far an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that it works on.
    pub running: u64,
    /// What only grows while it computes: tokens that it has generated since its start, and steps.
    pub generated_tokens: u64,
}

/// What is held of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// Those that are open, in the order of signals and codes.
    pub incidents: Vec<Incident>,
}

/// The judge of one GPU.
///
/// Faults count at once; only the table's own times and numbers delay them. An incident is over once it
/// is *quiet*, so once [`Limits::clean_polls`] polls in a row have not found it, and a *canary*, a
/// generation of one token, has passed since; one that they found milder becomes so in the same way. Where
/// no engine can be asked, quiet is enough. Incidents that are info alone close by themselves.
#[derive(Debug)]
pub struct Judge {
    limits: Limits,
    past: Past,
    book: Book,
    /// Nothing is held of a GPU before something was read of it.
    is_read: bool,
}

/// A poll with all around it.
struct Look<'a> {
    reading: &'a Reading,
    context: &'a Context,
    limits: &'a Limits,
    now: Duration,
}

impl Look<'_> {
    /// Who computes on it. Of a GPU that is cut into instances nobody tells which processes are on whose.
    fn processes(&self) -> Option<Processes> {
        self.reading.processes.filter(|_| !self.context.expects_mig)
    }

    /// Whether the GPU needs links to others.
    fn has_peers(&self) -> bool {
        self.context.gpus_of_worker > 1
    }
}

impl Judge {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            past: Past::default(),
            book: Book::default(),
            is_read: false,
        }
    }

    /// Takes in what was observed at `now`, on a clock that does not go back. Times in incidents count
    /// from that clock's start.
    pub fn take(&mut self, observation: &Observation, context: &Context, now: Duration) {
        self.book.has_engine = context.has_engine;
        match observation {
            Observation::Polled(reading) => {
                self.is_read = true;
                if reading.recovery_action.is_some() {
                    self.book.close(Signal::RecoveryEvent);
                }
                let found = self.read(reading, context, now);
                let found = found
                    .into_iter()
                    .map(|finding| finding.weighed(&self.limits));
                self.book.poll(found.collect(), &self.limits, now);
            }
            Observation::Event(event) => {
                self.is_read = true;
                let found = events::found(*event, context, &self.limits, &mut self.past, now);
                self.see(found, now);
                if events::is_contained(*event) {
                    self.book.soften_memory_error(&self.limits, now);
                }
            }
            Observation::Unreachable { code, text } => {
                self.past.gap();
                let found = answers::unreachable(*code, text, &self.limits, &mut self.past);
                self.see(found.into_iter().collect(), now);
            }
            Observation::Hanging(time) => {
                self.past.gap();
                let found = answers::hanging(*time, &self.limits, &mut self.past);
                self.see(vec![found], now);
            }
        }
        self.book.forget(&self.limits, now);
    }

    /// Takes in how a canary went.
    pub fn canary(&mut self, passed: bool, now: Duration) {
        match passed {
            true => self.book.canary_passed(&self.limits),
            false => self.book.canary_failed(&self.limits, now),
        }
    }

    /// Whether the engine should be asked for a token now, to show that the GPU is well.
    pub fn wants_canary(&self, now: Duration) -> bool {
        self.book.wants_canary(&self.limits, now)
    }

    /// Whether the engine is to be restarted; says so once.
    pub fn take_restart(&mut self) -> bool {
        std::mem::take(&mut self.book.wants_restart)
    }

    pub fn verdict(&self) -> Verdict {
        let start = match self.is_read {
            true => Verdict::Healthy,
            false => Verdict::Unknown,
        };
        let verdicts = self.book.incidents().map(Incident::verdict);
        verdicts.fold(start, Verdict::worse)
    }

    pub fn state(&self) -> Judgement {
        Judgement {
            verdict: self.verdict(),
            incidents: self.book.incidents().cloned().collect(),
        }
    }

    fn read(&mut self, reading: &Reading, context: &Context, now: Duration) -> Vec<Finding> {
        let look = Look {
            reading,
            context,
            limits: &self.limits,
            now,
        };
        let mut found = answers::polled(&look, &mut self.past);
        found.extend(conditions::found(&look, &mut self.past));
        found
    }

    fn see(&mut self, found: Vec<Finding>, now: Duration) {
        for finding in found {
            self.book
                .see(finding.weighed(&self.limits), &self.limits, now);
        }
    }
}
