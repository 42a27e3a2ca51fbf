//! `kvlens frontend`: a frontend with its router, which follow the feeds of agents.

use std::path::PathBuf;
use std::sync::Arc;

use clap::ValueHint;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::block::HashKey;
use crate::bus::BusError;
use crate::config::dispatch::RequestPlane;
use crate::config::frontend::RouterPlace;
use crate::config::{Config, Values};
use crate::discovery::flags::PlaneFlags;
use crate::discovery::hash_key::{HashKeyError, hash_key};
use crate::dispatch::EngineClient;
use crate::dispatch::own::OwnListener;
use crate::frontend::Frontend;
use crate::frontend::flags::ServeFlags;
use crate::frontend::listeners::{Addresses, Ending, ListenError, Listeners};
use crate::frontend::model_fetch::Fetcher;
use crate::frontend::models::Models;
use crate::frontend::planes::Planes;
use crate::frontend::tenants::Tenants;
use crate::http::keys::{KeyFileError, first_key};
use crate::lifecycle::notify;
use crate::lifecycle::tasks::TaskEnd;
use crate::media::PolicyError;
use crate::model::named::Named;
use crate::model::{Model, ModelError};
use crate::router::members::{BadSources, Sources};
use crate::router::rules::Rules;
use crate::telemetry::metrics::Metrics;

/// Answers the OpenAI API for a model whose workers run elsewhere.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    serve: ServeFlags,
    #[command(flatten)]
    planes: PlaneFlags,
    /// Who chooses workers: a router in this process, or routers elsewhere, asked over NATS
    #[arg(long)]
    router: Option<RouterPlace>,
    /// What carries requests to engines: connections to each, or NATS
    #[arg(long)]
    request_plane: Option<RequestPlane>,
    /// Listener of a worker's agent, as http://127.0.0.1:8200; may be repeated
    #[arg(long, value_name = "URL")]
    worker_url: Vec<String>,
    /// File whose first bearer key is shown to the agents and to their engines' gates
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    worker_key_file: Option<PathBuf>,
    /// Folder or name of the model to serve; demo for the one inside this program; without it, every
    /// model of the workers, whose files their agents serve
    #[arg(long, value_hint = ValueHint::AnyPath)]
    model: Option<String>,
    /// The model's base name, as its agents have it; the folder's own unless told
    #[arg(long, requires = "model")]
    name: Option<String>,
}

impl Args {
    /// The configuration that was given as flags.
    pub fn flags(&self) -> Values {
        let workers = (!self.worker_url.is_empty()).then_some(&self.worker_url);
        self.planes
            .values(self.serve.values())
            .set_given("frontend.router", self.router)
            .set_given("dispatch.request_plane", self.request_plane)
            .set_given("discovery.workers", workers)
            .set_given("discovery.key_file", self.worker_key_file.as_ref())
    }
}

/// What to serve and whom to follow, checked.
#[derive(Debug)]
pub struct Plan {
    /// By its base name; `None` serves all that agents serve the files of.
    model: Option<(String, Arc<Model>)>,
    hash_key: Option<HashKey>,
    sources: Sources,
    /// Shows the key that agents and gates ask for.
    client: EngineClient,
    tenants: Tenants,
}

/// Why a frontend cannot be started so.
#[derive(Debug, thiserror::Error)]
pub enum BadPlan {
    #[error(transparent)]
    Sources(#[from] BadSources),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(transparent)]
    HashKey(#[from] HashKeyError),
    #[error("--model cannot be used")]
    Model(#[from] ModelError),
}

/// Why a frontend ends.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Media(#[from] PolicyError),
    #[error(transparent)]
    Ended(#[from] TaskEnd),
}

impl FrontendError {
    /// Whether it stays until somebody changes the configuration, a file or another program.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Bus(error) => error.is_lasting(),
            Self::Listen(error) => error.is_lasting(),
            Self::Media(_) | Self::Ended(_) => false,
        }
    }
}

impl Plan {
    /// Checks the flags and reads the model.
    ///
    /// # Errors
    /// When the role could never serve with them.
    pub fn new(args: &Args, config: &Config) -> Result<Self, BadPlan> {
        let key = config.discovery.key_file.as_deref();
        let key = key.map(first_key).transpose()?;
        let named = args.model.as_deref().map(Named::read_or_demo).transpose()?;
        let model = named.map(|named| {
            let name = args.name.clone().unwrap_or(named.name);
            (name, Arc::new(named.model))
        });
        Ok(Self {
            model,
            hash_key: hash_key(&config.cluster)?,
            sources: Sources::new(config)?,
            client: EngineClient::with_key(key.as_deref()),
            tenants: Tenants::read(config.frontend.key_file.as_deref())?,
        })
    }

