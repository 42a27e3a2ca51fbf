//! `kvlens up`: everything on one box, in one process.

mod agents;
mod banner;
mod media_folder;
mod progress;
mod servers;
mod setup;
mod wiring;

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueHint;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::BusError;
use crate::config::frontend::FrontendConfig;
use crate::config::instance::Kind;
use crate::config::{Config, Values};
use crate::discovery::hash_key::HashKeyError;
use crate::dispatch::own::OwnListener;
use crate::engine::run_dir::RunDir;
use crate::engine::{EngineError, EngineProcess, Launcher};
use crate::frontend::Frontend;
use crate::frontend::flags::ServeFlags;
use crate::frontend::listeners::{Ending, ListenError, Listeners};
use crate::frontend::models::Models;
use crate::frontend::tenants::Tenants;
use crate::gpu::{self, GpuError};
use crate::http::Routes;
use crate::id::{InvalidWorkerId, WorkerId};
use crate::lifecycle::shelter::RunDirError;
use crate::lifecycle::tasks::TaskEnd;
use crate::media::PolicyError;
use crate::model::ModelError;
use crate::router::members::BadSources;
use crate::telemetry::metrics::Metrics;
use crate::up::agents::Attended;
use crate::up::media_folder::MediaFolder;
use crate::up::setup::Setup;
use crate::up::wiring::{PlanesChoice, Wiring};
use crate::worker::reset::{self, Command};
use crate::worker::role;
use crate::worker::spec::ProcessState;

/// Serves a model on this box: starts the engines, routes to them, answers the OpenAI API.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    serve: ServeFlags,
    /// How many engines to run; unless told, vllm on each GPU, two stand-ins, or one command
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Data-parallel ranks of each engine; vllm takes a GPU for each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub ranks: u16,
    /// Which engine to run; unless told, vllm where there are GPUs and a --model, else the stand-in
    #[arg(long)]
    pub engine: Option<Kind>,
    /// Folder or name of the model to serve
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub model: Option<String>,
    /// What connects frontend, router and agents: this process' memory, or etcd and NATS of its own, as on
    /// a rack
    #[arg(long, value_name = "PLANES", default_value = "embedded")]
    planes: PlanesChoice,
    /// Further arguments of the engine; with `--engine command`, its command line, in which
    /// {port}, {uds}, {model}, {name}, {kv_events}, {kv_replay}, {worker}, {ranks} and {media_dir} are
    /// filled in
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
        self.serve.values()
    }
}

/// Why the box cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("--model cannot be used")]
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
    Gpu(#[from] GpuError),
    #[error(
        "--planes cluster needs etcd, and this program was built without it: build with --features etcd"
    )]
    NoEtcd,
    #[error(
        "--planes cluster starts etcd and NATS itself, and {key} is set: unset it, or run `kvlens frontend` and `kvlens worker`"
    )]
    PlaneNamed { key: &'static str },
    #[error("--planes cluster started {name}, which did not answer within {waited:?}")]
    ServerSilent { name: WorkerId, waited: Duration },
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
    #[error(transparent)]
    Sources(#[from] BadSources),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Agent(#[from] role::BadPlan),
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

impl UpError {
    /// Whether it stays until somebody changes the command line, a file or the host.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Model(_)
            | Self::ModelMissing { .. }
            | Self::NoGpu { .. }
            | Self::NoEtcd
            | Self::PlaneNamed { .. }
            | Self::HashKey(_)
            | Self::Media(_) => true,
            Self::Engine(error) => error.is_lasting(),
            Self::Gpu(error) => error.is_lasting(),
            _ => false,
        }
    }
}

