//! The index equals a naive model under random events, and is part of it where memory is short.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use kvlens::block::SequenceHash;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::gap::Step;
use kvlens::index::holders::Slot;
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

/// Prompts that share their leads with the first one: a whole cache is told by how many leading
/// blocks of each it holds.
struct Prompts(Vec<Vec<u64>>);

impl Prompts {
    /// One prompt for each lead that it shares with the first one, all of `blocks`.
    fn new(blocks: usize, leads: &[usize], names: &[u64]) -> Self {
        let prompt = |(number, lead): (usize, &usize)| {
            let own = &names[number * blocks..][..blocks];
            let shared = names[..*lead].iter();
            shared.chain(&own[*lead..]).copied().collect()
        };
        Self(leads.iter().enumerate().map(prompt).collect())
    }

    /// What a cache holds, and what it removes and stores, where it comes to hold so many leading
    /// blocks of one prompt; what it tells may be known already, as after a loss.
    fn turn(&self, depths: &mut Depths, prompt: usize, blocks: usize) -> (Vec<u64>, Vec<u64>) {
        depths[prompt] = blocks;
        let held = self.held(depths);
        let (stored, rest) = self.0[prompt].split_at(blocks);
        let removed = rest.iter().filter(|hash| !held.contains(hash));
        (removed.copied().collect(), stored.to_vec())
    }

    fn held(&self, depths: &Depths) -> HashSet<u64> {
        let leads = self.0.iter().zip(depths);
        leads
            .flat_map(|(prompt, blocks)| prompt[..*blocks].to_vec())
            .collect()
    }
}

/// How many leading blocks of each prompt a cache holds.
type Depths = [usize; 4];

const LONG_BLOCKS: usize = 300;

static LONG: LazyLock<Prompts> = LazyLock::new(|| {
    let names: Vec<u64> = (0..4 * LONG_BLOCKS as u64).collect();
    Prompts::new(LONG_BLOCKS, &[0, 3, 150, 299], &names)
});

