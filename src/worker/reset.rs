//! Resets of engines' prefix caches that go through their agents, which forget the blocks at once:
//! an engine itself says so only with its next step.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use ::http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::http::reply::Reply;
use crate::http::{Answer, Call};
use crate::id::WorkerId;
use crate::openai::error::{ApiError, ErrorKind};
use crate::worker::follow::Order;
use crate::worker::probe::{Probe, ResetError};

/// The path of resets.
pub const PATH: &str = "/kvlens/v1/reset";

/// Most commands that wait for an agent; it takes them one by one.
const COMMANDS_MAX: usize = 16;

/// What an agent may be told to do.
#[derive(Debug)]
pub enum Command {
    /// Have the engine forget its blocks, and forget them too.
    Reset {
        reply: oneshot::Sender<Result<(), ResetError>>,
    },
}

/// A way to each agent.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    commands: BTreeMap<WorkerId, mpsc::Sender<Command>>,
}

impl Agents {
    /// Opens the way to one more agent; the agent takes the commands that come from it.
    pub fn add(&mut self, worker: WorkerId) -> mpsc::Receiver<Command> {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        self.commands.insert(worker, sender);
        commands
    }

    /// What answers `POST /kvlens/v1/reset`.
    pub fn handler(self) -> Box<dyn Fn(Call) -> Answer + Send + Sync> {
        let agents = Arc::new(self);
        Box::new(move |call| {
            let agents = agents.clone();
            Box::pin(async move { agents.answer(&call).await.unwrap_or_else(Reply::from) })
        })
    }

    async fn answer(&self, call: &Call) -> Result<Reply, ApiError> {
        let worker = self.asked(&call.body)?;
        match self.reset(worker).await {
            Ok(()) => Ok(Reply::json(StatusCode::OK, &json!({"worker": worker}))),
            Err(error) => {
                let (status, code) = match error {
                    ResetError::Missing => (501, "not_supported"),
                    ResetError::InUse => (409, "in_use"),
                    _ => (502, "engine_failed"),
                };
                let message = format!("worker {worker}: {error}");
                Err(ApiError::new(status, ErrorKind::ServerError, code, message))
            }
        }
    }

    /// The worker that a body names; with one agent alone, it need not.
    fn asked(&self, body: &[u8]) -> Result<&WorkerId, ApiError> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            worker: Option<String>,
        }
        let body = match body {
            [] => Body::default(),
            body => serde_json::from_slice(body)
                .map_err(|error| ApiError::invalid("invalid_json", "body", error.to_string()))?,
        };
        let mut workers = self.commands.keys();
        let found = match (&body.worker, self.commands.len()) {
            (Some(name), _) => workers.find(|worker| worker.as_str() == name),
            (None, 1) => workers.next(),
            (None, _) => {
                let message = "worker says whose cache is reset";
                return Err(ApiError::invalid("missing_field", "worker", message));
            }
        };
        found.ok_or_else(|| {
            let name = body.worker.unwrap_or_default();
            let message = format!("there is no worker {name:?}");
            let kind = ErrorKind::InvalidRequestError;
            ApiError::new(404, kind, "worker_not_found", message)
        })
    }

    async fn reset(&self, worker: &WorkerId) -> Result<(), ResetError> {
        let gone = || ResetError::NoAgent {
            worker: worker.to_string(),
        };
        let commands = self.commands.get(worker).ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        let sent = commands.send(Command::Reset { reply }).await;
        sent.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Does what an agent is told, one command after the other.
pub async fn serve(
    worker: &WorkerId,
    commands: &mut mpsc::Receiver<Command>,
    probe: &Probe,
    ranks: &[mpsc::Sender<Order>],
) -> Infallible {
    while let Some(Command::Reset { reply }) = commands.recv().await {
        // Who asked has gone away while no engine was there: the next one's blocks are not meant.
        if reply.is_closed() {
            continue;
        }
        order(ranks, Order::ExpectClearing).await;
        let outcome = probe.reset_prefix_cache().await;
        let is_done = outcome.is_ok();
        order(ranks, Order::SettleClearing { is_done }).await;
        match &outcome {
            Ok(()) => info!(%worker, "prefix cache reset"),
            Err(error) => warn!(%worker, %error, "prefix cache not reset"),
        }
        // Who asked may have gone away meanwhile.
        let _ = reply.send(outcome);
    }
    std::future::pending().await
}

async fn order(ranks: &[mpsc::Sender<Order>], order: Order) {
    for rank in ranks {
        // One whose task has ended has nothing to forget.
        let _ = rank.send(order).await;
    }
}
