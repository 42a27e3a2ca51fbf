//! From a footprint to an answer: placed, dispatched, and placed again where an engine failed before
//! the client's first byte.

use std::sync::Arc;
use std::time::Instant;

use ::http::StatusCode;
use ::http::header::HeaderName;
use memchr::memmem;
use serde::Deserialize;
use tracing::info;

use crate::dispatch::request::EngineBody;
use crate::dispatch::stream::Usage;
use crate::dispatch::{
    DispatchError, EngineAnswer, EngineRequest, GATE_BROKEN_OFF, GATE_NOT_FETCHED, GATE_REFUSED,
};
use crate::frontend::answer::{Answer, Counts, with_nvext};
use crate::frontend::continuation::Continuable;
use crate::frontend::live::Live;
use crate::frontend::prompt::Exactness;
use crate::frontend::stream::StreamRelay;
use crate::frontend::transfer::Parcel;
use crate::frontend::tries::{Failure, Tries};
use crate::frontend::{Frontend, error};
use crate::http::reply::Reply;
use crate::id::RequestId;
use crate::openai::error::ApiError;
use crate::openai::nvext::Nvext;
use crate::router::Placement;
use crate::router::footprint::{Footprint, Wish};
use crate::router::remote::Chooser;
use crate::select::RouterMode;
use crate::telemetry::labels::ModeLabels;

const WORKER: HeaderName = HeaderName::from_static("x-kvlens-worker");
const OVERLAP: HeaderName = HeaderName::from_static("x-kvlens-overlap");
const BASIS: HeaderName = HeaderName::from_static("x-kvlens-basis");
const ROUTER: HeaderName = HeaderName::from_static("x-kvlens-router");
const MM: HeaderName = HeaderName::from_static("x-kvlens-mm");

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
    /// Where its client wants it to go.
    pub(crate) wish: Wish,
    /// What the answer is to say of itself.
    pub(crate) nvext: Nvext,
    /// What it takes to continue the answer elsewhere; `None` where that cannot be done.
    pub(crate) continuable: Option<Continuable>,
}

impl Outgoing {
    /// The prompt's length in tokens; `None` where it is not known to the last one.
    pub(crate) fn exact_tokens(&self) -> Option<u32> {
        let tokens = self.footprint.prompt_tokens;
        (self.exactness == Exactness::Exact && tokens > 0).then_some(tokens)
    }
}

/// An answer that has begun: an engine that fails before can still be replaced.
enum Begun {
    Whole(Reply),
    Stream(Box<StreamRelay>),
}

impl Frontend {
    /// Places and sends a request until a worker answers it, each worker once at most.
    pub(crate) async fn relay(self: Arc<Self>, outgoing: Outgoing) -> Result<Reply, ApiError> {
        self.recovery.request();
        self.refuse_deadly(&outgoing)?;
        self.metrics
            .prompt_tokens
            .inc_by(u64::from(outgoing.footprint.prompt_tokens));
        let mut tries = Tries::of(&outgoing);
        let (answer, headers) = loop {
            let wish = tries.wish(&outgoing.wish);
            let placement = match self.place_apart(&outgoing.footprint, &wish).await {
                Some(placement) => placement,
                None => {
                    let admitted = self.admit(&outgoing.footprint, &wish).await;
                    admitted.map_err(|error| self.not_placed(error, &tries))?
                }
            };
            let (worker, gone) = (placement.worker.clone(), placement.gone.clone());
            let attempt = self.attempt(&outgoing, placement, tries.workers.len() + 1);
            let failure = match gone.run_until_cancelled(attempt).await {
                Some(Ok(begun)) => break begun,
                Some(Err(failure)) => failure,
                None => Failure::Left("the worker was taken out".to_owned()),
            };
            self.take_note(&worker, failure, &mut tries)?;
            self.allow_retry(&outgoing, &tries)?;
        };
        let reply = match answer {
            Begun::Whole(reply) => reply,
            Begun::Stream(relay) => Live::new(*relay, self, outgoing, tries).into_reply(),
        };
        Ok(headers.into_iter().fold(reply, |reply, (name, value)| {
            reply.with_header(name, &value)
        }))
    }

