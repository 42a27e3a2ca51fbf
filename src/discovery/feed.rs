//! The feed on the wire: how an agent in a process of its own tells routers what it knows, one JSON
//! value a line.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use serde::{Deserialize, Serialize};

use crate::block::SequenceHash;
use crate::bus::wire::MESSAGE_HASHES_MAX;
use crate::discovery::{RECORD_VERSION, WorkerRecord, is_readable};
use crate::id::{DpRank, Incarnation, WorkerId};
use crate::index::{KvEvent, SLOT_BLOCKS_MAX};
use crate::ledger::change::Changes;
use crate::ledger::tier::Tiers;

/// Version of the lines' form.
pub const FEED_VERSION: u32 = 1;

/// Where an agent's listener serves its feed.
pub const FEED_PATH: &str = "/kvlens/v1/feed";

/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// Most hashes in one line: some 40 KB, so that no line holds up the ones behind it, and within what a
/// message on the bus carries.
pub const LINE_HASHES_MAX: usize = MESSAGE_HASHES_MAX;

/// Longest line that is read; ours are a tenth of it.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Most hashes of one event, and of all ranks of a snapshot: as many as the index takes of a rank, and
/// as many again in slower tiers.
const HASHES_MAX: usize = 2 * SLOT_BLOCKS_MAX as usize;

/// One line of a feed. First come a hello, the record, an event that clears for each rank and a
/// heartbeat: together the snapshot. After it comes whatever happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Hello {
        version: u32,
        worker: WorkerId,
    },
    Record(Box<WorkerRecord>),
    Part(Part),
    Heartbeat(Vec<Standing>),
    /// The worker is deregistered.
    Down,
}

/// A piece of one KV event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    rank: DpRank,
    incarnation: Incarnation,
    sequence: u64,
    cleared: bool,
    #[serde(with = "crate::block::packed")]
    removed: Vec<SequenceHash>,
    #[serde(with = "crate::block::packed")]
    stored: Vec<SequenceHash>,
    /// Left out where there is nothing to say, as former agents do.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    host: Changes,
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    disk: Changes,
    /// Whether the next line goes on with the same event.
    more: bool,
}

/// Where one rank's events stand: held against the index, it shows what got lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub rank: DpRank,
    pub incarnation: Incarnation,
    pub sequence: u64,
    /// Distinct hashes that it holds on its GPU.
    pub blocks: u64,
    /// The same in slower tiers; former agents know of none.
    #[serde(default)]
    pub lower_blocks: Tiers<u64>,
}

/// What a feed said, its pieces put together.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Record(Box<WorkerRecord>),
    Kv(KvEvent),
    Heartbeat(Vec<Standing>),
    Down,
}

/// Why a feed cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FeedFault {
    #[error("a line of over {bytes_max} bytes in a feed")]
    LineTooLong { bytes_max: usize },
    #[error("a line that is none of a feed: {text:?}")]
    NotALine {
        text: String,
        source: serde_json::Error,
    },
    #[error("version {found} of {what}, and this program reads up to {known}")]
    Version {
        what: &'static str,
        found: u32,
        known: u32,
    },
    #[error("the first line of a feed does not say whose it is")]
    NoHello,
    #[error("a second hello in a feed, of worker {worker}")]
    Hello { worker: WorkerId },
    #[error("worker {found} is told of where the feed of {worker} should be")]
    OtherWorker { worker: WorkerId, found: WorkerId },
    #[error("an event of rank {rank} breaks off in a feed")]
    EventBrokenOff { rank: DpRank },
    #[error("more than {hashes_max} hashes in one event or snapshot of a feed")]
    TooManyHashes { hashes_max: usize },
}

impl Line {
    /// The first line of a feed.
    pub fn hello(worker: &WorkerId) -> Self {
        Self::Hello {
            version: FEED_VERSION,
            worker: worker.clone(),
        }
    }

    /// The line as it is sent, its end included.
    pub fn encode(&self) -> Bytes {
        // A type of ours, without maps of odd keys, always has a JSON form.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes.into()
    }
}

/// The lines of one event, each of at most [`LINE_HASHES_MAX`] hashes.
pub fn parts(event: KvEvent) -> impl Iterator<Item = Line> + Send + 'static {
    let Tiers { host, disk } = event.lower;
    let lists = [
        event.removed,
        event.stored,
        host.removed,
        host.stored,
        disk.removed,
        disk.stored,
    ];
    let total: usize = lists.iter().map(Vec::len).sum();
    let count = total.div_ceil(LINE_HASHES_MAX).max(1);
    (0..count).map(move |number| {
        let from = number * LINE_HASHES_MAX;
        let mut end = 0;
        // The part of each list that lies in the piece, were they all one behind the other.
        let [
            removed,
            stored,
            host_removed,
            host_stored,
            disk_removed,
            disk_stored,
        ] = lists.each_ref().map(|list| {
            let start = end;
            end += list.len();
            let within = |at: usize| at.clamp(start, end) - start;
            list[within(from)..within(from + LINE_HASHES_MAX)].to_vec()
        });
        Line::Part(Part {
            rank: event.rank,
            incarnation: event.incarnation,
            sequence: event.sequence,
            cleared: event.cleared,
            removed,
            stored,
            host: Changes {
                removed: host_removed,
                stored: host_stored,
            },
            disk: Changes {
                removed: disk_removed,
                stored: disk_stored,
            },
            more: number + 1 < count,
        })
    })
}

