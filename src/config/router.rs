//! `[router]`: how a worker is chosen.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::circuit::CircuitConfig;
use crate::index::room::BYTES_MAX;
use crate::select::queue::{QueueLimits, QueuePolicy};
use crate::select::{Policy, RouterMode};

/// How long a block is assumed to stay in the cache of an engine that does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApproximatePolicy {
    /// For `router.ttl_secs` after it was last sent, as far as the engine has room.
    #[default]
    Ttl,
    /// Until as many others were sent as the engine has room for.
    Lru,
}

/// How a worker is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// How a worker is chosen.
    pub mode: RouterMode,
    /// Address and port of the admin listener of a router in a process of its own.
    pub admin: SocketAddr,
    /// How much what must be computed counts against load; 0 ignores the caches.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub overlap_score_weight: f64,
    /// Randomness of the choice: 0 takes the cheapest worker, more spreads requests.
    #[schemars(range(min = 0))]
    pub temperature: f64,
    /// Where the chances of ties, random and temperature begin.
    pub seed: u64,
    /// Whether prefill that is queued at a worker counts against it.
    pub track_prefill_tokens: bool,
    /// The share of an image's work that is spared where a worker encoded the image lately.
    #[schemars(range(min = 0, max = 1))]
    pub media_affinity_weight: f64,
    /// The share of a block's work that is spared where it is loaded from the host's memory.
    #[schemars(range(min = 0, max = 1))]
    pub host_cache_hit_weight: f64,
    /// The share of a block's work that is spared where it is loaded from a disk.
    #[schemars(range(min = 0, max = 1))]
    pub disk_cache_hit_weight: f64,
    /// How much of the images sent last a worker is taken to keep encoded, in tokens.
    pub media_affinity_tokens: u64,
    /// What a degraded worker's cost is multiplied by.
    #[schemars(range(min = 1))]
    pub degraded_weight: f64,
    /// Labels of workers that are preferred, each as `label=weight`; a weight below 0 avoids them.
    pub preferred_labels: Vec<String>,
    /// How many times as much a GPU is given to do as a CPU, in device-aware-weighted mode.
    #[schemars(range(min = 0.001))]
    pub gpu_to_cpu_ratio: f64,
    /// Whether engines' KV events say what they hold; otherwise it is assumed from what they were
    /// sent.
    pub use_kv_events: bool,
    /// How long a block is assumed to stay where an engine does not tell.
    pub approximate_policy: ApproximatePolicy,
    /// Time for which a block that was sent is assumed to stay, in seconds.
    #[schemars(range(min = 0.1))]
    pub ttl_secs: f64,
    /// Whether clients may choose worker, rank and mode by the headers x-kvlens-worker, x-kvlens-rank
    /// and x-kvlens-router-mode; requests with such a header are refused otherwise.
    pub allow_overrides: bool,
    /// When a worker that fails gets no requests for a while.
    pub circuit: CircuitConfig,
    /// The memory that the index of blocks may take, in bytes; 1 GiB knows some 30 million blocks.
    /// Beyond it the blocks of the workers that were silent longest are forgotten first.
    #[schemars(range(min = 16_777_216))]
    pub index_bytes_max: u64,
    /// A data-parallel rank is busy when it has more prompt tokens to compute than this many of its
    /// engine's batches; requests wait while all they may go to are busy. 0 lets nobody wait.
    #[schemars(range(min = 0))]
    pub queue_threshold: f64,
    /// Tokens of a batch of engines that do not say it, as vLLM does not.
    #[schemars(range(min = 1))]
    pub queue_batch_tokens: u64,
    /// In which order the requests of one tenant go, those that wait and those that come at one
    /// instant; tenants take turns, and without `frontend.key_file` all requests are one tenant's.
    pub queue_policy: QueuePolicy,
    /// Most requests that wait at once; one more is answered 429, and so is one of a tenant of which
    /// as many wait as are left free.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub queue_requests_max: usize,
    /// Most prompt tokens of all requests that wait; one that would pass it is answered 429, and so is
    /// one of a tenant of which as many wait as are left free.
    #[schemars(range(min = 1))]
    pub queue_tokens_max: u64,
    /// Longest time that a request waits, in seconds; then it is answered 504.
    #[schemars(range(min = 1, max = 86_400))]
    pub queue_wait_secs: u64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            mode: policy.mode,
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 8300)),
            overlap_score_weight: policy.overlap_weight,
            temperature: policy.temperature,
            seed: policy.seed,
            track_prefill_tokens: policy.tracks_prefill,
            media_affinity_weight: policy.media_credit,
            host_cache_hit_weight: policy.host_credit,
            disk_cache_hit_weight: policy.disk_credit,
            // vLLM keeps the encoder's output of as many tokens as its largest image has.
            media_affinity_tokens: 16_384,
            degraded_weight: policy.degraded_weight,
            preferred_labels: Vec::new(),
            gpu_to_cpu_ratio: policy.gpu_to_cpu_ratio,
            use_kv_events: true,
            approximate_policy: ApproximatePolicy::default(),
            ttl_secs: 120.0,
            allow_overrides: false,
            circuit: CircuitConfig::default(),
            index_bytes_max: BYTES_MAX,
            // Deep enough that an engine never runs dry between two steps, and no deeper: what waits
            // here can still go elsewhere, what waits in an engine cannot.
            queue_threshold: 4.0,
            // What vLLM gives itself on large GPUs.
            queue_batch_tokens: 8_192,
            queue_policy: QueuePolicy::default(),
            queue_requests_max: 4_096,
            queue_tokens_max: 16_000_000,
            // Proxies and load balancers mostly give up on a silent answer after 60 s; this leaves
            // ten for the prefill.
            queue_wait_secs: 50,
        }
    }
}

