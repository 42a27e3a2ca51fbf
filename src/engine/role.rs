//! `kvlens engine`: one engine with its folder, its control socket and its gate.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::Config;
use crate::config::instance::Kind;
use crate::discovery::engine_file::{CONTROL_SOCKET, ENGINE_FILE_VERSION, EngineFile};
use crate::engine::command::{Listen, Plan, Ranks, wants_socket};
use crate::engine::control::{Control, Seen};
use crate::engine::entrance::{Entrance, EntranceError};
use crate::engine::flags::Args;
use crate::engine::gate::Gate;
use crate::engine::probe::Probe;
use crate::engine::run_dir::RunDir;
use crate::engine::standing::{self, Standing};
use crate::engine::{EngineError, EngineProcess, Launcher, Spec, free_port_runs};
use crate::gpu::{self, GpuError, Gpus};
use crate::http::Limits;
use crate::http::keys::{KeyFileError, Keys};
use crate::http::listener::{bind_unix, is_anothers};
use crate::http::serve::serve;
use crate::id::WorkerId;
use crate::lifecycle::notify;
use crate::lifecycle::shelter::RunDirError;
use crate::lifecycle::watchdog::Watchdog;
use crate::model::ModelError;
use crate::model::named::{self, DEMO};

/// Time for the last answers of the listeners, once the engine has ended.
const LISTENERS_END_MAX: Duration = Duration::from_secs(1);

/// Beyond draining and the engine's own grace: its last words and the listeners' last answers.
const END_MAX: Duration = Duration::from_secs(3);

/// Why the engine is not run.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error("neither --worker nor --instance says which worker it is")]
    WorkerMissing,
    #[error("--kind vllm needs --model with a folder or a name")]
    ModelMissing,
    #[error("{key} needs an NVIDIA GPU")]
    NoGpu { key: String, source: GpuError },
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error("{key} cannot be used")]
    Model { key: String, source: ModelError },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error("--listen {address} can be reached from other hosts, so it needs --key-file")]
    KeysMissing { address: SocketAddr },
    #[error(transparent)]
    Entrance(#[from] EntranceError),
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot write {path}")]
    EngineFile { path: String, source: io::Error },
    #[error("a part of it ended by itself")]
    Ended {
        /// Its panic; `None` where it returned.
        source: Option<JoinError>,
    },
}

impl RoleError {
    /// Whether it stays until somebody changes the command line or a file.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::WorkerMissing
            | Self::ModelMissing
            | Self::Model { .. }
            | Self::Keys(_)
            | Self::KeysMissing { .. } => true,
            Self::Entrance(EntranceError::Bus(error)) => error.is_lasting(),
            Self::Entrance(EntranceError::Listen { source, .. }) => is_anothers(source),
            Self::Engine(error) => error.is_lasting(),
            Self::NoGpu { source, .. } | Self::Gpu(source) => source.is_lasting(),
            _ => false,
        }
    }
}

/// Runs the engine until `stop`: refuses new requests at the gate, lets those in flight finish, then
/// ends the engine.
///
/// # Errors
/// When the command line, a file, the folder or an address cannot be used, or a part ended by itself.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> Result<(), RoleError> {
    let keys = gate_keys(&args)?;
    let worker = args.worker.as_ref().ok_or(RoleError::WorkerMissing)?;
    let run_dir = RunDir::of_engine(config.engine.run_dir.as_deref(), worker)?;
    let mut plan = plan(&args, worker, &config)?;
    plan.check()?;
    take_gpus(&mut plan, &args, &config)?;
    let spec = plan.spec(&run_dir)?;
    let gate = Entrance::open(args.listen, keys, &spec, &config).await?;
    let public = gate.as_ref().and_then(Entrance::public_address);
    write_file(&plan, &spec, public, run_dir.path())?;
    let what = standing::what(&plan.name, args.gpus.as_deref());
    let mut served = Served::start((spec, what), gate, run_dir, &config)?;
    let running = tokio::select! {
        // First, because the parts end with it.
        biased;
        () = stop.cancelled() => Ok(()),
        ended = served.next_end() => Err(ended),
    };
    let drain = config.engine.drain();
    let longest = drain + config.engine.grace() + END_MAX;
    notify::extended(longest, served.end(drain)).await;
    running
}

