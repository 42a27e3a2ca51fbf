//! What all requests share: the model, the ranks, the names it serves, and its bounds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ::http::HeaderMap;
use serde_json::{Map, Value};

use crate::mock::answer::{Wishes, Writer};
use crate::mock::hash::Lora;
use crate::mock::images::Images;
use crate::mock::prompt::Fault;
use crate::mock::rank::Rank;
use crate::mock::refusal::Refusal;
use crate::mock::scheduler::{Bounds, SequenceId};
use crate::model::Model;

/// One running mock engine.
#[derive(Debug)]
pub struct Server {
    pub model: Model,
    pub writer: Writer,
    pub images: Images,
    /// Hosts from which images are fetched.
    pub media_domains: Vec<String>,
    /// Names of the base model; the first one is answered.
    pub names: Vec<String>,
    pub loras: Vec<Arc<Lora>>,
    pub ranks: Vec<Arc<Rank>>,
    pub bounds: Bounds,
    pub context_tokens_max: usize,
    pub fault: Option<Fault>,
    deadly_text: Option<String>,
    /// Answer of `/kv_event_sources`.
    pub sources: Value,
    /// Unix seconds at which it started.
    pub started: u64,
    next_rank: AtomicUsize,
    next_sequence: AtomicU64,
}

/// The parts of a [`Server`] that its options decide.
#[derive(Debug)]
pub struct Setting {
    pub names: Vec<String>,
    pub loras: Vec<Arc<Lora>>,
    pub bounds: Bounds,
    pub context_tokens_max: usize,
    pub fault: Option<Fault>,
    /// See [`Server::dies_of`].
    pub deadly_text: Option<String>,
    /// Images may be read from files below it.
    pub media_dir: Option<PathBuf>,
    /// Hosts from which images are fetched.
    pub media_domains: Vec<String>,
}

/// What all choices of one request agreed on.
#[derive(Clone, Debug)]
pub struct Terms {
    /// As the answer names it.
    pub model: String,
    pub lora: Option<Arc<Lora>>,
    pub salt: Option<Arc<str>>,
    pub session: Option<Arc<str>>,
    pub report_reused: bool,
    pub skip_cache: bool,
    pub wishes: Wishes,
    pub choices: usize,
    pub rank: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
}

/// Most choices of one request, as in vLLM's own frontends.
const CHOICES_MAX: u64 = 128;

impl Server {
    pub fn new(model: Model, setting: Setting, ranks: Vec<Arc<Rank>>, sources: Value) -> Self {
        Self {
            writer: Writer::new(&model),
            images: Images::new(
                setting.names.first().map_or("", String::as_str),
                setting.media_dir,
            ),
            media_domains: setting.media_domains,
            model,
            names: setting.names,
            loras: setting.loras,
            ranks,
            bounds: setting.bounds,
            context_tokens_max: setting.context_tokens_max,
            fault: setting.fault,
            deadly_text: setting.deadly_text,
            sources,
            started: unix_seconds(),
            next_rank: AtomicUsize::new(0),
            next_sequence: AtomicU64::new(0),
        }
    }

