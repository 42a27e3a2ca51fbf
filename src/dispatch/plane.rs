//! Requests to engines over the bus, by their workers' names, and their answers back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use crate::bus::wire::WireFault;
use crate::bus::{Bus, BusError, Replies, subjects, wire};
use crate::dispatch::DispatchError;
use crate::dispatch::parts::{
    Asked, BEAT, Body, Part, Reply, RequestKey, SILENCE_MAX, TAKEN_EVERY, Word,
};
use crate::http::lent::{Lent, Loans};
use crate::id::WorkerId;

/// Longest wait for a bus that is away: a server that starts again takes a second or two, and clients
/// are connected again half a second after that.
const UP_MAX: Duration = Duration::from_secs(3);

/// How long after the bus came up somebody who is not there may only be late: clients are connected
/// again within half a second, and then listen.
const RETURN: Duration = Duration::from_secs(1);

/// How often such a one is asked again.
const AGAIN_EVERY: Duration = Duration::from_millis(100);

/// Cancelled requests that wait to be told of; of one more its engine hears by our silence.
const CANCELLED_MAX: usize = 4_096;

/// Answers named in one message, so that it stays within 16 KB.
const NAMED_MAX: usize = 400;

/// Room in a message for all but a request's body: no header of ours is long.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// Why an answer on the bus is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum AnswerFault {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error("part {expected} of an answer was lost: {found} came")]
    Lost { expected: u64, found: u64 },
    #[error("the engine's gate says that it broke off: {reason}")]
    Broken { reason: String },
    #[error("an answer's part {number} is out of place")]
    OutOfPlace { number: u64 },
}

/// The bus as a way to engines. Clones share it.
#[derive(Clone, Debug)]
pub struct BusPlane {
    shared: Arc<Shared>,
    /// From where larger bodies are fetched.
    loans: Option<Loans>,
}

#[derive(Debug)]
struct Shared {
    bus: Bus,
    /// Answers that are wanted, and how far they have been taken; as many as requests in flight.
    open: Mutex<HashMap<RequestKey, (WorkerId, u64)>>,
    /// Workers for which two gates have answered, each said once; as many as a rack has at most.
    doubled: Mutex<HashSet<WorkerId>>,
    cancelled: mpsc::Sender<(WorkerId, RequestKey)>,
}

/// Tells engines' gates how far their answers have been taken, and which are not wanted any more.
#[derive(Debug)]
pub struct Telling {
    shared: Arc<Shared>,
    cancelled: mpsc::Receiver<(WorkerId, RequestKey)>,
}

impl BusPlane {
    /// Requests over `bus`; for as long as there are some, the other runs.
    pub fn new(bus: Bus) -> (Self, Telling) {
        let (tell, cancelled) = mpsc::channel(CANCELLED_MAX);
        let shared = Arc::new(Shared {
            bus,
            open: Mutex::default(),
            doubled: Mutex::default(),
            cancelled: tell,
        });
        let telling = Telling {
            shared: shared.clone(),
            cancelled,
        };
        let loans = None;
        (Self { shared, loans }, telling)
    }

    /// The same with a listener from which bodies that are larger than a message are fetched.
    #[must_use]
    pub fn lending(self, loans: Option<Loans>) -> Self {
        Self { loans, ..self }
    }

