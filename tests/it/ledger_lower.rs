//! What the ledger does with events of slower tiers than the GPU.

use std::collections::{BTreeMap, BTreeSet};

use kvlens::block::{SequenceHash, chain, root};
use kvlens::ledger::counts::{Alarm, Counts};
use kvlens::ledger::tier::{Tier, Tiers};
use kvlens::ledger::{EngineEvent, EngineHash, Ledger, Options, Published, Stored};
use proptest::prelude::*;

fn engine(number: u64) -> EngineHash {
    EngineHash::Int(number)
}

fn engines(numbers: &[u64]) -> Vec<EngineHash> {
    numbers.iter().copied().map(engine).collect()
}

fn ledger() -> Ledger {
    Ledger::new("m", Options::default())
}

/// Blocks of four tokens of their own number, each the first of a prompt.
fn on_gpu(numbers: &[u64]) -> Vec<EngineEvent> {
    let stored = |number: &u64| Stored {
        hashes: engines(&[*number]),
        tokens: vec![*number as u32; 4],
        block_size: 4,
        extra_keys: vec![Vec::new()],
        medium: Some("GPU".into()),
        ..Stored::default()
    };
    numbers
        .iter()
        .map(|number| EngineEvent::Stored(stored(number)))
        .collect()
}

/// As vLLM's offloading connector tells it: without content.
fn stored(medium: &str, numbers: &[u64]) -> EngineEvent {
    EngineEvent::Stored(Stored {
        hashes: engines(numbers),
        medium: Some(medium.into()),
        group: Some(0),
        ..Stored::default()
    })
}

fn removed(medium: &str, numbers: &[u64]) -> EngineEvent {
    EngineEvent::Removed {
        hashes: engines(numbers),
        medium: Some(medium.into()),
        group: Some(0),
    }
}

fn names(numbers: &[u64]) -> Vec<SequenceHash> {
    let name = |number: &u64| {
        let tokens = [*number as u32; 4];
        chain(root("m", "", ""), &tokens, [], &mut Vec::new())
    };
    numbers.iter().map(name).collect()
}

/// How many blocks are held in each tier.
fn held(ledger: &Ledger) -> Tiers<usize> {
    let lower = ledger.all().lower;
    Tiers::from_fn(|tier| lower[tier].stored.len())
}

#[test]
fn a_medium_is_the_gpu_a_tier_or_nothing_that_is_known() {
    for (mediums, host, disk, alarms) in [
        (
            &["CPU", "CPU_PINNED", "CPU_TIER1", "CPU_TIER2"][..],
            1,
            0,
            0,
        ),
        (&["DISK", "NVME", "STORAGE", "FS", "OBJ"], 0, 1, 0),
        (&["EXTERNAL", "cpu", ""], 0, 0, 2),
    ] {
        for medium in mediums {
            let mut ledger = ledger();
            ledger.apply(on_gpu(&[1]));
            let published = ledger.apply(vec![stored(medium, &[1])]);
            let counts = published.lower;
            let lengths = (counts.host.stored.len(), counts.disk.stored.len());
            assert_eq!(lengths, (host, disk), "{medium}");
            let published = ledger.apply(vec![removed(medium, &[1])]);
            assert_eq!(published.lower.host.removed.len(), host, "{medium}");
            assert_eq!(published.lower.disk.removed.len(), disk, "{medium}");
            assert!(published.removed.is_empty(), "it is on the GPU still");
            assert_eq!(ledger.counts().of(Alarm::OtherTier), alarms, "{medium}");
        }
    }
}

/// How many blocks without a name were met, and how many are held in each tier, after these batches.
fn check(batches: &[Vec<EngineEvent>], unnamed: u64, host: usize, disk: usize) {
    let mut ledger = ledger();
    for batch in batches {
        ledger.apply(batch.clone());
    }
    let alarms: Vec<_> = ledger.counts().since(&Counts::default()).collect();
    let wanted = match unnamed {
        0 => vec![],
        count => vec![(Alarm::UnnamedLower, count)],
    };
    assert_eq!(alarms, wanted, "{batches:?}");
    assert_eq!(held(&ledger), Tiers { host, disk }, "{batches:?}");
}

fn gpu_and(gpu: &[u64], lower: &[EngineEvent]) -> Vec<EngineEvent> {
    [on_gpu(gpu), lower.to_vec()].concat()
}

#[test]
fn a_block_has_the_name_that_it_has_or_had_on_the_gpu() {
    // In the batch that stores it, before or after it.
    check(&[gpu_and(&[1], &[stored("CPU", &[1])])], 0, 1, 0);
    let before = [vec![stored("CPU", &[1])], on_gpu(&[1])].concat();
    check(&[before], 0, 1, 0);
    // In the batch that evicts it.
    let evicted = vec![removed("GPU", &[1, 2]), stored("CPU", &[1, 2])];
    check(&[on_gpu(&[1, 2]), evicted], 0, 2, 0);
    // Gone from the GPU, it keeps its name, and is known by it in other tiers.
    let on_disk = gpu_and(&[1], &[stored("FS", &[1])]);
    let promoted = vec![stored("CPU", &[1]), removed("FS", &[1])];
    check(&[on_disk, vec![removed("GPU", &[1])], promoted], 0, 1, 0);
    // Come too early or too late, it has none.
    check(&[vec![stored("CPU", &[1, 2])], on_gpu(&[1])], 2, 0, 0);
    let late = vec![stored("CPU", &[1])];
    check(&[on_gpu(&[1]), vec![removed("GPU", &[1])], late], 1, 0, 0);
}

