//! `kvlens worker`: the agent beside one engine, in a process of its own.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueHint;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::bus::BusError;
use crate::config::instance::UnknownInstance;
use crate::config::{Config, Values};
use crate::discovery::Update;
use crate::discovery::address::{is_address, is_http};
use crate::discovery::flags::PlaneFlags;
use crate::discovery::hash_key::{HashKeyError, hash_key};
use crate::dispatch::own::OwnListener;
use crate::events::zmq::Source;
use crate::http::keys::{KeyFileError, Keys};
use crate::http::listener::{bind, is_anothers};
use crate::http::serve::serve;
use crate::id::{InvalidWorkerId, WorkerId};
use crate::lifecycle::notify;
use crate::lifecycle::shelter::{self, RunDirError};
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::model::ModelError;
use crate::model::archive::Archive;
use crate::model::named::Named;
use crate::telemetry::metrics::Metrics;
use crate::worker::beside::{Beside, Engine};
use crate::worker::feed::{self, Feed};
use crate::worker::gpus::restart::Restart;
use crate::worker::model_files::Files;
use crate::worker::pages::{self, Agent};
use crate::worker::planes;
use crate::worker::reset;
use crate::worker::spec::AgentSpec;
use crate::worker::standing;

/// Updates of the agent that wait for the feed; the agent then waits too, and loses nothing.
const UPDATES_MAX: usize = 4_096;

/// What an instance says, so that flags do not.
const INSTEAD: [&str; 7] = [
    "worker",
    "engine_url",
    "name",
    "model",
    "listen",
    "advertise",
    "label",
];

/// Follows the KV events of one engine on this host and tells routers what it holds.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the worker
    #[arg(long, value_name = "NAME", required_unless_present = "instance")]
    worker: Option<String>,
    /// Worker of this host, as [workers.NAME] of the configuration has it, instead of all these flags
    #[arg(long, value_name = "NAME", conflicts_with_all = INSTEAD)]
    instance: Option<String>,
    /// Address of an engine that runs already, as http://127.0.0.1:8000 or unix:/path; without it
    /// the agent follows the `kvlens engine` of its worker's name
    #[arg(long, value_name = "URL")]
    engine_url: Option<String>,
    /// Where that engine publishes KV events; one for each data-parallel rank, rank 0 first
    #[arg(long, value_name = "ENDPOINT", requires = "engine_url")]
    kv_events: Vec<String>,
    /// Where that engine replays KV events; one for each of --kv-events
    #[arg(long, value_name = "ENDPOINT", requires = "engine_url")]
    kv_replay: Vec<String>,
    /// The model's base name, as frontends have it; unless told, the model's, else as the engine says
    #[arg(long, value_name = "BASE_NAME")]
    name: Option<String>,
    /// Folder or name of the engine's model
    #[arg(long, value_hint = ValueHint::AnyPath)]
    model: Option<String>,
    /// GPU that that engine computes on, as GPU-…; may be repeated
    #[arg(long, value_name = "UUID", requires = "engine_url")]
    gpu: Vec<String>,
    /// Folder from which that engine reads images (vLLM's --allowed-local-media-path)
    #[arg(long, value_name = "DIR", requires = "engine_url", value_hint = ValueHint::DirPath)]
    media_dir: Option<PathBuf>,
    /// Address and port of the agent's own listener
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where other hosts reach that listener, as http://10.0.0.5:8200; unless told, as --listen says
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    #[command(flatten)]
    planes: PlaneFlags,
    /// Folder for what the agent keeps across its restarts
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    state_dir: Option<PathBuf>,
    /// File of the bearer keys that the listener takes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    /// What routers may prefer the worker by; may be repeated
    #[arg(long, value_name = "LABEL")]
    label: Vec<String>,
}

impl Args {
    /// The configuration that was given as flags.
    pub fn flags(&self) -> Values {
        self.planes
            .values(Values::default())
            .set_given("worker.listen", self.listen)
            .set_given("worker.advertise", self.advertise.as_ref())
            .set_given("worker.state_dir", self.state_dir.as_ref())
            .set_given("worker.key_file", self.key_file.as_ref())
            .set_given(
                "worker.labels",
                (!self.label.is_empty()).then_some(&self.label),
            )
    }

