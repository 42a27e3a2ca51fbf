//! One rank: what the router is told of it, and when.

use kvlens::block::{BlockSize, HashKey};
use kvlens::events::zmq::Feed;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::counts::Alarm;
use kvlens::ledger::{Ledger, Options};
use kvlens::worker::rank::Rank;

/// `[0.0, []]`.
const EMPTY: &[u8] = b"\x92\xcb\0\0\0\0\0\0\0\0\x90";
/// `[0.0, [["AllBlocksCleared"]]]`.
const CLEARED: &[u8] = b"\x92\xcb\0\0\0\0\0\0\0\0\x91\x91\xb0AllBlocksCleared";

fn message(sequence: u64, payload: impl AsRef<[u8]>) -> Feed {
    Feed::Message {
        sequence,
        payload: payload.as_ref().to_vec().into(),
    }
}

/// Stores one block of two tokens: `[0.0, [["BlockStored", [hash], nil, [token, 2], 2, nil, "GPU"]]]`.
fn stores(hash: u8) -> Vec<u8> {
    stores_of(hash, 2)
}

fn stores_of(hash: u8, block_size: u8) -> Vec<u8> {
    let mut payload = b"\x92\xcb\0\0\0\0\0\0\0\0\x91\x99\xabBlockStored\x91".to_vec();
    payload.extend([hash, 0xc0, 0x90 + block_size]);
    payload.extend(std::iter::repeat_n(hash, block_size.into()));
    payload.extend([block_size, 0xc0]);
    payload.extend(b"\xa3GPU\xc0\x91\xc0");
    payload
}

fn behind() -> Feed {
    let cause = "it broke".to_owned();
    Feed::Behind { cause }
}

fn new_rank() -> Rank {
    let ledger = Ledger::new("m", Options::default());
    let worker = WorkerId::new("w").expect("a legal id");
    Rank::new(worker, DpRank(0), Incarnation(1), ledger)
}

fn take(rank: &mut Rank, feed: Feed) -> Option<KvEvent> {
    rank.take(feed, || Incarnation(2))
}

/// What an event says: whether it clears, and how many blocks it stores.
fn told(event: Option<KvEvent>) -> Option<(bool, usize)> {
    event.map(|event| (event.cleared, event.stored.len()))
}

#[test]
fn a_rank_is_complete_only_while_its_source_is_caught_up_and_readable() {
    let lost = Feed::Lost { first: 3, count: 1 };
    let mut rank = new_rank();
    assert!(rank.status().is_partial, "nothing was heard of the engine");
    for (feed, is_partial, unreadable) in [
        (message(0, EMPTY), true, 0),
        (Feed::CaughtUp, false, 0),
        (message(1, b"\xc1"), true, 1),
        (message(2, b"\x92"), true, 2),
        (message(3, EMPTY), true, 2), // a good one heals nothing
        (message(4, CLEARED), false, 2),
        (Feed::NewLife, false, 2),
        (behind(), true, 2),
        (Feed::CaughtUp, false, 2),
        (lost, true, 2),
    ] {
        let about = format!("{feed:?}");
        take(&mut rank, feed);
        let status = rank.status();
        let seen = (status.is_partial, status.counts.of(Alarm::Unreadable));
        assert_eq!(seen, (is_partial, unreadable), "after {about}");
        assert_eq!(status.cause.is_some(), is_partial, "after {about}");
    }
}

#[test]
fn a_key_seals_every_name_that_the_router_is_told() {
    let key = HashKey::new("a secret of the whole cluster");
    let (mut open, mut sealed) = (new_rank(), new_rank().sealed_by(Some(key)));
    let mut names = 0;
    for feed in [
        || message(0, stores(1)),
        || Feed::CaughtUp,
        || message(1, stores(2)),
        || message(2, CLEARED),
        || Feed::NewLife,
    ] {
        let (open, sealed) = (take(&mut open, feed()), take(&mut sealed, feed()));
        let sealed_here = open.map(|mut event| {
            names += event.stored.len();
            key.seal_all(&mut event.stored);
            key.seal_all(&mut event.removed);
            event
        });
        assert_eq!(sealed, sealed_here);
    }
    assert_eq!(names, 2);
}

