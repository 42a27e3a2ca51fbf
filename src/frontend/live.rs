//! A stream that has begun: it goes on until its proper end, on another worker where its engine dies
//! and the request allows it, and never ends silently.

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::frontend::Frontend;
use crate::frontend::answer::Answer;
use crate::frontend::continuation::{Continuable, Continued, go_on};
use crate::frontend::relay::Outgoing;
use crate::frontend::stream::{Step, StreamRelay};
use crate::frontend::transcript::Tokens;
use crate::frontend::tries::{Failure, Tries};
use crate::http::reply::Reply;
use crate::openai::error::{ApiError, ErrorKind};
use crate::telemetry::labels::{Continuation, ContinuationLabels};

/// A stream to a client, and what it takes to mend it. Dropped with the client's connection, it
/// closes the engine's, which aborts the request there, and frees the booking.
pub(crate) struct Live {
    relay: StreamRelay,
    frontend: Arc<Frontend>,
    tries: Tries,
    /// The request, where it can be continued and has not been.
    request: Option<Arc<(Outgoing, Continuable)>>,
}

impl Live {
    pub(crate) fn new(
        relay: StreamRelay,
        frontend: Arc<Frontend>,
        mut outgoing: Outgoing,
        mut tries: Tries,
    ) -> Self {
        let continuable = outgoing.continuable.take();
        if continuable.is_none() {
            // Not to hold every request's images as long as its stream.
            tries.release_body();
        }
        Self {
            relay,
            frontend,
            tries,
            request: continuable.map(|continuable| Arc::new((outgoing, continuable))),
        }
    }

    /// The answer to the client.
    pub(crate) fn into_reply(self) -> Reply {
        let events = stream::unfold(self, async |mut live| {
            let events = live.next().await?;
            Some((io::Result::Ok(events), live))
        });
        Reply::events(events.boxed())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let failure = match self.relay.step().await {
                Step::Events(events) => return Some(events),
                Step::Ended => return None,
                Step::Broken(failure) => failure,
            };
            let reason = failure.reason();
            let outcome = self.mend(failure).await;
            let labels = ContinuationLabels { outcome };
            let counter = &self.frontend.metrics.stream_continuations;
            counter.get_or_create(&labels).inc();
            match outcome {
                Continuation::Continued => {}
                Continuation::Ended => return Some(self.relay.end()),
                _ => return Some(self.terminal(&reason, outcome)),
            }
        }
    }

    /// Lets another worker go on.
    async fn mend(&mut self, failure: Failure) -> Continuation {
        let placement = &self.relay.counts.placement;
        let worker = placement.worker.clone();
        let request_id = self.tries.id.clone();
        let noted = self.frontend.take_note(&worker, failure, &mut self.tries);
        if self.relay.only_lacks_its_end() {
            return Continuation::Ended;
        }
        // One continuation a request: a second engine that fails is the request's own doing.
        let (Ok(()), Some(request)) = (noted, self.request.take()) else {
            return Continuation::NotAllowed;
        };
        let Some(text) = self.relay.text().map(str::to_owned) else {
            return Continuation::NotAllowed;
        };
        // Tokenising, or reading a large body, takes as long as others would feel.
        let made = spawn_blocking(move || go_on(&request.0, &request.1, &text)).await;
        let continued = match made.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(Ok(continued)) => continued,
            Ok(Err(outcome)) => return outcome,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => return Continuation::NotAllowed,
        };
        let Continued { outgoing, tokens } = continued;
        let Some(answer) = self.reopen(&outgoing).await else {
            return Continuation::NoWorker;
        };
        let to = answer.counts.placement.worker.clone();
        let Tokens { sent, .. } = tokens;
        warn!(%request_id, %worker, %to, sent_tokens = sent, "stream continued on another worker");
        // The engine that died has told nobody of these.
        self.frontend.metrics.output_tokens.inc_by(u64::from(sent));
        self.relay.follow(answer, tokens);
        Continuation::Continued
    }

    /// Places and sends the rest of the answer, until one takes it or a second engine fails.
    async fn reopen(&mut self, outgoing: &Outgoing) -> Option<Answer> {
        loop {
            // An engine that dies under many streams must not become a burst on the others.
            if !self.frontend.recovery.take_retry() {
                self.frontend.metrics.retries_refused.inc();
                return None;
            }
            let wish = self.tries.wish(&outgoing.wish);
            let footprint = &outgoing.footprint;
            let placement = match self.frontend.place_apart(footprint, &wish).await {
                Some(placement) => placement,
                None => self.frontend.place(footprint, &wish).await.ok()?,
            };
            let (worker, gone) = (placement.worker.clone(), placement.gone.clone());
            let number = self.tries.workers.len() + 1;
            let opened = self.frontend.open(outgoing, placement, number);
            let failure = match gone.run_until_cancelled(opened).await {
                Some(Ok(answer)) => {
                    self.frontend.router.succeeded(&worker);
                    return Some(answer);
                }
                Some(Err(failure)) => failure,
                None => Failure::Left("the worker was taken out".to_owned()),
            };
            let noted = self.frontend.take_note(&worker, failure, &mut self.tries);
            noted.ok()?;
        }
    }

    /// The error event that ends a stream after its first byte, without `[DONE]`.
    fn terminal(&self, reason: &str, continuation: Continuation) -> Bytes {
        self.frontend.metrics.stream_failures.inc();
        let (request_id, worker) = (&self.tries.id, &self.relay.counts.placement.worker);
        warn!(%request_id, %worker, reason, ?continuation, "stream failed");
        let message = "the engine failed while it was answering; the answer is incomplete";
        let error = ApiError::new(502, ErrorKind::ServerError, "engine_failed", message);
        [b"data: ".as_slice(), &error.body(), b"\n\n"]
            .concat()
            .into()
    }
}
