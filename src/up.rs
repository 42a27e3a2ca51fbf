//! `kvlens up`: everything on one box, in one process.

mod progress;
mod setup;

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueHint;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::frontend::{FrontendConfig, LimitsConfig};
use crate::config::{Config, Values};
use crate::dispatch::EngineClient;
use crate::engine::run_dir::{RunDir, RunDirError};
use crate::engine::{EngineError, EngineProcess, Kind, Launcher};
use crate::frontend::Frontend;
use crate::gpu;
use crate::http::Limits;
use crate::http::serve::{bind, serve};
use crate::id::InvalidWorkerId;
use crate::media::{Media, PolicyError};
use crate::model::ModelError;
use crate::openai::request::RequestLimits;
use crate::router::{self, Router, UPDATES_MAX};
use crate::select::RouterMode;
use crate::telemetry::metrics::Metrics;
use crate::up::setup::{Addresses, Setup};
use crate::worker;

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
    /// {port}, {model}, {name}, {kv_events}, {kv_replay} and {worker} are filled in
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
    #[error("{worker:?} cannot name a worker")]
    Worker {
        worker: String,
        source: InvalidWorkerId,
    },
}

/// Serves until `stop`: engines, agents, listeners; down in the opposite order, so that no request
/// in flight loses what it needs.
///
/// # Errors
/// When a listener, the model or an engine's command line cannot be used.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> Result<(), UpError> {
    let setup = Setup::choose(&args, gpu::count())?;
    let listeners = Listeners::bind(&config.frontend).await?;
    let run_dir = Arc::new(RunDir::create(config.engine.run_dir.as_deref())?);
    let specs = setup.specs(&args.engine_args, &run_dir)?;
    say(setup.opening());

    let metrics = Arc::new(Metrics::default());
    let router = Router::new(config.router.policy(), metrics.clone());
    let frontend = frontend(&setup, &config, router.clone(), metrics.clone())?;
    let addresses = listeners.addresses;
    let serving = listeners.serve(&frontend, &config.frontend.limits, &stop);
    let engines = Launcher {
        config: config.engine.clone(),
        run_dir,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    };
    // Should this future be dropped, its engines end all the same.
    let _engines_end = engines.stop.clone().drop_guard();
    let processes: Vec<_> = specs.into_iter().map(|spec| engines.launch(spec)).collect();
    let agents = Agents::start(&setup, &processes, &router, &metrics);
    let progress = progress::run(processes, metrics, router, setup.banner(addresses));

    tokio::select! {
        () = progress => {}
        () = stop.cancelled() => {}
    }
    say(format_args!(
        "stopping: requests in flight have {} s to finish",
        DRAIN_MAX.as_secs()
    ));
    if tokio::time::timeout(DRAIN_MAX, serving).await.is_err() {
        tracing::warn!(waited = ?DRAIN_MAX, "requests still in flight are cut");
    }
    agents.end().await;
    engines.stop.cancel();
    engines.tasks.close();
    engines.tasks.wait().await;
    say("stopped");
    Ok(())
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

/// The two listeners, bound before anything is started, so that a taken port stops nothing.
struct Listeners {
    public: TcpListener,
    admin: TcpListener,
    addresses: Addresses,
}

impl Listeners {
    async fn bind(config: &FrontendConfig) -> Result<Self, UpError> {
        let public = listen("the public listener", config.address(), "--port").await?;
        let public_address = public.local_addr().unwrap_or(config.address());
        // A free public port still has the admin listener on the next one, where that is free too.
        let next = SocketAddr::new(config.admin_host, public_address.port().wrapping_add(1));
        let admin = match (config.admin_port, config.port) {
            (None, 0) => match bind(next).await {
                Ok(listener) => listener,
                Err(_) => listen(ADMIN, config.admin_address(), ADMIN_PORT).await?,
            },
            _ => listen(ADMIN, config.admin_address(), ADMIN_PORT).await?,
        };
        let admin_address = admin.local_addr().unwrap_or(config.admin_address());
        let addresses = Addresses {
            public: public_address,
            admin: admin_address,
        };
        Ok(Self {
            public,
            admin,
            addresses,
        })
    }

    /// Serves on both until `stop` and until the last request has ended.
    fn serve(
        self,
        frontend: &Arc<Frontend>,
        limits: &LimitsConfig,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> {
        let limits = Limits {
            body_bytes_max: limits.body_bytes_max,
            bodies_in_flight_bytes_max: limits.bodies_in_flight_bytes_max,
            header_bytes_max: limits.header_bytes_max,
            header_read: limits.header_read(),
            body_read: limits.body_read(),
            connections_max: limits.connections_max,
        };
        let mut listeners = JoinSet::new();
        listeners.spawn(serve(
            self.public,
            frontend.routes(),
            limits.clone(),
            stop.clone(),
        ));
        listeners.spawn(serve(
            self.admin,
            frontend.admin_routes(),
            limits,
            stop.clone(),
        ));
        async move { while listeners.join_next().await.is_some() {} }
    }
}

const ADMIN: &str = "the admin listener";
const ADMIN_PORT: &str = "--port (the admin listener takes the next one) or frontend.admin_port";

async fn listen(
    what: &'static str,
    address: SocketAddr,
    remedy: &'static str,
) -> Result<TcpListener, UpError> {
    let bound = bind(address).await;
    bound.map_err(|source| UpError::Listen {
        what,
        address,
        remedy,
        source,
    })
}

/// One agent beside each engine, and the router's task that takes in what they say.
struct Agents {
    agents: JoinSet<()>,
    router: JoinSet<()>,
    stop: CancellationToken,
}

impl Agents {
    fn start(
        setup: &Setup,
        processes: &[EngineProcess],
        router: &Arc<Router>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (updates, received) = mpsc::channel(UPDATES_MAX);
        let mut started = Self {
            agents: JoinSet::new(),
            router: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        started.router.spawn(router::run(
            router.clone(),
            received,
            CancellationToken::new(),
        ));
        for process in processes {
            let spec = setup.agent(&process.spec);
            started.agents.spawn(worker::run(
                spec,
                metrics.clone(),
                updates.clone(),
                started.stop.clone(),
            ));
        }
        started
    }

    /// Lets the agents sign off; the router's task ends with the last of them.
    async fn end(mut self) {
        self.stop.cancel();
        while self.agents.join_next().await.is_some() {}
        while self.router.join_next().await.is_some() {}
    }
}