    /// A name no other request has.
    pub fn next_sequence(&self) -> SequenceId {
        SequenceId(self.next_sequence.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a chat holds the text of which this engine dies.
    pub fn dies_of(&self, body: &Map<String, Value>) -> bool {
        let messages = || body.get("messages").map(Value::to_string);
        let holds = |text: &String| messages().is_some_and(|messages| messages.contains(text));
        self.deadly_text.as_ref().is_some_and(holds)
    }

    /// Reads what is not the prompt.
    ///
    /// # Errors
    /// When a value is out of range or the model unknown.
    pub fn terms(&self, headers: &HeaderMap, body: &Map<String, Value>) -> Result<Terms, Refusal> {
        let (model, lora) = self.resolve(body.get("model"))?;
        let salt = match body.get("cache_salt") {
            None | Some(Value::Null) => None,
            Some(Value::String(salt)) if !salt.is_empty() => Some(Arc::from(salt.as_str())),
            Some(_) => return Err(Refusal::invalid("cache_salt must be a non-empty string")),
        };
        let session = headers
            .get("x-session-id")
            .and_then(|value| value.to_str().ok());
        let session = session.or_else(|| body.get("session_id").and_then(Value::as_str));
        let flag = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
        let stream_options = body.get("stream_options");
        let xargs = body.get("vllm_xargs");
        let report = xargs.and_then(|xargs| xargs.get("kv_cache_report_mode"));
        let choices = body.get("n").and_then(Value::as_u64).unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&choices) {
            return Err(Refusal::invalid(format!(
                "n must be at least 1, got {choices}."
            )));
        }
        Ok(Terms {
            model,
            lora,
            salt,
            session: session.map(Arc::from),
            report_reused: report.is_some_and(|mode| mode == "full"),
            skip_cache: body
                .get("prompt_logprobs")
                .is_some_and(|value| !value.is_null()),
            wishes: wishes(body)?,
            choices: choices as usize,
            rank: self.rank(headers)?,
            stream: flag(body.get("stream")),
            include_usage: flag(stream_options.and_then(|options| options.get("include_usage"))),
            return_token_ids: flag(body.get("return_token_ids")),
        })
    }

    /// Refuses a prompt that leaves no room for an answer, or for the answer asked for.
    ///
    /// # Errors
    /// When it is too long.
    pub fn check_length(&self, tokens: usize, wishes: &Wishes) -> Result<(), Refusal> {
        let max = self.context_tokens_max;
        if tokens == 0 {
            return Err(Refusal::invalid("The prompt is empty."));
        }
        if tokens >= max || tokens + wishes.tokens_max.unwrap_or(0) > max {
            return Err(Refusal::TooLong { tokens, max });
        }
        Ok(())
    }

    fn resolve(&self, name: Option<&Value>) -> Result<(String, Option<Arc<Lora>>), Refusal> {
        let base = || self.names.first().cloned().unwrap_or_default();
        let Some(name) = name.and_then(Value::as_str) else {
            return Ok((base(), None));
        };
        if self.names.iter().any(|served| served == name) {
            return Ok((name.to_owned(), None));
        }
        match self.loras.iter().find(|lora| lora.name == name) {
            Some(lora) => Ok((name.to_owned(), Some(Arc::clone(lora)))),
            None => Err(Refusal::UnknownModel(name.to_owned())),
        }
    }

    fn rank(&self, headers: &HeaderMap) -> Result<usize, Refusal> {
        let count = self.ranks.len();
        let Some(pinned) = headers.get("x-data-parallel-rank") else {
            return Ok(self.next_rank.fetch_add(1, Ordering::Relaxed) % count);
        };
        let rank = pinned.to_str().ok().and_then(|text| text.parse().ok());
        rank.filter(|rank| *rank < count).ok_or_else(|| {
            let last = count - 1;
            Refusal::invalid(format!(
                "data_parallel_rank {pinned:?} is out of range [0, {last}]"
            ))
        })
    }
}

fn wishes(body: &Map<String, Value>) -> Result<Wishes, Refusal> {
    let limit = ["max_completion_tokens", "max_tokens"]
        .iter()
        .find_map(|key| body.get(*key).filter(|value| !value.is_null()));
    let tokens_max = match limit.map(|limit| (limit, limit.as_u64())) {
        None => None,
        Some((_, Some(limit))) if limit > 0 => usize::try_from(limit).ok(),
        Some((limit, _)) => {
            let message = format!("max_tokens must be at least 1, got {limit}.");
            return Err(Refusal::Invalid(message));
        }
    };
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let stop = match body.get("stop") {
        Some(Value::Array(stops)) => stops.iter().filter_map(text).collect(),
        Some(stop) => text(stop).into_iter().collect(),
        None => Vec::new(),
    };
    Ok(Wishes {
        tokens_max,
        context_tokens_left: usize::MAX,
        stop,
        ignore_eos: body
            .get("ignore_eos")
            .and_then(Value::as_bool)
            .unwrap_or(false),
    })
}

/// The present time as answers carry it.
pub fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
