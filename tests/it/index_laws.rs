//! The index equals a naive model under random events, and is as fast and as small as promised.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use kvlens::block::SequenceHash;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::gap::Step;
use kvlens::index::{Applied, Index, KvEvent};
use proptest::prelude::*;

fn worker(number: usize) -> WorkerId {
    WorkerId::new(&format!("w{number}")).expect("a legal id")
}

fn event(number: usize, rank: u32, sequence: u64) -> KvEvent {
    KvEvent {
        worker: worker(number),
        rank: DpRank(rank),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: vec![],
        stored: vec![],
    }
}

fn hashes(raw: &[u64]) -> Vec<SequenceHash> {
    raw.iter().map(|hash| SequenceHash(*hash)).collect()
}

/// What each (worker, rank) holds, the plain way.
type Model = HashMap<(usize, u32), HashSet<u64>>;

#[derive(Clone, Debug)]
enum Action {
    Event {
        at: (usize, u32),
        cleared: bool,
        removed: Vec<u64>,
        stored: Vec<u64>,
    },
    Remove(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let some = || prop::collection::vec(0..24_u64, 0..8);
    let applied = ((0..40_usize, 0..3_u32), 0..20_u8, some(), some()).prop_map(
        |(at, clears, removed, stored)| Action::Event {
            at,
            cleared: clears == 0,
            removed,
            stored,
        },
    );
    prop_oneof![30 => applied, 1 => (0..40_usize).prop_map(Action::Remove)]
}

fn step(index: &mut Index, model: &mut Model, sequence: u64, action: Action) {
    match action {
        Action::Remove(number) => {
            index.remove(&worker(number));
            model.retain(|at, _| at.0 != number);
        }
        Action::Event {
            at,
            cleared,
            removed,
            stored,
        } => {
            let held = model.entry(at).or_default();
            if cleared {
                held.clear();
            }
            held.retain(|hash| !removed.contains(hash));
            held.extend(&stored);
            let applied = index.apply(&KvEvent {
                cleared,
                removed: hashes(&removed),
                stored: hashes(&stored),
                ..event(at.0, at.1, sequence)
            });
            assert!(matches!(applied, Applied::Yes(_)), "{applied:?}");
        }
    }
}

fn check(index: &Index, model: &Model, prompt: &[u64]) {
    let mut seen: Vec<_> = index
        .overlap(&hashes(prompt))
        .iter()
        .map(|overlap| {
            let (worker, rank) = index.holder(overlap.slot).expect("a live slot");
            (worker.to_string(), rank.0, overlap.blocks as usize)
        })
        .collect();
    let leading = |held: &HashSet<u64>| prompt.iter().take_while(|h| held.contains(h)).count();
    let mut wanted: Vec<_> = model
        .iter()
        .map(|(at, held)| (worker(at.0).to_string(), at.1, leading(held)))
        .filter(|(_, _, blocks)| *blocks > 0)
        .collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
    for (at, held) in model {
        let slot = index.slot(&worker(at.0), DpRank(at.1)).expect("a slot");
        assert_eq!(index.blocks(slot), held.len() as u64);
    }
    let total: usize = model.values().map(HashSet::len).sum();
    assert_eq!(index.total_blocks(), total as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn index_equals_a_naive_model(
        actions in prop::collection::vec(action(), 0..300),
        prompt in prop::collection::vec(0..24_u64, 0..6),
    ) {
        let (mut index, mut model) = (Index::new(), Model::new());
        for (sequence, action) in actions.into_iter().enumerate() {
            step(&mut index, &mut model, sequence as u64, action);
        }
        check(&index, &model, &prompt);
        check(&index, &model, &[0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn stored_then_removed_is_nothing(blocks in prop::collection::hash_set(any::<u64>(), 0..50)) {
        let blocks = hashes(&blocks.into_iter().collect::<Vec<_>>());
        let mut index = Index::new();
        index.apply(&KvEvent { stored: blocks.clone(), ..event(0, 0, 0) });
        prop_assert_eq!(index.total_blocks(), blocks.len() as u64);
        index.apply(&KvEvent { removed: blocks.clone(), ..event(0, 0, 1) });
        prop_assert_eq!(index.total_blocks(), 0);
        prop_assert_eq!(index.overlap(&blocks), vec![]);
    }
}

#[test]
fn duplicates_are_skipped_and_a_new_incarnation_starts_empty() {
    let mut index = Index::new();
    let first = KvEvent {
        stored: hashes(&[1, 2]),
        ..event(0, 0, 4)
    };
    assert_eq!(index.apply(&first), Applied::Yes(Step::InOrder));
    assert_eq!(index.apply(&first), Applied::Duplicate);
    let late = KvEvent {
        removed: hashes(&[1]),
        ..event(0, 0, 6)
    };
    assert_eq!(index.apply(&late), Applied::Yes(Step::Gap { missed: 1 }));
    assert_eq!(index.total_blocks(), 1);
    let reborn = KvEvent {
        incarnation: Incarnation(2),
        stored: hashes(&[9]),
        ..event(0, 0, 0)
    };
    assert_eq!(index.apply(&reborn), Applied::Yes(Step::NewIncarnation));
    assert_eq!(index.total_blocks(), 1, "only the new life's block is left");
    assert_eq!(index.overlap(&hashes(&[2])), vec![]);
    index.remove(&worker(0));
    assert_eq!(index.slot(&worker(0), DpRank(0)), None);
    assert_eq!(index.total_blocks(), 0);
}

/// Uniform hashes without a crate: the finaliser of splitmix64.
fn mix(number: u64) -> SequenceHash {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    SequenceHash(x ^ (x >> 31))
}

/// Prints the figures; run with `--release -- --ignored --nocapture index_figures`.
#[test]
#[ignore = "a measurement, of use only in a release build on a quiet machine"]
fn index_figures() {
    let mut index = Index::new();
    let shared: Vec<_> = (0..2000).map(mix).collect();
    let started = Instant::now();
    let mut worst = started.elapsed();
    let batches = 64_u64 * 16_384 / 64;
    for batch in 0..batches {
        let own = (0..64).map(|block| mix(1_000_000 + batch * 64 + block));
        let mut next = event((batch % 64) as usize, 0, batch / 64);
        next.stored = own.collect();
        let before = Instant::now();
        index.apply(&next);
        worst = worst.max(before.elapsed());
    }
    let rate = (batches * 64) as f64 / started.elapsed().as_secs_f64();
    println!("apply: {rate:.0} blocks/s, slowest event {worst:?}");
    for number in 0..64 {
        let mut all = event(number, 0, batches);
        all.stored.clone_from(&shared);
        index.apply(&all);
    }
    let mut best = std::time::Duration::MAX;
    for _ in 0..200 {
        let before = Instant::now();
        let found = index.overlap(&shared);
        best = best.min(before.elapsed());
        assert_eq!(found.len(), 64);
        assert!(found.iter().all(|overlap| overlap.blocks == 2000));
    }
    println!("overlap: 64 workers, 2,000 blocks: {best:?}");
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let memory: Vec<_> = status
        .lines()
        .filter(|l| l.contains("RSS") || l.contains("HWM"))
        .collect();
    println!("{} entries, {memory:?}", index.total_blocks());
    let before = Instant::now();
    index.remove(&worker(7));
    println!("remove one worker: {:?}", before.elapsed());
}
