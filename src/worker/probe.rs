//! Asks an engine whether it is well and what it is, over plain HTTP on its own host.

use std::collections::BTreeSet;
use std::time::Duration;

use ::http::StatusCode;
use bytes::{Bytes, BytesMut};
use serde_json::Value;

use crate::block::BlockSize;
use crate::dispatch::{DispatchError, EngineClient, EngineRequest};
use crate::id::{DpRank, RequestId};

/// Longest wait for an answer. A busy engine answers `/health` late, not never.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// Longest wait for the answer to a question, which the engine computes: the first with an image
/// takes a real one seconds.
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);

/// Largest answer to a question that is taken: a million token ids, some times over.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// An engine clears its cache between two steps, and one may take seconds.
const RESET_DEADLINE: Duration = Duration::from_secs(10);

/// Why an engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("{path} answered {status}")]
    Status {
        path: &'static str,
        status: StatusCode,
    },
    #[error("the answer of {path} is over {bytes_max} bytes")]
    TooLarge {
        path: &'static str,
        bytes_max: usize,
    },
    #[error("{path} did not answer within {waited:?}")]
    TooLate {
        path: &'static str,
        waited: Duration,
    },
    #[error("the answer of {path} is not JSON")]
    Json {
        path: &'static str,
        source: serde_json::Error,
    },
}

impl ProbeError {
    /// Whether the engine's process is certainly not there.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Dispatch(DispatchError::Refused { .. }))
    }
}

/// Why an engine's cache was not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("engine has no /reset_prefix_cache; vLLM has it with VLLM_SERVER_DEV_MODE=1")]
    Missing,
    #[error("engine keeps its cache: requests that it works on hold blocks of it")]
    InUse,
    #[error("/reset_prefix_cache answered {status}")]
    Status { status: StatusCode },
    #[error("/reset_prefix_cache did not answer within {waited:?}")]
    Timeout { waited: Duration },
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    #[error("agent of {worker} is not there")]
    NoAgent { worker: String },
}

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// Empty where it does not say.
    pub version: String,
    pub block_size: Option<BlockSize>,
    pub capacity_blocks: Option<u64>,
    /// Names it serves its base model under.
    pub models: Vec<String>,
    /// Names of its LoRA adapters.
    pub adapters: Vec<String>,
    /// The longest prompt plus answer it takes; `None` where it does not say.
    pub context_tokens_max: Option<u32>,
    /// Most tokens it computes in one step; `None` where it does not say.
    pub max_batched_tokens: Option<u64>,
    /// Whether it keeps the blocks of earlier prompts.
    pub prefix_caching: Option<bool>,
    /// Number of its data-parallel ranks.
    pub ranks: Option<usize>,
    /// Number of ranks that publish KV events.
    pub event_sources: Option<usize>,
}

/// Asks one engine.
#[derive(Debug)]
pub struct Probe {
    address: String,
    client: EngineClient,
}

impl Probe {
    /// A probe of the engine at `address`, as `http://127.0.0.1:8100`.
    pub fn new(address: &str) -> Self {
        let address = address.trim_end_matches('/').to_owned();
        Self {
            address,
            client: EngineClient::new(),
        }
    }

    /// Whether the engine is well.
    ///
    /// # Errors
    /// When it does not answer 200 in time.
    pub async fn health(&self) -> Result<(), ProbeError> {
        self.get("/health").await.map(|_| ())
    }

    /// What the engine says of itself. Only `/v1/models` must answer: other engines lack the rest.
    ///
    /// # Errors
    /// When `/v1/models` does not answer with JSON in time.
    pub async fn facts(&self) -> Result<EngineFacts, ProbeError> {
        let path = "/v1/models";
        let models = self.get(path).await?;
        let models: Value =
            serde_json::from_slice(&models).map_err(|source| ProbeError::Json { path, source })?;
        let listed = Listed::of(&models);
        let version = self.get("/version").await.unwrap_or_default();
        let version = serde_json::from_slice::<Value>(&version).unwrap_or_default();
        let metrics = self.get("/metrics").await.unwrap_or_default();
        let config = CacheConfig::of(&String::from_utf8_lossy(&metrics));
        let sources = self.get("/kv_event_sources").await.unwrap_or_default();
        let sources = serde_json::from_slice::<Value>(&sources).unwrap_or_default();
        Ok(EngineFacts {
            version: version["version"].as_str().unwrap_or_default().to_owned(),
            block_size: config.block_size,
            capacity_blocks: config.capacity_blocks,
            models: listed.bases,
            adapters: listed.adapters,
            context_tokens_max: listed.context_tokens_max,
            max_batched_tokens: config.max_batched_tokens,
            prefix_caching: config.prefix_caching,
            ranks: config.ranks,
            event_sources: sources.as_object().map(serde_json::Map::len),
        })
    }