    fn log_placement(&self, outgoing: &Outgoing, placement: &Placement, attempt: usize) {
        let own = match placement.chooser {
            Chooser::Fallback { .. } => RouterMode::RoundRobin,
            Chooser::Here | Chooser::Remote(_) => self.router.mode(),
        };
        let mode = outgoing.wish.mode.unwrap_or(own);
        let labels = ModeLabels { mode };
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
            lower_blocks = placement.lower_blocks,
            prompt_blocks = placement.prompt_blocks,
            assumed = placement.basis.reason(),
            router = %placement.chooser,
            cost = placement.cost.total,
            queued_ms = placement.queued.as_millis() as u64,
            attempt,
            tenant = &*outgoing.footprint.tenant,
            request_id = %outgoing.id,
            "routed"
        );
    }

    /// One worker's try, up to its whole answer or the first event of its stream.
    async fn attempt(
        &self,
        outgoing: &Outgoing,
        placement: Placement,
        number: usize,
    ) -> Result<(Begun, Vec<(HeaderName, String)>), Failure> {
        let worker = placement.worker.clone();
        let headers = self.routing_headers(outgoing, &placement);
        let answer = self.open(outgoing, placement, number).await?;
        let begun = match outgoing.stream {
            true => {
                let mut relay = StreamRelay::new(answer, outgoing, self.sse_event_bytes_max);
                relay.begin().await?;
                self.router.succeeded(&worker);
                Begun::Stream(Box::new(relay))
            }
            false => {
                let (reply, _counts) = whole(answer).await?;
                self.router.succeeded(&worker);
                Begun::Whole(reply)
            }
        };
        Ok((begun, headers))
    }

    /// Sends a placed request and waits for the head of its answer.
    pub(crate) async fn open(
        &self,
        outgoing: &Outgoing,
        placement: Placement,
        number: usize,
    ) -> Result<Answer, Failure> {
        self.log_placement(outgoing, &placement, number);
        let mut parcel = self.parcel(&outgoing.body, &placement).await;
        let answer = match self.ask(outgoing, &placement, &parcel).await {
            Err(Failure::Unread(reason)) => {
                let body = &outgoing.body;
                let unread = (&parcel, reason.as_str());
                parcel = self.inline_parcel(body, &placement, unread).await;
                self.ask(outgoing, &placement, &parcel).await?
            }
            answered => answered?,
        };
        if outgoing.exactness_at(&placement) != outgoing.exactness {
            self.metrics.text_only.inc();
        }
        let metrics = self.metrics.clone();
        Ok(Answer::new(outgoing, placement, metrics, answer).holding(parcel.named))
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
        let at = (&placement.worker, &*placement.address);
        let answer = self.client.ask(at, request).await;
        let answer = answer.map_err(|error| match error {
            DispatchError::Refused { .. } => Failure::Refused(error),
            error => match error::not_carried(&error) {
                Some(error) => Failure::Unsent(error),
                None => Failure::cut(&error),
            },
        })?;
        accepted(outgoing, answer, parcel).await
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
        let basis = match placement.basis.reason() {
            None => "events".to_owned(),
            Some(reason) => format!("assumed; reason={reason}"),
        };
        let overlap = format!("{}/{}", placement.overlap_blocks, placement.prompt_blocks);
        let router =
            (placement.chooser != Chooser::Here).then(|| (ROUTER, placement.chooser.to_string()));
        let headers = [
            (WORKER, placement.worker.to_string()),
            (OVERLAP, overlap),
            (BASIS, basis),
            (MM, exactness),
        ];
        headers.into_iter().chain(router).collect()
    }
}

/// The answer, if the engine took the request, which went to it as `parcel`.
async fn accepted(
    outgoing: &Outgoing,
    answer: EngineAnswer,
    parcel: &Parcel,
) -> Result<EngineAnswer, Failure> {
    let status = answer.status;
    match status.as_u16() {
        200..=299 => Ok(answer),
        408 | 429 => Err(Failure::Busy(status)),
        502 | 503 => Err(unanswered(answer).await),
        // The key that is missing is ours, not the client's.
        401 | 403 => Err(Failure::Barred(status)),
        400..=599 => {
            let body = answer.whole().await.unwrap_or_default();
            let is_dead = speaks_of_death(&body);
            if !is_dead && parcel.is_unread(status.as_u16(), &body) {
                return Err(Failure::Unread(format!("the engine answered {status}")));
            }
            let reason = format!("status {status}");
            Err(match status.as_u16() {
                500 if is_dead => Failure::Died(reason),
                500.. => Failure::Faulty(reason),
                refused => {
                    let error = error::rejected(refused, &body, outgoing.has_images);
                    Failure::Rejected(error)
                }
            })
        }
        _ => Err(Failure::Faulty(format!("status {status}"))),
    }
}

/// What it means that nothing came from an engine, or that it has too much to do: its gate says which.
async fn unanswered(answer: EngineAnswer) -> Failure {
    #[derive(Deserialize)]
    struct Told {
        error: Coded,
    }
    #[derive(Deserialize)]
    struct Coded {
        code: String,
    }
    let status = answer.status;
    let body = answer.whole().await.unwrap_or_default();
    let told = serde_json::from_slice::<Told>(&body);
    match told.as_ref().map_or("", |told| &told.error.code) {
        GATE_BROKEN_OFF => Failure::Died("its gate says that it broke off".to_owned()),
        GATE_REFUSED => Failure::Away("its gate says that it does not run".to_owned()),
        GATE_NOT_FETCHED => Failure::Unsent(error::not_fetched()),
        _ if status == StatusCode::SERVICE_UNAVAILABLE => Failure::Busy(status),
        _ => Failure::Faulty(format!("status {status}")),
    }
}

/// Whether an engine says of itself that it has died: vLLM's HTTP side outlives its core for a
/// moment, and answers in these words all that was in flight.
pub(crate) fn speaks_of_death(body: &[u8]) -> bool {
    const WORDS: &[u8] = b"EngineCore encountered an issue";
    memmem::find(body, WORDS).is_some()
}

/// An answer that comes in one piece, and what is held until the client has it.
async fn whole(answer: Answer) -> Result<(Reply, Counts), Failure> {
    #[derive(Deserialize)]
    struct Counted {
        usage: Option<Usage>,
    }
    let Answer { mut counts, engine } = answer;
    let body = engine.whole().await;
    let mut body = body.map_err(|error| Failure::cut(&error))?;
    if let Ok(Counted { usage: Some(usage) }) = serde_json::from_slice(&body) {
        counts.usage(usage);
    }
    if let Some(nvext) = counts.nvext() {
        body = with_nvext(&body, &nvext);
    }
    let reply = Reply::full(StatusCode::OK, "application/json", body);
    Ok((reply, counts))
}
