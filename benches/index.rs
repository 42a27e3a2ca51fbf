//! The index with a million (worker, block) entries of 64 workers: events applied per second,
//! the time of an overlap query, and the memory of a frontend and router that hold it.
//!
//! Beside it stands the least any index does: a hash map that knows one holder a block.

mod figures;
mod fleet;
mod samples;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kvlens::block::SequenceHash;
use kvlens::config::frontend::FrontendConfig;
use kvlens::config::media::MediaConfig;
use kvlens::dispatch::EngineClient;
use kvlens::frontend::Frontend;
use kvlens::frontend::recovery::Recovery;
use kvlens::index::{Index, KvEvent};
use kvlens::media::Media;
use kvlens::model::Model;
use kvlens::openai::fields::UnknownFields;
use kvlens::openai::request::RequestLimits;
use kvlens::telemetry::metrics::Metrics;

use crate::figures::{row, table, target};
use crate::fleet::{BLOCKS_PER_WORKER, Chance, MODEL, WORKERS, cpu_time};
use crate::samples::Samples;

/// Blocks of the longest prompt asked for: 131,072 tokens.
const SHARED_BLOCKS: usize = 8_192;
const QUERIES: usize = 2_000;
const MEMORY_MAX_MB: f64 = 150.0;

/// Set in the process that only fills an index and says what memory it took.
const CHILD: &str = "KVLENS_BENCH_INDEX_CHILD";

fn main() {
    if std::env::var_os(CHILD).is_some() {
        println!("{}", resident_mb_of_a_frontend());
        return;
    }
    let mut chance = Chance(7);
    let shared: Vec<_> = std::iter::repeat_with(|| SequenceHash(chance.next()))
        .take(SHARED_BLOCKS)
        .collect();
    let mut index = Index::new();
    let mut floor: Floor = HashMap::default();
    let applied = apply_all(&shared, &mut index, &mut floor);
    let entries = u64::from(WORKERS) * BLOCKS_PER_WORKER as u64;
    assert_eq!(index.total_blocks(), entries);
    let rows = [
        row(["CPU time", "index", "one holder a block", "ratio"]),
        rate("stored, M blocks/s", applied.stored, entries),
        rate("replaced, M blocks/s", applied.replaced, entries),
    ];
    table(
        &format!("index: {entries} entries of {WORKERS} workers"),
        &rows,
    );

    let mut rows = vec![row(["CPU time of an overlap query", "p50 us", "p99 us"])];
    for blocks in [32, 512, SHARED_BLOCKS] {
        let prompt = &shared[..blocks];
        let name = format!("{blocks} blocks, {} workers hold them", WORKERS / 4);
        rows.push(queries(|| index.overlap(prompt).len()).row(&name));
        let walk = || prompt.iter().filter_map(|hash| floor.get(&hash.0)).count();
        rows.push(queries(walk).row("  floor: as many look-ups"));
    }
    table("", &rows);
    memory();
}

/// A map that knows one holder a block; hashes are spread already.
type Floor = HashMap<u64, u16, BuildHasherDefault<AsItIs>>;

#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// CPU time of the index and of the floor.
#[derive(Default)]
struct Applied {
    stored: [Duration; 2],
    replaced: [Duration; 2],
}

fn apply_all(shared: &[SequenceHash], index: &mut Index, floor: &mut Floor) -> Applied {
    let mut applied = Applied::default();
    for number in 0..WORKERS {
        let blocks = fleet::blocks(number, shared);
        for event in fleet::events(number, &blocks) {
            let times = [
                time(|| _ = index.apply(&event)),
                time(|| apply_to_floor(floor, &event, number as u16)),
            ];
            add(&mut applied.stored, times);
        }
    }
    // A full cache removes as many blocks as it stores.
    for number in (1..WORKERS).step_by(2) {
        let mut chance = Chance(u64::from(number) << 32);
        let old = fleet::events(number, &fleet::blocks(number, &[]));
        for mut event in old {
            event.sequence += BLOCKS_PER_WORKER as u64;
            event.removed = event.stored.clone();
            event.stored.fill_with(|| SequenceHash(!chance.next()));
            let times = [
                time(|| _ = index.apply(&event)),
                time(|| apply_to_floor(floor, &event, number as u16)),
            ];
            add(&mut applied.replaced, times);
        }
    }
    applied
}