fn gate_keys(args: &Args) -> Result<Option<Keys>, RoleError> {
    match (args.listen, &args.key_file) {
        (Some(address), None) if !address.ip().is_loopback() => {
            Err(RoleError::KeysMissing { address })
        }
        (_, Some(path)) => Ok(Some(Keys::read(path)?)),
        _ => Ok(None),
    }
}

fn plan(args: &Args, worker: &WorkerId, config: &Config) -> Result<Plan, RoleError> {
    let (name, folder) = match (&args.model, args.kind) {
        (None, Kind::Vllm) => return Err(RoleError::ModelMissing),
        (None, _) => (DEMO.to_owned(), None),
        (Some(text), Kind::Mock) if text == DEMO && !Path::new(text).is_dir() => {
            (DEMO.to_owned(), None)
        }
        (Some(text), kind) => {
            // What a command reads of it is its own affair.
            let located = match kind {
                Kind::Command => named::locate(text),
                Kind::Mock | Kind::Vllm => named::locate_whole(text),
            };
            let (name, folder) = located.map_err(|source| RoleError::Model {
                key: args.model_key(),
                source,
            })?;
            (name, Some(folder.display().to_string()))
        }
    };
    // A run of ports for the events, one for their replay, and the first of the third to listen on.
    let ports = free_port_runs(3, args.ranks)?;
    let listens_on_port = args.kind == Kind::Command && !wants_socket(&args.args);
    Ok(Plan {
        worker: worker.clone(),
        kind: args.kind,
        name: args.name.clone().unwrap_or(name),
        model: folder,
        listen: match args.port {
            Some(port) => Listen::Port(port),
            None if listens_on_port => Listen::Port(ports[2]),
            None => Listen::Socket,
        },
        ranks: Ranks::new(args.ranks, ports[0], ports[1]),
        block_size: config.engine.block_size(),
        gpus: args.gpus.clone(),
        own_gpus: Vec::new(),
        media_dir: args.media_dir.clone(),
        image: args.image.clone(),
        args: args.args.clone(),
    })
}

/// Looks for the driver and the GPUs of an engine that needs them. Others are shown the GPUs that they
/// are to have, as far as there is a driver to know them by.
fn take_gpus(plan: &mut Plan, args: &Args, config: &Config) -> Result<(), RoleError> {
    let is_vllm = plan.kind == Kind::Vllm;
    let needed_by = |key: &str| {
        let key = if is_vllm {
            args.kind_key()
        } else {
            key.to_owned()
        };
        move |error| match error {
            source @ GpuError::NoDriver { .. } => RoleError::NoGpu { key, source },
            error => error.into(),
        }
    };
    let library = config.gpu.nvml_library.as_deref();
    if let Some((key, least)) = args.driver_min(config) {
        gpu::check_driver((&key, &least), library).map_err(needed_by(&key))?;
    }
    let (key, names) = (args.gpus_key(), args.gpus.as_deref().unwrap_or_default());
    match gpu::resolve(&key, names, library) {
        Ok(gpus) => plan.own_gpus = gpus,
        Err(GpuError::NoDriver { .. }) if !is_vllm => return Ok(()),
        Err(error) => return Err(needed_by(&key)(error)),
    }
    if let (true, Gpus::None { reason }) = (is_vllm && names.is_empty(), gpu::find(library)) {
        let is_missing = false;
        return Err(needed_by(&key)(GpuError::NoDriver { reason, is_missing }));
    }
    // The host's toolkit may have named podman's devices by their numbers alone.
    if plan.image.is_none() && plan.gpus.is_some() {
        plan.gpus = Some(plan.own_gpus.clone());
    }
    Ok(())
}

