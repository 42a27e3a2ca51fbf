//! Requests that come to an engine's gate over the bus: their answers go back in numbered parts, no
//! faster than they are taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, StatusCode, Uri};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bus::{Bus, BusError, Heard, subjects, wire};
use crate::config::network::{self, Network};
use crate::dispatch::parts::{
    self, Asked, BEAT, CHUNK_BYTES_MAX, Part, Reply, RequestKey, SILENCE_MAX, WINDOW_PARTS, Word,
};
use crate::dispatch::plane::{read_headers, told_headers};
use crate::dispatch::{EngineClient, GATE_NOT_FETCHED};
use crate::engine::gate::Gate;
use crate::http::reply::{self, ReplyBody};
use crate::http::{Call, Limits, body, serve};
use crate::id::WorkerId;
use crate::openai::error::{ApiError, ErrorKind};

/// Where a frontend's listener has all that it lends. Nothing else is fetched.
const LENT_FOLDER: &str = "/media/";

/// Why a request's body is not had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// It is over a limit.
    #[error(transparent)]
    Limit(#[from] ApiError),
    #[error(
        "{origin:?} lends nothing to us: it is outside of discovery.networks, or no loan is named"
    )]
    Address { origin: String },
    #[error(transparent)]
    Dispatch(#[from] crate::dispatch::DispatchError),
    #[error("the frontend answered {status} with {found} bytes, {bytes} were told")]
    Other {
        status: u16,
        found: usize,
        bytes: usize,
    },
}

/// Why an answer is not told to its end.
#[derive(Debug, thiserror::Error)]
enum Unwanted {
    #[error("cancelled by the frontend")]
    Cancelled,
    #[error("nothing was heard from the frontend for {waited:?}")]
    Silent { waited: Duration },
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// An engine's gate on the bus.
#[derive(Debug)]
pub struct Requests {
    gate: Arc<Gate>,
    bus: Bus,
    worker: WorkerId,
    /// Told with each part of an answer.
    life: u64,
    limits: Limits,
    /// From where bodies may be fetched.
    networks: Vec<Network>,
    client: EngineClient,
    /// The bytes that bodies in flight share.
    room: Arc<Semaphore>,
}

/// An answer that is being told, as those who hear of it see it.
struct Open {
    taken: watch::Sender<u64>,
    cancelled: CancellationToken,
}

impl Requests {
    /// Requests for `worker`; bodies are fetched inside `networks` alone, where there are any.
    pub fn new(
        gate: Arc<Gate>,
        (bus, worker): (Bus, WorkerId),
        limits: Limits,
        networks: &[Network],
    ) -> Self {
        Self {
            gate,
            bus,
            worker,
            life: uuid::Uuid::new_v4().as_u64_pair().0,
            room: body::room(&limits),
            limits,
            networks: networks.to_vec(),
            client: EngineClient::new(),
        }
    }