#[test]
fn copies_are_counted_and_a_clearing_clears_all() {
    // What was left out goes unnoticed.
    check(&[vec![removed("CPU", &[1]), removed("FS", &[2])]], 0, 0, 0);
    // Told once for each of two chunks, it goes with the second.
    let twice = gpu_and(&[1], &[stored("CPU", &[1]), stored("CPU", &[1])]);
    let removal = vec![removed("CPU", &[1])];
    check(&[twice.clone(), removal.clone()], 0, 1, 0);
    check(&[twice, removal.clone(), removal], 0, 0, 0);
    // A clearing says nothing of what it clears.
    let both = gpu_and(&[1, 2], &[stored("CPU", &[1, 2]), stored("FS", &[1])]);
    let cleared = vec![stored("FS", &[2]), EngineEvent::Cleared];
    check(&[both, cleared], 0, 0, 0);
}

#[test]
fn only_the_group_that_counts_on_the_gpu_counts_below_it() {
    let in_group = |group, kind: Option<&str>| {
        EngineEvent::Stored(Stored {
            hashes: engines(&[1]),
            medium: Some("CPU".into()),
            group,
            group_kind: kind.map(Into::into),
            ..Stored::default()
        })
    };
    for (event, host) in [
        (in_group(Some(0), Some("full_attention")), 1),
        (in_group(None, None), 1),
        (in_group(Some(1), None), 0),
        (in_group(Some(0), Some("sliding_window")), 0),
    ] {
        let mut ledger = ledger();
        ledger.apply(on_gpu(&[1]));
        ledger.apply(vec![event]);
        assert_eq!(held(&ledger), Tiers { host, disk: 0 });
        assert_eq!(ledger.counts().of(Alarm::OtherTier), 1 - host as u64);
    }
}

#[test]
fn whatever_forgets_the_gpu_forgets_what_is_below_it() {
    let forgets: [fn(&mut Ledger) -> Published; 4] = [
        Ledger::reset,
        Ledger::clear_at_once,
        Ledger::lose,
        Ledger::mark_unreadable,
    ];
    for forget in forgets {
        for keeps_gpu in [true, false] {
            let mut ledger = ledger();
            ledger.apply([on_gpu(&[1]), vec![stored("CPU", &[1])]].concat());
            if !keeps_gpu {
                ledger.apply(vec![removed("GPU", &[1])]);
            }
            let published = forget(&mut ledger);
            let nothing = Tiers::default();
            assert!(
                published.cleared && published.lower == nothing,
                "{published:?}"
            );
            assert_eq!(ledger.all().lower, nothing);
        }
    }
}

proptest! {
    /// What is published of each tier, applied to a set, is what a plain count of copies says.
    #[test]
    fn published_changes_add_up(
        batches in prop::collection::vec(
            prop::collection::vec((0..8_u64, 0..3_usize, any::<bool>()), 1..9), 1..60),
    ) {
        let mut ledger = ledger();
        let mut published = Tiers::<BTreeSet<SequenceHash>>::default();
        let mut copies = BTreeMap::<(u64, usize), u32>::new();
        for batch in batches {
            let mut events = Vec::new();
            // What lies on the GPU, or did before the batch, or is known below by its turn, has a name.
            let is_named = |copies: &BTreeMap<(u64, usize), u32>, block, places: std::ops::Range<usize>| {
                places.into_iter().any(|place| copies.get(&(block, place)).is_some_and(|held| *held > 0))
            };
            let before = copies.clone();
            for (block, place, is_store) in batch.iter().copied().filter(|(_, place, _)| *place == 2) {
                let held = copies.entry((block, place)).or_default();
                if is_store {
                    *held += 1;
                    events.extend(on_gpu(&[block]));
                } else if *held > 0 {
                    *held -= 1;
                    events.push(removed("GPU", &[block]));
                }
            }
            for (block, place, is_store) in batch.iter().copied().filter(|(_, place, _)| *place < 2) {
                let medium = ["CPU", "STORAGE"][place];
                events.push(match is_store {
                    true => stored(medium, &[block]),
                    false => removed(medium, &[block]),
                });
                let named = is_named(&before, block, 2..3) || is_named(&copies, block, 0..3);
                let held = copies.entry((block, place)).or_default();
                *held = match is_store {
                    true => *held + u32::from(named),
                    false => held.saturating_sub(1),
                };
            }
            let change = ledger.apply(events);
            for tier in Tier::ALL {
                for hash in &change.lower[tier].removed {
                    assert!(published[tier].remove(hash), "removed what was not there");
                }
                for hash in &change.lower[tier].stored {
                    assert!(published[tier].insert(*hash), "stored what was there");
                }
            }
            for (place, tier) in Tier::ALL.into_iter().enumerate() {
                let held = (0..8).filter(|block| copies.get(&(*block, place)).is_some_and(|held| *held > 0));
                let wanted: BTreeSet<_> = names(&held.collect::<Vec<_>>()).into_iter().collect();
                prop_assert_eq!(&published[tier], &wanted);
                let all: BTreeSet<_> = ledger.all().lower[tier].stored.iter().copied().collect();
                prop_assert_eq!(all, wanted);
            }
        }
    }
}
