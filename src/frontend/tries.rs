//! What becomes of a request on the workers it is tried on: which failures let it go to another, how
//! often, and what the client is told when none is left.

use std::sync::Arc;

use ::http::StatusCode;
use tracing::{error, warn};

use crate::discovery::ParityScope;
use crate::dispatch::DispatchError;
use crate::dispatch::request::EngineBody;
use crate::frontend::prompt::Exactness;
use crate::frontend::recovery::deadly::RequestDigest;
use crate::frontend::relay::Outgoing;
use crate::frontend::{Frontend, error};
use crate::health::Verdict;
use crate::id::{RequestId, WorkerId};
use crate::openai::error::ApiError;
use crate::router::footprint::Wish;
use crate::router::{Placement, RouteError};

/// Engines that may fail under one request before it is answered 502: a third could be the
/// request's own doing.
const FAILURES_MAX: usize = 2;

/// Why one worker's answer did not reach the client, or not all of it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It never got the request.
    Refused(DispatchError),
    /// It does not run, as its gate says, which never passed the request on.
    Away(String),
    /// It has too much to do.
    Busy(StatusCode),
    /// It does not let us in.
    Barred(StatusCode),
    /// It died: its connection broke, or it said so.
    Died(String),
    /// It goes on, and answered with a fault of its own.
    Faulty(String),
    /// It could not read the images that the request names.
    Unread(String),
    /// It was taken out, or has begun to leave.
    Left(String),
    /// It refused the request itself: so would any other.
    Rejected(ApiError),
    /// It was not asked, nor could any other be.
    Unsent(ApiError),
}

impl Failure {
    /// An answer that broke off.
    pub(crate) fn cut(error: &DispatchError) -> Self {
        match error {
            DispatchError::CutPlane { .. } => Self::Left(error.to_string()),
            _ => Self::Died(error.to_string()),
        }
    }

    /// What the log says of it.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Refused(error) => error.to_string(),
            Self::Busy(status) | Self::Barred(status) => status.to_string(),
            Self::Away(reason)
            | Self::Died(reason)
            | Self::Faulty(reason)
            | Self::Unread(reason)
            | Self::Left(reason) => reason.clone(),
            Self::Rejected(error) | Self::Unsent(error) => error.to_string(),
        }
    }
}

/// What became of a request on the workers it was tried on.
#[derive(Debug)]
pub(crate) struct Tries {
    pub(crate) id: RequestId,
    pub(crate) workers: Vec<WorkerId>,
    /// Engines that died under it.
    deaths: usize,
    /// Those, and engines that answered with a fault of their own.
    failures: usize,
    busy: usize,
    suspect: Suspect,
}

/// What a request is known by, should engines die of it.
#[derive(Debug)]
enum Suspect {
    /// Its body, which is read only once an engine has died.
    Body(&'static str, Arc<EngineBody>),
    Digest(RequestDigest),
    /// No engine had died of it when its body was let go, and two deaths will not be seen.
    Released,
}

impl Tries {
    /// None yet.
    pub(crate) fn of(outgoing: &Outgoing) -> Self {
        Self {
            id: outgoing.id.clone(),
            workers: Vec::new(),
            deaths: 0,
            failures: 0,
            busy: 0,
            suspect: Suspect::Body(outgoing.path, outgoing.body.clone()),
        }
    }

    /// Lets the body go: the request will not be sent again.
    pub(crate) fn release_body(&mut self) {
        if matches!(self.suspect, Suspect::Body(..)) {
            self.suspect = Suspect::Released;
        }
    }

    /// The same wish, for a worker that it was not tried on.
    pub(crate) fn wish(&self, wish: &Wish) -> Wish {
        Wish {
            excluded: self.workers.clone(),
            ..wish.clone()
        }
    }

    /// What a client is told when no other worker is to be tried.
    fn ended(&self, otherwise: ApiError) -> ApiError {
        match (self.failures, self.busy) {
            (0, 0) => otherwise,
            (0, busy) => error::busy(busy),
            (failures, _) => error::engine_failed(failures),
        }
    }

    /// Counts an engine that died; of the second one the request is known.
    fn note_death(&mut self) -> Option<RequestDigest> {
        self.deaths += 1;
        if let Suspect::Body(path, body) = &self.suspect {
            self.suspect = Suspect::Digest(digest(path, body));
        }
        match self.suspect {
            Suspect::Digest(digest) if self.deaths >= FAILURES_MAX => Some(digest),
            _ => None,
        }
    }
}

fn digest(path: &str, body: &EngineBody) -> RequestDigest {
    RequestDigest {
        blake3: body.digest(path),
        body_bytes: body.json_bytes(),
    }
}

impl Outgoing {
    /// How much of the prompt counts in routing to the worker it was placed on.
    pub(crate) fn exactness_at(&self, placement: &Placement) -> Exactness {
        let is_other = match placement.parity_failed {
            None => false,
            Some(ParityScope::Media) => self.has_images,
            Some(ParityScope::Text) => true,
        };
        match self.exactness {
            Exactness::Exact if is_other => Exactness::TextOnly { reason: "parity" },
            exactness => exactness,
        }
    }
}

impl Frontend {
    /// Refuses a request that engines have died of lately.
    ///
    /// # Errors
    /// 422: sent again unchanged it would be refused again, and clients do not retry it, as they
    /// would a 503.
    pub(crate) fn refuse_deadly(&self, outgoing: &Outgoing) -> Result<(), ApiError> {
        let body = &outgoing.body;
        let digest = || digest(outgoing.path, body);
        if !self.recovery.is_deadly(body.json_bytes(), digest) {
            return Ok(());
        }
        self.metrics.deadly_refused.inc();
        warn!(request_id = %outgoing.id, "request refused: engines have died of it");
        Err(error::deadly())
    }

