//! A router that knows 64 workers and a million of their blocks.

use std::sync::Arc;
use std::time::Duration;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::Router;
use kvlens::telemetry::metrics::Metrics;
use rustix::time::{ClockId, clock_gettime};

pub(crate) const WORKERS: u32 = 64;
pub(crate) const BLOCKS_PER_WORKER: usize = 16_384;
pub(crate) const MODEL: &str = "demo";

/// Blocks that one event stores: a prompt of 512 tokens.
pub(crate) const BLOCKS_PER_EVENT: usize = 32;

/// CPU time this thread has used: other programs on the machine do not count.
pub(crate) fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

/// Evenly spread numbers, the same in every run.
#[derive(Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

pub(crate) fn worker(number: u32) -> WorkerId {
    WorkerId::new(&format!("worker-{number}")).expect("a legal name")
}

/// The blocks of one worker: those of `shared` where it is among their holders, then its own.
pub(crate) fn blocks(number: u32, shared: &[SequenceHash]) -> Vec<SequenceHash> {
    let mut chance = Chance(u64::from(number) << 32);
    let held = if number.is_multiple_of(4) {
        shared
    } else {
        &[]
    };
    let own = std::iter::repeat_with(|| SequenceHash(chance.next()));
    held.iter()
        .copied()
        .chain(own)
        .take(BLOCKS_PER_WORKER)
        .collect()
}

/// One worker's blocks as the events that stored them.
pub(crate) fn events(number: u32, blocks: &[SequenceHash]) -> Vec<KvEvent> {
    let event = |(sequence, stored): (usize, &[SequenceHash])| KvEvent {
        worker: worker(number),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence: sequence as u64,
        cleared: false,
        removed: Vec::new(),
        stored: stored.to_vec(),
        lower: Tiers::default(),
    };
    blocks
        .chunks(BLOCKS_PER_EVENT)
        .enumerate()
        .map(event)
        .collect()
}

/// A router of so many workers, a quarter of which hold `shared`.
pub(crate) fn router(metrics: Arc<Metrics>, workers: u32, shared: &[SequenceHash]) -> Arc<Router> {
    let router = Router::new(&RouterConfig::default(), metrics);
    for number in 0..workers {
        router.apply(Update::Change(Change::Up(Box::new(record(number)))));
        for event in events(number, &blocks(number, shared)) {
            router.apply(Update::Kv(event));
        }
    }
    router
}

pub(crate) fn record(number: u32) -> WorkerRecord {
    let address = format!("http://127.0.0.1:{}", 20_000 + number);
    let mut record = WorkerRecord::new(worker(number), &address, MODEL);
    record.incarnation = Incarnation(1);
    record.block_size = BlockSize::new(16);
    record.capacity_blocks = Some(BLOCKS_PER_WORKER as u64);
    record.verdict = Verdict::Healthy;
    record
}
