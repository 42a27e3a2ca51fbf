//! An engine's stream on its way to a client: passed as it comes, counted, never cut silently.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tracing::warn;

use crate::dispatch::EngineAnswer;
use crate::dispatch::stream::{EventKind, Splitter, Usage, classify};
use crate::frontend::relay::Outgoing;
use crate::http::reply::Reply;
use crate::id::RequestId;
use crate::media::shm::Lent;
use crate::openai::error::{ApiError, ErrorKind};
use crate::router::{Answered, Placement};
use crate::telemetry::metrics::Metrics;

/// A stream whose worker was taken out may still be whole: a busy engine fails its probes and goes
/// on. One that then says nothing for so long is over.
const GONE_GRACE: Duration = Duration::from_secs(10);

/// An answer on its way: what it holds, and what is counted of it.
pub(crate) struct Answer {
    counts: Counts,
    engine: EngineAnswer,
}

/// What is counted of an answer, and the placement it holds until it ends.
pub(crate) struct Counts {
    request_id: RequestId,
    placement: Placement,
    /// See [`Outgoing::exact_tokens`].
    prompt_tokens: Option<u32>,
    /// Those before the first image.
    text_tokens: u32,
    wants_choices: bool,
    metrics: Arc<Metrics>,
    received: Instant,
    last_piece: Option<Instant>,
    /// What the engine may still read.
    _files: Vec<Lent>,
}

impl Answer {
    pub(crate) fn new(
        outgoing: &Outgoing,
        placement: Placement,
        metrics: Arc<Metrics>,
        engine: EngineAnswer,
    ) -> Self {
        let counts = Counts {
            request_id: outgoing.id.clone(),
            placement,
            prompt_tokens: outgoing.exact_tokens(),
            text_tokens: outgoing.footprint.text_tokens,
            wants_choices: outgoing.wants_choices,
            metrics,
            received: outgoing.received,
            last_piece: None,
            _files: Vec::new(),
        };
        Self { counts, engine }
    }

    /// The same, keeping what the engine reads until it ends.
    pub(crate) fn holding(mut self, files: Vec<Lent>) -> Self {
        self.counts._files = files;
        self
    }

    pub(crate) fn split(self) -> (Counts, EngineAnswer) {
        (self.counts, self.engine)
    }
}