    /// Answers until `stop`, and what is being answered by then to its end.
    pub async fn run(self, stop: CancellationToken) {
        let requests = Arc::new(self);
        let mut open: HashMap<RequestKey, Open> = HashMap::new();
        let mut answering = JoinSet::new();
        let bus = requests.bus.clone();
        let subject = || subjects::request(&requests.worker);
        let mut words = bus.hear(subject()).await;
        info!(worker = %requests.worker, "gate is asked over the bus too");
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if answering.is_empty() => break,
                Some(done) = answering.join_next() => match done {
                    Ok(key) => drop(open.remove(&key)),
                    // A panic does not say whose it was.
                    Err(_) => open.retain(|_, open| !open.taken.is_closed()),
                },
                heard = words.next() => match heard {
                    Some(heard) => {
                        if let Some(inbox) = requests.hear(heard, &mut open, &mut answering) {
                            requests.refuse(inbox).await;
                        }
                    }
                    None => words = bus.hear(subject()).await,
                },
            }
        }
        requests.bus.flush().await.ok();
    }

    /// Takes in a message; where it asks for more than can be answered at once, returns whom.
    fn hear(
        self: &Arc<Self>,
        heard: Heard,
        open: &mut HashMap<RequestKey, Open>,
        answering: &mut JoinSet<RequestKey>,
    ) -> Option<String> {
        let word: Word = match wire::decode("a request or of one", &heard.payload) {
            Ok(word) => word,
            Err(error) => {
                warn!(%error, "what came over the bus is not understood");
                return None;
            }
        };
        let asked = match word {
            Word::Asks(asked) => asked,
            Word::Taken(list) => {
                for (key, number) in list {
                    if let Some(open) = open.get(&key) {
                        // One that was overtaken is a sign of life all the same.
                        open.taken.send_modify(|taken| *taken = number.max(*taken));
                    }
                }
                return None;
            }
            Word::Cancels(key) => {
                if let Some(open) = open.get(&key) {
                    open.cancelled.cancel();
                }
                return None;
            }
        };
        let (inbox, key) = (heard.reply?, asked.key);
        if open.contains_key(&key) {
            warn!("a request comes again under its key, and is refused");
            return Some(inbox);
        }
        if open.len() >= self.limits.connections_max {
            warn!(
                requests = open.len(),
                "too many requests at once, one is refused"
            );
            return Some(inbox);
        }
        let (taken, taken_seen) = watch::channel(0);
        let cancelled = CancellationToken::new();
        let to = (self.bus.clone(), inbox);
        let telling = Telling::new(to, self.life, taken_seen, cancelled.clone());
        open.insert(key, Open { taken, cancelled });
        let requests = self.clone();
        answering.spawn(async move {
            let path = asked.path.clone();
            if let Err(error) = requests.answer(*asked, telling).await {
                debug!(path, %error, "answer over the bus not told to its end");
            }
            key
        });
        None
    }

    /// Refuses a request, which then goes elsewhere.
    async fn refuse(&self, inbox: String) {
        let (status, headers) = (StatusCode::SERVICE_UNAVAILABLE.as_u16(), Vec::new());
        for (number, part) in [(1, Part::Head { status, headers }), (2, Part::End)] {
            let life = self.life;
            let reply = Reply { life, number, part };
            if let Err(error) = self.bus.publish(inbox.clone(), &reply).await {
                debug!(%error, "a request is not refused");
            }
        }
    }

    /// Passes a request through the gate and tells its answer. Where that is not wanted any more, it
    /// is dropped, which aborts the request in the engine.
    async fn answer(&self, asked: Asked, mut telling: Telling) -> Result<(), Unwanted> {
        let reply = telling.meanwhile(self.pass(asked)).await?;
        let headers = told_headers(&reply.headers);
        let status = reply.status.as_u16();
        telling.tell(Part::Head { status, headers }).await?;
        match reply.body {
            ReplyBody::Full(bytes) => telling.tell_bytes(bytes).await?,
            ReplyBody::Stream(mut chunks) => {
                while let Some(chunk) = telling.meanwhile(chunks.next()).await? {
                    match chunk {
                        Ok(bytes) => telling.tell_bytes(bytes).await?,
                        Err(error) => return telling.tell(Part::Broken(error.to_string())).await,
                    }
                }
            }
        }
        telling.tell(Part::End).await
    }

    async fn pass(&self, asked: Asked) -> reply::Reply {
        let (body, _room) = match self.body(asked.body).await {
            Ok(body) => body,
            Err(error) => {
                warn!(%error, "a request's body cannot be had");
                return not_had(error).into();
            }
        };
        let headers = read_headers(asked.headers);
        let (Ok(method), Ok(uri)) = (
            Method::from_bytes(asked.method.as_bytes()),
            asked.path.parse::<Uri>(),
        ) else {
            let message = "the method or the path is none";
            let kind = ErrorKind::InvalidRequestError;
            return ApiError::new(400, kind, "invalid_request", message).into();
        };
        let call = Call {
            id: serve::request_id(&headers),
            uri,
            headers,
            body,
            received: std::time::Instant::now(),
        };
        self.gate.answer(&method, call).await
    }

    /// A request's body, and the room that it takes.
    async fn body(&self, body: parts::Body) -> Result<(Bytes, OwnedSemaphorePermit), FetchError> {
        let bytes = match &body {
            parts::Body::Inside(inside) => inside.len(),
            parts::Body::At { bytes, .. } => *bytes,
        };
        if bytes > self.limits.body_bytes_max {
            return Err(body::too_large(&self.limits).into());
        }
        let room = body::room_for(bytes, &self.room)?;
        let body = match body {
            parts::Body::Inside(inside) => inside,
            parts::Body::At { url, .. } => self.fetched(&url, bytes).await?,
        };
        Ok((body, room))
    }

    async fn fetched(&self, url: &str, bytes: usize) -> Result<Bytes, FetchError> {
        let path_at = url.strip_prefix("http://").and_then(|rest| rest.find('/'));
        let (origin, path) = url.split_at(path_at.map_or(0, |at| at + "http://".len()));
        // Whoever knows a loan's whole address may fetch it: it stays out of logs.
        if !path.starts_with(LENT_FOLDER) || !network::hold(&self.networks, origin) {
            let origin = origin.to_owned();
            return Err(FetchError::Address { origin });
        }
        let deadline = self.limits.body_read;
        let (status, body) = self.client.get(origin, path, deadline).await?;
        match status.is_success() && body.len() == bytes {
            true => Ok(body),
            false => Err(FetchError::Other {
                status: status.as_u16(),
                found: body.len(),
                bytes,
            }),
        }
    }
}