#[test]
fn the_router_is_told_only_while_the_source_is_caught_up() {
    let mut rank = new_rank();
    for (feed, event, blocks) in [
        (message(0, stores(1)), None, 1),
        (message(1, stores(2)), None, 2),
        (Feed::CaughtUp, Some((true, 2)), 2),
        (message(2, stores(3)), Some((false, 1)), 3),
        (behind(), Some((true, 0)), 3), // the ledger stays
        (behind(), None, 3),
        (message(3, stores(4)), None, 4),
        (Feed::CaughtUp, Some((true, 4)), 4),
        (behind(), Some((true, 0)), 4),
        (Feed::NewLife, None, 0),
        (Feed::CaughtUp, Some((true, 0)), 0),
        (message(0, stores(1)), Some((false, 1)), 1),
        (Feed::NewLife, Some((true, 0)), 0),
        (message(0, stores(1)), Some((false, 1)), 1),
        // What is lost may have removed anything.
        (Feed::Lost { first: 1, count: 2 }, Some((true, 0)), 0),
        (message(3, stores(5)), Some((false, 1)), 1),
        (
            Feed::TooLarge {
                sequence: 4,
                bytes: 1 << 30,
            },
            Some((true, 0)),
            0,
        ),
    ] {
        let about = format!("{feed:?}");
        assert_eq!(told(take(&mut rank, feed)), event, "after {about}");
        assert_eq!(rank.status().blocks, blocks, "after {about}");
    }
    let status = rank.status();
    assert_eq!((status.gaps, status.sequence), (1, 4));
    assert!(
        status.cause.unwrap().contains("1073741824 bytes"),
        "it says what was too large"
    );
}

#[test]
fn what_a_proof_is_asked_of_is_taken_back_and_told_again() {
    let mut rank = new_rank();
    take(&mut rank, message(0, stores(1)));
    take(&mut rank, Feed::CaughtUp);
    let event = rank.ask_proof(3).unwrap();
    assert_eq!((event.cleared, event.stored.len()), (true, 0));
    assert_eq!(rank.ask_proof(4), None);
    assert_eq!(
        (rank.status().proof, rank.status().is_caught_up),
        (4, false)
    );
    assert_eq!(told(take(&mut rank, Feed::CaughtUp)), Some((true, 1)));
    assert_eq!(rank.last().unwrap().sequence, 0);
}

#[test]
fn a_clearing_through_us_shows_at_once_and_voids_what_came_before() {
    let mut batch = stores(4);
    // [0.0, [["AllBlocksCleared"], ["BlockStored", …]]]
    batch.splice(9 + 1..9 + 2, *b"\x92\x91\xb0AllBlocksCleared");
    let mut rank = new_rank();
    take(&mut rank, message(0, stores(1)));
    take(&mut rank, Feed::CaughtUp);
    rank.expect_clearing();
    assert_eq!(
        told(take(&mut rank, message(1, stores(2)))),
        Some((false, 1))
    );
    assert_eq!(told(rank.settle_clearing(true)), Some((true, 0)));
    assert_eq!(
        told(take(&mut rank, message(2, stores(3)))),
        Some((false, 0))
    );
    assert_eq!(told(take(&mut rank, message(3, batch))), Some((true, 1)));
    assert!(!rank.status().is_partial);
    // One that was refused changes nothing, and neither does one whose event was faster.
    rank.expect_clearing();
    assert_eq!(rank.settle_clearing(false), None);
    rank.expect_clearing();
    take(&mut rank, message(4, CLEARED));
    take(&mut rank, message(5, stores(5)));
    assert_eq!(rank.settle_clearing(true), None);
    assert_eq!(rank.status().blocks, 1);
    // Where the event may be lost, nothing is waited for.
    rank.expect_clearing();
    rank.settle_clearing(true);
    take(&mut rank, Feed::Lost { first: 6, count: 1 });
    take(&mut rank, message(7, stores(6)));
    assert_eq!(rank.status().blocks, 1);
}

#[test]
fn a_block_size_that_changes_is_not_understood() {
    let mut rank = new_rank();
    take(&mut rank, Feed::CaughtUp);
    take(&mut rank, message(0, stores(1)));
    rank.describe(None, BlockSize::new(4));
    assert_eq!(rank.status().block_size, BlockSize::new(2), "events win");
    assert_eq!(rank.status().blocks, 1);
    let event = take(&mut rank, message(1, stores_of(9, 3)));
    assert_eq!(told(event), Some((true, 0)));
    let status = rank.status();
    assert!(status.is_partial);
    assert!(status.cause.unwrap().contains("block size"));
}
