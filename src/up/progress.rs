//! What a person sees while engines start, fail and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::engine::{EngineProcess, State};
use crate::lifecycle;
use crate::router::Router;
use crate::telemetry::metrics::Metrics;
use crate::up::say;
use crate::up::setup::Banner;

/// How often the router is asked whether all workers are there: often enough to look instant.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Lines of a failed engine's output that are shown; the rest stands in the log.
const LINES_SHOWN: usize = 12;

/// Prints each engine's changes, and once all workers take requests, the banner. Ends when all
/// engines have been stopped for good.
pub(crate) async fn run(
    processes: Vec<EngineProcess>,
    metrics: Arc<Metrics>,
    router: Arc<Router>,
    banner: Banner,
) {
    let mut tasks = JoinSet::new();
    for process in processes {
        tasks.spawn(follow(process, metrics.clone()));
    }
    let followed = async { while tasks.join_next().await.is_some() {} };
    let announced = async {
        announce(&router, &banner).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = followed => {}
        () = announced => {}
    }
}

async fn announce(router: &Router, banner: &Banner) {
    let ready = || {
        let workers = router.workers();
        workers
            .iter()
            .filter(|view| view.record.verdict.takes_requests())
            .count()
    };
    while ready() < banner.workers {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    for view in router.workers() {
        let record = view.record;
        let size = record
            .block_size
            .map_or_else(String::new, |s| s.tokens().to_string());
        let blocks = record
            .capacity_blocks
            .map_or_else(String::new, |blocks| blocks.to_string());
        say(format_args!(
            "  {}  {}  {blocks} blocks of {size} tokens",
            record.worker, record.address
        ));
    }
    say(banner.text());
    lifecycle::notify_status(&banner.status());
    lifecycle::notify_ready();
}

/// Prints one engine's changes until it is stopped for good.
async fn follow(process: EngineProcess, metrics: Arc<Metrics>) {
    let mut states = process.state;
    let worker = process.spec.worker;
    let mut since = Instant::now();
    let mut shown = None;
    loop {
        let state = states.borrow_and_update().clone();
        // The same state may be sent twice.
        if shown.as_ref() != Some(&state) {
            if state == State::Starting {
                since = Instant::now();
            }
            if matches!(state, State::Restarting { .. }) {
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