/// Serves until `stop`: engines, agents, listeners; down in the opposite order, so that no request
/// in flight loses what it needs. A part that ends by itself takes the rest down in the same way.
///
/// # Errors
/// When a listener, the model or an engine's command line cannot be used, or a part ended by
/// itself.
pub async fn run(
    args: Args,
    config: Config,
    tenants: Tenants,
    stop: CancellationToken,
) -> Result<(), UpError> {
    let setup = Setup::choose(
        &args,
        gpu::find(config.gpu.nvml_library.as_deref()),
        &config.media,
    )?;
    setup.check_driver(&config)?;
    args.planes.check(&config)?;
    let listeners = Listeners::bind(&config.frontend, &config.media).await?;
    let run_dir = Arc::new(RunDir::create(config.engine.run_dir.as_deref())?);
    // Its files outlive the engines that read them.
    let media_folder = MediaFolder::create(&config.media, &run_dir)?;
    let media_dir = media_folder.as_ref().map(MediaFolder::path);
    let specs = setup.specs(&args, &config.engine, (media_dir, &run_dir))?;
    say(setup.opening());

    let metrics = Arc::new(Metrics::default());
    let met = (&config, &setup);
    let mut wiring = Wiring::start(args.planes, met, &run_dir, &metrics, &stop).await?;
    let router = wiring.routing.local.clone();
    let models = Models::of([(setup.name.clone(), setup.model.clone())]);
    let frontend = Frontend::new(
        &config,
        (models, wiring.hash_key),
        wiring.routing.clone(),
        (wiring.client.clone(), metrics.clone(), tenants),
        listeners.loans(),
    )?;
    let ending = Ending::new(&frontend, &config.frontend, settle(&config.frontend), &stop);
    let banner = setup.banner(listeners.addresses, frontend.tenants.are_asked());
    let own = OwnListener::at(listeners.addresses.public);
    let mut resets = reset::Agents::default();
    let commands = specs.iter().map(|spec| resets.add(spec.worker.clone()));
    let commands: Vec<_> = commands.collect();
    let admin = admin_routes(&frontend, &wiring, resets);
    let mut serving = listeners.serve(&frontend, admin, &config.frontend.limits, &ending);
    serving.spawn("the keys", frontend.tenants.clone().follow(stop.clone()));
    own.watched(&mut serving, &stop);
    let engines = Launcher {
        config: config.engine.clone(),
        run_dir: run_dir.clone(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    };
    // Should this future be dropped, its engines end all the same.
    let _engines_end = engines.stop.clone().drop_guard();
    let processes: Vec<_> = specs.into_iter().map(|spec| engines.launch(spec)).collect();
    let (mut followed, states) = progress::follow(&processes, Some(&metrics));
    let attended = attended(processes, states, commands);
    let mut agents = wiring.agents(&setup, attended, &run_dir, (&config.gpu, &metrics))?;

    let running = tokio::select! {
        // First, because listeners end with it.
        biased;
        () = stop.cancelled() => Ok(()),
        end = serving.next_end() => Err(end),
        end = agents.next_end() => Err(end),
        end = followed.next_end() => Err(end),
        end = wiring.next_end() => Err(end),
        never = progress::announce(&router, &banner) => match never {},
    };
    stop.cancel();
    say(format_args!(
        "stopping: requests in flight have {} s to finish",
        (ending.settle + ending.drain).as_secs()
    ));
    let drained = ending.drain(serving).await;
    let signed_off = agents.end().await;
    engines.stop.cancel();
    engines.tasks.close();
    engines.tasks.wait().await;
    wiring.end().await;
    say("stopped");
    Ok(running.and(drained).and(signed_off)?)
}

/// Agents of a rack take commands on listeners of their own.
fn admin_routes(frontend: &Arc<Frontend>, wiring: &Wiring, resets: reset::Agents) -> Routes {
    match wiring.is_rack() {
        true => frontend.admin_routes(),
        false => frontend.admin_routes().post(reset::PATH, resets.handler()),
    }
}

/// Each engine with the ways to its agent.
fn attended(
    processes: Vec<EngineProcess>,
    states: Vec<watch::Receiver<ProcessState>>,
    commands: Vec<mpsc::Receiver<Command>>,
) -> Vec<Attended> {
    let attended = processes.into_iter().zip(states).zip(commands);
    let attended = attended.map(|((process, state), commands)| Attended {
        process,
        state,
        commands,
        restart: Arc::default(),
    });
    attended.collect()
}

/// Who presses Ctrl-C waits for nobody to go elsewhere, unless there is somewhere to go.
fn settle(config: &FrontendConfig) -> Duration {
    match (config.hand_over, config.settle_secs) {
        (false, None) => Duration::ZERO,
        _ => config.settle(),
    }
}

/// Prints a line for the person who started it. Nobody need read it: a closed pipe, as that of
/// `kvlens up | head -1`, is no reason to end.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}
