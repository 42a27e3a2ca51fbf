//! What the caches of several engines are worth together, on a trace that none could hold alone.

use std::collections::VecDeque;
use std::sync::Arc;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Completeness, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::Router;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::select::RouterMode;
use kvlens::telemetry::metrics::Metrics;

const SIZE: u32 = 16;
const CAPACITY: usize = 140;
const IMAGES: u64 = 12;
const IMAGE_BLOCKS: u64 = 19;
const REQUESTS: u64 = 400;

/// A cache that pushes out what was used longest ago, a prompt's tail before its head.
struct Engine {
    worker: WorkerId,
    sequence: u64,
    /// Used longest ago first.
    blocks: VecDeque<u64>,
}

impl Engine {
    fn start(name: &str, router: &Router) -> Self {
        let worker = WorkerId::new(name).expect("a legal name");
        let mut record = WorkerRecord::new(worker.clone(), "http://127.0.0.1:1", "base");
        record.incarnation = Incarnation(1);
        record.block_size = BlockSize::new(SIZE);
        record.capacity_blocks = Some(CAPACITY as u64);
        record.verdict = Verdict::Healthy;
        record.ledger.completeness = Completeness::Complete;
        router.apply(Update::Change(Change::Up(Box::new(record))));
        Self {
            worker,
            sequence: 0,
            blocks: VecDeque::new(),
        }
    }

    /// Computes a prompt; how many of its blocks were there.
    fn run(&mut self, prompt: &[u64], router: &Router) -> usize {
        let held = prompt
            .iter()
            .take_while(|b| self.blocks.contains(b))
            .count();
        let mut event = KvEvent {
            worker: self.worker.clone(),
            rank: DpRank(0),
            incarnation: Incarnation(1),
            sequence: self.sequence,
            cleared: false,
            removed: Vec::new(),
            stored: prompt[held..].iter().copied().map(SequenceHash).collect(),
            lower: Tiers::default(),
        };
        self.sequence += 1;
        self.blocks.retain(|block| !prompt.contains(block));
        let room = CAPACITY - prompt.len();
        while self.blocks.len() > room {
            let oldest = self.blocks.pop_front().map(SequenceHash);
            event.removed.extend(oldest);
        }
        self.blocks.extend(prompt.iter().rev());
        router.apply(Update::Kv(event));
        held
    }
}

/// The prompt's blocks: a system prompt that all share, a picture, a question of its own.
fn prompt(image: u64, request: u64) -> Vec<u64> {
    let picture = (0..IMAGE_BLOCKS).map(|block| 1_000 * (image + 1) + block);
    let own = [1_000_000 + request];
    [1].into_iter().chain(picture).chain(own).collect()
}

/// The share of blocks that were found, after so many prompts that are never asked again.
fn hit_rate(mode: RouterMode, others: u64) -> f64 {
    let config = RouterConfig {
        mode,
        ..RouterConfig::default()
    };
    let router = Router::new(&config, Arc::new(Metrics::default()));
    let mut engines = ["a", "b"].map(|name| Engine::start(name, &router));
    let size = BlockSize::new(SIZE).expect("16 is not zero");
    let (mut found, mut asked) = (0, 0);
    for request in 0..others + REQUESTS {
        let image = xxhash_rust::xxh3::xxh3_64(&request.to_le_bytes()) % IMAGES;
        let blocks = match request < others {
            true => prompt(2 * IMAGES + request, request),
            false => prompt(image, request),
        };
        let hashes: Arc<[_]> = blocks.iter().copied().map(SequenceHash).collect();
        let prompt_tokens = blocks.len() as u32 * SIZE + 1;
        let footprint = Footprint {
            hashes: vec![(size, hashes)],
            text_tokens: SIZE,
            ..Footprint::new("base", prompt_tokens)
        };
        let placement = router
            .place(&footprint, &Wish::default())
            .expect("a worker");
        let engine = engines.iter_mut().find(|e| e.worker == placement.worker);
        let held = engine.expect("one of the two").run(&blocks, &router);
        assert_eq!(placement.overlap_blocks as usize, held, "request {request}");
        if request >= others {
            found += held;
            // Its own question was never there before.
            asked += blocks.len() - 1;
        }
    }
    found as f64 / asked as f64
}

#[test]
fn two_caches_hold_what_one_cannot() {
    for others in [0, 60] {
        let rate = |mode| hit_rate(mode, others);
        let (kv, turns) = (rate(RouterMode::Kv), rate(RouterMode::RoundRobin));
        assert!(
            kv >= 0.93 && kv >= 1.4 * turns,
            "after {others}: kv {kv:.3}, in turns {turns:.3}"
        );
    }
}