    /// The engine's metrics, in Prometheus' text form.
    ///
    /// # Errors
    /// When it does not answer 200 in time.
    pub async fn metrics(&self) -> Result<String, ProbeError> {
        let page = self.get("/metrics").await?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }

    /// Asks a question; the answer's status and body.
    ///
    /// # Errors
    /// When the engine does not answer in time, breaks off, or says too much.
    pub async fn post(
        &self,
        path: &'static str,
        question: &Value,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        self.post_to(None, path, question).await
    }

    /// The same of one data-parallel rank.
    ///
    /// # Errors
    /// As [`Probe::post`].
    pub async fn post_to(
        &self,
        rank: Option<DpRank>,
        path: &'static str,
        question: &Value,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let waited = QUESTION_DEADLINE;
        let answer = tokio::time::timeout(waited, self.answer(rank, path, question)).await;
        answer.unwrap_or(Err(ProbeError::TooLate { path, waited }))
    }

    async fn answer(
        &self,
        rank: Option<DpRank>,
        path: &'static str,
        question: &Value,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let request = EngineRequest {
            path,
            id: &RequestId::from_bits(uuid::Uuid::new_v4().as_u128()),
            rank,
            body: question.to_string().into(),
        };
        let mut answer = self.client.send(&self.address, request).await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await {
            body.extend_from_slice(&chunk?);
            if body.len() > ANSWER_BYTES_MAX {
                let bytes_max = ANSWER_BYTES_MAX;
                return Err(ProbeError::TooLarge { path, bytes_max });
            }
        }
        Ok((answer.status, body.freeze()))
    }

    /// Asks the engine to forget the blocks of all its ranks.
    ///
    /// # Errors
    /// When it has no such path, refuses, or does not answer in time.
    pub async fn reset_prefix_cache(&self) -> Result<(), ResetError> {
        let request = EngineRequest {
            path: "/reset_prefix_cache",
            id: &RequestId::from_bits(uuid::Uuid::new_v4().as_u128()),
            rank: None,
            body: Bytes::new(),
        };
        let answer = async {
            let answer = self.client.send(&self.address, request).await?;
            Ok::<_, DispatchError>((answer.status, answer.whole().await?))
        };
        let answer = tokio::time::timeout(RESET_DEADLINE, answer).await;
        let (status, body) = answer.map_err(|_| ResetError::Timeout {
            waited: RESET_DEADLINE,
        })??;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match status {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Err(ResetError::Missing),
            status if !status.is_success() => Err(ResetError::Status { status }),
            _ if body["success"] == false => Err(ResetError::InUse),
            _ => Ok(()),
        }
    }

    async fn get(&self, path: &'static str) -> Result<Bytes, ProbeError> {
        match self
            .client
            .get(&self.address, path, ANSWER_DEADLINE)
            .await?
        {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(ProbeError::Status { path, status }),
        }
    }
}

/// What `/v1/models` says.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    bases: Vec<String>,
    /// The models that have a parent.
    adapters: Vec<String>,
    context_tokens_max: Option<u32>,
}

impl Listed {
    fn of(models: &Value) -> Self {
        let listed = models["data"].as_array().into_iter().flatten();
        let (adapters, bases): (Vec<_>, Vec<_>) =
            listed.partition(|model| model["parent"].is_string());
        let ids = |models: &[&Value]| {
            let ids = models.iter().filter_map(|model| model["id"].as_str());
            ids.map(str::to_owned).collect()
        };
        // vLLM gives it per model, but it is the engine's.
        let lengths = bases
            .iter()
            .filter_map(|base| base["max_model_len"].as_u64());
        let shortest = lengths.min().and_then(|tokens| u32::try_from(tokens).ok());
        Self {
            bases: ids(&bases),
            adapters: ids(&adapters),
            context_tokens_max: shortest,
        }
    }
}

