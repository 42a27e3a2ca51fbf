//! Ledgers that are kept across agents, and those that know only a part.

use kvlens::block::SequenceHash;
use kvlens::ledger::counts::Alarm;
use kvlens::ledger::saved::SavedError;
use kvlens::ledger::{EngineEvent, EngineHash, Ledger, Options, Stored};

const SIZE: u32 = 4;
const CAPACITY: u64 = 6;

fn options() -> Options {
    Options {
        capacity_blocks: Some(CAPACITY),
        session_id: Some("ours".into()),
        ..Options::default()
    }
}

fn ledger() -> Ledger {
    Ledger::new("m", options())
}

/// Blocks with these engine hashes, each of four tokens of its own number.
fn stored(hashes: &[u64], parent: Option<u64>) -> Stored {
    Stored {
        hashes: hashes.iter().copied().map(EngineHash::Int).collect(),
        parent: parent.map(EngineHash::Int),
        tokens: hashes
            .iter()
            .flat_map(|h| [*h as u32; SIZE as usize])
            .collect(),
        block_size: SIZE,
        extra_keys: vec![Vec::new(); hashes.len()],
        ..Stored::default()
    }
}

fn store(ledger: &mut Ledger, stored: Stored) -> Vec<SequenceHash> {
    ledger.apply(vec![EngineEvent::Stored(stored)]).stored
}

fn remove(ledger: &mut Ledger, hash: u64) -> Vec<SequenceHash> {
    let removed = EngineEvent::Removed {
        hashes: vec![EngineHash::Int(hash)],
        medium: None,
        group: None,
    };
    ledger.apply(vec![removed]).removed
}

fn sorted(mut names: Vec<SequenceHash>) -> Vec<SequenceHash> {
    names.sort_by_key(|name| name.0);
    names
}

#[test]
fn a_restored_ledger_goes_on_as_if_it_had_never_stopped() {
    let mut first = ledger();
    store(&mut first, stored(&[1, 2, 3], None));
    store(&mut first, stored(&[3], Some(2)));
    let offloaded = Stored {
        hashes: vec![EngineHash::Int(1), EngineHash::Int(2)],
        medium: Some("CPU".into()),
        ..Stored::default()
    };
    first.apply(vec![EngineEvent::Stored(offloaded)]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&first.save(), &mut bytes).unwrap();
    let saved = ciborium::from_reader(bytes.as_slice()).unwrap();
    let mut second = Ledger::restore("m", options(), saved).unwrap();
    assert_eq!(sorted(second.all().stored), sorted(first.all().stored));
    assert_eq!((second.blocks(), second.copies()), (3, 4));
    assert!(!second.is_partial());
    let lower = |ledger: &Ledger| sorted(ledger.all().lower.host.stored);
    assert_eq!(lower(&second).len(), 2);
    assert_eq!(lower(&second), lower(&first));
    for ledger in [&mut first, &mut second] {
        assert_eq!(
            store(ledger, stored(&[4], Some(3))).len(),
            1,
            "a child has its name"
        );
        assert!(remove(ledger, 3).is_empty(), "a copy is left");
        assert_eq!(
            remove(ledger, 3).len(),
            2,
            "block 4 is of no use without it"
        );
    }
    assert_eq!(sorted(second.all().stored), sorted(first.all().stored));
    assert_eq!(second.counts(), first.counts());
}

#[test]
fn a_ledger_that_cannot_be_true_is_not_restored() {
    let mut full = ledger();
    store(&mut full, stored(&[1, 2, 3], None));
    let restore = |model: &str, options: Options| {
        Ledger::restore(model, options, full.save()).map(|ledger| ledger.blocks())
    };
    assert_eq!(restore("m", options()), Ok(3));
    let other = restore("n", options()).unwrap_err();
    assert!(matches!(other, SavedError::OtherModel { .. }), "{other}");
    let small = Options {
        capacity_blocks: Some(2),
        ..options()
    };
    let small = restore("m", small).unwrap_err();
    assert_eq!(
        small,
        SavedError::OverCapacity {
            copies: 3,
            capacity_blocks: 2
        }
    );
    let placeholder = Options {
        placeholder: Some(9),
        ..options()
    };
    assert!(restore("m", placeholder).is_err(), "names could differ");
}

#[test]
fn a_block_that_waited_is_named_when_the_engine_reports_it() {
    let mut late = ledger();
    assert!(store(&mut late, stored(&[2, 3], Some(1))).is_empty());
    assert!(late.is_partial());
    let mut late = Ledger::restore("m", options(), late.save()).unwrap();
    assert!(late.is_partial() && late.all().stored.is_empty());
    let report = Stored {
        session_id: Some("ours".into()),
        ..stored(&[1, 2, 3], None)
    };
    assert_eq!(store(&mut late, report).len(), 3);
    assert_eq!(late.copies(), 3, "presence is no second copy");
    assert_eq!(remove(&mut late, 3).len(), 1);
}

#[test]
fn what_was_lost_may_have_been_removals_so_nothing_is_believed() {
    let mut ledger = ledger();
    assert!(!ledger.lose().cleared, "nothing was known");
    assert!(ledger.is_partial());
    store(&mut ledger, stored(&[1, 2], None));
    let published = ledger.lose();
    assert!(published.cleared && ledger.is_partial());
    assert_eq!((ledger.blocks(), ledger.copies()), (0, 0));
    assert!(remove(&mut ledger, 1).is_empty());
    assert_eq!(
        ledger.counts().of(Alarm::RemovedUnknown),
        0,
        "it is no news"
    );
}

#[test]
fn a_loss_heals_once_the_engine_has_stored_as_many_blocks_as_it_has() {
    let mut ledger = ledger();
    ledger.lose();
    for number in 1..=CAPACITY {
        assert!(ledger.is_partial(), "before block {number}");
        store(&mut ledger, stored(&[number], None));
        remove(&mut ledger, number);
    }
    assert!(!ledger.is_partial());
    // A child of a block that was never seen shows that something is left.
    store(&mut ledger, stored(&[8], Some(7)));
    assert!(ledger.is_partial());
}

#[test]
fn reports_do_not_count_as_stores() {
    let mut ledger = ledger();
    ledger.lose();
    for _ in 0..CAPACITY {
        let report = Stored {
            session_id: Some("ours".into()),
            ..stored(&[1, 2], None)
        };
        store(&mut ledger, report);
    }
    assert!(ledger.is_partial());
}
