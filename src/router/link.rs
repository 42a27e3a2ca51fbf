//! A connection to an agent's feed: opened, read to its first snapshot, then line by line.

use std::time::Duration;

use ::http::StatusCode;

use crate::discovery::feed::{FEED_PATH, FeedFault, HEARTBEAT, Reader, Snapshot, Standing, Told};
use crate::dispatch::{DispatchError, EngineAnswer, EngineClient};
use crate::id::WorkerId;

/// Longest wait for the feed's head: an agent that knows nothing yet lets us wait for a while.
const HEAD_DEADLINE: Duration = Duration::from_secs(8);

/// A feed that says nothing for so long has lost its agent, or the agent hangs.
const SILENCE_MAX: Duration = HEARTBEAT.saturating_mul(6);

/// Most of an answer's text that is shown.
const SHOWN_BYTES_MAX: usize = 300;

/// Why an agent is not heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("feed answered {status}: {text}")]
    Status { status: StatusCode, text: String },
    #[error(transparent)]
    Fault(#[from] FeedFault),
    #[error("feed said nothing for {waited:?}")]
    Silent { waited: Duration },
    #[error("feed ended")]
    Ended,
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

/// Where a feed is.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The agent's listener, as `http://127.0.0.1:8200`.
    pub(crate) url: String,
    pub(crate) client: EngineClient,
}

/// An open feed.
#[derive(Debug)]
pub(crate) struct OpenFeed {
    answer: EngineAnswer,
    reader: Reader,
}

impl Link {
    /// Opens the feed and reads its snapshot.
    pub(crate) async fn open(&self) -> Result<(WorkerId, Snapshot, OpenFeed), LinkError> {
        let asked = self.client.open(&self.url, FEED_PATH, HEAD_DEADLINE);
        let answer = asked.await?;
        if answer.status != StatusCode::OK {
            let status = answer.status;
            let text = tokio::time::timeout(HEAD_DEADLINE, answer.whole()).await;
            let text = text.unwrap_or_else(|_| Ok(Default::default()))?;
            let text = &text[..text.len().min(SHOWN_BYTES_MAX)];
            let text = String::from_utf8_lossy(text).into_owned();
            return Err(LinkError::Status { status, text });
        }
        let mut feed = OpenFeed {
            answer,
            reader: Reader::default(),
        };
        let mut snapshot = Snapshot::default();
        while !snapshot.put(feed.next().await?)? {}
        match feed.reader.worker() {
            Some(worker) => Ok((worker.clone(), snapshot, feed)),
            None => Err(FeedFault::NoHello.into()),
        }
    }
}

impl OpenFeed {
    /// What is told next. Losing the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Told, LinkError> {
        loop {
            if let Some(told) = self.reader.read()? {
                return Ok(told);
            }
            let chunk = tokio::time::timeout(SILENCE_MAX, self.answer.chunk()).await;
            match chunk {
                Ok(Some(bytes)) => self.reader.push(&bytes?),
                Ok(None) => return Err(LinkError::Ended),
                Err(_) => {
                    return Err(LinkError::Silent {
                        waited: SILENCE_MAX,
                    });
                }
            }
        }
    }
}
