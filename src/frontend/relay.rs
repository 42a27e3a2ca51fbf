//! From a footprint to an answer: placed, dispatched, placed again where an engine failed, and
//! streamed back.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ::http::header::HeaderName;
use ::http::{Response, StatusCode};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use tracing::{info, warn};

use crate::dispatch::stream::{EventKind, Splitter, Usage, classify};
use crate::dispatch::{DispatchError, EngineRequest, read_whole};
use crate::frontend::prompt::Exactness;
use crate::frontend::{Frontend, error};
use crate::http::reply::Reply;
use crate::id::RequestId;
use crate::openai::error::{ApiError, ErrorKind};
use crate::router::{Footprint, Placement, RouteError};
use crate::telemetry::labels::ModeLabels;
use crate::telemetry::metrics::Metrics;

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
    pub(crate) path: &'static str,
    pub(crate) footprint: Footprint,
    pub(crate) exactness: Exactness,
    pub(crate) stream: bool,
    /// The client wants to see the usage chunk of its stream.
    pub(crate) include_usage: bool,
    pub(crate) has_images: bool,
    pub(crate) body: Bytes,
}

/// Why one worker's answer did not reach the client.
enum Failure {
    /// It never got the request.
    Refused(DispatchError),
    /// It broke off, or answered with a fault of its own; nothing has reached the client yet.
    BrokenOff(String),
    /// It refused the request itself: so would any other.
    Rejected(ApiError),
}

impl Frontend {
    /// Places and sends a request until a worker answers it. What fails before the first byte to
    /// the client is placed again elsewhere.
    pub(crate) async fn relay(&self, outgoing: Outgoing) -> Result<Reply, ApiError> {
        let started = Instant::now();
        let mut excluded = Vec::new();
        let mut deaths = 0;
        loop {
            let placement = match self.router.place(&outgoing.footprint, &excluded) {
                Ok(placement) => placement,
                Err(RouteError::NoEligibleWorker { .. }) if deaths > 0 => {
                    return Err(error::engine_failed(deaths));
                }
                Err(error) => {
                    self.metrics.no_worker.inc();
                    return Err(error.into());
                }
            };
            self.log_placement(&outgoing, &placement, started);
            let worker = placement.worker.clone();
            match self.attempt(&outgoing, placement, started).await {
                Ok(reply) => return Ok(reply),
                Err(Failure::Rejected(error)) => return Err(error),
                Err(Failure::Refused(error)) => {
                    self.router.refused(&worker);
                    warn!(request_id = %outgoing.id, %worker, %error, "dispatch failed");
                }
                Err(Failure::BrokenOff(reason)) => {
                    deaths += 1;
                    warn!(request_id = %outgoing.id, %worker, reason, deaths, "engine failed");
                    if deaths == DEATHS_MAX {
                        return Err(error::engine_failed(deaths));
                    }
                }
            }
            self.metrics.retries.inc();
            excluded.push(worker);
        }
    }

