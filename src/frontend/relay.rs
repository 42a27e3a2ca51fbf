//! From a footprint to an answer: placed, dispatched, and placed again where an engine failed before
//! the client's first byte.

use std::sync::Arc;
use std::time::Instant;

use ::http::StatusCode;
use ::http::header::HeaderName;
use serde::Deserialize;
use tracing::{info, warn};

use crate::discovery::ParityScope;
use crate::dispatch::request::EngineBody;
use crate::dispatch::stream::Usage;
use crate::dispatch::{DispatchError, EngineAnswer, EngineRequest};
use crate::frontend::prompt::Exactness;
use crate::frontend::stream::{Answer, StreamRelay};
use crate::frontend::transfer::{Parcel, speaks_of_files};
use crate::frontend::{Frontend, error};
use crate::http::reply::Reply;
use crate::id::{RequestId, WorkerId};
use crate::openai::error::ApiError;
use crate::router::footprint::{Footprint, Wish};
use crate::router::{Placement, RouteError};
use crate::telemetry::labels::ModeLabels;

const WORKER: HeaderName = HeaderName::from_static("x-kvlens-worker");
const OVERLAP: HeaderName = HeaderName::from_static("x-kvlens-overlap");
const MM: HeaderName = HeaderName::from_static("x-kvlens-mm");

/// Engines that may die under one request before it is answered 502: a third could be the
/// request's own doing.
const DEATHS_MAX: usize = 2;

/// A request that is ready to be placed and sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) id: RequestId,
    /// When its last byte had come.
    pub(crate) received: Instant,
    pub(crate) path: &'static str,
    pub(crate) footprint: Footprint,
    pub(crate) exactness: Exactness,
    pub(crate) stream: bool,
    /// The client wants to see the usage chunk of its stream.
    pub(crate) include_usage: bool,
    pub(crate) has_images: bool,
    /// Several answers are asked for at once.
    pub(crate) wants_choices: bool,
    pub(crate) body: Arc<EngineBody>,
}

impl Outgoing {
    /// The prompt's length in tokens; `None` where it is not known to the last one.
    pub(crate) fn exact_tokens(&self) -> Option<u32> {
        let tokens = self.footprint.prompt_tokens;
        (self.exactness == Exactness::Exact && tokens > 0).then_some(tokens)
    }

