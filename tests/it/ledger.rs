//! What the ledger does with events that are not plain: copies, twins, unknown parents, old forms.

use std::collections::{HashMap, HashSet};

use kvlens::block::{BlockItem, SequenceHash, chain, root};
use kvlens::ledger::counts::{Alarm, Counts};
use kvlens::ledger::{EngineEvent, EngineHash, ExtraKey, Ledger, Options, Published, Stored};
use proptest::prelude::*;

const IMAGE: u32 = 999;

fn engine(number: u64) -> EngineHash {
    EngineHash::Int(number)
}

/// Four tokens a block; block `n` has tokens `[n; 4]` unless told.
fn stored(hashes: &[u64], parent: Option<u64>) -> Stored {
    Stored {
        hashes: hashes.iter().map(|hash| engine(*hash)).collect(),
        parent: parent.map(engine),
        tokens: hashes.iter().flat_map(|hash| [*hash as u32; 4]).collect(),
        block_size: 4,
        extra_keys: vec![vec![]; hashes.len()],
        medium: Some("GPU".into()),
        ..Stored::default()
    }
}

fn removed(hashes: &[u64]) -> EngineEvent {
    EngineEvent::Removed {
        hashes: hashes.iter().map(|hash| engine(*hash)).collect(),
        medium: Some("GPU".into()),
        group: None,
    }
}

fn store(ledger: &mut Ledger, stored: Stored) -> Vec<SequenceHash> {
    ledger.apply(vec![EngineEvent::Stored(stored)]).stored
}

/// The names of a chain of `stored` blocks.
fn names(seed: SequenceHash, hashes: &[u64]) -> Vec<SequenceHash> {
    let mut parent = seed;
    let name = |hash: &u64| {
        parent = chain(parent, &[*hash as u32; 4], [], &mut Vec::new());
        parent
    };
    hashes.iter().map(name).collect()
}

fn plain() -> SequenceHash {
    root("m", "", "")
}

fn ledger(options: Options) -> Ledger {
    Ledger::new("m", options)
}

fn alarms(ledger: &Ledger) -> Vec<(Alarm, u64)> {
    ledger.counts().since(&Counts::default()).collect()
}

fn text(text: &str) -> ExtraKey {
    ExtraKey::Text(text.into())
}

#[test]
fn a_block_stored_twice_goes_with_its_second_removal() {
    let mut ledger = ledger(Options::default());
    assert_eq!(
        store(&mut ledger, stored(&[1, 2], None)),
        names(plain(), &[1, 2])
    );
    assert_eq!(store(&mut ledger, stored(&[2], Some(1))), []);
    assert_eq!((ledger.blocks(), ledger.copies()), (2, 3));
    assert_eq!(ledger.apply(vec![removed(&[2])]).removed, []);
    assert_eq!(
        ledger.apply(vec![removed(&[2])]).removed,
        names(plain(), &[1, 2])[1..]
    );
    // Removed and stored again in one batch is no change.
    let again = EngineEvent::Stored(stored(&[1], None));
    let published = ledger.apply(vec![removed(&[1]), again]);
    assert_eq!((published.removed, published.stored), (vec![], vec![]));
    assert_eq!(alarms(&ledger), []);
}

#[test]
fn a_full_report_of_ours_means_presence_and_not_a_copy() {
    let mut ledger = ledger(Options {
        session_id: Some("ours".into()),
        ..Options::default()
    });
    store(&mut ledger, stored(&[1, 2], None));
    for (session, copies) in [("ours", 3), ("theirs", 6)] {
        let report = Stored {
            session_id: Some(session.into()),
            ..stored(&[1, 2, 3], None)
        };
        store(&mut ledger, report);
        assert_eq!(ledger.copies(), copies, "{session}");
    }
}

#[test]
fn blocks_of_an_unknown_parent_wait_unpublished_until_it_is_known() {
    let mut ledger = ledger(Options::default());
    assert_eq!(store(&mut ledger, stored(&[3, 4], Some(2))), []);
    assert_eq!(store(&mut ledger, stored(&[5], Some(4))), []);
    assert!(ledger.is_partial());
    assert_eq!((ledger.waiting_blocks(), ledger.copies()), (3, 3));
    ledger.apply(vec![removed(&[4])]);
    assert_eq!((ledger.waiting_blocks(), ledger.copies()), (2, 2));
    // Block 4 is gone, so block 5 cannot be named though 3 can.
    assert_eq!(
        store(&mut ledger, stored(&[1, 2], None)),
        names(plain(), &[1, 2, 3])
    );
    assert_eq!(ledger.waiting_blocks(), 1);
    assert_eq!(
        store(&mut ledger, stored(&[4], Some(3))),
        names(plain(), &[1, 2, 3, 4, 5])[3..]
    );
    assert_eq!((ledger.waiting_blocks(), ledger.blocks()), (0, 5));
    let all = ledger.reset();
    assert!(all.cleared && !ledger.is_partial());
}