/// Reads a feed: bytes in, wherever the network cut them, and what they tell out.
#[derive(Debug, Default)]
pub struct Reader {
    pending: BytesMut,
    worker: Option<WorkerId>,
    /// The event whose end has not come yet.
    open: Option<KvEvent>,
}

impl Reader {
    /// Whose feed it is; `None` before the first line.
    pub fn worker(&self) -> Option<&WorkerId> {
        self.worker.as_ref()
    }

    /// Takes in what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// What is told next; `None` until more arrives.
    ///
    /// # Errors
    /// When it is no feed, or not one that we can read.
    pub fn read(&mut self) -> Result<Option<Told>, FeedFault> {
        while let Some(line) = self.line()? {
            if let Some(told) = self.take(line)? {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> Result<Option<Line>, FeedFault> {
        let Some(end) = memchr(b'\n', &self.pending) else {
            return match self.pending.len() > LINE_BYTES_MAX {
                true => Err(FeedFault::LineTooLong {
                    bytes_max: LINE_BYTES_MAX,
                }),
                false => Ok(None),
            };
        };
        let bytes = self.pending.split_to(end + 1);
        let line = serde_json::from_slice(&bytes).map_err(|source| FeedFault::NotALine {
            text: String::from_utf8_lossy(&bytes[..end.min(80)]).into_owned(),
            source,
        })?;
        Ok(Some(line))
    }

    /// Takes in a line that came by another way; what it tells, where that is whole.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn take(&mut self, line: Line) -> Result<Option<Told>, FeedFault> {
        let Some(worker) = &self.worker else {
            let Line::Hello { version, worker } = line else {
                return Err(FeedFault::NoHello);
            };
            readable("the feed", version, FEED_VERSION)?;
            self.worker = Some(worker);
            return Ok(None);
        };
        if let (Some(open), false) = (&self.open, matches!(line, Line::Part(_))) {
            return Err(FeedFault::EventBrokenOff { rank: open.rank });
        }
        match line {
            Line::Hello { worker, .. } => Err(FeedFault::Hello { worker }),
            Line::Record(record) if record.worker != *worker => Err(FeedFault::OtherWorker {
                worker: worker.clone(),
                found: record.worker,
            }),
            Line::Record(record) => {
                readable("the record", record.version, RECORD_VERSION)?;
                Ok(Some(Told::Record(record)))
            }
            Line::Part(part) => {
                let worker = worker.clone();
                Ok(self.join(worker, part)?.map(Told::Kv))
            }
            Line::Heartbeat(ranks) => Ok(Some(Told::Heartbeat(ranks))),
            Line::Down => Ok(Some(Told::Down)),
        }
    }

    /// Puts a piece to those before it; the event with its last one.
    fn join(&mut self, worker: WorkerId, part: Part) -> Result<Option<KvEvent>, FeedFault> {
        let rank = part.rank;
        let event = self.open.get_or_insert_with(|| KvEvent {
            worker,
            rank,
            incarnation: part.incarnation,
            sequence: part.sequence,
            cleared: part.cleared,
            removed: Vec::new(),
            stored: Vec::new(),
            lower: Tiers::default(),
        });
        let begun = (event.rank, event.incarnation, event.sequence, event.cleared);
        if begun != (rank, part.incarnation, part.sequence, part.cleared) {
            return Err(FeedFault::EventBrokenOff { rank: event.rank });
        }
        event.removed.extend(part.removed);
        event.stored.extend(part.stored);
        event.lower.host.extend(part.host);
        event.lower.disk.extend(part.disk);
        bounded(event.hashes())?;
        Ok(match part.more {
            true => None,
            false => self.open.take(),
        })
    }
}

/// What an agent knows at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// `None` where the agent has none yet.
    pub record: Option<Box<WorkerRecord>>,
    /// One that clears for each rank.
    pub events: Vec<KvEvent>,
    /// The worker is deregistered.
    pub is_down: bool,
    hashes: usize,
}

impl Snapshot {
    /// Puts in what a feed told; true once the snapshot is whole, at its heartbeat.
    ///
    /// # Errors
    /// When it holds more than an index takes.
    pub fn put(&mut self, told: Told) -> Result<bool, FeedFault> {
        match told {
            Told::Record(record) => self.record = Some(record),
            Told::Kv(event) => {
                self.hashes += event.hashes();
                bounded(self.hashes)?;
                self.events.push(event);
            }
            Told::Heartbeat(_) => return Ok(true),
            Told::Down => {
                self.is_down = true;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn bounded(hashes: usize) -> Result<(), FeedFault> {
    match hashes > HASHES_MAX {
        true => Err(FeedFault::TooManyHashes {
            hashes_max: HASHES_MAX,
        }),
        false => Ok(()),
    }
}

fn readable(what: &'static str, found: u32, known: u32) -> Result<(), FeedFault> {
    match is_readable(found, known) {
        true => Ok(()),
        false => Err(FeedFault::Version { what, found, known }),
    }
}