    /// Notes what became of a request on a worker; an error ends the tries.
    pub(crate) fn take_note(
        &self,
        worker: &WorkerId,
        failure: Failure,
        tries: &mut Tries,
    ) -> Result<(), ApiError> {
        tries.workers.push(worker.clone());
        let request_id = &tries.id;
        match self.seen_from_here(worker, failure) {
            Failure::Rejected(error) => {
                self.router.succeeded(worker);
                return Err(error);
            }
            Failure::Unsent(error) => {
                warn!(%request_id, %error, "request not sent");
                return Err(error);
            }
            Failure::Refused(error) => {
                self.router.refused(worker);
                warn!(%request_id, %worker, %error, "dispatch failed");
            }
            Failure::Away(reason) => {
                self.router.refused(worker);
                warn!(%request_id, %worker, reason, "dispatch failed");
            }
            Failure::Barred(status) => {
                self.router.barred_us(worker);
                warn!(%request_id, %worker, %status, "engine does not take our key");
            }
            Failure::Busy(status) => {
                tries.busy += 1;
                warn!(%request_id, %worker, %status, "engine is busy");
            }
            Failure::Left(reason) => warn!(%request_id, %worker, reason, "worker left"),
            Failure::Faulty(reason) | Failure::Unread(reason) => {
                self.router.failed(worker);
                tries.failures += 1;
                warn!(%request_id, %worker, reason, failures = tries.failures, "engine failed");
            }
            Failure::Died(reason) => {
                self.router.failed(worker);
                tries.failures += 1;
                warn!(%request_id, %worker, reason, failures = tries.failures, "engine died");
                self.note_death(worker, tries);
            }
        }
        match tries.failures {
            failures if failures >= FAILURES_MAX => Err(error::engine_failed(tries.failures)),
            _ => Ok(()),
        }
    }

    /// One more retry for a request that may go elsewhere.
    ///
    /// # Errors
    /// What the client is told where it may not: it named its worker, or too many are retried.
    pub(crate) fn allow_retry(&self, outgoing: &Outgoing, tries: &Tries) -> Result<(), ApiError> {
        if let Some(worker) = &outgoing.wish.worker {
            let reason = "it did not take the request".into();
            let worker = worker.clone();
            return Err(tries.ended(RouteError::WorkerUnavailable { worker, reason }.into()));
        }
        if !self.recovery.take_retry() {
            self.metrics.retries_refused.inc();
            warn!(request_id = %outgoing.id, "no retry is left");
            return Err(error::no_retry_left(tries.failures));
        }
        self.metrics.retries.inc();
        Ok(())
    }

    /// What a client is told when nobody is left to try.
    pub(crate) fn not_placed(&self, error: RouteError, tries: &Tries) -> ApiError {
        // Workers there are for those whom the queue sends away, and it counts them itself.
        if !matches!(
            error,
            RouteError::QueueFull { .. } | RouteError::QueueTimeout { .. }
        ) {
            self.metrics.no_worker.inc();
        }
        match error {
            RouteError::NoEligibleWorker { .. } => tries.ended(error.into()),
            // The workers it was tried on were the last.
            RouteError::UnknownModel { .. } if !tries.workers.is_empty() => {
                tries.ended(error.into())
            }
            error => error.into(),
        }
    }

    /// A failure for what it is: a worker that was leaving, or was taken out, did not die of a
    /// request, nor did one whose GPU is lost; one whose engine is known to be dead did.
    fn seen_from_here(&self, worker: &WorkerId, failure: Failure) -> Failure {
        match (failure, self.router.verdict(worker)) {
            (Failure::Died(reason) | Failure::Left(reason), Some(Verdict::Failed))
                if self.router.has_failed_gpu(worker) =>
            {
                Failure::Left(reason)
            }
            (Failure::Died(reason), None | Some(Verdict::Draining)) => Failure::Left(reason),
            (Failure::Left(reason), Some(Verdict::Failed)) => Failure::Died(reason),
            (failure, _) => failure,
        }
    }

    /// Counts an engine that died under a request; of a second one the request itself is suspect.
    fn note_death(&self, worker: &WorkerId, tries: &mut Tries) {
        let Some(digest) = tries.note_death() else {
            return;
        };
        self.recovery.note_deadly(digest);
        self.metrics.deadly_requests.inc();
        let (request_id, deaths) = (&tries.id, tries.deaths);
        error!(%request_id, %worker, deaths, "engines died under a request, which is refused now");
    }
}