#[test]
fn what_extra_keys_say_decides_the_name() {
    let item = |id: &str, offset| ExtraKey::Item(id.into(), offset);
    let one = |seed, items: &[(&str, i32)]| {
        let items = items.iter().map(|(id, offset)| BlockItem {
            id,
            offset: *offset,
        });
        Some(chain(seed, &[1; 4], items, &mut Vec::new()))
    };
    let lora = root("m", "l", "");
    let salted = root("m", "", "s");
    for (name, keys, wanted) in [
        (None, vec![], one(plain(), &[])),
        (None, vec![text("s")], one(salted, &[])),
        (
            None,
            vec![item("a", 1), item("b", -2)],
            one(plain(), &[("a", 1), ("b", -2)]),
        ),
        (
            None,
            vec![item("a", 1), text("s")],
            one(salted, &[("a", 1)]),
        ),
        (None, vec![text("s"), item("a", 1)], None), // the salt comes last
        (None, vec![text("s"), text("t")], None),
        (None, vec![ExtraKey::Unknown], None),
        (None, vec![item("a", 1 << 40)], None),
        (Some("l"), vec![text("l")], one(lora, &[])),
        (
            Some("l"),
            vec![text("l"), item("l:a", 0)],
            one(lora, &[("a", 0)]),
        ),
        (
            Some("l"),
            vec![text("l"), text("s")],
            one(root("m", "l", "s"), &[]),
        ),
        (Some("l"), vec![], None),
        (Some("l"), vec![text("x")], None),
    ] {
        let mut ledger = ledger(Options::default());
        let first = Stored {
            lora_name: name.map(Into::into),
            extra_keys: vec![keys.clone()],
            ..stored(&[1], None)
        };
        let published = store(&mut ledger, first);
        assert_eq!(published.first().copied(), wanted, "{name:?} {keys:?}");
        let child = store(
            &mut ledger,
            Stored {
                extra_keys: vec![name.map(text).into_iter().collect()],
                lora_name: name.map(Into::into),
                ..stored(&[2], Some(1))
            },
        );
        assert_eq!(
            child.is_empty(),
            wanted.is_none(),
            "a nameless block's child is nameless"
        );
        let unhashable = if wanted.is_none() { 2 } else { 0 };
        assert_eq!(ledger.counts().of(Alarm::Unhashable), unhashable);
        assert_eq!(
            ledger.apply(vec![removed(&[2, 1])]).removed.len(),
            2 - unhashable as usize
        );
        assert_eq!(ledger.copies(), 0);
    }
}

#[test]
fn a_bare_text_after_the_first_block_is_no_salt() {
    let mut ledger = ledger(Options::default());
    let late = vec![vec![], vec![text("s")]];
    let published = store(
        &mut ledger,
        Stored {
            extra_keys: late,
            ..stored(&[1, 2], None)
        },
    );
    assert_eq!(published.len(), 1);
}

#[test]
fn bare_media_ids_get_their_offsets_from_placeholder_runs() {
    let i = IMAGE;
    // An image of 6 tokens from 3 on, then one of 2 tokens from 10 on, then text.
    let tokens = vec![1, 2, 3, i, i, i, i, i, i, 4, i, i, 5, 6, 7, 8];
    let bare = vec![
        vec![text("a"), text("s")],
        vec![text("a")],
        vec![text("a"), text("b")],
        vec![],
    ];
    let pair = |id: &str, offset| ExtraKey::Item(id.into(), offset);
    let pairs = vec![
        vec![pair("a", 3), text("s")],
        vec![pair("a", -1)],
        vec![pair("a", -5), pair("b", 2)],
        vec![],
    ];
    let event = |extra_keys: &[Vec<ExtraKey>]| Stored {
        tokens: tokens.clone(),
        extra_keys: extra_keys.to_vec(),
        ..stored(&[1, 2, 3, 4], None)
    };
    let options = || Options {
        placeholder: Some(IMAGE),
        ..Options::default()
    };
    let wanted = store(&mut ledger(Options::default()), event(&pairs));
    assert_eq!(wanted.len(), 4);
    assert_eq!(store(&mut ledger(options()), event(&bare)), wanted);
    assert_eq!(store(&mut ledger(options()), event(&pairs)), wanted);
    // Without the placeholder's id nothing after the first image block has a name.
    assert!(store(&mut ledger(Options::default()), event(&bare)).is_empty());
    // Engines that send no extra keys: only text has a name.
    let none = Stored {
        extra_keys: vec![],
        ..event(&bare)
    };
    assert!(store(&mut ledger(options()), none).is_empty());
    let plain_text = Stored {
        extra_keys: vec![],
        ..stored(&[1, 2], None)
    };
    let unknown = store(&mut ledger(Options::default()), plain_text.clone());
    assert_eq!(unknown, [], "it may be an image's placeholders");
    assert_eq!(
        store(&mut ledger(options()), plain_text),
        names(plain(), &[1, 2])
    );
}

