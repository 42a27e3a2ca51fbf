//! Placements under load: 10,000 a second from 64 tasks, prompts of 512 blocks, 64 workers that hold
//! a million blocks, each booking held for a while and given back. In process, from hashes to the
//! worker chosen.
//!
//! The load is an open loop: placements are due at fixed times whether or not those before them are
//! done, and each is measured from the time it was due; beside that stands the call alone. The floor
//! is the same load without the calls: what the machine and its timers make of it.

mod figures;
mod fleet;
mod samples;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::OptionFuture;
use kvlens::block::{BlockSize, SequenceHash};
use kvlens::router::Router;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::telemetry::metrics::Metrics;
use tokio::task::JoinSet;

use crate::figures::{row, table, target};
use crate::fleet::{Chance, MODEL, WORKERS, cpu_time};
use crate::samples::Samples;

const TASKS: u32 = 64;
const PLACEMENTS_PER_SECOND: u32 = 10_000;
const PROMPT_BLOCKS: usize = 512;
/// Leading blocks that every prompt has, and a quarter of the workers hold.
const SHARED_BLOCKS: usize = 128;
/// How long a booking is held: 5,000 are in flight, 78 on each worker.
const HELD: Duration = Duration::from_millis(500);
const WARM: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(8);
/// Timers are late by up to a millisecond; tasks wait for the rest awake.
const AWAKE: Duration = Duration::from_millis(2);
const P99_MAX: Duration = Duration::from_micros(200);
const P99_GOAL: Duration = Duration::from_micros(50);

fn main() {
    let mut chance = Chance(3);
    let shared: Arc<[_]> = std::iter::repeat_with(|| SequenceHash(chance.next()))
        .take(SHARED_BLOCKS)
        .collect();
    let router = fleet::router(Arc::new(Metrics::default()), WORKERS, &shared);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let (floor, _) = runtime.block_on(load(None, &shared));
    let (late, call) = runtime.block_on(load(Some(&router), &shared));
    let alone = one_by_one(&router, &shared);

    let rows = [
        row(["microseconds", "p50", "p99", "max"]),
        cells("floor: nothing done when it was due", &floor),
        cells("from when it was due", &late),
        cells("the call alone", &call),
        cells("CPU time, nothing else going on", &alone),
    ];
    let title = format!(
        "placements: {PLACEMENTS_PER_SECOND} a second from {TASKS} tasks, {PROMPT_BLOCKS} blocks, \
         {WORKERS} workers, {} in flight",
        PLACEMENTS_PER_SECOND as u128 * HELD.as_millis() / 1_000
    );
    table(&title, &rows);
    for (name, limit) in [("", P99_MAX), ("goal, ", P99_GOAL)] {
        let what = format!("{name}p99 from when it was due <= {limit:?}");
        target(&what, late.percentile(99) <= limit);
    }
}

fn cells(name: &str, samples: &Samples) -> Vec<String> {
    let mut cells = samples.row(name);
    let most = samples.percentile(100).as_secs_f64() * 1e6;
    cells.push(format!("{most:.1}"));
    cells
}

/// All tasks' times from when a placement was due, and of the calls alone; without a router there are
/// no calls.
async fn load(router: Option<&Arc<Router>>, shared: &Arc<[SequenceHash]>) -> (Samples, Samples) {
    let start = Instant::now() + Duration::from_millis(50);
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        tasks.spawn(task(number, router.cloned(), shared.clone(), start));
    }
    let (mut late, mut call) = (Samples::default(), Samples::default());
    while let Some(done) = tasks.join_next().await {
        for (from_due, from_start) in done.expect("no task panics") {
            late.push(from_due);
            call.push(from_start);
        }
    }
    (late, call)
}

async fn task(
    number: u32,
    router: Option<Arc<Router>>,
    shared: Arc<[SequenceHash]>,
    start: Instant,
) -> Vec<(Duration, Duration)> {
    let mut chance = Chance(u64::from(number + 1) << 48);
    let mut held = VecDeque::new();
    let wish = Wish::default();
    let mut times = Vec::new();
    let every = Duration::from_secs(1) / PLACEMENTS_PER_SECOND;
    for turn in 0.. {
        let due = start + every * (turn * TASKS + number);
        if due >= start + WARM + MEASURED {
            break;
        }
        let footprint = footprint(&shared, &mut chance);
        tokio::time::sleep_until((due - AWAKE).into()).await;
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        let started = Instant::now();
        let placement = router
            .as_ref()
            .map(|router| router.admit(&footprint, &wish));
        let placement = OptionFuture::from(placement).await.transpose();
        let placement = placement.expect("a worker is there");
        if due >= start + WARM {
            times.push((due.elapsed(), started.elapsed()));
        }
        // At once, or all workers would soon be busy and requests wait for them.
        if let Some(placement) = &placement {
            placement.booking.first_token();
        }
        held.push_back((due + HELD, placement));
        while held
            .front()
            .is_some_and(|(until, _)| *until <= Instant::now())
        {
            held.pop_front();
        }
    }
    times
}

/// CPU time of placements with nothing in flight.
fn one_by_one(router: &Arc<Router>, shared: &[SequenceHash]) -> Samples {
    let mut chance = Chance(5);
    let mut samples = Samples::default();
    for _ in 0..2_000 {
        let footprint = footprint(shared, &mut chance);
        let started = cpu_time();
        let placement = router.place(&footprint, &Wish::default());
        samples.push(cpu_time() - started);
        drop(placement);
    }
    samples
}

fn footprint(shared: &[SequenceHash], chance: &mut Chance) -> Footprint {
    let own = std::iter::repeat_with(|| SequenceHash(chance.next()));
    let hashes: Arc<[_]> = shared
        .iter()
        .copied()
        .chain(own)
        .take(PROMPT_BLOCKS)
        .collect();
    let size = BlockSize::new(16).expect("16 is not zero");
    let prompt_tokens = hashes.len() as u32 * size.tokens() + 1;
    Footprint {
        hashes: vec![(size, hashes)],
        ..Footprint::new(MODEL, prompt_tokens)
    }
}
