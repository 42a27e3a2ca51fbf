//! The agents beside the engines, and what takes in what they say.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::config::Config;
use crate::config::gpu::GpuConfig;
use crate::engine::EngineProcess;
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::router::{self, Router, UPDATES_MAX};
use crate::telemetry::causes::told;
use crate::telemetry::metrics::Metrics;
use crate::up::setup::Setup;
use crate::worker;
use crate::worker::gpus::Gpus;
use crate::worker::gpus::restart::Restart;
use crate::worker::reset::Command;
use crate::worker::role;
use crate::worker::spec::{AgentSpec, ProcessState};

/// An engine with the ways to its agent.
pub(crate) struct Attended {
    pub(crate) process: EngineProcess,
    pub(crate) state: watch::Receiver<ProcessState>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Woken when the engine is to be restarted.
    pub(crate) restart: Arc<Notify>,
}

impl Attended {
    /// What its agent is told of it.
    pub(crate) fn agent(&self, setup: &Setup) -> AgentSpec {
        AgentSpec {
            restart: Restart::Asked(self.restart.clone()),
            ..setup.agent(&self.process.spec)
        }
    }
}

/// Restarts an engine whenever its agent wants it.
async fn restarts(process: &EngineProcess, wanted: &Notify) -> Infallible {
    loop {
        wanted.notified().await;
        process.restart();
    }
}

/// An agent that is to run as `kvlens worker` does, and its engine.
pub(crate) struct Planned {
    pub(crate) plan: role::Plan,
    pub(crate) config: Config,
    pub(crate) process: EngineProcess,
    pub(crate) restart: Arc<Notify>,
}

/// One agent beside each engine, and what takes in what they say.
pub(crate) struct Agents {
    agents: Tasks,
    agents_stop: CancellationToken,
    /// The router's task, or those who follow agents as on a rack.
    router: Tasks,
    /// `None` where it ends by being dropped.
    router_stop: Option<CancellationToken>,
}

impl Agents {
    /// Starts agents that tell the router in this process.
    pub(crate) fn start(
        setup: &Setup,
        engines: Vec<Attended>,
        router: &Arc<Router>,
        (config, metrics): (&GpuConfig, &Arc<Metrics>),
    ) -> Self {
        let (updates, received) = mpsc::channel(UPDATES_MAX);
        let stop = CancellationToken::new();
        let mut started = Self {
            agents: Tasks::default(),
            agents_stop: CancellationToken::new(),
            router: Tasks::default(),
            router_stop: Some(stop.clone()),
        };
        let run = router::run(router.clone(), received, stop);
        started.router.spawn("the router's task", run);
        for engine in engines {
            let mut spec = engine.agent(setup);
            spec.watched = Gpus::start(&spec, config, metrics);
            spec.process = Some(engine.state);
            let name = format!("the agent of {}", spec.worker);
            let stop = started.agents_stop.clone();
            let (metrics, updates) = (metrics.clone(), updates.clone());
            let mut commands = engine.commands;
            let (process, restart) = (engine.process, engine.restart);
            started.agents.spawn(name, async move {
                tokio::select! {
                    () = worker::run(spec, &mut commands, metrics, updates, stop) => {}
                    never = restarts(&process, &restart) => match never {},
                }
            });
        }
        started
    }

    /// Starts agents as `kvlens worker` runs them, which meet their `followers` in etcd and on NATS.
    pub(crate) fn on_planes(plans: Vec<Planned>, followers: Tasks) -> Self {
        let mut started = Self {
            agents: Tasks::default(),
            agents_stop: CancellationToken::new(),
            router: followers,
            router_stop: None,
        };
        for Planned {
            plan,
            config,
            process,
            restart,
        } in plans
        {
            let worker = plan.worker().clone();
            let stop = started.agents_stop.clone();
            started
                .agents
                .spawn(format!("the agent of {worker}"), async move {
                    let ended = tokio::select! {
                        ended = role::run(plan, config, stop) => ended,
                        never = restarts(&process, &restart) => match never {},
                    };
                    if let Err(error) = ended {
                        error!(%worker, error = told(&error), "agent failed");
                    }
                });
        }
        started
    }

    /// Waits for an agent or the router's task to end by itself.
    pub(crate) async fn next_end(&mut self) -> TaskEnd {
        tokio::select! {
            // First, because the agents end with it.
            biased;
            end = self.router.next_end() => end,
            end = self.agents.next_end() => end,
        }
    }

    /// Lets the agents sign off, then ends the router's task.
    ///
    /// # Errors
    /// The first that panicked.
    pub(crate) async fn end(self) -> Result<(), TaskEnd> {
        self.agents_stop.cancel();
        let signed_off = self.agents.end().await;
        match self.router_stop {
            Some(stop) => {
                stop.cancel();
                self.router.end().await.and(signed_off)
            }
            None => signed_off,
        }
    }
}