    /// The flags and the configuration with what `[workers.NAME]` says of the instance, where one was
    /// named. `place` is where the configuration came from.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn of_instance(
        self,
        mut config: Config,
        place: &str,
    ) -> Result<(Self, Config), UnknownInstance> {
        let Some(name) = &self.instance else {
            return Ok((self, config));
        };
        let instance = config.instance(name, place)?;
        let told = instance.config;
        config.worker.listen = instance.agent_listen;
        config.worker.advertise = told.agent_advertise.or(config.worker.advertise);
        config.worker.labels = told.labels;
        // Model and name are the engine's, which says them itself.
        let args = Self {
            worker: Some(instance.worker.to_string()),
            ..self
        };
        Ok((args, config))
    }
}

/// Which engine to follow and how, checked.
#[derive(Debug)]
pub struct Plan {
    worker: WorkerId,
    beside: Beside,
    keys: Option<Keys>,
}

/// Why an agent cannot be started so.
#[derive(Debug, thiserror::Error)]
pub enum BadPlan {
    #[error("--worker cannot be {worker:?}")]
    Worker {
        worker: String,
        source: InvalidWorkerId,
    },
    #[error("--engine-url {url:?} is neither http://host:port nor unix:/path")]
    Url { url: String },
    #[error("worker.advertise {url:?} is not an address of a listener, as http://10.0.0.5:8200")]
    Advertise { url: String },
    #[error(
        "{replays} times --kv-replay for {events} times --kv-events; each rank has one of both"
    )]
    Replays { events: usize, replays: usize },
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
    #[error(transparent)]
    StateDir(#[from] RunDirError),
    #[error("--model cannot be used")]
    Model(#[from] ModelError),
}

/// Why an agent ends.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(
        "the agent cannot listen on {address}; choose another with worker.listen (--listen), or \
         agent_listen of its table in [workers]"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Ended(#[from] TaskEnd),
}

impl WorkerError {
    /// Whether it stays until somebody changes the configuration, a file or another program.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Bus(error) => error.is_lasting(),
            Self::Listen { source, .. } => is_anothers(source),
            Self::Ended(_) => false,
        }
    }
}

impl Plan {
    /// Checks the flags and reads the model.
    ///
    /// # Errors
    /// When the role could never do its work with them.
    pub fn new(args: &Args, config: &Config) -> Result<Self, BadPlan> {
        let name = args.worker.clone().unwrap_or_default();
        let worker = WorkerId::new(&name).map_err(|source| BadPlan::Worker {
            worker: name,
            source,
        })?;
        let engine = args.engine_url.as_deref();
        let engine = engine.map(|url| told_engine(args, url)).transpose()?;
        let ours = || Restart::of_engine(config.engine.run_dir.as_deref(), &worker);
        let restart = engine.as_ref().map_or_else(ours, |_| Restart::Foreign);
        let keys = config
            .worker
            .key_file
            .as_deref()
            .map(Keys::read)
            .transpose()?;
        let advertised = config.worker.advertise.as_ref();
        if let Some(url) = advertised.filter(|url| !is_http(url.trim_end_matches('/'))) {
            return Err(BadPlan::Advertise { url: url.clone() });
        }
        let named = args.model.as_deref().map(Named::read_or_demo).transpose()?;
        let told = named.as_ref().map(|named| named.name.clone());
        Ok(Self {
            beside: Beside {
                worker: worker.clone(),
                engine,
                run_dir: config.engine.run_dir.clone(),
                name: args.name.clone().or(told),
                model: args.model.clone(),
                files: named.map(Files::from),
                shelf: Arc::default(),
                hash_key: hash_key(&config.cluster)?,
                agent: None,
                agent_life: Uuid::new_v4().as_u64_pair().0,
                state_dir: Some(state_dir(&worker, config)?),
                device: config.worker.device,
                labels: config.worker.labels.clone(),
                restart,
                pid: None,
                gpu: config.gpu.clone(),
            },
            worker,
            keys,
        })
    }
}

impl Plan {
    /// Whose agent it is.
    pub(crate) fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// The agent beside an engine that is run in this process; it serves `archive`, the files of the
    /// engine's model.
    ///
    /// # Errors
    /// When a file or a folder cannot be used.
    pub(crate) fn beside(
        spec: AgentSpec,
        archive: Archive,
        config: &Config,
    ) -> Result<Self, BadPlan> {
        let keys = config.worker.key_file.as_deref();
        Ok(Self {
            worker: spec.worker.clone(),
            keys: keys.map(Keys::read).transpose()?,
            beside: Beside {
                hash_key: hash_key(&config.cluster)?,
                state_dir: Some(state_dir(&spec.worker, config)?),
                labels: config.worker.labels.clone(),
                gpu: config.gpu.clone(),
                ..Beside::of(spec, archive)
            },
        })
    }
}

