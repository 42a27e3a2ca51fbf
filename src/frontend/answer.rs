//! An engine's answer on its way to a client: what it holds until it ends, and what is counted of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::dispatch::EngineAnswer;
use crate::dispatch::stream::Usage;
use crate::frontend::relay::Outgoing;
use crate::frontend::transfer::Lent;
use crate::id::RequestId;
use crate::openai::nvext::Nvext;
use crate::router::{Answered, Placement};
use crate::telemetry::metrics::Metrics;

/// How many pieces come between two notes to the router: often enough for its blocks of 16 to 128
/// tokens, and no cost beside the pieces themselves.
const PIECES_TOLD: u32 = 64;

/// An answer on its way: what it holds, and what is counted of it.
pub(crate) struct Answer {
    pub(crate) counts: Counts,
    pub(crate) engine: EngineAnswer,
}

/// What is counted of an answer, and the placement it holds until it ends.
pub(crate) struct Counts {
    pub(crate) request_id: RequestId,
    pub(crate) placement: Placement,
    /// See [`Outgoing::exact_tokens`].
    prompt_tokens: Option<u32>,
    /// Those before the first image.
    text_tokens: u32,
    wants_choices: bool,
    pub(crate) metrics: Arc<Metrics>,
    nvext: Nvext,
    received: Instant,
    is_prefilled: bool,
    first_piece: Option<Instant>,
    last_piece: Option<Instant>,
    /// Pieces that have come; each has a token at least.
    pieces: u32,
    usage: Option<Usage>,
    /// What the engine may still read.
    _named: Vec<Lent>,
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
            nvext: outgoing.nvext,
            received: outgoing.received,
            is_prefilled: false,
            first_piece: None,
            last_piece: None,
            pieces: 0,
            usage: None,
            _named: Vec::new(),
        };
        Self { counts, engine }
    }

    /// The same, keeping what the engine reads until it ends.
    pub(crate) fn holding(mut self, named: Vec<Lent>) -> Self {
        self.counts._named = named;
        self
    }
}

impl Counts {
    /// Notes one piece of a stream; the first frees the prefill.
    pub(crate) fn piece(&mut self) {
        let now = Instant::now();
        if !self.is_prefilled {
            self.is_prefilled = true;
            self.placement.booking.first_token();
        }
        match self.last_piece {
            None => {
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
        self.first_piece.get_or_insert(now);
        self.last_piece = Some(now);
        self.pieces = self.pieces.saturating_add(1);
        if self.pieces.is_multiple_of(PIECES_TOLD) {
            self.placement.booking.progress(self.pieces);
        }
    }

    /// Holds what the engine says of the prompt against what was predicted.
    pub(crate) fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
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
        // An engine counts what it loads from slower tiers too.
        let predicted_blocks = self.placement.overlap_blocks + self.placement.lower_blocks;
        let predicted_tokens = predicted_blocks * block_size.tokens();
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

    /// Takes over from a former engine of the same answer what the client has seen already.
    pub(crate) fn follow(&mut self, former: &Self) {
        self.first_piece = former.first_piece;
        self.last_piece = former.last_piece;
    }

    /// Whether the client has asked for an `nvext`.
    pub(crate) fn wants_nvext(&self) -> bool {
        self.nvext.wants_answer()
    }

    /// The `nvext` that the client has asked for; `None` where it has not. Only what is known: an
    /// engine's own queue is not seen from here, nor is the first token of an answer in one piece.
    pub(crate) fn nvext(&self) -> Option<Value> {
        if !self.wants_nvext() {
            return None;
        }
        let mut nvext = Map::new();
        if self.nvext.wants_worker {
            let (worker, rank) = (self.placement.worker.as_str(), self.placement.rank.0);
            let ids = json!({
                "prefill_worker_id": worker,
                "prefill_dp_rank": rank,
                "decode_worker_id": worker,
                "decode_dp_rank": rank,
            });
            nvext.insert("worker_id".to_owned(), ids);
        }
        if self.nvext.wants_timing {
            nvext.insert("timing".to_owned(), self.timing());
        }
        Some(Value::Object(nvext))
    }

    fn timing(&self) -> Value {
        let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
        let passed = self.received.elapsed();
        let received = Timestamp::now().as_millisecond() - passed.as_millis() as i64;
        let mut timing = json!({
            "request_received_ms": received,
            "total_time_ms": millis(passed),
        });
        if let Some(first) = self.first_piece {
            timing["ttft_ms"] = json!(millis(first - self.received));
        }
        let cached = self.usage.and_then(|usage| usage.cached_tokens());
        let prompt_tokens = self.usage.map_or(0, |usage| usage.prompt_tokens);
        if let Some(cached) = cached.filter(|_| prompt_tokens > 0) {
            timing["kv_hit_rate"] = json!(f64::from(cached) / f64::from(prompt_tokens));
        }
        timing
    }
}

/// The same JSON object, or event that holds one, with `nvext` as its last field.
pub(crate) fn with_nvext(whole: &[u8], nvext: &Value) -> Bytes {
    let object = whole.trim_ascii_end();
    match object.strip_suffix(b"}") {
        Some(front) => {
            let field = format!(",\"nvext\":{nvext}}}");
            [front, field.as_bytes(), &whole[object.len()..]]
                .concat()
                .into()
        }
        None => Bytes::copy_from_slice(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvext_is_the_last_field() {
        for (whole, expected) in [
            (r#"{"id":1}"#, r#"{"id":1,"nvext":{"a":2}}"#),
            (
                "data: {\"choices\":[{}]}\r\n\r\n",
                "data: {\"choices\":[{}],\"nvext\":{\"a\":2}}\r\n\r\n",
            ),
            ("data: [DONE]\n\n", "data: [DONE]\n\n"),
        ] {
            assert_eq!(with_nvext(whole.as_bytes(), &json!({"a": 2})), expected);
        }
    }
}
