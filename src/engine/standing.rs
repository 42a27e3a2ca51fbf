//! How an engine under our care stands: what the log, systemd and the control socket are told of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::engine::control::Seen;
use crate::engine::gate::Gate;
use crate::engine::probe::Probe;
use crate::engine::{EngineProcess, State};
use crate::lifecycle::notify::{self, Status};

/// Lines of a failed engine's output that are logged; at level debug every line is.
const LINES_SHOWN: usize = 12;

/// A loading engine's age is told in steps of so many seconds: each is a word to PID 1.
const AGE_STEP_SECS: u64 = 5;

/// An engine and what else is known of it.
#[derive(Debug)]
pub(super) struct Standing {
    process: EngineProcess,
    gate: Option<Arc<Gate>>,
    /// What it serves, and where, as `demo on GPU 2`.
    what: String,
    /// Longest time for it to load.
    load_max: Duration,
    /// How often it ended by itself, and how it did last.
    ends: Option<(u32, String)>,
}

impl Standing {
    pub(super) fn new(
        process: EngineProcess,
        gate: Option<Arc<Gate>>,
        what: String,
        load_max: Duration,
    ) -> Self {
        Self {
            process,
            gate,
            what,
            load_max,
            ends: None,
        }
    }

    /// Tells of its states until it is stopped, and to systemd at most once a second what it does.
    pub(super) async fn follow(mut self, seen: watch::Sender<Seen>) {
        let mut states = self.process.state.clone();
        let mut status = Status::default();
        let mut has_been_ready = false;
        loop {
            let (state, since) = (states.borrow_and_update().clone(), Instant::now());
            if let State::Restarting {
                cause, last_lines, ..
            } = &state
            {
                self.note_end(cause, last_lines);
            }
            // First the word that is waited for.
            if matches!(state, State::Ready { .. }) && !std::mem::replace(&mut has_been_ready, true)
            {
                notify::ready();
            }
            seen.send_modify(|seen| seen.take(state.clone()));
            let changed = loop {
                status.tell(self.line(&state, since.elapsed()));
                // Only while a process lives that loads: one that ends again and again is not started.
                if state == State::Starting && !has_been_ready && since.elapsed() < self.load_max {
                    notify::extend(notify::EXTENSION);
                }
                if let Ok(changed) = timeout(notify::LOOK_EVERY, states.changed()).await {
                    break changed;
                }
            };
            if state == State::Stopped || changed.is_err() {
                break;
            }
        }
        // The engine's end is the end of the role, not of this part.
        seen.closed().await;
    }

    fn note_end(&mut self, cause: &str, last_lines: &[String]) {
        let worker = &self.process.spec.worker;
        let skipped = last_lines.len().saturating_sub(LINES_SHOWN);
        for line in last_lines.iter().skip(skipped) {
            warn!(%worker, line, "engine wrote before its end");
        }
        let before = self.ends.take().map_or(0, |(ends, _)| ends);
        self.ends = Some((before + 1, cause.to_owned()));
    }

    fn line(&self, state: &State, age: Duration) -> String {
        let what = &self.what;
        let in_flight = self.gate.as_ref().map(|gate| gate.in_flight());
        let is_draining = self.gate.as_ref().is_some_and(|gate| gate.is_draining());
        let again = match &self.ends {
            Some((1, cause)) => format!("; started again: {cause}"),
            Some((ends, cause)) => format!("; started again {ends} times, last: {cause}"),
            None => String::new(),
        };
        match (state, in_flight) {
            (State::Stopped, _) => "stopped".to_owned(),
            (_, Some(in_flight)) if is_draining => format!("draining, {in_flight} in flight"),
            (State::Starting, _) => {
                let secs = age.as_secs() / AGE_STEP_SECS * AGE_STEP_SECS;
                let most = self.load_max.as_secs();
                format!("loading {what}, for {secs} of at most {most} s{again}")
            }
            (State::Ready { .. }, Some(in_flight)) => {
                format!("serving {what}, {in_flight} in flight{again}")
            }
            (State::Ready { .. }, None) => format!("serving {what}{again}"),
            (State::Restarting { after, .. }, _) => {
                let secs = after.as_secs_f64();
                format!("waiting {secs:.1} s to start {what}{again}")
            }
        }
    }
}

