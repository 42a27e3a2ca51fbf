//! What the index knows of slower tiers than the GPU.

use std::collections::{BTreeMap, HashSet};

use kvlens::id::DpRank;
use kvlens::index::{Index, KvEvent};
use kvlens::ledger::change::Changes;
use kvlens::ledger::tier::{Tier, Tiers};
use proptest::prelude::*;

use crate::index_laws::{event, hashes, worker};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// What ranks hold in slower tiers is what a plain set for each says, beside what is on their GPUs.
    #[test]
    fn slower_tiers_equal_a_naive_model(
        events in prop::collection::vec(lower_event(), 0..60),
        prompt in prop::collection::vec(0..12_u64, 0..6),
    ) {
        let mut index = Index::new();
        let mut model = BTreeMap::<(u32, usize), HashSet<u64>>::new();
        for (sequence, (rank, cleared, lists)) in events.into_iter().enumerate() {
            let [host, disk, gpu] = lists.clone().map(|(removed, stored)| Changes {
                removed: hashes(&removed),
                stored: hashes(&stored),
            });
            index.apply(&KvEvent {
                cleared,
                removed: gpu.removed,
                stored: gpu.stored,
                lower: Tiers { host, disk },
                ..event(0, rank, sequence as u64)
            });
            for (place, (removed, stored)) in lists.into_iter().enumerate() {
                let held = model.entry((rank, place)).or_default();
                if cleared {
                    held.clear();
                }
                held.retain(|hash| !removed.contains(hash));
                held.extend(stored);
            }
        }
        let held = |rank, place| model.get(&(rank, place)).cloned().unwrap_or_default();
        for (place, tier) in Tier::ALL.into_iter().enumerate() {
            let blocks = held(0, place).len() + held(1, place).len();
            prop_assert_eq!(index.lower_blocks(&worker(0), tier), blocks as u64);
        }
        let blocks: usize = model.values().map(HashSet::len).sum();
        prop_assert_eq!(index.total_blocks(), blocks as u64);
        for rank in [0, 1] {
            let (host, disk) = (held(rank, 0), held(rank, 1));
            let run = prompt.iter().take_while(|hash| host.contains(hash) || disk.contains(hash));
            let (in_host, on_disk): (Vec<&u64>, Vec<&u64>) = run.partition(|hash| host.contains(hash));
            let wanted = Tiers { host: in_host.len() as u32, disk: on_disk.len() as u32 };
            let found = index.lower_run(&worker(0), DpRank(rank), &hashes(&prompt));
            prop_assert_eq!(found, wanted);
        }
        index.remove(&worker(0));
        prop_assert_eq!(index.total_blocks(), 0);
    }
}

type Lists = (Vec<u64>, Vec<u64>);

/// What one event of rank 0 or 1 removes and stores: in host memory, on disk and on the GPU.
fn lower_event() -> impl Strategy<Value = (u32, bool, [Lists; 3])> {
    let few = || prop::collection::vec(0..12_u64, 0..4);
    let lists = || (few(), few());
    (
        0..2_u32,
        prop::bool::weighted(0.1),
        [lists(), lists(), lists()],
    )
}

#[test]
fn blocks_on_gpus_make_no_room_for_those_in_slower_tiers() {
    let stored = |blocks: std::ops::Range<u64>| hashes(&blocks.collect::<Vec<_>>());
    // Room for some 3,000 blocks.
    let mut index = Index::capped(131_072);
    index.apply(&KvEvent {
        stored: stored(0..2_000),
        ..event(0, 0, 0)
    });
    let on_gpu = index.worker_blocks(&worker(0));
    index.apply(&KvEvent {
        lower: Tiers {
            host: Changes {
                removed: Vec::new(),
                stored: stored(10_000..14_000),
            },
            disk: Changes::default(),
        },
        ..event(1, 0, 0)
    });
    let in_host = |index: &Index| index.lower_blocks(&worker(1), Tier::Host);
    assert_eq!(index.worker_blocks(&worker(0)), on_gpu);
    assert!((1..4_000).contains(&in_host(&index)), "{}", in_host(&index));
    let slot = index.lower_slot(&worker(1), DpRank(0), Tier::Host);
    assert_eq!(index.told_blocks(slot.expect("it holds blocks")), 4_000);
    // The other way round they do.
    let before = in_host(&index);
    index.apply(&KvEvent {
        stored: stored(20_000..22_000),
        ..event(2, 0, 0)
    });
    assert!(index.worker_blocks(&worker(2)) > 0 && in_host(&index) < before);
    assert!(index.bytes() <= 131_072);
}