impl Counts {
    /// Notes one piece of a stream; the first frees the prefill.
    fn piece(&mut self) {
        let now = Instant::now();
        match self.last_piece {
            None => {
                self.placement.booking.first_token();
                let waited = now - self.received;
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

    /// Holds what the engine says of the prompt against what was predicted.
    pub(crate) fn usage(&self, usage: Usage) {
        self.metrics
            .output_tokens
            .inc_by(u64::from(usage.completion_tokens));
        self.check_length(usage.prompt_tokens);
        let Some(cached_tokens) = usage.cached_tokens() else {
            return;
        };
        // Of several answers vLLM reports the last one's, which finds what the first has computed.
        if self.wants_choices {
            return;
        }
        let block_size = self.placement.block_size;
        let predicted_tokens = self.placement.overlap_blocks * block_size.tokens();
        self.metrics
            .overlap_predicted_tokens
            .inc_by(u64::from(predicted_tokens));
        self.metrics
            .overlap_cached_tokens
            .inc_by(u64::from(cached_tokens));
        self.metrics
            .overlap_difference
            .observe(f64::from(cached_tokens) - f64::from(predicted_tokens));
        let booking = &self.placement.booking;
        booking.found_cached(cached_tokens / block_size.tokens());
        // Of a prompt known in part the counts are not those of the blocks we named.
        if self.prompt_tokens.is_some() {
            booking.answered(Answered {
                block_size,
                text_tokens: self.text_tokens,
                cached_tokens,
            });
        }
    }

    /// A prompt of another length is another prompt: the overlap was another one's.
    fn check_length(&self, engine_tokens: u32) {
        // 0: the engine did not say.
        let is_other = |tokens: &u32| engine_tokens > 0 && *tokens != engine_tokens;
        let Some(prompt_tokens) = self.prompt_tokens.filter(is_other) else {
            return;
        };
        self.metrics.prompt_length_mismatch.inc();
        let (request_id, worker) = (&self.request_id, &self.placement.worker);
        warn!(%request_id, %worker, prompt_tokens, engine_tokens, "engine counts another prompt length");
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The engine said `[DONE]`.
    Done,
    /// It is over, for this reason; the client is still to be told.
    Failing(String),
    /// The client has been told.
    Failed,
}

/// An engine's stream on its way to a client. Dropped with the client's connection, it closes the
/// engine's, which aborts the request there, and frees the booking.
pub(crate) struct StreamRelay {
    counts: Counts,
    engine: EngineAnswer,
    splitter: Splitter,
    include_usage: bool,
    state: State,
}

impl StreamRelay {
    pub(crate) fn new(answer: Answer, outgoing: &Outgoing, event_bytes_max: usize) -> Self {
        Self {
            counts: answer.counts,
            engine: answer.engine,
            splitter: Splitter::new(event_bytes_max),
            include_usage: outgoing.include_usage,
            state: State::Open,
        }
    }

    /// Answers with the stream, once its first event is there: an engine that dies before it can
    /// still be replaced. The error says why it died.
    pub(crate) async fn into_reply(mut self) -> Result<Reply, String> {
        while !self.is_failing() {
            if let Some(first) = self.at_hand() {
                let first = stream::iter([Ok(first)]);
                let rest = stream::unfold(self, async |mut relay| {
                    relay
                        .next()
                        .await
                        .map(|event| (io::Result::Ok(event), relay))
                });
                return Ok(Reply::events(first.chain(rest).boxed()));
            }
            self.read().await;
        }
        match self.state {
            State::Failing(reason) => Err(reason),
            _ => Err("the stream was empty".to_owned()),
        }
    }

    fn is_failing(&self) -> bool {
        matches!(self.state, State::Failing(_))
    }

    /// The next bytes for the client: all whole events at hand.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(events) = self.at_hand() {
                return Some(events);
            }
            match std::mem::replace(&mut self.state, State::Failed) {
                State::Failing(reason) => return Some(self.terminal(&reason)),
                State::Failed => return None,
                state => self.state = state,
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// Takes in what comes next; false at the proper end of the stream.
    async fn read(&mut self) -> bool {
        let gone = self.counts.placement.gone.clone();
        let chunk = self.engine.chunk();
        let overdue = async {
            gone.cancelled().await;
            tokio::time::sleep(GONE_GRACE).await;
        };
        let came = tokio::select! {
            chunk = chunk => chunk,
            () = overdue => {
                self.state = State::Failing("the worker was taken out and is silent".to_owned());
                return true;
            }
        };
        match came {
            Some(Ok(bytes)) => self.splitter.push(&bytes),
            Some(Err(error)) => self.state = State::Failing(error.to_string()),
            None if self.state == State::Done => return false,
            None => self.state = State::Failing("the stream ended before its end".to_owned()),
        }
        true
    }

    /// All whole events that have arrived, as one piece: what came together goes together.
    fn at_hand(&mut self) -> Option<Bytes> {
        let mut joined: Option<Vec<u8>> = None;
        let mut single: Option<Bytes> = None;
        while matches!(self.state, State::Open | State::Done) {
            let event = match self.splitter.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    self.state = State::Failing(error.to_string());
                    break;
                }
            };
            if !self.passes(&event) {
                continue;
            }
            match (&mut joined, single.take()) {
                (Some(joined), _) => joined.extend_from_slice(&event),
                (None, Some(first)) => joined = Some([first, event].concat()),
                (None, None) => single = Some(event),
            }
        }
        joined.map(Bytes::from).or(single)
    }

    /// Takes note of an event; false when it is not for the client.
    fn passes(&mut self, event: &[u8]) -> bool {
        match classify(event) {
            EventKind::Piece => self.counts.piece(),
            EventKind::Usage(usage) => {
                self.counts.usage(usage);
                return self.include_usage;
            }
            EventKind::Done => self.state = State::Done,
            EventKind::Error => {
                // The engine's own words may tell of its inside: the client gets ours.
                self.state = State::Failing("the engine reported an error".to_owned());
                return false;
            }
            EventKind::Other => {}
        }
        true
    }

    /// The error event that ends a stream after its first byte, without `[DONE]`.
    fn terminal(&self, reason: &str) -> Bytes {
        let Counts {
            request_id,
            placement,
            metrics,
            ..
        } = &self.counts;
        metrics.stream_failures.inc();
        warn!(%request_id, worker = %placement.worker, reason, "stream failed");
        let message = "the engine failed while it was answering; the answer is incomplete";
        let error = ApiError::new(502, ErrorKind::ServerError, "engine_failed", message);
        [b"data: ".as_slice(), &error.body(), b"\n\n"]
            .concat()
            .into()
    }
}
