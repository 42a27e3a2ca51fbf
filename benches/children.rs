//! What needs a process of its own, because its resident memory counts: a frontend and router that
//! hold a million blocks, and an index that is given far more than it may keep.

use std::process::Command;
use std::sync::Arc;

use kvlens::block::SequenceHash;
use kvlens::config::frontend::FrontendConfig;
use kvlens::config::media::MediaConfig;
use kvlens::discovery::plane::Planes;
use kvlens::dispatch::EngineClient;
use kvlens::frontend::Frontend;
use kvlens::frontend::models::Models;
use kvlens::frontend::recovery::Recovery;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::{Index, KvEvent};
use kvlens::ledger::tier::Tiers;
use kvlens::media::Media;
use kvlens::model::Model;
use kvlens::openai::fields::UnknownFields;
use kvlens::openai::request::RequestLimits;
use kvlens::telemetry::metrics::Metrics;
use tokio_util::sync::CancellationToken;

use crate::figures::{row, table, target};
use crate::fleet::{self, BLOCKS_PER_EVENT, BLOCKS_PER_WORKER, Chance, MODEL, WORKERS, cpu_time};

const MEMORY_MAX_MB: f64 = 150.0;

const CHURN_BLOCKS: u64 = 100_000_000;
const CHURN_BYTES_MAX: u64 = 64 << 20;

/// Says in a child's environment what it is to do.
const CHILD: &str = "KVLENS_BENCH_INDEX_CHILD";

/// Does a child's part and says so, where this is one.
pub(crate) fn run() -> bool {
    let figures = match std::env::var(CHILD).as_deref() {
        Ok("frontend") => frontend().to_vec(),
        Ok("churn") => churn().to_vec(),
        _ => return false,
    };
    for figure in figures {
        println!("{figure}");
    }
    true
}

/// Prints what the children found.
pub(crate) fn print() {
    let [empty, full] = ask("frontend");
    let floor = f64::from(WORKERS) * BLOCKS_PER_WORKER as f64 * 10.0 / 1e6;
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

    let [before, resident, most, held, evicted, nanos] = ask("churn");
    let bytes_max = CHURN_BYTES_MAX as f64 / 1e6;
    let rows = [
        row([
            &format!("{CHURN_BLOCKS} blocks through a limit of {bytes_max:.0} MB"),
            "",
        ]),
        row([
            "resident, MB more than before",
            &format!("{:.1}", resident - before),
        ]),
        row(["most that the index counted, MB", &format!("{most:.1}")]),
        row(["blocks held at the end", &cell(held)]),
        row(["blocks that made room", &cell(evicted)]),
        row(["CPU time a block, ns", &cell(nanos)]),
    ];
    table("", &rows);
    target(
        "both below the limit",
        most.max(resident - before) <= bytes_max,
    );
}

/// The figures of a child.
fn ask<const N: usize>(child: &str) -> [f64; N] {
    let program = std::env::current_exe().expect("the bench is a file");
    let output = Command::new(program).env(CHILD, child).output();
    let output = String::from_utf8(output.expect("the child runs").stdout).expect("text");
    let mut figures = output.split_whitespace().map(|text| text.parse());
    std::array::from_fn(|_| figures.next().and_then(Result::ok).unwrap_or(f64::NAN))
}

/// Resident memory of a frontend and router before and after a million blocks came in.
fn frontend() -> [f64; 2] {
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
        remote: None,
        planes: Planes::default(),
        models: Models::of([(MODEL.to_owned(), model.clone())]),
        hash_key: None,
        media: Media::new(MediaConfig::default()).ok(),
        client: EngineClient::new(),
        metrics: metrics.clone(),
        tenants: Arc::default(),
        lending: None,
        listening: CancellationToken::new(),
        settling: CancellationToken::new(),
    };
    let empty = frontend(fleet::router(metrics.clone(), 0, &[]));
    let before = resident_mb();
    drop(empty);
    let full = frontend(fleet::router(metrics.clone(), WORKERS, &[]));
    let after = resident_mb();
    drop(full);
    [before, after]
}

/// Workers that store and never remove, and now and then one that leaves: resident memory before
/// and after, the most that the index counted, blocks held and given up, time a block.
fn churn() -> [f64; 6] {
    let mut index = Index::capped(CHURN_BYTES_MAX);
    let before = resident_mb();
    let mut chance = Chance(1);
    let mut events: Vec<_> = (0..WORKERS).map(event).collect();
    let (mut most, mut resident) = (0, before);
    let started = cpu_time();
    let rounds = CHURN_BLOCKS / (BLOCKS_PER_EVENT as u64 * u64::from(WORKERS));
    for round in 0..rounds {
        for event in &mut events {
            event.sequence = round;
            event.stored.fill_with(|| SequenceHash(chance.next()));
            index.apply(event);
        }
        most = most.max(index.bytes());
        if round % (rounds / 16) == 0 {
            resident = resident_mb().max(resident);
            let leaving = round as u32 % WORKERS;
            index.remove(&fleet::worker(leaving));
        }
    }
    let spent = cpu_time() - started;
    [
        before,
        resident,
        most as f64 / 1e6,
        index.total_blocks() as f64,
        index.take_losses().evicted_blocks as f64,
        spent.as_nanos() as f64 / CHURN_BLOCKS as f64,
    ]
}

fn event(number: u32) -> KvEvent {
    KvEvent {
        worker: fleet::worker(number),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence: 0,
        cleared: false,
        removed: Vec::new(),
        stored: vec![SequenceHash(0); BLOCKS_PER_EVENT],
        lower: Tiers::default(),
    }
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next());
    kb.and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0 / 1e6
}
