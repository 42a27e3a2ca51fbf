//! A rank's KV events on ZMQ: the stream, and the replay of what is still buffered.
//!
//! As in vLLM a stream's endpoint is listened on where it is `ipc://` or names a wildcard address or
//! port, and connected to otherwise; replays are always listened for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use crate::mock::dialler::Dialler;
use crate::mock::pool::Event;
use crate::mock::wire::Wire;

/// Why events cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("cannot listen on {endpoint}")]
    Bind { endpoint: String, source: ZmqError },
    #[error("endpoint {endpoint:?} is neither tcp://host:port nor ipc://path")]
    Endpoint { endpoint: String },
}

/// Where and how all ranks publish.
#[derive(Clone, Debug)]
pub struct Plan {
    pub endpoint: String,
    pub replay: Option<String>,
    pub topic: String,
    /// Most batches kept for a replay; older ones are gone.
    pub buffered_batches_max: usize,
}

/// One rank's stream of events.
pub struct Publisher {
    way: Way,
    topic: Bytes,
    wire: Wire,
    next_sequence: u64,
    buffer: Arc<Buffer>,
    endpoint: String,
}

/// Answers replays of one rank's stream.
pub struct Replayer {
    socket: RouterSocket,
    topic: Bytes,
    buffer: Arc<Buffer>,
    endpoint: String,
}

/// A rank's publisher, and the tasks that it needs to run.
#[derive(Debug)]
pub struct Bound {
    pub publisher: Publisher,
    pub replayer: Option<Replayer>,
    /// There where the endpoint is one to connect to.
    pub dialler: Option<Dialler>,
}

/// How messages leave.
enum Way {
    Listening(PubSocket),
    /// To a task that connects.
    Dialling(mpsc::Sender<ZmqMessage>),
}

struct Buffer {
    batches: Mutex<VecDeque<(u64, Bytes)>>,
    max: usize,
}

// An unsigned -1 ends a replay.
const END: [u8; 8] = [0xff; 8];

impl Publisher {
    /// Listens on the rank's endpoints, but for a stream's that is to be connected to.
    ///
    /// # Errors
    /// When an endpoint is malformed or taken.
    pub async fn bind(plan: &Plan, wire: Wire) -> Result<Bound, PublishError> {
        let topic = Bytes::from(plan.topic.clone().into_bytes());
        let buffer = Arc::new(Buffer {
            batches: Mutex::default(),
            max: plan.buffered_batches_max,
        });
        let (way, endpoint, dialler) = if is_listened_on(&plan.endpoint) {
            let mut socket = PubSocket::new();
            let endpoint = listen(&mut socket, &plan.endpoint, wire.rank).await?;
            (Way::Listening(socket), endpoint, None)
        } else {
            let endpoint = rank_endpoint(&plan.endpoint, wire.rank)?;
            let (dialler, messages) = Dialler::new(endpoint.clone());
            (Way::Dialling(messages), endpoint, Some(dialler))
        };
        let mut replayer = None;
        if let Some(base) = &plan.replay {
            let mut socket = RouterSocket::new();
            let endpoint = listen(&mut socket, base, wire.rank).await?;
            replayer = Some(Replayer {
                socket,
                topic: topic.clone(),
                buffer: Arc::clone(&buffer),
                endpoint,
            });
        }
        let publisher = Self {
            way,
            topic,
            wire,
            next_sequence: 0,
            buffer,
            endpoint,
        };
        Ok(Bound {
            publisher,
            replayer,
            dialler,
        })
    }

    /// Where subscribers connect, the port the system chose included, or where one is to listen.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Sends one step's events as one batch; a step without events sends nothing.
    pub async fn publish(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs_f64();
        let payload = Bytes::from(self.wire.batch(seconds, events));
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.buffer.push(sequence, payload.clone());
        let message = message(self.topic.clone(), [number(sequence), payload]);
        match &mut self.way {
            Way::Listening(socket) => {
                if let Err(error) = socket.send(message).await {
                    tracing::warn!(sequence, %error, "kv events not sent");
                }
            }
            // A full queue loses it; a replay has it still.
            Way::Dialling(messages) => {
                let _ = messages.try_send(message);
            }
        }
    }
}