type Damage = fn(&mut Stored);

#[test]
fn events_that_make_no_sense_are_dropped_and_counted() {
    let rows: [(Alarm, Damage); 7] = [
        (Alarm::BadShape, |stored| stored.tokens.truncate(7)),
        (Alarm::BadShape, |stored| {
            stored.block_size = 0;
        }),
        (Alarm::BadShape, |stored| stored.extra_keys.truncate(1)),
        (Alarm::OtherTier, |stored| {
            stored.medium = Some("EXTERNAL".into());
        }),
        (Alarm::OtherTier, |stored| stored.group = Some(1)),
        (Alarm::OtherTier, |stored| {
            stored.group_kind = Some("sliding_window".into());
        }),
        (Alarm::BlockSizeChanged, |stored| {
            stored.block_size = 2;
            stored.tokens.truncate(4);
        }),
    ];
    for (alarm, damage) in rows {
        let mut ledger = ledger(Options::default());
        store(&mut ledger, stored(&[1], None));
        let mut bad = stored(&[8, 9], None);
        damage(&mut bad);
        assert_eq!(store(&mut ledger, bad), [], "{alarm:?}");
        assert_eq!(alarms(&ledger), [(alarm, 1)]);
        assert_eq!(ledger.copies(), 1);
    }
}

#[test]
fn twins_renames_and_too_many_copies_raise_alarms() {
    let mut ledger = ledger(Options {
        capacity_blocks: Some(4),
        ..Options::default()
    });
    store(&mut ledger, stored(&[1, 2], None));
    // The same content under another engine hash: the older goes, what is published stays.
    let twin = Stored {
        hashes: vec![engine(71)],
        ..stored(&[1], None)
    };
    assert_eq!(store(&mut ledger, twin), []);
    assert_eq!((ledger.blocks(), ledger.copies()), (2, 2));
    assert_eq!(ledger.apply(vec![removed(&[1])]).removed, []);
    assert_eq!(
        alarms(&ledger),
        [(Alarm::RemovedUnknown, 1), (Alarm::Twin, 1)]
    );
    // Another content under the same engine hash; block 2 followed the former one.
    let other = Stored {
        tokens: vec![5; 4],
        ..stored(&[71], None)
    };
    let published = ledger.apply(vec![EngineEvent::Stored(other)]);
    assert_eq!((published.removed.len(), published.stored.len()), (2, 1));
    assert_eq!(ledger.counts().of(Alarm::Renamed), 1);
    let published = ledger.apply(vec![EngineEvent::Stored(stored(&[6, 7], None))]);
    assert!(published.cleared && published.stored.is_empty());
    assert_eq!(ledger.counts().of(Alarm::OverCapacity), 1);
    assert_eq!(
        (ledger.blocks(), ledger.copies(), ledger.is_partial()),
        (0, 0, true)
    );
}

#[test]
fn the_block_size_of_events_wins_over_what_was_told() {
    let told = kvlens::block::BlockSize::new(16);
    let mut ledger = ledger(Options {
        block_size: told,
        ..Options::default()
    });
    assert_eq!(ledger.block_size(), told);
    assert_eq!(store(&mut ledger, stored(&[1], None)).len(), 1);
    assert_eq!(ledger.block_size(), kvlens::block::BlockSize::new(4));
    assert_eq!(alarms(&ledger), [(Alarm::BlockSizeChanged, 1)]);
}

/// A tree: blocks 0 to 2 start prompts, each other follows a third of itself.
fn parent(block: u64) -> Option<u64> {
    (block >= 3).then_some(block / 3)
}

/// A block's name, which no engine hash has part in.
fn name(block: u64) -> SequenceHash {
    let mut path: Vec<u64> = std::iter::successors(Some(block), |block| parent(*block)).collect();
    path.reverse();
    names(plain(), &path)[path.len() - 1]
}

/// What was published, summed up as a router does.
#[derive(Default)]
struct Told(HashSet<SequenceHash>);