/// Whether an engine is as it should be, or is being helped: one that is ready must answer within
/// `deadline`, well or not, for what says that it is not well is started again without anybody's help.
pub(super) async fn is_well(process: &EngineProcess, probe: &Probe, deadline: Duration) -> bool {
    let is_ready = matches!(*process.state.borrow(), State::Ready { .. });
    !is_ready || probe.answers(deadline).await
}

/// What an engine serves, and on which GPUs where it is told.
pub(super) fn what(name: &str, gpus: Option<&[String]>) -> String {
    match gpus {
        None | Some([]) => name.to_owned(),
        // A number needs the word; an id says itself what it is.
        Some([gpu]) if gpu.parse::<u32>().is_ok() => format!("{name} on GPU {gpu}"),
        Some([gpu]) => format!("{name} on {gpu}"),
        Some(gpus) => format!("{name} on GPUs {}", gpus.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::Notify;

    use crate::engine::probe::HEALTH;
    use crate::engine::{EngineAddress, Spec};
    use crate::id::WorkerId;

    use super::*;

    fn standing(gate: Option<Arc<Gate>>) -> Standing {
        let spec = Spec {
            worker: WorkerId::new("gpu-0").unwrap(),
            program: PathBuf::from("kvlens"),
            args: Vec::new(),
            environment: Vec::new(),
            withheld: Vec::new(),
            address: EngineAddress::Unix(PathBuf::from("/nonexistent")),
            health: HEALTH,
            sources: Vec::new(),
            media_dir: None,
            gpus: Vec::new(),
        };
        let process = EngineProcess {
            spec,
            state: watch::channel(State::Starting).1,
            restart: Arc::new(Notify::new()),
        };
        let what = what("demo", Some(&["2".to_owned()]));
        Standing::new(process, gate, what, Duration::from_secs(900))
    }

    #[test]
    fn a_person_reads_what_the_engine_does() {
        let gate = Arc::new(Gate::new("unix:/nonexistent".to_owned()));
        let mut standing = standing(Some(gate.clone()));
        let age = Duration::from_secs(33);
        let reads = |state: &State, line: &str| assert_eq!(standing.line(state, age), line);
        reads(
            &State::Starting,
            "loading demo on GPU 2, for 30 of at most 900 s",
        );
        let ready = State::Ready { life: 1 };
        reads(&ready, "serving demo on GPU 2, 0 in flight");
        gate.set_draining(true);
        reads(&ready, "draining, 0 in flight");
        gate.set_draining(false);
        let cause = "it ended with signal: 9 (SIGKILL)";
        let ended = State::Restarting {
            after: Duration::from_millis(500),
            cause: cause.to_owned(),
            last_lines: Arc::default(),
        };
        standing.note_end(cause, &[]);
        let again = format!("; started again: {cause}");
        let line = standing.line(&ended, age);
        assert_eq!(line, format!("waiting 0.5 s to start demo on GPU 2{again}"));
        let line = standing.line(&ready, age);
        assert_eq!(line, format!("serving demo on GPU 2, 0 in flight{again}"));
        standing.note_end("it hung", &[]);
        let line = standing.line(&ready, age);
        assert!(
            line.ends_with("started again 2 times, last: it hung"),
            "{line}"
        );
    }

    #[test]
    fn gpus_are_named_as_they_were_given() {
        let gpus = ["0".to_owned(), "GPU-3f".to_owned()];
        for (gpus, text) in [
            (None, "demo"),
            (Some(&gpus[..0]), "demo"),
            (Some(&gpus[1..]), "demo on GPU-3f"),
            (Some(&gpus[..]), "demo on GPUs 0, GPU-3f"),
        ] {
            assert_eq!(what("demo", gpus), text);
        }
    }

    #[tokio::test]
    async fn only_a_ready_engine_must_answer() {
        let mut standing = standing(None);
        let probe = Probe::new(standing.process.spec.address.to_string());
        let deadline = Duration::from_secs(1);
        assert!(is_well(&standing.process, &probe, deadline).await);
        standing.process.state = watch::channel(State::Ready { life: 1 }).1;
        assert!(!is_well(&standing.process, &probe, deadline).await);
    }
}
