//! The agent's feed on the bus: every line as it is told, and snapshots for those who ask.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::bus::{Bus, BusError, Heard, subjects, wire};
use crate::discovery::broadcast::{Chunk, Numbered, SnapshotAsked};
use crate::discovery::feed::Line;
use crate::worker::feed::Feed;

/// Most snapshots that are sent at once; each is some megabytes. Whoever asks beyond that asks again.
const SNAPSHOTS_MAX: usize = 16;

/// Most that wait for theirs, and for how long: less than they wait for the first chunk.
const WAITING_MAX: usize = 256;
const WAIT_MAX: Duration = Duration::from_millis(1_500);

/// Tells the feed on the bus until `stop`.
pub async fn run(feed: Arc<Feed>, bus: Bus, stop: CancellationToken) {
    let lines = tell(&feed, &bus);
    let snapshots = answer(&feed, &bus);
    let told = async { tokio::join!(lines, snapshots) };
    stop.run_until_cancelled(told).await;
}

async fn tell(feed: &Feed, bus: &Bus) {
    let mut lines = feed.broadcast();
    let worker = feed.worker();
    let (kv, record) = (subjects::kv(worker), subjects::record(worker));
    while let Some((told, line)) = lines.recv().await {
        let is_kv = matches!(line, Line::Part(_));
        let mut message = Numbered {
            life: feed.life(),
            number: told.lines,
            line,
        };
        let mut sent = bus.publish(kv.clone(), &message).await;
        if sent.is_ok() && !is_kv {
            message.number = told.records;
            sent = bus.publish(record.clone(), &message).await;
        }
        if let Err(error) = sent {
            // Whoever listens finds the gap, and asks for a snapshot.
            debug!(%worker, %error, "line not told on the bus");
        }
    }
}

async fn answer(feed: &Arc<Feed>, bus: &Bus) {
    let room = Arc::new(Semaphore::new(SNAPSHOTS_MAX));
    let sending = TaskTracker::new();
    loop {
        let mut questions = bus.hear(subjects::snapshot(feed.worker())).await;
        while let Some(heard) = questions.next().await {
            if sending.len() >= WAITING_MAX {
                warn!(worker = %feed.worker(), "too many ask for snapshots at once");
                continue;
            }
            let (feed, bus, room) = (feed.clone(), bus.clone(), room.clone());
            sending.spawn(async move {
                let Ok(Ok(place)) = timeout(WAIT_MAX, room.acquire_owned()).await else {
                    return;
                };
                if let Err(error) = send_snapshot(&feed, &bus, &heard).await {
                    debug!(worker = %feed.worker(), %error, "snapshot not sent");
                }
                drop(place);
            });
        }
    }
}

async fn send_snapshot(feed: &Feed, bus: &Bus, heard: &Heard) -> Result<(), BusError> {
    let Some(reply) = &heard.reply else {
        return Ok(());
    };
    let SnapshotAsked { with_blocks, life } = match wire::decode("a question", &heard.payload) {
        Ok(asked) => asked,
        Err(error) => {
            warn!(%error, "question not understood");
            return Ok(());
        }
    };
    if life.is_some_and(|life| life != feed.life()) {
        return Ok(());
    }
    let (told, lines) = feed.snapshot(with_blocks);
    let mut lines = lines.peekable();
    let mut index = 0;
    while let Some(line) = lines.next() {
        let chunk = Chunk {
            life: feed.life(),
            number: if with_blocks {
                told.lines
            } else {
                told.records
            },
            index,
            line,
            is_last: lines.peek().is_none(),
        };
        bus.send(reply.clone(), None, wire::encode(&chunk)).await?;
        index += 1;
    }
    Ok(())
}
