//! The index with a million (worker, block) entries of 64 workers beside the peer's: events applied
//! per second, the time of an overlap query, memory, and what it answers against the caches
//! themselves; then what a limit on its memory holds back.

mod children;
mod figures;
mod fleet;
mod peer;
mod trace;

use std::alloc::System;
use std::time::{Duration, Instant};

use cap::Cap;

use crate::figures::{row, table, target};
use crate::fleet::{WORKERS, cpu_time};
use crate::peer::{Contender, Ours, Peer};
use crate::trace::{Prompt, Told, Trace};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Each contender is measured so often, in turns; its best figure counts, for other programs on the
/// machine only ever take away.
const ROUNDS: usize = 3;
const QUERIES: usize = 2_000;
const DEEP_QUERIES: usize = 400;
/// Blocks of the events that are applied to full caches.
const STEADY_BLOCKS: usize = 2 << 20;
/// Events that are brought into a contender's own form at once, unmeasured.
const CHUNK_EVENTS: usize = 2_000;
/// Prompts whose answers are held against the caches.
const CHECKED: usize = 200;
const ENTRY_BYTES_MAX: f64 = 32.0;

fn main() {
    if children::run() {
        return;
    }
    for prompt_blocks in [32, 512, 8_192] {
        compare(prompt_blocks);
    }
    children::print();
}

/// What both are given.
struct Work {
    warm: Vec<Told>,
    entries: usize,
    distinct: usize,
    /// Prompts of which some worker holds all or most: further turns of a chat.
    deep: Vec<Prompt>,
    /// Prompts as they come, asked before anything of them was told.
    fresh: Vec<Prompt>,
    steady: Vec<Told>,
    truth: Vec<Vec<(u32, u32)>>,
}

impl Work {
    fn new(prompt_blocks: usize) -> Self {
        let mut trace = Trace::new(prompt_blocks);
        let (mut warm, mut deep) = (Vec::new(), Vec::new());
        let prompts = trace.warm_prompts();
        for number in 0..prompts {
            let (prompt, told) = trace.step();
            warm.extend(told);
            if number + DEEP_QUERIES >= prompts {
                deep.push(prompt);
            }
        }
        let (entries, distinct) = (trace.entries(), trace.distinct());
        let (mut fresh, mut steady) = (Vec::new(), Vec::new());
        for _ in 0..(STEADY_BLOCKS / prompt_blocks).max(QUERIES / 4) {
            let (prompt, told) = trace.step();
            steady.extend(told);
            if fresh.len() < QUERIES {
                fresh.push(prompt);
            }
        }
        let checked = fresh.iter().take(CHECKED);
        Self {
            warm,
            entries,
            distinct,
            deep,
            truth: checked.map(|prompt| trace.truth(prompt)).collect(),
            fresh,
            steady,
        }
    }
}

/// What one contender showed in one round, or in the best of all.
struct Figures {
    warm: f64,
    steady: f64,
    bytes: usize,
    fresh: Times,
    deep: Times,
}

/// Microseconds.
#[derive(Clone, Copy)]
struct Times {
    mean: f64,
    p50: f64,
    p99: f64,
}

fn measure<C: Contender>(work: &Work) -> Figures {
    let before = ALLOCATOR.allocated();
    let mut contender = C::new();
    let warm = apply(&mut contender, &work.warm);
    let bytes = ALLOCATOR.allocated() - before;
    let fresh = ask(&contender, &work.fresh);
    let deep = ask(&contender, &work.deep);
    let steady = apply(&mut contender, &work.steady);
    for (prompt, truth) in work.fresh.iter().zip(&work.truth) {
        let mut answer = contender.answer(&C::prompt(prompt));
        answer.sort_unstable();
        assert_eq!(answer, *truth, "the caches themselves hold otherwise");
    }
    Figures {
        warm,
        steady,
        bytes,
        fresh,
        deep,
    }
}