#[derive(Clone, Copy, Debug)]
enum Action {
    Event {
        at: (usize, u32),
        cleared: bool,
        prompt: usize,
        blocks: usize,
    },
    Remove(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let blocks = prop_oneof![0..6_usize, 0..=LONG_BLOCKS];
    let applied = ((0..60_usize, 0..3_u32), 0..20_u8, 0..4_usize, blocks).prop_map(
        |(at, clears, prompt, blocks)| Action::Event {
            at,
            cleared: clears == 0,
            prompt,
            blocks,
        },
    );
    prop_oneof![30 => applied, 1 => (0..60_usize).prop_map(Action::Remove)]
}

fn step(
    index: &mut Index,
    caches: &mut HashMap<(usize, u32), Depths>,
    sequence: u64,
    action: Action,
) {
    match action {
        Action::Remove(number) => {
            index.remove(&worker(number));
            caches.retain(|at, _| at.0 != number);
        }
        Action::Event {
            at,
            cleared,
            prompt,
            blocks,
        } => {
            let depths = caches.entry(at).or_default();
            if cleared {
                *depths = Depths::default();
            }
            let (removed, stored) = LONG.turn(depths, prompt, blocks);
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

fn leading(prompt: &[u64], held: &HashSet<u64>) -> usize {
    prompt.iter().take_while(|hash| held.contains(hash)).count()
}

fn check(index: &Index, model: &Model, prompt: &[u64]) {
    let slots: HashMap<_, _> = model
        .keys()
        .map(|at| {
            (
                index.slot(&worker(at.0), DpRank(at.1)).expect("a slot"),
                *at,
            )
        })
        .collect();
    let overlaps = index.overlap(&hashes(prompt)).into_iter();
    let mut seen: Vec<_> = overlaps
        .map(|overlap| (slots[&overlap.slot], overlap.blocks as usize))
        .collect();
    let mut wanted: Vec<_> = model
        .iter()
        .map(|(at, held)| (*at, leading(prompt, held)))
        .filter(|(_, blocks)| *blocks > 0)
        .collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
    for (slot, at) in &slots {
        assert_eq!(index.blocks(*slot), model[at].len() as u64);
    }
    let total: usize = model.values().map(HashSet::len).sum();
    assert_eq!(index.total_blocks(), total as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn index_equals_a_naive_model(
        actions in prop::collection::vec(action(), 0..300),
        blocks in 0..=LONG_BLOCKS,
    ) {
        let (mut index, mut caches) = (Index::new(), HashMap::new());
        for (sequence, action) in actions.into_iter().enumerate() {
            step(&mut index, &mut caches, sequence as u64, action);
        }
        let model: Model = caches.iter().map(|(at, depths)| (*at, LONG.held(depths))).collect();
        for prompt in &LONG.0 {
            check(&index, &model, prompt);
            check(&index, &model, &prompt[..blocks]);
            let other: Vec<_> = prompt[..blocks].iter().copied().chain(5_000..5_009).collect();
            check(&index, &model, &other);
        }
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

static SHORT: LazyLock<Prompts> = LazyLock::new(|| Prompts::new(40, &[0, 3, 20, 39], &CROWDED));

/// The leading blocks of a prompt by slot.
fn overlaps(index: &Index, prompt: &[u64]) -> HashMap<Slot, usize> {
    let found = index.overlap(&hashes(prompt)).into_iter();
    found
        .map(|overlap| (overlap.slot, overlap.blocks as usize))
        .collect()
}

fn check_part(index: &Index, model: &Model, bytes_max: u64) {
    assert!(
        index.bytes() <= bytes_max,
        "{} of {bytes_max}",
        index.bytes()
    );
    let mut shown = HashMap::new();
    for hash in &*CROWDED {
        for slot in overlaps(index, &[*hash]).into_keys() {
            shown.entry(slot).or_insert_with(HashSet::new).insert(*hash);
        }
    }
    let all: Vec<_> = SHORT
        .0
        .iter()
        .map(|prompt| overlaps(index, prompt))
        .collect();
    let mut total = 0;
    for (at, held) in model {
        let slot = index.slot(&worker(at.0), DpRank(at.1)).expect("a slot");
        let shown = shown.remove(&slot).unwrap_or_default();
        assert!(shown.is_subset(held), "{at:?} holds less than is said");
        for (prompt, overlaps) in SHORT.0.iter().zip(&all) {
            // Where blocks are missing, it may be seen to hold more than those before the first
            // that is, and never more than it does hold.
            let blocks = overlaps.get(&slot).copied().unwrap_or(0);
            let (least, most) = (leading(prompt, &shown), leading(prompt, held));
            assert!((least..=most).contains(&blocks), "{least} {blocks} {most}");
            let last = blocks.checked_sub(1).map(|at| prompt[at]);
            assert!(last.is_none_or(|last| shown.contains(&last)), "{blocks}");
            assert_eq!(blocks > 0, shown.contains(&prompt[0]));
        }
        assert_eq!(index.blocks(slot), shown.len() as u64);
        assert_eq!(index.told_blocks(slot), held.len() as u64);
        total += shown.len() as u64;
    }
    assert!(shown.is_empty(), "{shown:?} have no worker");
    assert_eq!(index.total_blocks(), total);
}

type Change = ((usize, u32), u8, usize, usize);

fn change() -> impl Strategy<Value = Change> {
    ((0..4_usize, 0..2_u32), 0..40_u8, 0..4_usize, 0..=40_usize)
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
        let mut caches = HashMap::<(usize, u32), Depths>::new();
        let mut lost_blocks = 0;
        for (sequence, (at, kind, prompt, blocks)) in changes.into_iter().enumerate() {
            let losses = index.take_losses();
            lost_blocks += losses.evicted_blocks + losses.left_out_blocks;
            if kind == 0 {
                index.remove(&worker(at.0));
                model.retain(|known, _| known.0 != at.0);
                caches.retain(|known, _| known.0 != at.0);
                continue;
            }
            let (depths, held) = (caches.entry(at).or_default(), model.entry(at).or_default());
            if kind == 1 {
                *depths = Depths::default();
                held.clear();
            }
            // An agent tells only what was not known.
            let (mut removed, mut stored) = SHORT.turn(depths, prompt, blocks);
            removed.retain(|hash| held.contains(hash));
            stored.retain(|hash| !held.contains(hash));
            *held = SHORT.held(depths);
            index.apply(&KvEvent {
                cleared: kind == 1,
                removed: hashes(&removed),
                stored: hashes(&stored),
                ..event(at.0, at.1, sequence as u64)
            });
            check_part(&index, &model, bytes_max);
        }
        let losses = index.take_losses();
        lost_blocks += losses.evicted_blocks + losses.left_out_blocks;
        let held: usize = model.values().map(HashSet::len).sum();
        prop_assert!(index.total_blocks() + lost_blocks >= held as u64, "a loss is not counted");
        prop_assert!(lost_blocks > 0 || index.total_blocks() == held as u64);
    }
}

#[test]
fn a_search_goes_past_what_the_index_misses() {
    // An event was lost on the way: whoever holds block 200 holds those before it.
    let mut index = Index::new();
    let prompt = &LONG.0[0];
    for (sequence, part) in [(0, 0..100), (2, 110..200)] {
        index.apply(&KvEvent {
            stored: hashes(&prompt[part]),
            ..event(0, 0, sequence)
        });
    }
    let blocks = |prompt: &[u64]| {
        index
            .overlap(&hashes(prompt))
            .first()
            .map(|held| held.blocks)
    };
    assert_eq!(blocks(prompt), Some(200));
    assert_eq!(
        blocks(&prompt[..105]),
        Some(100),
        "nothing behind it was asked for"
    );
    assert_eq!(
        blocks(&prompt[100..]),
        None,
        "without the first block there is nothing to follow"
    );
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
