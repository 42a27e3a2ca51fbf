//! An agent's feed as it comes over the bus: a snapshot in chunks, then numbered lines.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::bus::{Bus, Listener, Replies, subjects, wire};
use crate::discovery::broadcast::{Chunk, Numbered, SnapshotAsked};
use crate::discovery::feed::{HEARTBEAT, Line, Reader, Snapshot, Told};
use crate::id::WorkerId;
use crate::router::link::{LinkError, SILENCE_MAX, whose};

/// Longest wait for a chunk of a snapshot.
const CHUNK_MAX: Duration = Duration::from_secs(2);

/// The same for the first chunk of an agent that is meant.
const MEANT_MAX: Duration = Duration::from_millis(500);

/// Another agent of the same name is the next life of ours once ours has been silent for so long.
const SUCCESSION: Duration = HEARTBEAT.saturating_mul(3);

/// Where the feed of a worker is on the bus.
#[derive(Clone, Debug)]
pub(crate) struct BusLink {
    pub(crate) bus: Bus,
    pub(crate) worker: WorkerId,
    /// Not only records are wanted.
    pub(crate) with_blocks: bool,
    /// The agent that is meant; `None` for any.
    pub(crate) life: Option<u64>,
}

/// An open one.
#[derive(Debug)]
pub(crate) struct BusFeed {
    lines: Listener,
    reader: Reader,
    with_blocks: bool,
    life: u64,
    /// Of the last line taken in.
    number: u64,
    /// When the agent was last heard.
    heard: Instant,
    /// Another agent of its name was heard since.
    has_other: bool,
    /// Whether the log says already that two agents have one name.
    is_told: bool,
}

impl BusLink {
    /// Listens, then asks for the snapshot that goes before what is heard.
    pub(crate) async fn open(&self) -> Result<(WorkerId, Snapshot, BusFeed), LinkError> {
        let Self {
            bus,
            worker,
            with_blocks,
            life,
        } = self;
        bus.check(0)?;
        let subject = match with_blocks {
            true => subjects::kv(worker),
            false => subjects::record(worker),
        };
        let lines = bus.listen(subject).await?;
        let asked = SnapshotAsked {
            with_blocks: *with_blocks,
            life: *life,
        };
        // Both go over one connection, so the server listens for us before it passes the question on.
        let chunks = bus.ask(subjects::snapshot(worker), &asked).await?;
        let read = read(chunks, life.is_some()).await?;
        let mut feed = BusFeed {
            lines,
            reader: read.reader,
            with_blocks: *with_blocks,
            life: read.life,
            number: read.number,
            heard: Instant::now(),
            has_other: false,
            is_told: false,
        };
        if read.has_twin {
            feed.name_twin();
        }
        let worker = whose(&feed.reader, Some(worker))?;
        Ok((worker, read.snapshot, feed))
    }
}

/// A snapshot as it was answered.
struct Answered {
    /// Of the agent that answered first.
    life: u64,
    /// Of the last line that it takes in.
    number: u64,
    /// For the lines to come.
    reader: Reader,
    snapshot: Snapshot,
    /// Another agent of its name answered too.
    has_twin: bool,
}

/// Reads the chunks of a snapshot; `is_meant` where the agent that is to answer may be no more.
async fn read(mut chunks: Replies, is_meant: bool) -> Result<Answered, LinkError> {
    // Then another one is asked soon.
    let patience = if is_meant { MEANT_MAX } else { CHUNK_MAX };
    let mut chunk = next_chunk(&mut chunks, patience).await?;
    let mut answered = Answered {
        life: chunk.life,
        number: chunk.number,
        reader: Reader::default(),
        snapshot: Snapshot::default(),
        has_twin: false,
    };
    let mut index = 0;
    loop {
        if chunk.life != answered.life {
            answered.has_twin = true;
        } else if chunk.index != index {
            return Err(LinkError::ChunkMissing { index });
        } else {
            index += 1;
            let told = answered.reader.take(chunk.line)?;
            let is_whole = told.map(|told| answered.snapshot.put(told)).transpose()?;
            if chunk.is_last || is_whole == Some(true) {
                return Ok(answered);
            }
        }
        chunk = next_chunk(&mut chunks, CHUNK_MAX).await?;
    }
}

async fn next_chunk(chunks: &mut Replies, patience: Duration) -> Result<Chunk, LinkError> {
    let payload = chunks.next(patience).await?;
    Ok(wire::decode("a chunk of a snapshot", &payload)?)
}

impl BusFeed {
    /// What is told next. Losing the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Told, LinkError> {
        loop {
            let heard = timeout(SILENCE_MAX, self.lines.next()).await;
            let heard = heard.map_err(|_| LinkError::Silent {
                waited: SILENCE_MAX,
            })?;
            let heard = heard.ok_or(LinkError::Ended)?;
            let message: Numbered = wire::decode("a line of a feed", &heard.payload)?;
            if !self.is_next(&message)? {
                continue;
            }
            if let Some(told) = self.reader.take(message.line)? {
                return Ok(told);
            }
        }
    }

    /// Whether a line is to be taken in; those that the snapshot has already are not.
    fn is_next(&mut self, message: &Numbered) -> Result<bool, LinkError> {
        if message.life != self.life {
            if self.heard.elapsed() >= SUCCESSION {
                return Err(LinkError::OtherLife);
            }
            // Mostly it is the next life of ours, which will say no more.
            self.has_other = true;
            return Ok(false);
        }
        self.heard = Instant::now();
        if self.has_other {
            self.name_twin();
        }
        // Where records alone are told, other lines repeat the number of the last.
        let counts = self.with_blocks || matches!(message.line, Line::Record(_) | Line::Down);
        let expected = self.number + u64::from(counts);
        if message.number > expected {
            let missed = message.number - expected;
            return Err(LinkError::Gap { missed });
        }
        let is_new = message.number == expected;
        if is_new {
            self.number = message.number;
        }
        Ok(is_new)
    }

    /// Says that two agents have one name; only the one that is followed is listened to.
    fn name_twin(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            let worker = self.reader.worker().map(WorkerId::as_str);
            warn!(
                worker,
                "two agents tell of one worker, the later one is ignored"
            );
        }
    }
}