/// Tells an answer's parts, as far as they are taken.
struct Telling {
    bus: Bus,
    inbox: String,
    life: u64,
    /// Of the last part.
    number: u64,
    taken: watch::Receiver<u64>,
    cancelled: CancellationToken,
    /// When the frontend was last heard.
    heard: Instant,
    beats: Interval,
}

impl Telling {
    fn new(
        (bus, inbox): (Bus, String),
        life: u64,
        taken: watch::Receiver<u64>,
        cancelled: CancellationToken,
    ) -> Self {
        let mut beats = interval_at(Instant::now() + BEAT, BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            bus,
            inbox,
            life,
            number: 0,
            taken,
            cancelled,
            heard: Instant::now(),
            beats,
        }
    }

    /// Waits for something, and says meanwhile that we are there.
    async fn meanwhile<T>(&mut self, task: impl Future<Output = T>) -> Result<T, Unwanted> {
        let mut task = std::pin::pin!(task);
        loop {
            // Those that are on their way say as much, and a slow reader's queue is not to grow.
            let has_room = self.has_room();
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return Err(Unwanted::Cancelled),
                done = &mut task => return Ok(done),
                Ok(()) = self.taken.changed() => self.heard = Instant::now(),
                () = sleep_until(self.heard + SILENCE_MAX) => {
                    return Err(Unwanted::Silent { waited: SILENCE_MAX });
                }
                _ = self.beats.tick(), if has_room => {
                    // One that is lost is followed by the next.
                    self.send(Part::Beat).await.ok();
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        // Nobody has taken what was not told, whatever is said.
        self.number.saturating_sub(*self.taken.borrow()) < WINDOW_PARTS
    }

    async fn tell_bytes(&mut self, mut bytes: Bytes) -> Result<(), Unwanted> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
            self.tell(Part::Chunk(chunk)).await?;
        }
        Ok(())
    }

    /// Tells the next part once there is room for it.
    async fn tell(&mut self, part: Part) -> Result<(), Unwanted> {
        let (mut taken, number) = (self.taken.clone(), self.number);
        let room = async move {
            let has_room = |taken: &u64| number.saturating_sub(*taken) < WINDOW_PARTS;
            taken.wait_for(has_room).await.is_ok()
        };
        self.meanwhile(room).await?;
        self.number += 1;
        self.send(part).await?;
        self.beats.reset();
        Ok(())
    }

    async fn send(&self, part: Part) -> Result<(), BusError> {
        let (life, number) = (self.life, self.number);
        let reply = Reply { life, number, part };
        self.bus.publish(self.inbox.clone(), &reply).await
    }
}

/// Of a request whose body is not had, for which its engine is not to blame.
fn not_had(error: FetchError) -> ApiError {
    let FetchError::Limit(error) = error else {
        let message = "the engine's gate could not fetch the request's body";
        let kind = ErrorKind::ServiceUnavailable;
        return ApiError::new(503, kind, GATE_NOT_FETCHED, message);
    };
    error
}
