//! The lines of a feed: read wherever the network cuts them, refused where they are none.

use std::ops::Range;

use kvlens::block::SequenceHash;
use kvlens::discovery::feed::{LINE_HASHES_MAX, Line, Reader, Snapshot, Standing, Told, parts};
use kvlens::id::DpRank;
use kvlens::index::KvEvent;
use kvlens::ledger::change::Changes;
use kvlens::ledger::tier::Tiers;

use crate::feed::parties::{event, hashes, name, record};

fn hello() -> Vec<u8> {
    Line::hello(&name("w")).encode().to_vec()
}

/// All that is told; the fault in words where there is one.
fn read(bytes: &[u8]) -> Result<Vec<Told>, String> {
    let mut reader = Reader::default();
    let mut all = Vec::new();
    for piece in bytes.chunks(700_000) {
        reader.push(piece);
        while let Some(told) = reader.read().map_err(|fault| fault.to_string())? {
            all.push(told);
        }
    }
    Ok(all)
}

fn encoded(event: KvEvent) -> Vec<u8> {
    let lines = parts(event).map(|line| line.encode().to_vec());
    [hello(), lines.collect::<Vec<_>>().concat()].concat()
}

fn changes(removed: Range<u64>, stored: Range<u64>) -> Changes {
    Changes {
        removed: hashes(removed),
        stored: hashes(stored),
    }
}

#[test]
fn a_former_agent_is_read_as_one_without_slower_tiers() {
    let part = r#"{"part":{"rank":0,"incarnation":1,"sequence":7,"cleared":false,"removed":[],"stored":[5],"more":false}}"#;
    let beat = r#"{"heartbeat":[{"rank":0,"incarnation":1,"sequence":7,"blocks":1}]}"#;
    let bytes = [hello(), format!("{part}\n{beat}\n").into_bytes()].concat();
    let stored = KvEvent {
        stored: hashes(5..6),
        ..event(0, 7)
    };
    let written = parts(stored.clone()).next().expect("a line").encode();
    assert_eq!(written, format!("{part}\n"), "and reads us as one");
    let standing = Standing {
        rank: DpRank(0),
        incarnation: stored.incarnation,
        sequence: 7,
        blocks: 1,
        lower_blocks: Tiers::default(),
    };
    let told = vec![Told::Kv(stored), Told::Heartbeat(vec![standing])];
    assert_eq!(read(&bytes), Ok(told));
}

#[test]
fn a_feed_is_read_wherever_it_is_cut() {
    let events = KvEvent {
        cleared: true,
        removed: hashes(1..3),
        stored: vec![SequenceHash(u64::MAX), SequenceHash(0)],
        lower: Tiers {
            host: Changes::default(),
            disk: changes(0..1, 0..2),
        },
        ..event(1, u64::MAX)
    };
    let told = [
        Told::Record(Box::new(record("w", "unix:/run/http.sock"))),
        Told::Kv(events.clone()),
        Told::Heartbeat(Vec::new()),
        Told::Down,
    ];
    let lines = [
        Line::hello(&name("w")),
        Line::Record(Box::new(record("w", "unix:/run/http.sock"))),
    ];
    let lines = lines.into_iter().chain(parts(events));
    let lines = lines.chain([Line::Heartbeat(Vec::new()), Line::Down]);
    let bytes = lines
        .map(|line| line.encode().to_vec())
        .collect::<Vec<_>>()
        .concat();
    for cut in 0..bytes.len() {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            reader.push(part);
            while let Some(one) = reader.read().unwrap() {
                seen.push(one);
            }
        }
        assert_eq!(seen, told, "cut at {cut}");
        assert_eq!(reader.worker(), Some(&name("w")));
    }
}

#[test]
fn an_event_of_many_hashes_goes_in_short_lines_and_comes_whole() {
    let max = LINE_HASHES_MAX as u64;
    for (removed, stored, lower, lines) in [
        (0, 0, 0, 1),
        (max, 0, 0, 1),
        (max, 1, 0, 2),
        (1, max, 0, 2),
        (3, 3 * max, 0, 4),
        (max + 5, max - 5, 0, 2),
        (0, 0, max / 4, 1),
        (7, 0, max / 4, 2),
        (1, 1, 2 * max, 9),
    ] {
        let event = KvEvent {
            removed: hashes(0..removed),
            stored: hashes(1 << 60..(1 << 60) + stored),
            lower: Tiers {
                host: changes(1 << 61..(1 << 61) + lower, 1 << 62..(1 << 62) + lower),
                disk: changes(7..7 + lower, 1 << 63..(1 << 63) + lower),
            },
            ..event(0, 7)
        };
        assert_eq!(parts(event.clone()).count(), lines, "{removed} {stored}");
        for line in parts(event.clone()) {
            assert!(line.encode().len() < 100_000);
        }
        assert_eq!(read(&encoded(event.clone())), Ok(vec![Told::Kv(event)]));
    }
}

#[test]
fn what_is_no_feed_is_refused() {
    let after = |line: &str| [hello(), format!("{line}\n").into_bytes()].concat();
    let broken = |next: &dyn Fn(KvEvent) -> Line| {
        let long = KvEvent {
            stored: hashes(0..LINE_HASHES_MAX as u64 + 1),
            ..event(0, 7)
        };
        let first = parts(long.clone()).next().unwrap().encode();
        [hello(), first.to_vec(), next(long).encode().to_vec()].concat()
    };
    let other_rank = |long: KvEvent| {
        let other = KvEvent {
            rank: DpRank(1),
            ..long
        };
        parts(other).next().unwrap()
    };
    let mut future = record("w", "");
    future.version = 9;
    let future = Line::Record(Box::new(future)).encode();
    let foreign = Line::Record(Box::new(record("v", ""))).encode();
    for (bytes, fault) in [
        (
            b"<html>\n".to_vec(),
            "a line that is none of a feed: \"<html>\"",
        ),
        (after("{\"record\":3}"), "a line that is none of a feed"),
        (after("{\"surprise\":{}}"), "a line that is none of a feed"),
        (b"{\"heartbeat\":[]}\n".to_vec(), "does not say whose it is"),
        (
            b"{\"hello\":{\"version\":2,\"worker\":\"w\"}}\n".to_vec(),
            "version 2 of the feed",
        ),
        (
            b"{\"hello\":{\"version\":1,\"worker\":\"W\"}}\n".to_vec(),
            "none of a feed",
        ),
        ([hello(), hello()].concat(), "a second hello"),
        (
            [hello(), future.to_vec()].concat(),
            "version 9 of the record",
        ),
        (
            [hello(), foreign.to_vec()].concat(),
            "worker v is told of where the feed of w should be",
        ),
        (broken(&|_| Line::Down), "an event of rank 0 breaks off"),
        (broken(&other_rank), "an event of rank 0 breaks off"),
        (vec![b'['; 2_000_000], "a line of over 1048576 bytes"),
    ] {
        let said = read(&bytes).expect_err(fault);
        assert!(said.contains(fault), "{said}");
    }
}

#[test]
fn a_snapshot_ends_with_its_heartbeat() {
    let mut snapshot = Snapshot::default();
    let told = [
        (Told::Kv(event(0, 1)), false),
        (Told::Record(Box::new(record("w", ""))), false),
        (Told::Heartbeat(Vec::new()), true),
    ];
    for (told, is_whole) in told {
        assert_eq!(snapshot.put(told).unwrap(), is_whole);
    }
    assert!(snapshot.record.is_some() && snapshot.events.len() == 1 && !snapshot.is_down);
    assert!(snapshot.put(Told::Down).unwrap() && snapshot.is_down);
}
