//! The index equals a naive model under random events, and is part of it where memory is short.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use kvlens::block::SequenceHash;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::gap::Step;
use kvlens::index::table::Key;
use kvlens::index::{Applied, Index, KvEvent};
use kvlens::ledger::tier::Tiers;
use proptest::prelude::*;

pub(crate) fn worker(number: usize) -> WorkerId {
    WorkerId::new(&format!("w{number}")).expect("a legal id")
}

pub(crate) fn event(number: usize, rank: u32, sequence: u64) -> KvEvent {
    KvEvent {
        worker: worker(number),
        rank: DpRank(rank),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: vec![],
        stored: vec![],
        lower: Tiers::default(),
    }
}

pub(crate) fn hashes(raw: &[u64]) -> Vec<SequenceHash> {
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

/// Hashes that share two tables, so that a few blocks fill what a small index has.
static CROWDED: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let shares = |hash: &u64| Key::of(SequenceHash(*hash)).table() < 2;
    (0..).filter(shares).take(160).collect()
});

/// What an index needs that has eight slots and room for no block at all.
const BARE_BYTES: u64 = 32_768;

/// An event as an agent tells it: what it removes was held, what it stores was not.
fn told(held: &HashSet<u64>, removed: &[usize], stored: &[usize]) -> (Vec<u64>, Vec<u64>) {
    let hashes = |at: &[usize]| at.iter().map(|at| CROWDED[*at]).collect::<HashSet<_>>();
    let removed: HashSet<_> = &hashes(removed) & held;
    let stored = &hashes(stored) - &(held - &removed);
    (removed.into_iter().collect(), stored.into_iter().collect())
}

fn check_part(index: &Index, model: &Model, bytes_max: u64, prompt: &[u64]) {
    assert!(
        index.bytes() <= bytes_max,
        "{} of {bytes_max}",
        index.bytes()
    );
    let overlaps = |hashes: &[u64]| -> HashMap<_, _> {
        let found = index.overlap(&self::hashes(hashes)).into_iter();
        found
            .map(|overlap| (overlap.slot, overlap.blocks))
            .collect()
    };
    let (all, mut shown) = (overlaps(prompt), HashMap::new());
    for hash in &*CROWDED {
        for slot in overlaps(&[*hash]).into_keys() {
            shown.entry(slot).or_insert_with(HashSet::new).insert(*hash);
        }
    }
    let mut total = 0;
    for (at, held) in model {
        let slot = index.slot(&worker(at.0), DpRank(at.1)).expect("a slot");
        let shown = shown.remove(&slot).unwrap_or_default();
        assert!(shown.is_subset(held), "{at:?} holds less than is said");
        let leading = prompt.iter().take_while(|hash| shown.contains(hash));
        let leading = leading.count() as u32;
        assert_eq!(all.get(&slot).copied().unwrap_or(0), leading);
        assert_eq!(index.blocks(slot), shown.len() as u64);
        assert_eq!(index.told_blocks(slot), held.len() as u64);
        total += shown.len() as u64;
    }
    assert!(shown.is_empty(), "{shown:?} have no worker");
    assert_eq!(index.total_blocks(), total);
}

type Change = ((usize, u32), u8, Vec<usize>, Vec<usize>);

