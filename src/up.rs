//! `kvlens up`: everything on one box, in one process.

use std::net::IpAddr;

use clap::ValueHint;
use tokio_util::sync::CancellationToken;

use crate::config::router::RouterMode;
use crate::config::{Config, Values};
use crate::engine::Kind;

/// Serves a model on this box: starts the engines, routes to them, answers the OpenAI API.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address that the public listener binds
    #[arg(long)]
    host: Option<IpAddr>,
    /// Port of the public listener; the admin listener takes the next one
    #[arg(long)]
    port: Option<u16>,
    /// How many engines to run; as many as there are GPUs, or two stand-ins, unless told
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Which engine to run; vllm where there are GPUs, the stand-in elsewhere, unless told
    #[arg(long)]
    pub engine: Option<Kind>,
    /// Folder or name of the model to serve
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub model: Option<String>,
    /// How a worker is chosen
    #[arg(long)]
    router_mode: Option<RouterMode>,
    /// How much a block already held counts against a block of load
    #[arg(long, value_name = "WEIGHT")]
    router_kv_overlap_score_weight: Option<f64>,
    /// Randomness of the choice; 0 takes the cheapest worker
    #[arg(long)]
    router_temperature: Option<f64>,
    /// Further arguments of the engine; with `--engine command`, its command line, in which
    /// {port}, {model}, {kv_events}, {kv_replay} and {worker} are filled in
    #[arg(last = true)]
    pub engine_args: Vec<String>,
}

impl Args {
    /// What this role sets apart from the common defaults: one box that its owner tries out takes
    /// images and shows where each request went.
    pub fn role_defaults() -> Values {
        Values::default()
            .set("media.enabled", true)
            .set("frontend.expose_routing", true)
    }

    /// The configuration that was given as flags.
    pub fn flags(&self) -> Values {
        Values::default()
            .set_given("frontend.host", self.host)
            .set_given("frontend.port", self.port)
            .set_given("router.mode", self.router_mode)
            .set_given(
                "router.overlap_score_weight",
                self.router_kv_overlap_score_weight,
            )
            .set_given("router.temperature", self.router_temperature)
    }
}

/// Why the box cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error("nothing to run for {workers} workers")]
    Empty { workers: u16 },
}

/// Serves until `stop`.
///
/// # Errors
/// When an engine or a listener cannot be started.
pub async fn run(args: Args, _config: Config, _stop: CancellationToken) -> Result<(), UpError> {
    Err(UpError::Empty {
        workers: args.workers.unwrap_or(0),
    })
}