    fn log_placement(&self, outgoing: &Outgoing, placement: &Placement, started: Instant) {
        let labels = ModeLabels {
            mode: self.router.mode(),
        };
        self.metrics.placements.get_or_create(&labels).inc();
        self.metrics
            .prompt_tokens
            .inc_by(u64::from(outgoing.footprint.prompt_tokens));
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
            queued_ms = started.elapsed().as_millis() as u64,
            request_id = %outgoing.id,
            "routed"
        );
    }

    /// One worker's try.
    async fn attempt(
        &self,
        outgoing: &Outgoing,
        placement: Placement,
        started: Instant,
    ) -> Result<Reply, Failure> {
        let request = EngineRequest {
            path: outgoing.path,
            id: &outgoing.id,
            rank: (placement.ranks > 1).then_some(placement.rank),
            body: outgoing.body.clone(),
        };
        let response = self.client.send(&placement.address, request).await;
        let response = response.map_err(|error| match error {
            DispatchError::Refused { .. } => Failure::Refused(error),
            _ => Failure::BrokenOff(error.to_string()),
        })?;
        let response = accepted(outgoing, &placement, response).await?;
        let headers = self.routing_headers(outgoing, &placement);
        let answer = Answer {
            placement,
            metrics: self.metrics.clone(),
            started,
            last_piece: None,
        };
        let reply = match outgoing.stream {
            true => streamed(self.stream_relay(answer, response.into_body(), outgoing)).await?,
            false => whole(answer, response).await?,
        };
        Ok(headers.into_iter().fold(reply, |reply, (name, value)| {
            reply.with_header(name, &value)
        }))
    }

    fn stream_relay(&self, answer: Answer, body: Incoming, outgoing: &Outgoing) -> StreamRelay {
        StreamRelay {
            answer,
            body,
            splitter: Splitter::new(self.sse_event_bytes_max),
            include_usage: outgoing.include_usage,
            state: StreamState::Open,
        }
    }

    fn routing_headers(
        &self,
        outgoing: &Outgoing,
        placement: &Placement,
    ) -> Vec<(HeaderName, String)> {
        if !self.expose_routing {
            return Vec::new();
        }
        let exactness = match outgoing.exactness {
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

/// The response, if the engine took the request.
async fn accepted(
    outgoing: &Outgoing,
    placement: &Placement,
    response: Response<Incoming>,
) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = read_whole(&placement.address, response.into_body())
        .await
        .unwrap_or_default();
    // 408 and 429 are the engine's own state, as are all 5xx: another worker may do better.
    let own_fault = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    if own_fault || !status.is_client_error() {
        return Err(Failure::BrokenOff(format!("status {status}")));
    }
    Err(Failure::Rejected(error::rejected(
        status.as_u16(),
        &body,
        outgoing.has_images,
    )))
}

/// An answer on its way: what it holds, and what is counted of it.
struct Answer {
    placement: Placement,
    metrics: Arc<Metrics>,
    started: Instant,
    last_piece: Option<Instant>,
}

impl Answer {
    /// Notes one piece of a stream; the first frees the prefill.
    fn piece(&mut self) {
        let now = Instant::now();
        match self.last_piece {
            None => {
                self.placement.booking.first_token();
                let waited = now - self.started;
                self.metrics
                    .time_to_first_token
                    .observe(waited.as_secs_f64());
            }
            Some(last) => self
                .metrics
                .inter_token_latency
                .observe((now - last).as_secs_f64()),
        }
        self.last_piece = Some(now);
    }

    /// Holds what the engine found in its cache against what was predicted.
    fn usage(&self, usage: Usage) {
        self.metrics
            .output_tokens
            .inc_by(u64::from(usage.completion_tokens));
        let Some(cached_tokens) = usage.cached_tokens() else {
            return;
        };
        let block_tokens = self.placement.block_size.tokens();
        let predicted_tokens = u64::from(self.placement.overlap_blocks * block_tokens);
        self.metrics
            .overlap_predicted_tokens
            .inc_by(predicted_tokens);
        self.metrics
            .overlap_cached_tokens
            .inc_by(u64::from(cached_tokens));
    }
}

/// An answer that comes in one piece.
async fn whole(answer: Answer, response: Response<Incoming>) -> Result<Reply, Failure> {
    let body = read_whole(&answer.placement.address, response.into_body()).await;
    let body = body.map_err(|error| Failure::BrokenOff(error.to_string()))?;
    #[derive(Deserialize)]
    struct Counted {
        usage: Option<Usage>,
    }
    if let Ok(Counted { usage: Some(usage) }) = serde_json::from_slice(&body) {
        answer.usage(usage);
    }
    Ok(Reply::full(StatusCode::OK, "application/json", body))
}

/// An answer that comes as a stream; returns with its first event, so that an engine that dies
/// before it can still be replaced.
async fn streamed(mut relay: StreamRelay) -> Result<Reply, Failure> {
    let first = relay.next().await;
    match (first, relay.state) {
        (Some(first), StreamState::Open | StreamState::Done) => {
            let first = stream::iter([Ok(first)]);
            let rest: BoxStream<'static, io::Result<Bytes>> =
                stream::unfold(relay, async |mut relay| {
                    relay.next().await.map(|event| (Ok(event), relay))
                })
                .boxed();
            Ok(Reply::events(first.chain(rest).boxed()))
        }
        _ => Err(Failure::BrokenOff(
            "no event before the end of the stream".to_owned(),
        )),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamState {
    Open,
    /// The engine said `[DONE]`.
    Done,
    /// The engine broke off; the client has been told.
    Failed,
}

/// An engine's stream on its way to a client. Dropped with the client's connection, it closes the
/// engine's, which aborts the request there, and frees the booking.
struct StreamRelay {
    answer: Answer,
    body: Incoming,
    splitter: Splitter,
    include_usage: bool,
    state: StreamState,
}

impl StreamRelay {
    /// The next bytes for the client: all whole events at hand.
    async fn next(&mut self) -> Option<Bytes> {
        while self.state != StreamState::Failed {
            match self.at_hand() {
                Ok(Some(events)) => return Some(events),
                Ok(None) => {}
                Err(reason) => return Some(self.fail(&reason)),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.splitter.push(&bytes);
                    }
                }
                Some(Err(error)) => return Some(self.fail(&error.to_string())),
                None if self.state == StreamState::Done => return None,
                None => return Some(self.fail("the stream ended before its end")),
            }
        }
        None
    }

    /// All whole events that have arrived, as one piece: what came together goes together.
    fn at_hand(&mut self) -> Result<Option<Bytes>, String> {
        let mut joined: Option<Vec<u8>> = None;
        let mut single: Option<Bytes> = None;
        while let Some(event) = self
            .splitter
            .next_event()
            .map_err(|error| error.to_string())?
        {
            if !self.passes(&event)? {
                continue;
            }
            match (&mut joined, single.take()) {
                (Some(joined), _) => joined.extend_from_slice(&event),
                (None, Some(first)) => joined = Some([first, event].concat()),
                (None, None) => single = Some(event),
            }
        }
        Ok(joined.map(Bytes::from).or(single))
    }

    /// Takes note of an event; false when the client did not ask for it.
    fn passes(&mut self, event: &[u8]) -> Result<bool, String> {
        match classify(event) {
            EventKind::Piece => self.answer.piece(),
            EventKind::Usage(usage) => {
                self.answer.usage(usage);
                return Ok(self.include_usage);
            }
            EventKind::Done => self.state = StreamState::Done,
            EventKind::Error => return Err("the engine reported an error".to_owned()),
            EventKind::Other => {}
        }
        Ok(true)
    }

    /// The terminal error event: after the first byte a stream is never cut silently.
    fn fail(&mut self, reason: &str) -> Bytes {
        self.state = StreamState::Failed;
        let worker = &self.answer.placement.worker;
        warn!(%worker, reason, "stream failed");
        let message = "the engine failed while it was answering; the answer is incomplete";
        let error = ApiError::new(502, ErrorKind::ServerError, "engine_failed", message);
        [b"data: ".as_slice(), &error.body(), b"\n\n"]
            .concat()
            .into()
    }
}