fn change() -> impl Strategy<Value = Change> {
    let some = || prop::collection::vec(0..160_usize, 0..24);
    ((0..4_usize, 0..2_u32), 0..40_u8, some(), some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_small_index_is_part_of_the_model(
        changes in prop::collection::vec(change(), 0..80),
        spare_bytes in 0..6_000_u64,
    ) {
        let bytes_max = BARE_BYTES + spare_bytes;
        let (mut index, mut model) = (Index::capped(bytes_max), Model::new());
        let mut lost_blocks = 0;
        for (sequence, (at, kind, removed, stored)) in changes.into_iter().enumerate() {
            let losses = index.take_losses();
            lost_blocks += losses.evicted_blocks + losses.left_out_blocks;
            if kind == 0 {
                index.remove(&worker(at.0));
                model.retain(|known, _| known.0 != at.0);
                continue;
            }
            let held = model.entry(at).or_default();
            if kind == 1 {
                held.clear();
            }
            let (removed, stored) = told(held, &removed, &stored);
            held.retain(|hash| !removed.contains(hash));
            held.extend(&stored);
            index.apply(&KvEvent {
                cleared: kind == 1,
                removed: hashes(&removed),
                stored: hashes(&stored),
                ..event(at.0, at.1, sequence as u64)
            });
            check_part(&index, &model, bytes_max, &CROWDED[..6]);
        }
        let losses = index.take_losses();
        lost_blocks += losses.evicted_blocks + losses.left_out_blocks;
        let held: usize = model.values().map(HashSet::len).sum();
        prop_assert!(index.total_blocks() + lost_blocks >= held as u64, "a loss is not counted");
        prop_assert!(lost_blocks > 0 || index.total_blocks() == held as u64);
    }
}

#[test]
fn the_worker_silent_longest_makes_room() {
    // Who told of something last before the third worker needs room, and so who loses blocks.
    for (last, loser) in [(0, 1), (1, 0)] {
        let mut index = Index::capped(BARE_BYTES + 3_400);
        for number in [0, 1, last] {
            let sequence = index
                .slot(&worker(number), DpRank(0))
                .map_or(0, |slot| index.blocks(slot));
            let own = &CROWDED[number * 30..][..30];
            index.apply(&KvEvent {
                stored: hashes(own),
                ..event(number, 0, sequence)
            });
        }
        assert_eq!(index.total_blocks(), 60, "all fit");
        index.apply(&KvEvent {
            stored: hashes(&CROWDED[60..80]),
            ..event(2, 0, 0)
        });
        let blocks = [0, 1, 2].map(|number| index.worker_blocks(&worker(number)));
        let lost = index.take_losses().evicted_blocks;
        assert!(lost > 0 && lost < 30, "{lost} lost, only as many as needed");
        assert_eq!(blocks[loser], 30 - lost, "{blocks:?}");
        assert_eq!(blocks[2], 20, "the new ones all found room: {blocks:?}");
    }
}

#[test]
fn a_worker_alone_keeps_what_it_has_and_the_rest_is_left_out() {
    let mut index = Index::capped(BARE_BYTES + 2_000);
    index.apply(&KvEvent {
        stored: hashes(&CROWDED),
        ..event(0, 0, 0)
    });
    let losses = index.take_losses();
    let slot = index.slot(&worker(0), DpRank(0)).expect("a slot");
    assert!(
        index.blocks(slot) > 0 && losses.left_out_blocks > 0,
        "{losses:?}"
    );
    assert_eq!(losses.evicted_blocks, 0);
    assert_eq!(
        index.blocks(slot) + losses.left_out_blocks,
        CROWDED.len() as u64
    );
    // The engine forgets them all: nothing is left to tell of, and nothing is wrong.
    index.apply(&KvEvent {
        removed: hashes(&CROWDED),
        ..event(0, 0, 1)
    });
    assert_eq!((index.blocks(slot), index.told_blocks(slot)), (0, 0));
}

#[test]
fn hot_blocks_without_memory_for_more_holders_keep_the_youngest() {
    // Room for all blocks, but not for a list of holders for each.
    let mut index = Index::capped(150_000);
    let blocks: Vec<u64> = (0..1_100).collect();
    for number in 0..5 {
        index.apply(&KvEvent {
            stored: hashes(&blocks),
            ..event(number, 0, 0)
        });
    }
    let held = [0, 1, 2, 3, 4].map(|number| index.worker_blocks(&worker(number)));
    assert!(held[0] < 1_100 && held[0] > 0, "{held:?}");
    assert_eq!(held[2..], [1_100, 1_100, 1_100], "{held:?}");
    let overlaps = index.overlap(&hashes(&blocks));
    let youngest = index.slot(&worker(4), DpRank(0));
    let whole = |overlap: &&kvlens::index::Overlap| overlap.blocks == 1_100;
    let whole: Vec<_> = overlaps
        .iter()
        .filter(whole)
        .map(|o| Some(o.slot))
        .collect();
    assert!(whole.contains(&youngest), "{overlaps:?}");
}
