//! Follows the event stream of one vLLM rank over ZeroMQ: subscribes first, replays what it
//! missed, and tells a gap from a new engine process.

mod behind;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};
use zeromq::{
    DealerSocket, Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, ZmqError, ZmqMessage,
};

use crate::events::codec::PAYLOAD_BYTES_MAX;
use crate::events::zmq::behind::{Behind, SourceError};

/// Longest wait for a connection. The engine is on this host, and its socket's own thread answers.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Longest wait between two messages of a replay.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// A publisher may take this long to note a new subscriber; what it sent meanwhile is replayed.
const SETTLE: Duration = Duration::from_millis(300);

/// After so long without a message the last one is asked for again: a lost tail, or another engine
/// behind the same address, would not show otherwise.
const SILENCE: Duration = Duration::from_secs(10);

/// Waits between attempts to connect: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// The sequence number that ends a replay: -1.
const REPLAY_END: u64 = u64::MAX;

/// Where one rank of an engine publishes its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The endpoint to subscribe to, as `ipc:///run/kv.sock` or `tcp://127.0.0.1:5557`.
    pub events: String,
    /// Whether we bind that endpoint and the engine connects to it, as vLLM does with every
    /// `tcp://` endpoint that has no `*`.
    pub bind: bool,
    /// The endpoint that replays. Without one a lost message stays lost, each new connection counts
    /// as a new engine process, and only its first message shows what came before it.
    pub replay: Option<String>,
}

/// A message by which an engine process is known again: another one has other bytes under the same
/// number, if only another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub sequence: u64,
    /// BLAKE3 of the payload.
    pub digest: [u8; 32],
}

impl Last {
    /// The mark of one message.
    pub fn of(sequence: u64, payload: &[u8]) -> Self {
        let digest = *blake3::hash(payload).as_bytes();
        Self { sequence, digest }
    }
}

/// What comes from a source, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The next batch.
    Message { sequence: u64, payload: Bytes },
    /// The engine is another process: what was learnt of it is void, and numbers begin again.
    NewLife,
    /// The next batch, but over [`PAYLOAD_BYTES_MAX`]: not given out, so that no queue holds it.
    TooLarge { sequence: u64, bytes: usize },
    /// Messages that nobody has any more.
    Lost { first: u64, count: u64 },
    /// All that the engine has published was given out or said to be lost, and the next will come.
    /// A source begins without this.
    CaughtUp,
    /// That is not so, until the next [`Feed::CaughtUp`]; comes again when the cause changes.
    Behind { cause: String },
}

/// Follows a source until nobody takes its messages any more. Every batch comes once and in order;
/// connections that break are made again.
///
/// `known` is the last message that a former agent took in: the source goes on behind it where the
/// engine is still that process, and else begins a new life.
pub async fn follow(source: &Source, known: Option<Last>, feed: &mpsc::Sender<Feed>) {
    let mut follower = Follower {
        source,
        feed,
        last: known,
        is_proven: true,
        behind: Some(Behind::now()),
    };
    let mut wait = RETRY_FIRST;
    loop {
        let started = Instant::now();
        let error = follower.session().await;
        if matches!(error, SourceError::Unwanted) || follower.fall_behind(&error).await.is_err() {
            return;
        }
        if started.elapsed() > ANSWER_DEADLINE {
            wait = RETRY_FIRST;
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_LAST);
    }
}

struct Follower<'a> {
    source: &'a Source,
    feed: &'a mpsc::Sender<Feed>,
    /// The last message given out: it tells a new engine process from the old one.
    last: Option<Last>,
    /// Whether the connection is known to lead to the engine process of `last`. A process takes its
    /// connections with it, so a new connection has to prove it by that very message.
    is_proven: bool,
    /// `None` while caught up.
    behind: Option<Behind>,
}

/// How a replay goes on from the last message.
#[derive(Debug, PartialEq, Eq)]
enum Continuity {
    SameLife,
    OtherLife,
    /// It had nothing, not even the last message.
    Empty,
}

