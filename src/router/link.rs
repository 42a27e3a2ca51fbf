//! A connection to an agent's feed: opened, read to its first snapshot, then line by line.

pub(crate) mod bus;

use std::time::Duration;

use ::http::StatusCode;

use crate::bus::BusError;
use crate::bus::wire::WireFault;
use crate::discovery::feed::{FEED_PATH, FeedFault, HEARTBEAT, Reader, Snapshot, Standing, Told};
use crate::dispatch::{DispatchError, EngineAnswer, EngineClient};
use crate::id::WorkerId;
use crate::router::link::bus::{BusFeed, BusLink};

/// Longest wait for the feed's head: an agent that knows nothing yet lets us wait for a while.
const HEAD_DEADLINE: Duration = Duration::from_secs(8);

/// A feed that says nothing for so long has lost its agent, or the agent hangs.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_mul(12);

/// Most of an answer's text that is shown.
const SHOWN_BYTES_MAX: usize = 300;

/// Why an agent is not heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error("feed answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error(transparent)]
    Fault(#[from] FeedFault),
    #[error("feed said nothing for {waited:?}")]
    Silent { waited: Duration },
    #[error("feed ended")]
    Ended,
    #[error("its record names no listener, or one outside discovery.networks, and there is no bus")]
    NoFeed,
    #[error("{missed} lines of the feed were lost")]
    Gap { missed: u64 },
    #[error("chunk {index} of a snapshot was lost")]
    ChunkMissing { index: u32 },
    #[error("another agent tells of the worker now")]
    OtherLife,
    #[error("index stands at {held:?} where the agent stands at {told:?}")]
    Astray {
        held: Option<Standing>,
        told: Standing,
    },
    #[error("agent starts and has not seen yet that the engine answers")]
    Unready,
    #[error("agent has deregistered its worker")]
    Deregistered,
    #[error("worker {worker} has its feed at {other} already; two agents must not share a name")]
    Taken { worker: WorkerId, other: String },
}

impl LinkError {
    /// Whether the agent itself has said that there is nothing to follow.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Deregistered | Self::Taken { .. })
    }

    /// Whether the agent is there all the same, and a snapshot makes up for what was lost.
    pub(crate) fn is_gap(&self) -> bool {
        matches!(
            self,
            Self::Wire(_)
                | Self::Gap { .. }
                | Self::ChunkMissing { .. }
                | Self::OtherLife
                | Self::Astray { .. }
        )
    }
}

/// Where a feed is.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// The agent's listener, as `http://127.0.0.1:8200`.
    Http {
        url: String,
        client: Box<EngineClient>,
        /// Whose feed it must be; `None` where an operator named the listener alone.
        worker: Option<WorkerId>,
    },
    Bus(Box<BusLink>),
}

/// An open feed.
#[derive(Debug)]
pub(crate) enum OpenFeed {
    Http(Box<HttpFeed>),
    Bus(Box<BusFeed>),
}

/// One over HTTP.
#[derive(Debug)]
pub(crate) struct HttpFeed {
    answer: EngineAnswer,
    reader: Reader,
}

impl Link {
    /// Opens the feed and reads its snapshot.
    pub(crate) async fn open(&self) -> Result<(WorkerId, Snapshot, OpenFeed), LinkError> {
        match self {
            Self::Http {
                url,
                client,
                worker,
            } => open(url, client, worker.as_ref()).await,
            Self::Bus(link) => {
                let (worker, snapshot, feed) = link.open().await?;
                Ok((worker, snapshot, OpenFeed::Bus(Box::new(feed))))
            }
        }
    }
}

async fn open(
    url: &str,
    client: &EngineClient,
    expected: Option<&WorkerId>,
) -> Result<(WorkerId, Snapshot, OpenFeed), LinkError> {
    let answer = client.open(url, FEED_PATH, HEAD_DEADLINE).await?;
    if answer.status != StatusCode::OK {
        let status = answer.status;
        let text = tokio::time::timeout(HEAD_DEADLINE, answer.whole()).await;
        let text = text.unwrap_or_else(|_| Ok(Default::default()))?;
        let text = &text[..text.len().min(SHOWN_BYTES_MAX)];
        let text = String::from_utf8_lossy(text).into_owned();
        return Err(LinkError::Status { status, text });
    }
    let (mut answer, mut reader) = (answer, Reader::default());
    let mut snapshot = Snapshot::default();
    while !snapshot.put(next(&mut answer, &mut reader).await?)? {}
    let worker = whose(&reader, expected)?;
    let feed = HttpFeed { answer, reader };
    Ok((worker, snapshot, OpenFeed::Http(Box::new(feed))))
}

/// The worker that a feed tells of, which must be the one `expected`.
fn whose(reader: &Reader, expected: Option<&WorkerId>) -> Result<WorkerId, FeedFault> {
    let found = reader.worker().ok_or(FeedFault::NoHello)?;
    match expected {
        Some(worker) if worker != found => Err(FeedFault::OtherWorker {
            worker: worker.clone(),
            found: found.clone(),
        }),
        _ => Ok(found.clone()),
    }
}

async fn next(answer: &mut EngineAnswer, reader: &mut Reader) -> Result<Told, LinkError> {
    loop {
        if let Some(told) = reader.read()? {
            return Ok(told);
        }
        let chunk = tokio::time::timeout(SILENCE_MAX, answer.chunk()).await;
        match chunk {
            Ok(Some(bytes)) => reader.push(&bytes?),
            Ok(None) => return Err(LinkError::Ended),
            Err(_) => {
                return Err(LinkError::Silent {
                    waited: SILENCE_MAX,
                });
            }
        }
    }
}

impl OpenFeed {
    /// What is told next. Losing the future loses nothing but the time waited.
    pub(crate) async fn next(&mut self) -> Result<Told, LinkError> {
        match self {
            Self::Http(feed) => next(&mut feed.answer, &mut feed.reader).await,
            Self::Bus(feed) => feed.next().await,
        }
    }
}