impl Replayer {
    /// Where a replay is asked for.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Answers replays until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return,
                request = self.socket.recv() => request,
            };
            match request {
                Ok(request) => self.answer(&request.into_vec()).await,
                // Only a closed socket fails; nothing can be asked of it again.
                Err(error) => {
                    tracing::warn!(%error, "kv event replay ended");
                    return;
                }
            }
        }
    }

    async fn answer(&mut self, request: &[Bytes]) {
        let [peer, delimiter, start] = request else {
            tracing::warn!(frames = request.len(), "malformed kv event replay request");
            return;
        };
        let Ok(start) = <[u8; 8]>::try_from(&start[..]) else {
            tracing::warn!(bytes = start.len(), "malformed kv event replay request");
            return;
        };
        if !delimiter.is_empty() {
            tracing::warn!("kv event replay request without delimiter");
            return;
        }
        let empty = Bytes::new();
        for (sequence, payload) in self.buffer.since(u64::from_be_bytes(start)) {
            let frames = [self.topic.clone(), number(sequence), payload];
            self.send(peer, frames).await;
        }
        let end = Bytes::from_static(&END);
        self.send(peer, [empty.clone(), end, empty]).await;
    }

    async fn send(&mut self, peer: &Bytes, [topic, sequence, payload]: [Bytes; 3]) {
        let frames = [Bytes::new(), topic, sequence, payload];
        // A peer that has gone away needs no answer.
        let _ = self.socket.send(message(peer.clone(), frames)).await;
    }
}

impl Buffer {
    fn push(&self, sequence: u64, payload: Bytes) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.len() == self.max {
            batches.pop_front();
        }
        if self.max > 0 {
            batches.push_back((sequence, payload));
        }
    }

    fn since(&self, start: u64) -> Vec<(u64, Bytes)> {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |batch: &&(u64, Bytes)| batch.0 >= start;
        batches.iter().filter(wanted).cloned().collect()
    }
}

async fn listen(socket: &mut impl Socket, base: &str, rank: u32) -> Result<String, PublishError> {
    let endpoint = rank_endpoint(base, rank)?;
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        // A socket left by a killed process would otherwise keep its successor from starting.
        let _ = tokio::fs::remove_file(path).await;
    }
    match socket.bind(&endpoint).await {
        Ok(bound) => Ok(bound.to_string()),
        Err(source) => Err(PublishError::Bind { endpoint, source }),
    }
}

/// Whether a stream's endpoint is one to listen on.
fn is_listened_on(endpoint: &str) -> bool {
    let is_wild = endpoint.contains('*') || endpoint.contains("::") || endpoint.ends_with(":0");
    is_wild || endpoint.starts_with("ipc://")
}

/// A rank's own endpoint: the port counts up, a path gets a suffix.
fn rank_endpoint(base: &str, rank: u32) -> Result<String, PublishError> {
    let malformed = || PublishError::Endpoint {
        endpoint: base.to_owned(),
    };
    if base.starts_with("ipc://") && base.len() > "ipc://".len() {
        let suffix = if rank == 0 {
            String::new()
        } else {
            format!("_dp{rank}")
        };
        return Ok(format!("{base}{suffix}"));
    }
    let address = base.strip_prefix("tcp://").ok_or_else(malformed)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
    let port: u16 = port.parse().map_err(|_| malformed())?;
    // Port 0 lets the system choose for every rank.
    let offset = if port == 0 { 0 } else { rank };
    let port = u32::from(port) + offset;
    let port = u16::try_from(port).map_err(|_| malformed())?;
    Ok(format!("tcp://{host}:{port}"))
}

fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

fn message<const N: usize>(first: Bytes, rest: [Bytes; N]) -> ZmqMessage {
    let mut message = ZmqMessage::from(first);
    rest.into_iter().for_each(|frame| message.push_back(frame));
    message
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Publisher({})", self.endpoint)
    }
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replayer({})", self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_wildcard_is_connected_to() {
        for (endpoint, listened_on) in [
            ("tcp://*:5557", true),
            ("tcp://[::]:5557", true),
            ("ipc:///run/kv", true),
            ("tcp://127.0.0.1:0", true),
            ("tcp://127.0.0.1:5557", false),
            ("tcp://127.0.0.1:5550", false),
        ] {
            assert_eq!(is_listened_on(endpoint), listened_on, "{endpoint}");
        }
    }

    #[test]
    fn every_rank_has_its_own_endpoint() {
        let rows = [
            ("tcp://127.0.0.1:5557", 0, Some("tcp://127.0.0.1:5557")),
            ("tcp://127.0.0.1:5557", 2, Some("tcp://127.0.0.1:5559")),
            ("tcp://127.0.0.1:0", 1, Some("tcp://127.0.0.1:0")),
            ("ipc:///run/kv.sock", 0, Some("ipc:///run/kv.sock")),
            ("ipc:///run/kv.sock", 1, Some("ipc:///run/kv.sock_dp1")),
            ("tcp://127.0.0.1:65535", 1, None),
            ("ipc://", 0, None),
            ("127.0.0.1:5557", 0, None),
        ];
        for (base, rank, expected) in rows {
            let endpoint = rank_endpoint(base, rank);
            assert_eq!(endpoint.ok().as_deref(), expected, "{base} rank {rank}");
        }
    }
}
