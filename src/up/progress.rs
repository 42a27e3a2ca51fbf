//! What a person sees while engines start, fail and come back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::discovery::WorkerRecord;
use crate::engine::{EngineProcess, State};
use crate::id::WorkerId;
use crate::lifecycle::notify;
use crate::lifecycle::tasks::Tasks;
use crate::router::Router;
use crate::telemetry::metrics::Metrics;
use crate::up::banner::Banner;
use crate::up::say;
use crate::worker::spec::ProcessState;

/// How often the router is asked which workers are there: often enough to look instant.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long the first ready worker waits for the rest to be shown with it: small engines that start
/// together are ready together.
const TOGETHER_MAX: Duration = Duration::from_millis(500);

/// Lines of a failed engine's output that are shown; the log has every line, at level debug.
const LINES_SHOWN: usize = 12;

/// Starts a task for each engine that prints its changes and tells them to its agent, and ends only
/// with the engine. The states are in the order of the processes; `metrics` counts their restarts.
pub(crate) fn follow(
    processes: &[EngineProcess],
    metrics: Option<&Arc<Metrics>>,
) -> (Tasks, Vec<watch::Receiver<ProcessState>>) {
    let mut tasks = Tasks::default();
    let mut states = Vec::new();
    for process in processes {
        let (sender, state) = watch::channel(ProcessState::Unknown);
        let name = format!("the supervisor of {}", process.spec.worker);
        tasks.spawn(name, follow_one(process.clone(), metrics.cloned(), sender));
        states.push(state);
    }
    (tasks, states)
}

/// Prints the banner when the first worker takes requests, and says when all do.
pub(crate) async fn announce(router: &Router, banner: &Banner) -> Infallible {
    until_ready(router, 1).await;
    notify::ready();
    // Whether all came in time is seen below.
    let all = until_ready(router, banner.workers);
    tokio::time::timeout(TOGETHER_MAX, all).await.ok();
    let shown = show_workers(router, banner, &[]);
    say(banner.text());
    if shown.len() < banner.workers {
        until_ready(router, banner.workers).await;
        show_workers(router, banner, &shown);
    }
    std::future::pending().await
}

async fn until_ready(router: &Router, workers: usize) {
    while ready(router).len() < workers {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The records of the workers that take requests.
fn ready(router: &Router) -> Vec<WorkerRecord> {
    let records = router.workers().into_iter().map(|view| view.record);
    records
        .filter(|record| record.verdict.takes_requests())
        .collect()
}

/// Shows the workers that take requests and are not among those `shown` before; returns who is
/// ready.
fn show_workers(router: &Router, banner: &Banner, shown: &[WorkerId]) -> Vec<WorkerId> {
    let records = ready(router);
    for record in &records {
        if shown.contains(&record.worker) {
            continue;
        }
        let size = record.block_size.map(|size| size.tokens().to_string());
        let blocks = record.capacity_blocks.map(|blocks| blocks.to_string());
        say(format_args!(
            "  {}  {}  {} blocks of {} tokens",
            record.worker,
            record.address,
            blocks.unwrap_or_default(),
            size.unwrap_or_default(),
        ));
    }
    say(format_args!(
        "{} of {} workers take requests",
        records.len(),
        banner.workers
    ));
    notify::status(&banner.status(records.len()));
    records.into_iter().map(|record| record.worker).collect()
}

/// Prints one engine's changes, and tells them to its agent, until it is stopped for good.
async fn follow_one(
    process: EngineProcess,
    metrics: Option<Arc<Metrics>>,
    agent: watch::Sender<ProcessState>,
) {
    let mut states = process.state;
    let worker = process.spec.worker;
    let mut since = Instant::now();
    let mut shown = None;
    loop {
        let state = states.borrow_and_update().clone();
        // The same state may be sent twice.
        if shown.as_ref() != Some(&state) {
            agent.send_replace(process_state(&state));
            if state == State::Starting {
                since = Instant::now();
            }
            if let (Some(metrics), State::Restarting { .. }) = (&metrics, &state) {
                metrics.engine_restarts.inc();
            }
            show(worker.as_str(), &state, since.elapsed());
        }
        if state == State::Stopped || states.changed().await.is_err() {
            return;
        }
        shown = Some(state);
    }
}

fn process_state(state: &State) -> ProcessState {
    match state {
        State::Starting | State::Ready { .. } => ProcessState::Running,
        State::Restarting { after, cause, .. } => ProcessState::Ended {
            cause: format!("{cause}; starting it again in {:.1} s", after.as_secs_f64()),
        },
        State::Stopped => ProcessState::Ended {
            cause: "it was stopped".to_owned(),
        },
    }
}

fn show(worker: &str, state: &State, running: Duration) {
    let say = |line: &str| say(format_args!("  {worker}  {line}"));
    match state {
        State::Starting => say("starting"),
        State::Ready { .. } => say(&format!("answers after {:.1} s", running.as_secs_f64())),
        State::Restarting {
            after,
            cause,
            last_lines,
        } => {
            let after = after.as_secs_f64();
            say(&format!("{cause}; starting it again in {after:.1} s"));
            let skipped = last_lines.len().saturating_sub(LINES_SHOWN);
            let shown = last_lines.iter().skip(skipped);
            shown.for_each(|line| say(&format!("| {line}")));
        }
        State::Stopped => {}
    }
}
