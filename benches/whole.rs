//! A snapshot of a million blocks over the bus: its size, and the time from asking for it until the
//! index has it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use kvlens::block::SequenceHash;
use kvlens::bus::subjects;
use kvlens::bus::wire::{self, MESSAGE_HASHES_MAX};
use kvlens::discovery::broadcast::{Chunk, SnapshotAsked};

use tokio::time::timeout;

use crate::agents::{Agents, follow, runtime};
use crate::figures::{row, table, target};
use crate::fleet::{self, Chance};
use crate::servers::{Server, until};

const BLOCKS: usize = 1_000_000;
const BYTES_MAX: usize = 10_000_000;
/// Longest wait for a piece.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn print(nats: &Server) {
    let mut chance = Chance(11);
    let held = std::iter::repeat_with(|| SequenceHash(chance.next()));
    let agents = Agents::start(nats, vec![held.take(BLOCKS).collect()]);
    let (messages, bytes, heard) = heard(nats);
    let floor = transfer(nats, messages, bytes / messages);
    let indexed = indexed(nats);
    drop(agents);

    let millis = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
    let rows = [
        row(["milliseconds", ""]),
        row(["floor: the same bytes, bare NATS", &millis(floor)]),
        row([
            "from asking to the last piece, read by nobody",
            &millis(heard),
        ]),
        row(["from asking to the index", &millis(indexed)]),
    ];
    let title = format!(
        "snapshot: {BLOCKS} blocks, {messages} messages, {:.2} MB, {:.2} bytes a block",
        bytes as f64 / 1e6,
        bytes as f64 / BLOCKS as f64
    );
    table(&title, &rows);
    let ratio = indexed.as_secs_f64() / floor.as_secs_f64();
    println!("  to the index is {ratio:.1} times the floor");
    let what = format!("snapshot <= {} MB", BYTES_MAX / 1_000_000);
    target(&what, bytes <= BYTES_MAX);
}

/// Messages and bytes of a snapshot, and the time until all have come.
fn heard(nats: &Server) -> (usize, usize, Duration) {
    runtime().block_on(async {
        let bus = nats.bus("listener").await;
        let asked = SnapshotAsked {
            with_blocks: true,
            life: None,
        };
        let mut pieces: Vec<Bytes> = Vec::with_capacity(BLOCKS / MESSAGE_HASHES_MAX + 8);
        let started = Instant::now();
        let subject = subjects::snapshot(&fleet::worker(0));
        let mut replies = bus.ask(subject, &asked).await.expect("it is up");
        // The last one says so, and a heartbeat is small.
        loop {
            let piece = replies.next(PATIENCE).await.expect("it answers");
            let may_be_last = piece.len() < MESSAGE_HASHES_MAX;
            pieces.push(piece.clone());
            if may_be_last && is_last(&piece) {
                break;
            }
        }
        let took = started.elapsed();
        let bytes = pieces.iter().map(Bytes::len).sum();
        (pieces.len(), bytes, took)
    })
}

fn is_last(piece: &[u8]) -> bool {
    let chunk: Chunk = wire::decode("a chunk", piece).expect("a chunk");
    chunk.is_last
}

fn indexed(nats: &Server) -> Duration {
    let routing = runtime();
    let bus = routing.block_on(nats.bus("router"));
    let started = Instant::now();
    let router = follow(&routing, &bus, 1, true);
    until("the index has the snapshot", || {
        let standings = router.standings(&fleet::worker(0));
        standings
            .first()
            .is_some_and(|rank| rank.blocks == BLOCKS as u64)
    });
    started.elapsed()
}

/// How long so many messages take through the server, and nothing is done with them.
pub(crate) fn transfer(nats: &Server, messages: usize, bytes: usize) -> Duration {
    let (sending, hearing) = (runtime(), runtime());
    let sender = sending.block_on(nats.bare());
    hearing.block_on(async {
        let client = nats.bare().await;
        let mut heard = client.subscribe("transfer").await.expect("it is up");
        client.flush().await.expect("it is up");
        let payload = Bytes::from(vec![7; bytes]);
        let started = Instant::now();
        // The last client that is dropped takes with it what it has not written.
        let writer = sender.clone();
        sending.spawn(async move {
            for _ in 0..messages {
                let sent = writer.publish("transfer", payload.clone());
                sent.await.expect("it is up");
            }
        });
        for _ in 0..messages {
            let next = timeout(PATIENCE, heard.next()).await;
            next.expect("it comes").expect("it is up");
        }
        started.elapsed()
    })
}
