//! How an agent has its engine restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::discovery::engine_file::{self, CONTROL_SOCKET};
use crate::dispatch::{EngineClient, EngineRequest};
use crate::id::{RequestId, WorkerId};
use crate::telemetry::metrics::Metrics;

/// It answers before it does it.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Wait before an engine that could not be told is told again; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How an engine is told to restart.
#[derive(Clone, Debug)]
pub enum Restart {
    /// It is somebody else's.
    Foreign,
    /// By the control socket of `kvlens engine`, as `unix:/path`.
    Control(String),
    /// By whoever runs it in this process.
    Asked(Arc<Notify>),
}

impl Restart {
    /// That of the engine which `kvlens engine` runs for `worker`, below `run_dir`.
    pub(crate) fn of_engine(run_dir: Option<&Path>, worker: &WorkerId) -> Self {
        let socket = engine_file::folder(run_dir, worker).join(CONTROL_SOCKET);
        Self::Control(format!("unix:{}", socket.display()))
    }

    async fn tell(self) -> Result<(), String> {
        match self {
            Self::Foreign => Err("it is not ours".to_owned()),
            Self::Asked(notify) => {
                notify.notify_one();
                Ok(())
            }
            Self::Control(address) => {
                let told = timeout(ANSWER_MAX, ask(&address)).await;
                told.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}")))
            }
        }
    }
}

async fn ask(address: &str) -> Result<(), String> {
    let request = EngineRequest {
        path: "/restart",
        id: &RequestId::from_bits(uuid::Uuid::new_v4().as_u128()),
        rank: None,
        body: String::new().into(),
    };
    let answer = EngineClient::new().send(address, request).await;
    match answer.map_err(|error| error.to_string())?.status {
        status if status.is_success() => Ok(()),
        status => Err(format!("its control socket answered {status}")),
    }
}

/// The restarts of one engine: one for all its GPUs that want it.
#[derive(Debug)]
pub(super) struct Restarts {
    worker: WorkerId,
    restart: Restart,
    metrics: Arc<Metrics>,
    wish: Wish,
    telling: JoinSet<Result<(), String>>,
}

#[derive(Debug)]
enum Wish {
    None,
    /// It is to be told then, and if that fails after `again`.
    Wanted {
        at: Instant,
        again: Duration,
    },
    /// It was told, or cannot be; until another life of it is seen.
    Told {
        was_away: bool,
    },
}

impl Restarts {
    pub(super) fn new(worker: WorkerId, restart: Restart, metrics: Arc<Metrics>) -> Self {
        Self {
            worker,
            restart,
            metrics,
            wish: Wish::None,
            telling: JoinSet::new(),
        }
    }

    /// Wants the engine restarted, unless that was told and is under way.
    pub(super) fn want(&mut self, is_allowed: bool) {
        if !matches!(self.wish, Wish::None) {
            return;
        }
        let reason = match (&self.restart, is_allowed) {
            (_, false) => "gpu.restart_engine is false",
            (Restart::Foreign, true) => "kvlens does not run it",
            (_, true) => {
                self.wish = Wish::Wanted {
                    at: Instant::now(),
                    again: AGAIN_FIRST,
                };
                return;
            }
        };
        error!(worker = %self.worker, reason, "engine must be restarted by hand");
        self.wish = Wish::Told { was_away: false };
    }

    /// Tells the engine when it is time, and notes whether it is there.
    pub(super) fn look(&mut self, is_there: bool) {
        match &mut self.wish {
            Wish::None => {}
            Wish::Told { was_away } if is_there && *was_away => self.wish = Wish::None,
            Wish::Told { was_away } => *was_away |= !is_there,
            Wish::Wanted { at, .. } if *at <= Instant::now() && self.telling.is_empty() => {
                self.telling.spawn(self.restart.clone().tell());
            }
            Wish::Wanted { .. } => {}
        }
    }

    /// Waits until the engine was told, or was not; never returns where nobody tells it.
    pub(super) async fn told(&mut self) {
        let Some(told) = self.telling.join_next().await else {
            return std::future::pending().await;
        };
        let told = told.unwrap_or_else(|error| Err(error.to_string()));
        let worker = &self.worker;
        match (told, &mut self.wish) {
            (Ok(()), wish) => {
                warn!(%worker, "engine is restarted for its gpu's sake");
                self.metrics.gpu_engine_restarts.inc();
                *wish = Wish::Told { was_away: false };
            }
            (Err(reason), Wish::Wanted { at, again }) => {
                error!(%worker, reason, "engine must be restarted, and cannot be told");
                *at = Instant::now() + *again;
                *again = (*again * 2).min(AGAIN_MAX);
            }
            (Err(_), Wish::None | Wish::Told { .. }) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(restart: Restart) -> Restarts {
        let worker = WorkerId::new("gpu-0").unwrap();
        Restarts::new(worker, restart, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_is_restarted_once_for_all_its_gpus() {
        let asked = Arc::new(Notify::new());
        let mut restarts = restarts(Restart::Asked(asked.clone()));
        for _ in 0..2 {
            // The other GPU wants it too, before and after it was told.
            restarts.want(true);
            restarts.look(true);
            if !restarts.telling.is_empty() {
                restarts.told().await;
            }
        }
        asked.notified().await;
        assert_eq!(restarts.metrics.gpu_engine_restarts.get(), 1);
        for is_there in [false, true] {
            restarts.look(is_there);
        }
        restarts.want(true);
        restarts.look(true);
        restarts.told().await;
        assert_eq!(
            restarts.metrics.gpu_engine_restarts.get(),
            2,
            "another life"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_told_is_told_again() {
        let socket = Restart::Control("unix:/nonexistent/control.sock".to_owned());
        let mut restarts = restarts(socket);
        restarts.want(true);
        for _ in 0..2 {
            restarts.look(true);
            restarts.told().await;
            restarts.look(true);
            assert!(restarts.telling.is_empty(), "not at once");
            tokio::time::advance(AGAIN_MAX).await;
        }
        restarts.look(true);
        assert!(!restarts.telling.is_empty());
        assert_eq!(restarts.metrics.gpu_engine_restarts.get(), 0);
    }

    #[tokio::test]
    async fn what_must_not_be_restarted_is_not() {
        for (restart, is_allowed) in [
            (Restart::Foreign, true),
            (Restart::Asked(Arc::default()), false),
        ] {
            let mut restarts = restarts(restart);
            restarts.want(is_allowed);
            restarts.look(true);
            assert!(restarts.telling.is_empty(), "{is_allowed}");
        }
    }
}