impl RouterConfig {
    /// What the choice depends on beside the candidates.
    pub fn policy(&self) -> Policy {
        Policy {
            mode: self.mode,
            overlap_weight: self.overlap_score_weight,
            temperature: self.temperature,
            tracks_prefill: self.track_prefill_tokens,
            media_credit: self.media_affinity_weight,
            host_credit: self.host_cache_hit_weight,
            disk_credit: self.disk_cache_hit_weight,
            degraded_weight: self.degraded_weight,
            gpu_to_cpu_ratio: self.gpu_to_cpu_ratio,
            seed: self.seed,
        }
    }

    /// Time for which a block that was sent is assumed to stay; `None` where only room counts.
    pub fn assumed_for(&self) -> Option<Duration> {
        match self.approximate_policy {
            ApproximatePolicy::Ttl => Duration::try_from_secs_f64(self.ttl_secs).ok(),
            ApproximatePolicy::Lru => None,
        }
    }

    /// The preferred labels and their weights, without those that are none.
    pub fn preferences(&self) -> Vec<(String, f64)> {
        let parsed = self.preferred_labels.iter().map(|text| preference(text));
        parsed.flatten().collect()
    }

    /// The first of the preferred labels that is none.
    pub(crate) fn bad_preference(&self) -> Option<&str> {
        let mut texts = self.preferred_labels.iter();
        texts
            .find(|text| preference(text).is_none())
            .map(String::as_str)
    }

    /// How much may wait, and how long.
    pub fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            requests_max: self.queue_requests_max,
            tokens_max: self.queue_tokens_max,
            wait_max: Duration::from_secs(self.queue_wait_secs),
        }
    }
}

fn preference(text: &str) -> Option<(String, f64)> {
    let (label, weight) = text.split_once('=')?;
    let weight: f64 = weight.trim().parse().ok()?;
    let label = label.trim();
    (!label.is_empty() && weight.is_finite()).then(|| (label.to_owned(), weight))
}