fn apply_to_floor(floor: &mut Floor, event: &KvEvent, number: u16) {
    for hash in &event.removed {
        floor.remove(&hash.0);
    }
    for hash in &event.stored {
        floor.insert(hash.0, number);
    }
}

fn add(sums: &mut [Duration; 2], times: [Duration; 2]) {
    for (sum, time) in sums.iter_mut().zip(times) {
        *sum += time;
    }
}

fn time(step: impl FnOnce()) -> Duration {
    let started = cpu_time();
    step();
    cpu_time() - started
}

/// Blocks a second, in millions, of both; each replaced block counts once.
fn rate(name: &str, [index, floor]: [Duration; 2], blocks: u64) -> Vec<String> {
    let blocks = match name.starts_with("stored") {
        true => blocks,
        false => blocks / 2,
    };
    let per_second = |time: Duration| blocks as f64 / time.as_secs_f64() / 1e6;
    let ratio = index.as_secs_f64() / floor.as_secs_f64();
    let cells = [per_second(index), per_second(floor), ratio].map(|cell| format!("{cell:.2}"));
    std::iter::once(name.to_owned()).chain(cells).collect()
}

fn queries(mut query: impl FnMut() -> usize) -> Samples {
    let mut samples = Samples::default();
    for _ in 0..QUERIES {
        samples.push(time(|| assert!(std::hint::black_box(query()) > 0)));
    }
    samples
}

/// Asks a process of its own what it takes to hold the index, for this one holds more.
fn memory() {
    let program = std::env::current_exe().expect("the bench is a file");
    let output = Command::new(program).env(CHILD, "1").output();
    let output = String::from_utf8(output.expect("the child runs").stdout).expect("text");
    let mut figures = output
        .split_whitespace()
        .filter_map(|text| text.parse().ok());
    let mut next = || figures.next().unwrap_or(f64::NAN);
    let (empty, full) = (next(), next());
    let entries = f64::from(WORKERS) * BLOCKS_PER_WORKER as f64;
    let floor = entries * 10.0 / 1e6;
    let cell = |mb: f64| format!("{mb:.0}");
    let rows = [
        row(["resident memory", "MB"]),
        row(["frontend and router, no blocks", &cell(empty)]),
        row(["with a million blocks", &cell(full)]),
        row(["  the blocks alone", &cell(full - empty)]),
        row(["  floor: 8 bytes of hash, 2 of worker each", &cell(floor)]),
    ];
    table("", &rows);
    let what = format!("frontend and router with a million blocks <= {MEMORY_MAX_MB} MB");
    target(&what, full <= MEMORY_MAX_MB);
}

/// Resident memory of a frontend and router before and after a million blocks came in.
fn resident_mb_of_a_frontend() -> String {
    let metrics = Arc::new(Metrics::default());
    let model = Arc::new(Model::demo().expect("the demo model is in the binary"));
    let frontend = |router| Frontend {
        limits: RequestLimits {
            messages_max: 4_096,
            images_max: 16,
            unknown_fields: UnknownFields::Drop,
        },
        expose_routing: false,
        allow_overrides: false,
        recovery: Recovery::new(&FrontendConfig::default()),
        sse_event_bytes_max: 1 << 20,
        router,
        models: HashMap::from([(MODEL.to_owned(), model.clone())]),
        media: Media::new(MediaConfig::default()).ok(),
        client: EngineClient::new(),
        metrics: metrics.clone(),
    };
    let empty = frontend(fleet::router(metrics.clone(), 0, &[]));
    let before = resident_mb();
    drop(empty);
    let full = frontend(fleet::router(metrics.clone(), WORKERS, &[]));
    let after = resident_mb();
    drop(full);
    format!("{before} {after}")
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next());
    kb.and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0 / 1e6
}