impl Told {
    fn take(&mut self, change: Published, ledger: &Ledger) {
        if change.cleared {
            self.0.clear();
        }
        for hash in change.removed {
            assert!(self.0.remove(&hash), "removed what was not there");
        }
        for hash in change.stored {
            assert!(self.0.insert(hash), "stored what was there");
        }
        assert_eq!(self.0.len() as u64, ledger.blocks());
        assert_eq!(self.0, ledger.all().stored.into_iter().collect());
    }
}

#[test]
fn blocks_behind_one_that_goes_are_taken_back_until_it_comes_again() {
    let mut ledger = ledger(Options::default());
    store(&mut ledger, stored(&[1, 2, 3], None));
    store(&mut ledger, stored(&[4], Some(2)));
    let all = names(plain(), &[1, 2, 3]);
    let behind = [all[1], all[2], names(all[1], &[4])[0]];
    let published = ledger.apply(vec![removed(&[2])]);
    assert_eq!(
        HashSet::from(behind),
        published.removed.into_iter().collect()
    );
    assert_eq!((ledger.all().stored, ledger.copies()), (vec![all[0]], 3));
    assert_eq!(
        ledger.name(&engine(3)),
        None,
        "it is of no use without block 2"
    );
    // One of them goes meanwhile, which is no news.
    assert_eq!(ledger.apply(vec![removed(&[3])]), Published::default());
    let published = store(&mut ledger, stored(&[2], Some(1)));
    assert_eq!(published, [behind[0], behind[2]], "parents come first");
    assert_eq!(alarms(&ledger), []);
}

proptest! {
    /// What a ledger publishes, summed up, are the blocks that it holds with all their ancestors;
    /// removing all that was stored leaves nothing, whatever order parents came in.
    #[test]
    fn published_changes_add_up_to_a_closed_set(
        batches in prop::collection::vec(
            prop::collection::vec((0..40_u64, any::<bool>()), 1..6), 1..60),
    ) {
        let (mut ledger, mut told) = (ledger(Options::default()), Told::default());
        let mut copies = HashMap::<u64, u32>::new();
        for batch in batches {
            let mut events = Vec::new();
            for (block, is_store) in batch {
                let held = copies.entry(block).or_default();
                if is_store {
                    *held += 1;
                    events.push(EngineEvent::Stored(stored(&[block], parent(block))));
                } else if *held > 0 {
                    *held -= 1;
                    events.push(removed(&[block]));
                }
            }
            told.take(ledger.apply(events), &ledger);
            let held: u32 = copies.values().sum();
            prop_assert_eq!(ledger.copies(), u64::from(held));
            let is_whole = |block: &u64| {
                let mut path = std::iter::successors(Some(*block), |block| parent(*block));
                path.all(|block| copies.get(&block).is_some_and(|held| *held > 0))
            };
            let whole: HashSet<_> = (0..40).filter(is_whole).map(name).collect();
            prop_assert_eq!(&told.0, &whole);
            let saved = Ledger::restore("m", Options::default(), ledger.save()).unwrap();
            prop_assert_eq!(whole, saved.all().stored.into_iter().collect());
        }
        for (block, held) in copies {
            told.take(ledger.apply(vec![removed(&[block]); held as usize]), &ledger);
        }
        prop_assert_eq!((ledger.blocks(), ledger.copies(), ledger.waiting_blocks()), (0, 0, 0));
    }

    /// Engine hashes that come again with another content, contents that come under another engine
    /// hash, clearings: whatever is held, what is published is closed.
    #[test]
    fn what_is_published_is_closed_whatever_engines_tell(
        batches in prop::collection::vec(
            prop::collection::vec((0..8_u64, 0..40_u64, 0..12_u8), 1..6), 1..60),
    ) {
        let (mut ledger, mut told) = (ledger(Options::default()), Told::default());
        // The engine hash that a block came under last.
        let mut hashes = HashMap::<u64, u64>::new();
        let all: HashMap<_, _> = (0..40).map(|block| (name(block), parent(block).map(name))).collect();
        for batch in batches {
            let mut events = Vec::new();
            for (hash, block, kind) in batch {
                let parent_hash = parent(block).map(|parent| hashes.get(&parent).copied().unwrap_or(99));
                let told = Stored { hashes: vec![engine(hash)], ..stored(&[block], parent_hash) };
                events.push(match kind {
                    0 => EngineEvent::Cleared,
                    1..4 => removed(&[hash]),
                    _ => {
                        hashes.insert(block, hash);
                        EngineEvent::Stored(told)
                    }
                });
            }
            told.take(ledger.apply(events), &ledger);
            for parent in told.0.iter().filter_map(|name| all.get(name)).flatten() {
                prop_assert!(told.0.contains(parent), "{:?}", told.0);
            }
        }
    }
}
