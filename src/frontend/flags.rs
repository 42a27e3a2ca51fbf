//! The flags that every role with a frontend has.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ValueHint;

use crate::config::Values;
use crate::select::RouterMode;
use crate::select::queue::QueuePolicy;

/// Where the public listener is, and how a worker is chosen.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeFlags {
    /// Address that the public listener binds
    #[arg(long)]
    host: Option<IpAddr>,
    /// Port of the public listener; the admin listener takes the next one
    #[arg(long)]
    port: Option<u16>,
    /// File of the keys that requests must show; a key's name is the tenant
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    /// How a worker is chosen
    #[arg(long)]
    router_mode: Option<RouterMode>,
    /// How much what must be computed counts against load; 0 ignores the caches
    #[arg(long, value_name = "WEIGHT")]
    router_kv_overlap_score_weight: Option<f64>,
    /// Randomness of the choice; 0 takes the cheapest worker
    #[arg(long)]
    router_temperature: Option<f64>,
    /// Assume what engines hold from what they were sent, whatever their KV events say
    #[arg(long)]
    no_router_kv_events: bool,
    /// Time for which a block that was sent is assumed to stay, in seconds
    #[arg(long, value_name = "SECONDS")]
    router_ttl_secs: Option<f64>,
    /// Leave prefill that is queued at a worker out of its cost
    #[arg(long)]
    no_router_track_prefill_tokens: bool,
    /// Let requests name a mode, a worker and a rank in their headers
    #[arg(long)]
    router_allow_overrides: bool,
    /// Batches of prompt tokens that a rank may have to compute before requests wait; 0 lets none wait
    #[arg(long, value_name = "BATCHES")]
    router_queue_threshold: Option<f64>,
    /// In which order a tenant's requests go, those that wait and those of one instant
    #[arg(long)]
    router_queue_policy: Option<QueuePolicy>,
}

impl ServeFlags {
    /// The configuration that was given as flags.
    pub fn values(&self) -> Values {
        Values::default()
            .set_given("frontend.host", self.host)
            .set_given("frontend.port", self.port)
            .set_given("frontend.key_file", self.key_file.as_ref())
            .set_given("router.mode", self.router_mode)
            .set_given(
                "router.overlap_score_weight",
                self.router_kv_overlap_score_weight,
            )
            .set_given("router.temperature", self.router_temperature)
            .set_given(
                "router.use_kv_events",
                self.no_router_kv_events.then_some(false),
            )
            .set_given("router.ttl_secs", self.router_ttl_secs)
            .set_given(
                "router.track_prefill_tokens",
                self.no_router_track_prefill_tokens.then_some(false),
            )
            .set_given(
                "router.allow_overrides",
                self.router_allow_overrides.then_some(true),
            )
            .set_given("router.queue_threshold", self.router_queue_threshold)
            .set_given("router.queue_policy", self.router_queue_policy)
    }
}