/// What `vllm:cache_config_info` says in its labels, of which there is one line per rank.
#[derive(Debug, Default, PartialEq, Eq)]
struct CacheConfig {
    block_size: Option<BlockSize>,
    capacity_blocks: Option<u64>,
    max_batched_tokens: Option<u64>,
    prefix_caching: Option<bool>,
    ranks: Option<usize>,
}

impl CacheConfig {
    fn of(metrics: &str) -> Self {
        let is_config = |line: &&str| line.starts_with("vllm:cache_config_info{");
        let lines: Vec<_> = metrics.lines().filter(is_config).collect();
        let first = |name: &str| lines.first().and_then(|line| label(line, name));
        let number = |name: &str| first(name)?.parse::<u64>().ok();
        let ranks: BTreeSet<_> = lines.iter().map(|line| label(line, "engine")).collect();
        Self {
            block_size: number("block_size")
                .and_then(|size| BlockSize::new(u32::try_from(size).ok()?)),
            capacity_blocks: number("num_gpu_blocks"),
            max_batched_tokens: number("max_num_batched_tokens"),
            prefix_caching: first("enable_prefix_caching").map(|value| value == "True"),
            ranks: (!ranks.is_empty()).then_some(ranks.len()),
        }
    }
}

/// The value of a label in a metric's line.
fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line
        .split_once(&format!("{{{name}=\""))
        .or_else(|| line.split_once(&format!(",{name}=\"")))?;
    rest.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cache_is_like_comes_from_the_metrics() {
        let block_size = BlockSize::new(16);
        let nothing = CacheConfig::default();
        for (metrics, wanted) in [
            (
                "# HELP x\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"20\"} 1.0\n",
                CacheConfig {
                    block_size,
                    capacity_blocks: Some(20),
                    ranks: Some(1),
                    ..nothing
                },
            ),
            (
                "vllm:cache_config_info{enable_prefix_caching=\"False\",num_gpu_blocks=\"None\",block_size=\"16\"} 1.0",
                CacheConfig {
                    block_size,
                    prefix_caching: Some(false),
                    ranks: Some(1),
                    ..nothing
                },
            ),
            (
                "vllm:cache_config_info{user_block_size=\"32\",block_size=\"0\",engine=\"0\"} 1.0\n\
                 vllm:cache_config_info{engine=\"1\",max_num_batched_tokens=\"8192\"} 1.0",
                CacheConfig {
                    ranks: Some(2),
                    ..nothing
                },
            ),
            (
                "vllm:cache_config_info{a=\"b\",max_num_batched_tokens=\"8192\",enable_prefix_caching=\"True\"} 1.0",
                CacheConfig {
                    max_batched_tokens: Some(8192),
                    prefix_caching: Some(true),
                    ranks: Some(1),
                    ..nothing
                },
            ),
            ("vllm:num_requests_running 0", nothing),
        ] {
            assert_eq!(CacheConfig::of(metrics), wanted, "{metrics}");
        }
    }

    #[test]
    fn adapters_are_the_models_with_a_parent() {
        let models = serde_json::json!({"data": [
            {"id": "base", "parent": null, "max_model_len": 4096},
            {"id": "alias", "root": "base"},
            {"id": "tinylora", "parent": "base", "max_model_len": null},
        ]});
        let listed = Listed::of(&models);
        assert_eq!(listed.bases, ["base", "alias"]);
        assert_eq!(listed.adapters, ["tinylora"]);
        assert_eq!(listed.context_tokens_max, Some(4096));
    }

    #[test]
    fn a_length_that_is_none_is_left_out() {
        for length in [
            serde_json::json!(null),
            serde_json::json!("4096"),
            serde_json::json!(-1),
            serde_json::json!(1_u64 << 32),
        ] {
            let models = serde_json::json!({"data": [{"id": "base", "max_model_len": length}]});
            assert_eq!(Listed::of(&models).context_tokens_max, None, "{length}");
        }
    }
}
