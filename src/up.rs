//! `kvlens up`: everything on one box, in one process.

mod agents;
mod listeners;
mod media_folder;
mod progress;
mod setup;
pub mod tasks;

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueHint;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Values};
use crate::dispatch::EngineClient;
use crate::engine::run_dir::{RunDir, RunDirError};
use crate::engine::{EngineError, Kind, Launcher};
use crate::frontend::Frontend;
use crate::gpu;
use crate::id::InvalidWorkerId;
use crate::media::{Media, PolicyError};
use crate::model::ModelError;
use crate::openai::request::RequestLimits;
use crate::router::Router;
use crate::select::RouterMode;
use crate::telemetry::metrics::Metrics;
use crate::up::agents::Agents;
use crate::up::listeners::Listeners;
use crate::up::media_folder::MediaFolder;
use crate::up::setup::Setup;
use crate::up::tasks::TaskEnd;

/// Time for requests in flight to finish after the first stop signal.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Serves a model on this box: starts the engines, routes to them, answers the OpenAI API.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address that the public listener binds
    #[arg(long)]
    host: Option<IpAddr>,
    /// Port of the public listener; the admin listener takes the next one
    #[arg(long)]
    port: Option<u16>,
    /// How many engines to run; unless told, vllm on each GPU, two stand-ins, or one command
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Which engine to run; unless told, vllm where there are GPUs and a --model, else the stand-in
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
    /// {port}, {model}, {name}, {kv_events}, {kv_replay}, {worker} and {media_dir} are filled in
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
    #[error("{what} cannot listen on {address}; choose another port with {remedy}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        remedy: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("--engine {engine} needs --model with a folder or a name")]
    ModelMissing { engine: &'static str },
    #[error("--engine vllm needs an NVIDIA GPU, and {reason}")]
    NoGpu { reason: String },
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Media(#[from] PolicyError),
    #[error(transparent)]
    Ended(#[from] TaskEnd),
    #[error("cannot make folder {path} for images")]
    MediaFolder { path: String, source: io::Error },
    #[error("{worker:?} cannot name a worker")]
    Worker {
        worker: String,
        source: InvalidWorkerId,
    },
}

/// Serves until `stop`: engines, agents, listeners; down in the opposite order, so that no request
/// in flight loses what it needs. A part that ends by itself takes the rest down in the same way.
///
/// # Errors
/// When a listener, the model or an engine's command line cannot be used, or a part ended by
/// itself.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> Result<(), UpError> {
    let setup = Setup::choose(&args, gpu::find(), &config.media)?;
    let listeners = Listeners::bind(&config.frontend).await?;
    let run_dir = Arc::new(RunDir::create(config.engine.run_dir.as_deref())?);
    // Its files outlive the engines that read them.
    let media_folder = MediaFolder::create(&config.media, &run_dir)?;
    let media_dir = media_folder.as_ref().map(MediaFolder::path);
    let specs = setup.specs(&args.engine_args, media_dir, &run_dir)?;
    say(setup.opening());

    let metrics = Arc::new(Metrics::default());
    let router = Router::new(config.router.policy(), metrics.clone());
    let frontend = frontend(&setup, &config, router.clone(), metrics.clone())?;
    let banner = setup.banner(listeners.addresses);
    let mut serving = listeners.serve(&frontend, &config.frontend.limits, &stop);
    let engines = Launcher {
        config: config.engine.clone(),
        run_dir,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    };
    // Should this future be dropped, its engines end all the same.
    let _engines_end = engines.stop.clone().drop_guard();
    let processes: Vec<_> = specs.into_iter().map(|spec| engines.launch(spec)).collect();
    let mut agents = Agents::start(&setup, &processes, &router, &metrics);
    let mut followed = progress::follow(processes, &metrics);

    let running = tokio::select! {
        // First, because listeners end with it.
        biased;
        () = stop.cancelled() => Ok(()),
        end = serving.next_end() => Err(end),
        end = agents.next_end() => Err(end),
        end = followed.next_end() => Err(end),
        never = progress::announce(&router, &banner) => match never {},
    };
    stop.cancel();
    say(format_args!(
        "stopping: requests in flight have {} s to finish",
        DRAIN_MAX.as_secs()
    ));
    let drained = tokio::time::timeout(DRAIN_MAX, serving.end()).await;
    let drained = drained.unwrap_or_else(|_| {
        tracing::warn!(waited = ?DRAIN_MAX, "requests still in flight are cut");
        Ok(())
    });
    let signed_off = agents.end().await;
    engines.stop.cancel();
    engines.tasks.close();
    engines.tasks.wait().await;
    say("stopped");
    Ok(running.and(drained).and(signed_off)?)
}

/// Prints a line for the person who started it. Nobody need read it: a closed pipe, as that of
/// `kvlens up | head -1`, is no reason to end.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn frontend(
    setup: &Setup,
    config: &Config,
    router: Arc<Router>,
    metrics: Arc<Metrics>,
) -> Result<Arc<Frontend>, UpError> {
    let media = config
        .media
        .enabled
        .then(|| Media::new(config.media.clone()))
        .transpose()?;
    Ok(Arc::new(Frontend {
        limits: RequestLimits {
            messages_max: config.frontend.limits.messages_max,
            images_max: config.frontend.limits.images_max,
            unknown_fields: config.openai.unknown_fields,
        },
        sse_event_bytes_max: config.frontend.limits.sse_event_bytes_max,
        expose_routing: config.frontend.expose_routing,
        router,
        models: HashMap::from([(setup.name.clone(), setup.model.clone())]),
        media,
        client: EngineClient::new(),
        metrics,
    }))
}
