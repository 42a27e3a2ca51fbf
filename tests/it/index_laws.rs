//! The index equals a naive model under random events.

use std::collections::{HashMap, HashSet};

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
    let slot = |at: &(usize, u32)| {
        let slot = index.slot(&worker(at.0), DpRank(at.1));
        slot.expect("a slot")
    };
    let mut seen: Vec<_> = index
        .overlap(&hashes(prompt))
        .iter()
        .map(|overlap| {
            let holds = |at: &&(usize, u32)| slot(at) == overlap.slot;
            let at = model.keys().find(holds).expect("a live slot");
            (*at, overlap.blocks as usize)
        })
        .collect();
    let leading = |held: &HashSet<u64>| prompt.iter().take_while(|h| held.contains(h)).count();
    let mut wanted: Vec<_> = model
        .iter()
        .map(|(at, held)| (*at, leading(held)))
        .filter(|(_, blocks)| *blocks > 0)
        .collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
    for (at, held) in model {
        assert_eq!(index.blocks(slot(at)), held.len() as u64);
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