/// Where the agent keeps its ledgers: as told, else beside the engine's own folder.
fn state_dir(worker: &WorkerId, config: &Config) -> Result<PathBuf, RunDirError> {
    let (told, base) = (&config.worker.state_dir, &config.engine.run_dir);
    shelter::kept(told.as_deref(), base.as_deref(), &format!("agent-{worker}"))
}

/// The engine that the flags describe.
fn told_engine(args: &Args, url: &str) -> Result<Engine, BadPlan> {
    let address = url.trim_end_matches('/');
    if !is_address(address) {
        return Err(BadPlan::Url {
            url: url.to_owned(),
        });
    }
    let (events, replays) = (args.kv_events.len(), args.kv_replay.len());
    if replays != 0 && replays != events {
        return Err(BadPlan::Replays { events, replays });
    }
    let source = |(rank, events): (usize, &String)| Source {
        events: events.clone(),
        bind: false,
        replay: args.kv_replay.get(rank).cloned(),
    };
    Ok(Engine {
        kind: "vllm".to_owned(),
        address: address.to_owned(),
        public_address: None,
        name: None,
        model: None,
        sources: args.kv_events.iter().enumerate().map(source).collect(),
        media_dir: args.media_dir.clone(),
        gpus: args.gpu.clone(),
    })
}

/// Follows the engine until `stop`. The feed then ends without a word: routers keep the worker, and
/// what is in flight there goes on.
///
/// # Errors
/// When the listener cannot be had, or a part ended by itself.
pub async fn run(plan: Plan, config: Config, stop: CancellationToken) -> Result<(), WorkerError> {
    let address = config.worker.listen;
    let refused = |source| WorkerError::Listen { address, source };
    let listener = bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let metrics = Arc::new(Metrics::default());
    let feed = Feed::new(plan.worker.clone());
    let mut tasks = Tasks::default();
    let agent_stop = CancellationToken::new();
    let telling = (&mut tasks, &agent_stop);
    let agent = Arc::new(Agent {
        planes: planes::start(&config, &feed, &metrics, telling).await?,
        feed: feed.clone(),
        metrics: metrics.clone(),
        keys: plan.keys.map(Arc::new),
        shelf: plan.beside.shelf.clone(),
    });
    let (updates, told) = mpsc::channel::<Update>(UPDATES_MAX);
    let mut resets = reset::Agents::default();
    let commands = resets.add(plan.worker.clone());
    let routes = agent.routes(resets);
    tasks.spawn(
        "the listener",
        serve(listener, routes, pages::limits(), stop.clone()),
    );
    tasks.spawn("the feed", feed::run(feed.clone(), told));
    let shown = standing::show(plan.worker.clone(), feed.record(), metrics.clone());
    let shown = agent_stop.clone().run_until_cancelled_owned(shown);
    tasks.spawn("the status", async {
        shown.await;
    });
    let beside = Beside {
        agent: config.worker.reached_at(address),
        ..plan.beside
    };
    let following = beside.follow(
        feed.clone(),
        commands,
        (metrics, updates),
        agent_stop.clone(),
    );
    tasks.spawn("the agent", following);
    let is_told = config.etcd.is_used() || config.nats.is_used();
    if is_told && address.ip().is_unspecified() && config.worker.advertise.is_none() {
        warn!(%address, "no other host can tell where this agent is, --advertise says it");
    }
    let own = OwnListener::at(address);
    own.watched(&mut tasks, &stop);
    stop.run_until_cancelled(own.begun()).await;
    info!(worker = %plan.worker, %address, "agent ready");
    notify::ready();
    let running = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        end = tasks.next_end() => Err(end),
    };
    // Before the agent ends, which would say that the worker is gone.
    feed.close();
    stop.cancel();
    agent_stop.cancel();
    notify::status("stopping, the engine goes on");
    let ended = tasks.end().await;
    info!(worker = %plan.worker, "agent stopped");
    Ok(running.and(ended)?)
}
