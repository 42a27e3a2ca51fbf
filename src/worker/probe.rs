//! Asks an engine whether it is well and what it is, over plain HTTP on its own host.

use std::time::Duration;

use ::http::Uri;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use crate::block::BlockSize;

/// Longest wait for an answer. A busy engine answers `/health` late, not never.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// Largest answer; vLLM's `/metrics` takes some 100 KiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why an engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("nobody listens at {url}")]
    Refused { url: String },
    #[error("{url} did not answer within {waited:?}")]
    Deadline { url: String, waited: Duration },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} is no URL or its answer is unusable")]
    Unusable { url: String },
}

impl ProbeError {
    /// Whether the engine's process is certainly not there.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
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
}

/// Asks one engine.
#[derive(Debug)]
pub struct Probe {
    address: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Probe {
    /// A probe of the engine at `address`, as `http://127.0.0.1:8100`.
    pub fn new(address: &str) -> Self {
        Self {
            address: address.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
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
        let models = self.get("/v1/models").await?;
        let unusable = || ProbeError::Unusable {
            url: format!("{}/v1/models", self.address),
        };
        let models: Value = serde_json::from_slice(&models).map_err(|_| unusable())?;
        let (models, adapters) = names(&models);
        let version = self.get("/version").await.unwrap_or_default();
        let version = serde_json::from_slice::<Value>(&version).unwrap_or_default();
        let metrics = self.get("/metrics").await.unwrap_or_default();
        let (block_size, capacity_blocks) = cache_config(&String::from_utf8_lossy(&metrics));
        Ok(EngineFacts {
            version: version["version"].as_str().unwrap_or_default().to_owned(),
            block_size,
            capacity_blocks,
            models,
            adapters,
        })
    }

    async fn get(&self, path: &str) -> Result<Bytes, ProbeError> {
        let url = format!("{}{path}", self.address);
        match timeout(ANSWER_DEADLINE, self.fetch(&url)).await {
            Ok(answer) => answer,
            Err(_) => Err(ProbeError::Deadline {
                url,
                waited: ANSWER_DEADLINE,
            }),
        }
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, ProbeError> {
        let unusable = || ProbeError::Unusable {
            url: url.to_owned(),
        };
        let uri = url.parse::<Uri>().map_err(|_| unusable())?;
        let answer = self.client.get(uri).await.map_err(|error| {
            let url = url.to_owned();
            if error.is_connect() {
                ProbeError::Refused { url }
            } else {
                ProbeError::Unusable { url }
            }
        })?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|_| unusable())?;
        if status != 200 {
            return Err(ProbeError::Status {
                url: url.to_owned(),
                status,
            });
        }
        Ok(body.to_bytes())
    }
}

/// Base names and adapters of `/v1/models`: an adapter has a parent.
fn names(models: &Value) -> (Vec<String>, Vec<String>) {
    let listed = models["data"].as_array().into_iter().flatten();
    let (adapters, bases): (Vec<_>, Vec<_>) = listed.partition(|model| model["parent"].is_string());
    let ids = |models: Vec<&Value>| {
        let ids = models.into_iter().filter_map(|model| model["id"].as_str());
        ids.map(str::to_owned).collect()
    };
    (ids(bases), ids(adapters))
}

/// Block size and number of blocks in the labels of `vllm:cache_config_info`.
fn cache_config(metrics: &str) -> (Option<BlockSize>, Option<u64>) {
    let line = metrics
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"));
    let label = |name: &str| {
        let (_, rest) = line?
            .split_once(&format!("{{{name}=\""))
            .or_else(|| line?.split_once(&format!(",{name}=\"")))?;
        rest.split('"').next()?.parse::<u64>().ok()
    };
    let size = label("block_size").and_then(|size| BlockSize::new(u32::try_from(size).ok()?));
    (size, label("num_gpu_blocks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_size_and_capacity_come_from_the_metrics() {
        let size = BlockSize::new(16);
        for (metrics, wanted) in [
            (
                "# HELP x\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"20\"} 1.0\n",
                (size, Some(20)),
            ),
            (
                "vllm:cache_config_info{a=\"b\",num_gpu_blocks=\"None\",block_size=\"16\"} 1.0",
                (size, None),
            ),
            (
                "vllm:cache_config_info{user_block_size=\"32\",block_size=\"0\"} 1.0",
                (None, None),
            ),
            ("vllm:num_requests_running 0", (None, None)),
        ] {
            assert_eq!(cache_config(metrics), wanted, "{metrics}");
        }
    }

    #[test]
    fn adapters_are_the_models_with_a_parent() {
        let models = serde_json::json!({"data": [
            {"id": "base", "parent": null},
            {"id": "alias", "root": "base"},
            {"id": "tinylora", "parent": "base"},
        ]});
        let (bases, adapters) = names(&models);
        assert_eq!(bases, ["base", "alias"]);
        assert_eq!(adapters, ["tinylora"]);
    }
}