    /// Sends a request to a worker's engine and returns when the answer's head is there. Dropping the
    /// future, or the answer, aborts the request there.
    pub(super) async fn forward(
        &self,
        worker: &WorkerId,
        path: &str,
        request: Request<Bytes>,
    ) -> Result<(StatusCode, HeaderMap, BusAnswer), DispatchError> {
        let bus = &self.shared.bus;
        // Sent while it is away, a request would be lost, and its sender told so.
        timeout(UP_MAX, bus.state().until_up()).await.ok();
        let (head, body) = request.into_parts();
        // Fetched by the time of the head, and not needed after it.
        let (body, _lent) = self.body(body)?;
        let key = RequestKey::random();
        let asked = Asked {
            key,
            method: head.method.to_string(),
            path: path.to_owned(),
            headers: told_headers(&head.headers),
            body,
        };
        let subject = subjects::request(worker);
        let open = Open::new(&self.shared, worker, key);
        let word = Word::Asks(Box::new(asked));
        let ask = async || {
            let connection = bus.state().connection();
            let replies = bus.ask(subject.clone(), &word).await;
            let replies = replies.map_err(|source| DispatchError::Plane { source })?;
            Ok::<_, DispatchError>((connection, replies))
        };
        let (connection, replies) = ask().await?;
        let mut answer = BusAnswer {
            connection,
            replies,
            open,
            life: None,
            number: 0,
            told: 0,
        };
        let failed = |fault| before_its_head(fault, subject.clone());
        let part = loop {
            match answer.next().await {
                // Its gate may not be back yet, where we are.
                Err(AnswerFault::Bus(BusError::NoResponder { .. }))
                    if bus.state().up_for() < RETURN =>
                {
                    sleep(AGAIN_EVERY).await;
                    (answer.connection, answer.replies) = ask().await?;
                }
                part => break part.map_err(failed)?,
            }
        };
        match part {
            Part::Head { status, headers } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                Ok((status, read_headers(headers), answer))
            }
            Part::Broken(reason) => Err(failed(AnswerFault::Broken { reason })),
            _ => Err(failed(AnswerFault::OutOfPlace { number: 1 })),
        }
    }

    fn body(&self, body: Bytes) -> Result<(Body, Option<Lent>), DispatchError> {
        let bytes = body.len();
        let bytes_max = self.shared.bus.message_bytes_max();
        // What a server takes is not known before it has said so; the body then goes nowhere.
        let is_known = self.shared.bus.is_up();
        if !is_known || bytes + HEAD_BYTES_MAX <= bytes_max {
            return Ok((Body::Inside(body), None));
        }
        let Some(loans) = &self.loans else {
            let bytes_max = bytes_max.saturating_sub(HEAD_BYTES_MAX);
            return Err(DispatchError::TooLarge { bytes, bytes_max });
        };
        let lent = loans.lend(body, "application/json")?;
        let url = lent.url().to_owned();
        Ok((Body::At { url, bytes }, Some(lent)))
    }
}

impl Telling {
    /// Tells, for ever.
    pub async fn run(mut self) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beats.tick() => self.tell_taken().await,
                // It is held here too, and so never ends.
                Some((worker, key)) = self.cancelled.recv() => {
                    self.shared.tell(&worker, &Word::Cancels(key)).await;
                }
            }
        }
    }

    async fn tell_taken(&self) {
        let mut taken: HashMap<WorkerId, Vec<(RequestKey, u64)>> = HashMap::new();
        for (key, (worker, number)) in self.shared.open().iter() {
            let list = taken.entry(worker.clone()).or_default();
            list.push((*key, *number));
        }
        for (worker, list) in taken {
            for named in list.chunks(NAMED_MAX) {
                let word = Word::Taken(named.to_vec());
                self.shared.tell(&worker, &word).await;
            }
        }
    }
}

impl Shared {
    /// Tells a gate. What is lost is told again, or heard in our silence.
    async fn tell(&self, worker: &WorkerId, word: &Word) {
        if let Err(error) = self.bus.publish(subjects::request(worker), word).await {
            debug!(%worker, %error, "engine's gate not told of an answer");
        }
    }