/// Blocks stored and removed a second of CPU time, in millions.
fn apply<C: Contender>(contender: &mut C, told: &[Told]) -> f64 {
    let mut spent = Duration::ZERO;
    for chunk in told.chunks(CHUNK_EVENTS) {
        let events: Vec<_> = chunk.iter().map(C::event).collect();
        let started = cpu_time();
        for event in &events {
            contender.apply(event);
        }
        spent += cpu_time() - started;
    }
    let blocks: usize = told.iter().map(Told::blocks).sum();
    blocks as f64 / spent.as_secs_f64() / 1e6
}

fn ask<C: Contender>(contender: &C, prompts: &[Prompt]) -> Times {
    let prompts: Vec<_> = prompts.iter().map(C::prompt).collect();
    let mut times = Vec::with_capacity(prompts.len());
    let started = cpu_time();
    for prompt in &prompts {
        // Reading the clock of CPU time takes as long as a query.
        let started = Instant::now();
        std::hint::black_box(contender.query(prompt));
        times.push(started.elapsed());
    }
    let spent = cpu_time() - started;
    times.sort_unstable();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    Times {
        mean: micros(spent) / prompts.len() as f64,
        p50: micros(percentile(50)),
        p99: micros(percentile(99)),
    }
}

fn best(rounds: &[Figures]) -> Figures {
    let most = |of: fn(&Figures) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let least = |of: &dyn Fn(&Figures) -> f64| rounds.iter().map(of).fold(f64::MAX, f64::min);
    let times = |of: fn(&Figures) -> Times| Times {
        mean: least(&|round| of(round).mean),
        p50: least(&|round| of(round).p50),
        p99: least(&|round| of(round).p99),
    };
    Figures {
        warm: most(|round| round.warm),
        steady: most(|round| round.steady),
        bytes: rounds.iter().map(|round| round.bytes).max().unwrap_or(0),
        fresh: times(|round| round.fresh),
        deep: times(|round| round.deep),
    }
}

fn compare(prompt_blocks: usize) {
    let work = Work::new(prompt_blocks);
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(measure::<Ours>(&work));
        peers.push(measure::<Peer>(&work));
    }
    let (ours, peer) = (best(&ours), best(&peers));
    let mut rows = vec![row(["", "kvlens", "kv-index", "ratio"])];
    let mut show = |name: &str, of: &dyn Fn(&Figures) -> f64| {
        let (ours, peer) = (of(&ours), of(&peer));
        let cells = [ours, peer, ours / peer].map(|cell| format!("{cell:.2}"));
        rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
    };
    show("filling caches, M blocks/s", &|figures| figures.warm);
    show("full caches, M blocks/s", &|figures| figures.steady);
    let entries = work.entries as f64;
    let entry_bytes = |figures: &Figures| figures.bytes as f64 / entries;
    show("bytes an entry", &entry_bytes);
    for (name, of) in [
        ("query", (|figures| figures.fresh) as fn(&Figures) -> Times),
        ("deep query", |figures| figures.deep),
    ] {
        show(&format!("{name}, mean us"), &|figures| of(figures).mean);
        show(&format!("{name}, p50 us"), &|figures| of(figures).p50);
        show(&format!("{name}, p99 us"), &|figures| of(figures).p99);
    }
    let title = format!(
        "index: prompts of {prompt_blocks} blocks, {WORKERS} workers, {} entries, {} blocks; \
         {} answers of both are as the caches",
        work.entries,
        work.distinct,
        work.truth.len()
    );
    table(&title, &rows);
    let bytes = entry_bytes(&ours);
    target(
        &format!("{bytes:.1} bytes an entry <= {ENTRY_BYTES_MAX}"),
        bytes <= ENTRY_BYTES_MAX,
    );
    let slower = (ours.warm / peer.warm).min(ours.steady / peer.steady);
    target("events applied as fast as the peer", slower >= 1.0);
    if prompt_blocks == 32 {
        target("events applied 1.5 times as fast", slower >= 1.5);
    }
    target("query p99 <= the peer's", ours.fresh.p99 <= peer.fresh.p99);
}
