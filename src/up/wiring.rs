//! How the parts of a box meet: in this process, or in etcd and on NATS as those of a rack do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::ValueEnum;
use tokio_util::sync::CancellationToken;

use crate::block::HashKey;
use crate::config::Config;
use crate::config::gpu::GpuConfig;
use crate::discovery::hash_key::hash_key;
use crate::dispatch::EngineClient;
use crate::engine::run_dir::RunDir;
use crate::frontend::planes::{Planes, Routing};
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::router::Router;
use crate::router::members::Sources;
use crate::router::rules::Rules;
use crate::telemetry::metrics::Metrics;
use crate::up::agents::{Agents, Attended, Planned};
use crate::up::servers::{self, Servers};
use crate::up::setup::Setup;
use crate::up::{UpError, say};
use crate::worker::role::Plan;

/// What connects frontend, router and agents of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanesChoice {
    /// Memory of one process.
    Embedded,
    /// etcd and NATS, which are started too.
    Cluster,
}

impl PlanesChoice {
    /// Lets a choice pass that this program, this host and the configuration allow.
    ///
    /// # Errors
    /// When one of them does not.
    pub(crate) fn check(self, config: &Config) -> Result<(), UpError> {
        match self {
            Self::Embedded => Ok(()),
            Self::Cluster if !cfg!(feature = "etcd") => Err(UpError::NoEtcd),
            Self::Cluster if config.etcd.is_used() => Err(UpError::PlaneNamed {
                key: "etcd.endpoints",
            }),
            Self::Cluster if config.nats.is_used() => Err(UpError::PlaneNamed {
                key: "nats.servers",
            }),
            Self::Cluster => servers::check(),
        }
    }
}

/// What connects the parts of a box.
pub(crate) struct Wiring {
    pub(crate) routing: Routing,
    /// Reaches the engines.
    pub(crate) client: EngineClient,
    /// What the names of blocks are sealed with where they leave this process' memory.
    pub(crate) hash_key: Option<HashKey>,
    rack: Option<Rack>,
}

/// What a box has that runs as a rack does.
struct Rack {
    servers: Servers,
    /// With etcd and NATS named.
    config: Config,
    /// Those who follow the agents.
    followers: Tasks,
}

impl Wiring {
    /// Connects all in this process, or starts etcd and NATS to do it.
    ///
    /// # Errors
    /// When they cannot be had, or something configured for them cannot be used.
    pub(crate) async fn start(
        choice: PlanesChoice,
        (config, setup): (&Config, &Setup),
        run_dir: &Arc<RunDir>,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
    ) -> Result<Self, UpError> {
        if choice == PlanesChoice::Embedded {
            return Ok(Self {
                routing: Router::new(&config.router, metrics.clone()).into(),
                client: EngineClient::new(),
                hash_key: None,
                rack: None,
            });
        }
        let servers = Servers::launch(&config.engine, run_dir)?;
        // Who stops it meanwhile waits for no server; the rest is started and ended all the same.
        if let Some(Err(silent)) = stop.run_until_cancelled(servers.ready()).await {
            servers.end().await;
            return Err(silent);
        }
        say(servers.opening());
        let mut config = config.clone();
        servers.name_in(&mut config);
        let hash_key = hash_key(&config.cluster)?;
        let rules = Rules::of_model(&setup.name, Some(setup.model.digest()));
        let rules = rules.within(&config.discovery.networks);
        let rules = rules.sealed_by(hash_key.as_ref());
        let agents = (Sources::new(&config)?, EngineClient::new());
        let planes = Planes::start(&config, Arc::new(rules), agents, metrics).await?;
        Ok(Self {
            routing: planes.routing,
            client: planes.client,
            hash_key,
            rack: Some(Rack {
                servers,
                config,
                followers: planes.tasks,
            }),
        })
    }

    /// Whether agents have listeners of their own, with their commands.
    pub(crate) fn is_rack(&self) -> bool {
        self.rack.is_some()
    }

    /// Starts an agent beside each engine. Those of a rack keep their ledgers in the run's folder.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub(crate) fn agents(
        &mut self,
        setup: &Setup,
        engines: Vec<Attended>,
        run_dir: &RunDir,
        (gpu, metrics): (&GpuConfig, &Arc<Metrics>),
    ) -> Result<Agents, UpError> {
        let Some(rack) = &mut self.rack else {
            let around = (gpu, metrics);
            return Ok(Agents::start(setup, engines, &self.routing.local, around));
        };
        let plan = |engine: Attended| {
            let spec = engine.agent(setup);
            let mut config = rack.config.clone();
            config.worker.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            config.worker.advertise = None;
            config.worker.key_file = None;
            let kept = run_dir.path().join(format!("agent-{}", spec.worker));
            config.worker.state_dir = Some(kept);
            let plan = Plan::beside(spec, setup.archive.clone(), &config)?;
            Ok(Planned {
                plan,
                config,
                process: engine.process,
                restart: engine.restart,
            })
        };
        let plans: Result<Vec<_>, UpError> = engines.into_iter().map(plan).collect();
        let followers = std::mem::take(&mut rack.followers);
        Ok(Agents::on_planes(plans?, followers))
    }

    /// Waits for a part of it to end by itself.
    pub(crate) async fn next_end(&mut self) -> TaskEnd {
        match &mut self.rack {
            Some(rack) => rack.servers.next_end().await,
            None => std::future::pending().await,
        }
    }

    /// Ends what it started.
    pub(crate) async fn end(self) {
        if let Some(rack) = self.rack {
            rack.servers.end().await;
        }
    }
}