    /// How much of the prompt counts in routing to the worker it was placed on.
    fn exactness_at(&self, placement: &Placement) -> Exactness {
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

/// Why one worker's answer did not reach the client; nothing has reached the client yet.
enum Failure {
    /// It never got the request.
    Refused(DispatchError),
    /// It has too much to do.
    Busy(StatusCode),
    /// It does not let us in.
    Barred(StatusCode),
    /// It broke off, or answered with a fault of its own.
    BrokenOff(String),
    /// It could not read the files that the request names.
    Unread(String),
    /// It refused the request itself: so would any other.
    Rejected(ApiError),
}

/// What became of a request on the workers it was tried on.
#[derive(Default)]
struct Tries {
    workers: Vec<WorkerId>,
    deaths: usize,
    busy: usize,
}

impl Frontend {
    /// Places and sends a request until a worker answers it, each worker once at most.
    pub(crate) async fn relay(&self, outgoing: Outgoing) -> Result<Reply, ApiError> {
        let mut tries = Tries::default();
        self.metrics
            .prompt_tokens
            .inc_by(u64::from(outgoing.footprint.prompt_tokens));
        loop {
            let wish = Wish::without(&tries.workers);
            let placement = match self.router.place(&outgoing.footprint, &wish) {
                Ok(placement) => placement,
                Err(error) => return Err(self.not_placed(error, &tries)),
            };
            self.log_placement(&outgoing, &placement, tries.workers.len() + 1);
            let (worker, gone) = (placement.worker.clone(), placement.gone.clone());
            let attempt = self.attempt(&outgoing, placement);
            let failure = match gone.run_until_cancelled(attempt).await {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(failure)) => failure,
                None => Failure::BrokenOff("the worker was taken out".to_owned()),
            };
            self.take_note(&outgoing, &worker, failure, &mut tries)?;
            self.metrics.retries.inc();
            tries.workers.push(worker);
        }
    }

    /// Notes a failure; an error ends the tries.
    fn take_note(
        &self,
        outgoing: &Outgoing,
        worker: &WorkerId,
        failure: Failure,
        tries: &mut Tries,
    ) -> Result<(), ApiError> {
        let request_id = &outgoing.id;
        match failure {
            Failure::Rejected(error) => return Err(error),
            Failure::Refused(error) => {
                self.router.refused(worker);
                warn!(%request_id, %worker, %error, "dispatch failed");
            }
            Failure::Barred(status) => {
                tracing::error!(%request_id, %worker, %status, "engine does not take our key, see discovery.key_file");
            }
            Failure::Busy(status) => {
                tries.busy += 1;
                warn!(%request_id, %worker, %status, "engine is busy");
            }
            Failure::BrokenOff(reason) | Failure::Unread(reason) => {
                tries.deaths += 1;
                warn!(%request_id, %worker, reason, deaths = tries.deaths, "engine failed");
            }
        }
        match tries.deaths {
            DEATHS_MAX => Err(error::engine_failed(tries.deaths)),
            _ => Ok(()),
        }
    }

    /// What a client is told when nobody is left to try.
    fn not_placed(&self, error: RouteError, tries: &Tries) -> ApiError {
        self.metrics.no_worker.inc();
        match error {
            RouteError::NoEligibleWorker { .. } if tries.deaths > 0 => {
                error::engine_failed(tries.deaths)
            }
            RouteError::NoEligibleWorker { .. } if tries.busy > 0 => error::busy(tries.busy),
            error => error.into(),
        }
    }

    fn log_placement(&self, outgoing: &Outgoing, placement: &Placement, attempt: usize) {
        let labels = ModeLabels {
            mode: self.router.mode(),
        };
        self.metrics.placements.get_or_create(&labels).inc();
        self.metrics
            .prompt_blocks
            .inc_by(u64::from(placement.prompt_blocks));
        self.metrics
            .overlap_blocks
            .inc_by(u64::from(placement.overlap_blocks));
        info!(
            worker = %placement.worker,
            rank = %placement.rank,
            overlap_blocks = placement.overlap_blocks,
            prompt_blocks = placement.prompt_blocks,
            cost = placement.cost.total,
            queued_ms = outgoing.received.elapsed().as_millis() as u64,
            attempt,
            request_id = %outgoing.id,
            "routed"
        );
    }

    /// One worker's try.
    async fn attempt(&self, outgoing: &Outgoing, placement: Placement) -> Result<Reply, Failure> {
        let mut parcel = self.parcel(&outgoing.body, &placement).await;
        let answer = match self.ask(outgoing, &placement, &parcel).await {
            Err(Failure::Unread(reason)) => {
                let body = &outgoing.body;
                parcel = self.inline_parcel(body, &placement, &reason).await;
                self.ask(outgoing, &placement, &parcel).await?
            }
            answered => answered?,
        };
        if outgoing.exactness_at(&placement) != outgoing.exactness {
            self.metrics.text_only.inc();
        }
        let headers = self.routing_headers(outgoing, &placement);
        let metrics = self.metrics.clone();
        let answer = Answer::new(outgoing, placement, metrics, answer).holding(parcel.files);
        let reply = match outgoing.stream {
            true => {
                let relay = StreamRelay::new(answer, outgoing, self.sse_event_bytes_max);
                relay.into_reply().await.map_err(Failure::BrokenOff)?
            }
            false => whole(answer).await?,
        };
        Ok(headers.into_iter().fold(reply, |reply, (name, value)| {
            reply.with_header(name, &value)
        }))
    }

    /// Sends a body and waits for the head of its answer.
    async fn ask(
        &self,
        outgoing: &Outgoing,
        placement: &Placement,
        parcel: &Parcel,
    ) -> Result<EngineAnswer, Failure> {
        let request = EngineRequest {
            path: outgoing.path,
            id: &outgoing.id,
            rank: (placement.ranks > 1).then_some(placement.rank),
            body: parcel.body.clone(),
        };
        let answer = self.client.send(&placement.address, request).await;
        let answer = answer.map_err(|error| match error {
            DispatchError::Refused { .. } => Failure::Refused(error),
            _ => Failure::BrokenOff(error.to_string()),
        })?;
        let named = match parcel.files[..] {
            [] => None,
            _ => placement.media_dir.as_deref(),
        };
        accepted(outgoing, answer, named).await
    }

    fn routing_headers(
        &self,
        outgoing: &Outgoing,
        placement: &Placement,
    ) -> Vec<(HeaderName, String)> {
        if !self.expose_routing {
            return Vec::new();
        }
        let exactness = match outgoing.exactness_at(placement) {
            Exactness::Exact => "exact".to_owned(),
            Exactness::TextOnly { reason } => format!("text_only; reason={reason}"),
        };
        let overlap = format!("{}/{}", placement.overlap_blocks, placement.prompt_blocks);
        vec![
            (WORKER, placement.worker.to_string()),
            (OVERLAP, overlap),
            (MM, exactness),
        ]
    }
}

/// The answer, if the engine took the request; `folder` where the request names files in it.
async fn accepted(
    outgoing: &Outgoing,
    answer: EngineAnswer,
    folder: Option<&str>,
) -> Result<EngineAnswer, Failure> {
    let status = answer.status;
    match (status.as_u16(), folder) {
        (200..=299, _) => Ok(answer),
        (408 | 429 | 503, _) => Err(Failure::Busy(status)),
        // The key that is missing is ours, not the client's.
        (401 | 403, _) => Err(Failure::Barred(status)),
        (400..=499, _) | (500, Some(_)) => {
            let body = answer.whole().await.unwrap_or_default();
            if folder.is_some() && speaks_of_files(&body, folder) {
                return Err(Failure::Unread(format!("the engine answered {status}")));
            }
            if status.as_u16() == 500 {
                return Err(Failure::BrokenOff(format!("status {status}")));
            }
            let error = error::rejected(status.as_u16(), &body, outgoing.has_images);
            Err(Failure::Rejected(error))
        }
        _ => Err(Failure::BrokenOff(format!("status {status}"))),
    }
}

/// An answer that comes in one piece.
async fn whole(answer: Answer) -> Result<Reply, Failure> {
    #[derive(Deserialize)]
    struct Counted {
        usage: Option<Usage>,
    }
    let (counts, engine) = answer.split();
    let body = engine
        .whole()
        .await
        .map_err(|error| Failure::BrokenOff(error.to_string()))?;
    if let Ok(Counted { usage: Some(usage) }) = serde_json::from_slice(&body) {
        counts.usage(usage);
    }
    Ok(Reply::full(StatusCode::OK, "application/json", body))
}