impl Follower<'_> {
    /// One connection, from subscribing to its end; the end is always a reason.
    async fn session(&mut self) -> SourceError {
        match self.run_session().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn run_session(&mut self) -> Result<std::convert::Infallible, SourceError> {
        let Source { events, bind, .. } = self.source;
        let failed = |source| socket_error(events, source);
        let mut socket = SubSocket::new();
        let mut monitor = socket.monitor();
        socket.subscribe("").await.map_err(failed)?;
        // Connections to the engine: without one, nothing would come after what is replayed.
        let mut peers = 0_usize;
        if *bind {
            within(CONNECT_DEADLINE, events, socket.bind(events)).await?;
        } else {
            within(CONNECT_DEADLINE, events, socket.connect(events)).await?;
            peers = 1;
            // Subscribed first, replayed second: what comes meanwhile waits in the socket.
            self.prove().await?;
        }
        let mut check = Instant::now() + SETTLE;
        loop {
            let step = tokio::select! {
                message = socket.recv() => match message.map_err(failed).and_then(parse) {
                    Ok((sequence, payload)) => {
                        check = check.max(Instant::now() + SETTLE);
                        self.take_live(sequence, payload).await
                    }
                    Err(error) => Err(error),
                },
                () = sleep_until(check), if peers > 0 => {
                    let step = self.catch_up().await;
                    let is_settled = self.is_proven && self.behind.is_none();
                    check = Instant::now() + if is_settled { SILENCE } else { RETRY_LAST };
                    step
                }
                event = monitor.next() => match event {
                    Some(SocketEvent::Accepted(..)) => {
                        peers += 1;
                        check = Instant::now() + SETTLE;
                        self.prove().await
                    }
                    None | Some(SocketEvent::Disconnected(_)) => {
                        peers = peers.saturating_sub(1);
                        Err(SourceError::Broken { endpoint: events.clone() })
                    }
                    Some(_) => Ok(()),
                }
            };
            match step {
                Ok(()) => {}
                // The engine connects to this very socket: it stays, for its next life too.
                Err(error) if *bind && !matches!(error, SourceError::Unwanted) => {
                    self.is_proven = self.last.is_none();
                    self.fall_behind(&error).await?;
                    check = Instant::now() + RETRY_LAST;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Catches up over a new connection, which may lead to another engine process.
    async fn prove(&mut self) -> Result<(), SourceError> {
        self.is_proven = self.last.is_none();
        self.catch_up().await
    }

    async fn take_live(&mut self, sequence: u64, payload: Bytes) -> Result<(), SourceError> {
        let expected = self.last.map_or(0, |last| last.sequence + 1);
        if sequence > expected || !self.is_proven {
            debug!(
                endpoint = self.source.events,
                expected, sequence, "kv event gap, replaying"
            );
            self.catch_up().await?;
        }
        if !self.is_proven {
            self.begin_new_life().await?;
        }
        self.give(sequence, payload).await?;
        if self.source.replay.is_none() {
            // Its number has shown what was lost before it; nothing can be asked.
            self.be_caught_up().await?;
        }
        Ok(())
    }

    /// Replays from the last message inclusive, or from the first. A replay that does not answer
    /// leaves the connection unproven.
    async fn catch_up(&mut self) -> Result<(), SourceError> {
        let Some(endpoint) = &self.source.replay else {
            // Nothing can prove it.
            return if self.is_proven {
                Ok(())
            } else {
                self.begin_new_life().await
            };
        };
        match self.replay(endpoint).await {
            Err(error @ SourceError::Deadline { .. }) => return self.fall_behind(&error).await,
            Ok(Continuity::SameLife) => self.is_proven = true,
            Ok(Continuity::Empty) if self.is_proven => {}
            Ok(Continuity::Empty | Continuity::OtherLife) => {
                self.begin_new_life().await?;
                self.replay(endpoint).await?;
            }
            Err(error) => return Err(error),
        }
        self.be_caught_up().await
    }

    /// Says once that all is given out.
    async fn be_caught_up(&mut self) -> Result<(), SourceError> {
        let Some(Behind { since, is_told, .. }) = self.behind.take() else {
            return Ok(());
        };
        let (endpoint, waited) = (&self.source.events, since.elapsed());
        if is_told {
            info!(endpoint, ?waited, "kv events are followed again");
        } else {
            debug!(endpoint, ?waited, "kv events are followed");
        }
        self.send(Feed::CaughtUp).await
    }

    /// Says that it is no longer so, and why.
    async fn fall_behind(&mut self, error: &SourceError) -> Result<(), SourceError> {
        let behind = self.behind.get_or_insert_with(Behind::now);
        match behind.note(&self.source.events, error) {
            Some(cause) => self.send(Feed::Behind { cause }).await,
            None => Ok(()),
        }
    }

    /// Asks for everything from the last message on and gives out what is new.
    async fn replay(&mut self, endpoint: &str) -> Result<Continuity, SourceError> {
        let from = self.last.map_or(0, |last| last.sequence);
        let mut socket = DealerSocket::new();
        within(CONNECT_DEADLINE, endpoint, socket.connect(endpoint)).await?;
        let mut request = ZmqMessage::from(Bytes::new());
        request.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
        within(ANSWER_DEADLINE, endpoint, socket.send(request)).await?;
        let mut continuity = Continuity::Empty;
        loop {
            let (sequence, payload) =
                parse(within(ANSWER_DEADLINE, endpoint, socket.recv()).await?)?;
            if sequence == REPLAY_END {
                return Ok(continuity);
            }
            if let (Continuity::Empty, Some(last)) = (&continuity, self.last)
                && (!self.is_proven || sequence == last.sequence)
                && Last::of(sequence, &payload) != last
            {
                return Ok(Continuity::OtherLife);
            }
            continuity = Continuity::SameLife;
            self.give(sequence, payload).await?;
        }
    }

    async fn begin_new_life(&mut self) -> Result<(), SourceError> {
        self.last = None;
        self.is_proven = true;
        self.send(Feed::NewLife).await
    }

    /// Gives out a message unless it was before, with what is missing in front of it.
    async fn give(&mut self, sequence: u64, payload: Bytes) -> Result<(), SourceError> {
        let first = self.last.map_or(0, |last| last.sequence + 1);
        if sequence < first {
            return Ok(());
        }
        if sequence > first {
            let count = sequence - first;
            self.send(Feed::Lost { first, count }).await?;
        }
        self.last = Some(Last::of(sequence, &payload));
        let bytes = payload.len();
        if bytes > PAYLOAD_BYTES_MAX {
            return self.send(Feed::TooLarge { sequence, bytes }).await;
        }
        self.send(Feed::Message { sequence, payload }).await
    }

    async fn send(&self, feed: Feed) -> Result<(), SourceError> {
        let sent = self.feed.send(feed).await;
        sent.map_err(|_| SourceError::Unwanted)
    }
}

/// Splits a message into sequence number and payload. vLLM sends `topic, sequence, payload`; a
/// replay has an empty frame in front, and no topic up to 0.25.
fn parse(message: ZmqMessage) -> Result<(u64, Bytes), SourceError> {
    let mut frames = message.into_vec();
    let count = frames.len();
    let wrong = SourceError::Frames { frames: count };
    let (Some(payload), Some(sequence)) = (frames.pop(), frames.pop()) else {
        return Err(wrong);
    };
    match <[u8; 8]>::try_from(sequence.as_ref()) {
        Ok(sequence) if count <= 4 => Ok((u64::from_be_bytes(sequence), payload)),
        _ => Err(wrong),
    }
}

async fn within<T>(
    limit: Duration,
    endpoint: &str,
    step: impl Future<Output = Result<T, ZmqError>>,
) -> Result<T, SourceError> {
    match timeout(limit, step).await {
        Ok(answer) => answer.map_err(|source| socket_error(endpoint, source)),
        Err(_) => Err(SourceError::Deadline {
            endpoint: endpoint.to_owned(),
            waited: limit,
        }),
    }
}

fn socket_error(endpoint: &str, source: ZmqError) -> SourceError {
    SourceError::Socket {
        endpoint: endpoint.to_owned(),
        source,
    }
}