fn write_file(
    plan: &Plan,
    spec: &Spec,
    public_address: Option<String>,
    folder: &Path,
) -> Result<(), RoleError> {
    let file = EngineFile {
        version: ENGINE_FILE_VERSION,
        worker: spec.worker.clone(),
        kind: plan.kind.name().to_owned(),
        address: spec.address.to_string(),
        public_address,
        name: plan.name.clone(),
        model: plan.model.clone(),
        sources: spec.sources.clone(),
        media_dir: plan.media_dir.clone(),
        gpus: plan.own_gpus.clone(),
        pid: Some(std::process::id()),
    };
    file.write(folder).map_err(|source| RoleError::EngineFile {
        path: folder.display().to_string(),
        source,
    })
}

/// The running engine and all around it.
struct Served {
    gate: Option<Arc<Gate>>,
    engine: TaskTracker,
    engine_stop: CancellationToken,
    /// The listeners and the log of the engine's states.
    parts: JoinSet<()>,
    parts_stop: CancellationToken,
    /// Should this be dropped, the engine ends all the same.
    _engine_end: tokio_util::sync::DropGuard,
}

impl Served {
    fn start(
        (spec, what): (Spec, String),
        entrance: Option<Entrance>,
        run_dir: RunDir,
        config: &Config,
    ) -> Result<Self, RoleError> {
        let path = run_dir.path().join(CONTROL_SOCKET);
        let control_listener = bind_unix(&path).map_err(|source| RoleError::Listen {
            address: path.display().to_string(),
            source,
        })?;
        let launcher = Launcher {
            config: config.engine.clone(),
            run_dir: Arc::new(run_dir),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let process = launcher.launch(spec);
        let (seen_in, seen) = watch::channel(Seen::starting());
        let control = Arc::new(Control {
            process: process.clone(),
            gate: entrance.as_ref().map(|entrance| entrance.gate.clone()),
            seen,
            drain: config.engine.drain(),
        });
        let gate = control.gate.clone();
        let limits = Limits::from(&config.frontend.limits);
        let parts_stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        watch(&process, &mut parts, &parts_stop);
        let standing = Standing::new(process, gate.clone(), what, config.engine.ready());
        parts.spawn(standing.follow(seen_in));
        if let Some(entrance) = entrance {
            entrance.serve(&limits, &mut parts, &parts_stop);
        }
        let stop = parts_stop.clone();
        parts.spawn(serve(control_listener, control.routes(), limits, stop));
        Ok(Self {
            gate,
            engine: launcher.tasks,
            _engine_end: launcher.stop.clone().drop_guard(),
            engine_stop: launcher.stop,
            parts,
            parts_stop,
        })
    }

    /// Waits for a part to end by itself.
    async fn next_end(&mut self) -> RoleError {
        let ended = self.parts.join_next().await;
        RoleError::Ended {
            source: ended.and_then(Result::err),
        }
    }

    /// Drains the gate, ends the engine, then the listeners.
    async fn end(mut self, drain: Duration) {
        if let Some(gate) = &self.gate {
            gate.set_draining(true);
            info!(in_flight = gate.in_flight(), longest = ?drain, "draining");
            if tokio::time::timeout(drain, gate.idle()).await.is_err() {
                warn!(
                    in_flight = gate.in_flight(),
                    "requests still in flight are cut"
                );
            }
        }
        self.engine_stop.cancel();
        self.engine.close();
        self.engine.wait().await;
        self.parts_stop.cancel();
        let parts = async { while self.parts.join_next().await.is_some() {} };
        // An idle client may hold a connection; nobody waits for it.
        tokio::time::timeout(LISTENERS_END_MAX, parts).await.ok();
    }
}

/// Feeds systemd's watchdog, where there is one, while the engine answers; until `stop`.
fn watch(process: &EngineProcess, parts: &mut JoinSet<()>, stop: &CancellationToken) {
    if let Some(watchdog) = Watchdog::asked() {
        let (process, stop) = (process.clone(), stop.clone());
        parts.spawn(async move {
            let probe = Probe::new(process.spec.address.to_string());
            let check = |deadline| standing::is_well(&process, &probe, deadline);
            watchdog.feed(stop, check).await;
        });
    }
}