    /// Says that two gates answer for a worker: each of its requests is computed twice.
    fn note_double(&self, worker: &WorkerId) {
        // A set is whole after each change.
        let mut doubled = self.doubled.lock().unwrap_or_else(PoisonError::into_inner);
        if doubled.insert(worker.clone()) {
            warn!(%worker, "two engines' gates answer for one worker, one of them is not heard");
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<RequestKey, (WorkerId, u64)>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer is wanted; dropped before the answer's end, it is cancelled.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    worker: WorkerId,
    key: RequestKey,
    has_ended: bool,
}

impl Open {
    fn new(shared: &Arc<Shared>, worker: &WorkerId, key: RequestKey) -> Self {
        shared.open().insert(key, (worker.clone(), 0));
        Self {
            shared: shared.clone(),
            worker: worker.clone(),
            key,
            has_ended: false,
        }
    }

    fn note_taken(&self, number: u64) {
        if let Some((_, taken)) = self.shared.open().get_mut(&self.key) {
            *taken = number;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open().remove(&self.key);
        if !self.has_ended {
            let cancelled = (self.worker.clone(), self.key);
            // Where there is no room, the gate hears no more of it, and gives it up.
            self.shared.cancelled.try_send(cancelled).ok();
        }
    }
}

/// An answer as it comes over the bus.
#[derive(Debug)]
pub(super) struct BusAnswer {
    /// Of the bus, over which the question went: of what is told over another some is lost.
    connection: Option<u64>,
    replies: Replies,
    open: Open,
    /// Of the gate that was heard first.
    life: Option<u64>,
    /// Of the last part.
    number: u64,
    /// Up to which part the gate has been told.
    told: u64,
}

impl BusAnswer {
    /// The next piece of the body; `None` at its proper end. Losing the future loses nothing.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, AnswerFault>> {
        if self.open.has_ended {
            return None;
        }
        match self.next().await {
            Ok(Part::Chunk(bytes)) => Some(Ok(bytes)),
            Ok(Part::End) => {
                self.open.has_ended = true;
                None
            }
            Ok(Part::Broken(reason)) => Some(Err(AnswerFault::Broken { reason })),
            Ok(Part::Head { .. } | Part::Beat) => Some(Err(AnswerFault::OutOfPlace {
                number: self.number,
            })),
            Err(fault) => Some(Err(fault)),
        }
    }

    /// The next part that is no beat. No gate is to blame for what is lost with a connection.
    async fn next(&mut self) -> Result<Part, AnswerFault> {
        let part = self.part().await;
        let connection = self.open.shared.bus.state().connection();
        match part {
            Err(_) if connection != self.connection => Err(gone()),
            part => part,
        }
    }

    async fn part(&mut self) -> Result<Part, AnswerFault> {
        // Before the next one is taken: a future that is dropped here has lost none.
        if self.number - self.told >= TAKEN_EVERY {
            let word = Word::Taken(vec![(self.open.key, self.number)]);
            self.open.shared.tell(&self.open.worker, &word).await;
            self.told = self.number;
        }
        let bus = self.open.shared.bus.state();
        loop {
            let payload = tokio::select! {
                biased;
                payload = self.replies.next(SILENCE_MAX) => payload?,
                () = bus.until_left(self.connection) => return Err(gone()),
            };
            let reply: Reply = wire::decode("a part of an answer", &payload)?;
            if *self.life.get_or_insert(reply.life) != reply.life {
                // What it says may be right, and is of another run of the request.
                self.open.shared.note_double(&self.open.worker);
                continue;
            }
            let is_beat = reply.part == Part::Beat;
            let expected = self.number + u64::from(!is_beat);
            if reply.number != expected {
                let found = reply.number;
                return Err(AnswerFault::Lost { expected, found });
            }
            if !is_beat {
                self.number = expected;
                self.open.note_taken(expected);
                return Ok(reply.part);
            }
        }
    }
}

/// Why there is no answer from `address`.
fn before_its_head(fault: AnswerFault, address: String) -> DispatchError {
    match fault {
        AnswerFault::Bus(source @ BusError::Away { .. }) => DispatchError::CutPlane { source },
        AnswerFault::Bus(BusError::NoResponder { .. }) => DispatchError::Refused {
            address,
            source: Box::new(fault),
        },
        fault => DispatchError::BrokenOff {
            address,
            source: Box::new(fault),
        },
    }
}

fn gone() -> AnswerFault {
    let cause = "it went away under an answer".to_owned();
    BusError::Away { cause }.into()
}

/// Headers as a message has them.
pub fn told_headers(headers: &HeaderMap) -> Vec<(String, Bytes)> {
    let told = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        (name.as_str().to_owned(), value)
    };
    headers.iter().map(told).collect()
}

/// Headers of a message; what is none is left out.
pub fn read_headers(told: Vec<(String, Bytes)>) -> HeaderMap {
    let read = |(name, value): (String, Bytes)| {
        let name = HeaderName::try_from(name).ok()?;
        let value = HeaderValue::from_maybe_shared(value).ok()?;
        Some((name, value))
    };
    // Appended, so that a header that is there twice stays so.
    let mut headers = HeaderMap::new();
    for (name, value) in told.into_iter().filter_map(read) {
        headers.append(name, value);
    }
    headers
}