    /// Which workers are served.
    fn rules(&self, config: &Config) -> Rules {
        let rules = match &self.model {
            Some((name, model)) => Rules::of_model(name, Some(model.digest())),
            None => Rules::fetched(),
        };
        let rules = rules.within(&config.discovery.networks);
        rules.sealed_by(self.hash_key.as_ref())
    }
}

/// Serves until `stop`: listeners first, then whatever workers there are. Once told to stop it settles,
/// and requests in flight are answered before it ends.
///
/// # Errors
/// When a listener cannot be had, or a part ended by itself.
pub async fn run(plan: Plan, config: Config, stop: CancellationToken) -> Result<(), FrontendError> {
    let listeners = Listeners::bind(&config.frontend, &config.media).await?;
    let metrics = Arc::new(Metrics::default());
    let rules = Arc::new(plan.rules(&config));
    let agents = (plan.sources, plan.client.clone());
    let mut planes = Planes::start(&config, rules.clone(), agents, &metrics).await?;
    let client = planes.client.clone().lending(listeners.loans());
    let name = plan.model.as_ref().map(|(name, _)| name.clone());
    let models = Models::of(plan.model);
    if name.is_none() {
        let router = planes.routing.local.clone();
        let fetcher = Fetcher {
            models: models.clone(),
            rules,
            router,
            client: plan.client,
            agents: planes.waits_for.clone(),
        };
        let fetching = async { match fetcher.run().await {} };
        planes.tasks.spawn("the fetcher of model files", fetching);
    }
    let frontend = Frontend::new(
        &config,
        (models, plan.hash_key),
        planes.routing,
        (client, metrics, plan.tenants),
        listeners.loans(),
    )?;
    let waits = config.etcd.is_used() || listeners.is_held();
    if waits {
        // Who connects meanwhile waits, rather than be told that there is no worker.
        let look = frontend.look(listeners.is_held());
        stop.run_until_cancelled(look).await;
    }
    let addresses = listeners.addresses;
    let settle = config.frontend.settle();
    let ending = Ending::new(&frontend, &config.frontend, settle, &stop);
    let mut serving = listeners.serve(
        &frontend,
        frontend.admin_routes(),
        &config.frontend.limits,
        &ending,
    );
    serving.spawn("the keys", frontend.tenants.clone().follow(stop.clone()));

    let own = OwnListener::at(addresses.public);
    own.watched(&mut serving, &stop);
    let mut followers = planes.tasks;
    let shown = async {
        frontend.listening.cancelled().await;
        let Addresses { public, admin } = addresses;
        info!(%public, %admin, model = name, "frontend ready");
        if !waits {
            frontend.look(false).await;
        }
        frontend.begin(&own).await
    };
    let running = tokio::select! {
        // First, because listeners end with it.
        biased;
        () = stop.cancelled() => Ok(()),
        end = serving.next_end() => Err(end),
        end = followers.next_end() => Err(end),
        never = shown => match never {},
    };
    stop.cancel();
    // Where it ends by itself nobody has said so, and the watchdog is fed no more.
    notify::stopping();
    // Its connection is not one to wait for.
    drop(own);
    let drained = frontend.end(&ending, serving).await;
    // Only now, so that what is in flight may still be placed again.
    drop(followers);
    info!("frontend stopped");
    Ok(running.and(drained)?)
}
