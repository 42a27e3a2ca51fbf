//! A router whose index is full: what it says of its workers and of itself.

use std::sync::Arc;

use kvlens::block::SequenceHash;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Update, WorkerRecord};
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::Router;
use kvlens::telemetry::metrics::Metrics;

/// Room for some 3,000 blocks.
const BYTES_MAX: u64 = 131_072;
const BLOCKS: u64 = 4_000;

fn worker(number: u64) -> WorkerId {
    WorkerId::new(&format!("w{number}")).expect("a legal name")
}

fn event(number: u64, sequence: u64) -> KvEvent {
    KvEvent {
        worker: worker(number),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: Vec::new(),
        stored: Vec::new(),
        lower: Tiers::default(),
    }
}

fn blocks(number: u64) -> Vec<SequenceHash> {
    let own = number * BLOCKS..(number + 1) * BLOCKS;
    own.map(SequenceHash).collect()
}

fn told_blocks(router: &Router, number: u64) -> u64 {
    router.standings(&worker(number))[0].blocks
}

#[test]
fn a_full_index_is_seen_and_breaks_no_feed() {
    let metrics = Arc::new(Metrics::default());
    let config = RouterConfig {
        index_bytes_max: BYTES_MAX,
        ..RouterConfig::default()
    };
    let router = Router::new(&config, metrics.clone());
    for number in 0..2 {
        let record = WorkerRecord::new(worker(number), "http://w", "base");
        router.apply(Update::Change(Change::Up(Box::new(record))));
        router.apply(Update::Kv(KvEvent {
            stored: blocks(number),
            ..event(number, 0)
        }));
    }
    let indexed: Vec<_> = router.workers().iter().map(|w| w.indexed_blocks).collect();
    assert!(
        indexed[0] < indexed[1],
        "the older one makes room: {indexed:?}"
    );
    assert!(
        indexed[1] < BLOCKS,
        "not even the younger one fits: {indexed:?}"
    );
    // Agents count all that their engines hold, and find the same here.
    assert_eq!(
        [0, 1].map(|number| told_blocks(&router, number)),
        [BLOCKS; 2]
    );

    let figure = |name: &str| -> u64 {
        let text = metrics.encode();
        let mut lines = text.lines();
        let line = lines
            .find_map(|line| line.strip_prefix(name))
            .expect("a metric");
        line.trim().parse().expect("a whole number")
    };
    assert!(figure("kvlens_index_bytes ") <= BYTES_MAX);
    assert_eq!(figure("kvlens_index_blocks "), indexed.iter().sum::<u64>());
    let lost = figure("kvlens_index_evicted_blocks_total ")
        + figure("kvlens_index_left_out_blocks_total ");
    assert_eq!(lost, 2 * BLOCKS - indexed.iter().sum::<u64>());

    // What an engine removes is gone on both sides, whether the index still had it or not.
    for number in 0..2 {
        router.apply(Update::Kv(KvEvent {
            removed: blocks(number)[..1_000].to_vec(),
            ..event(number, 1)
        }));
        assert_eq!(told_blocks(&router, number), BLOCKS - 1_000);
    }
    router.apply(Update::Kv(KvEvent {
        removed: blocks(0)[1_000..].to_vec(),
        ..event(0, 2)
    }));
    assert_eq!(told_blocks(&router, 0), 0);
    assert_eq!(router.workers()[0].indexed_blocks, 0);
}
