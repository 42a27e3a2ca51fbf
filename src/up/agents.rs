//! The agents beside the engines, and the router's task.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::engine::EngineProcess;
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::router::{self, Router, UPDATES_MAX};
use crate::telemetry::metrics::Metrics;
use crate::up::setup::Setup;
use crate::worker;
use crate::worker::reset::Command;
use crate::worker::spec::ProcessState;

/// An engine with the ways to its agent.
pub(crate) struct Attended {
    pub(crate) process: EngineProcess,
    pub(crate) state: watch::Receiver<ProcessState>,
    pub(crate) commands: mpsc::Receiver<Command>,
}

/// One agent beside each engine, and the router's task that takes in what they say.
pub(crate) struct Agents {
    agents: Tasks,
    agents_stop: CancellationToken,
    router: Tasks,
    router_stop: CancellationToken,
}

impl Agents {
    pub(crate) fn start(
        setup: &Setup,
        engines: Vec<Attended>,
        router: &Arc<Router>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (updates, received) = mpsc::channel(UPDATES_MAX);
        let mut started = Self {
            agents: Tasks::default(),
            agents_stop: CancellationToken::new(),
            router: Tasks::default(),
            router_stop: CancellationToken::new(),
        };
        let stop = started.router_stop.clone();
        let run = router::run(router.clone(), received, stop);
        started.router.spawn("the router's task", run);
        for engine in engines {
            let mut spec = setup.agent(&engine.process.spec);
            spec.process = Some(engine.state);
            let name = format!("the agent of {}", spec.worker);
            let stop = started.agents_stop.clone();
            let (metrics, updates) = (metrics.clone(), updates.clone());
            let mut commands = engine.commands;
            started.agents.spawn(name, async move {
                worker::run(spec, &mut commands, metrics, updates, stop).await;
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
        self.router_stop.cancel();
        self.router.end().await.and(signed_off)
    }
}
