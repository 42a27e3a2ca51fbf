//! The control socket of `kvlens engine`: how the engine is, and drain, undrain, restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::StatusCode;
use serde_json::json;
use tokio::sync::watch;
use tracing::info;

use crate::engine::gate::Gate;
use crate::engine::{EngineProcess, State};
use crate::http::reply::Reply;
use crate::http::{Answer, Call, Routes};
use crate::openai::error::{ApiError, ErrorKind};

/// How the engine is, and since when.
#[derive(Clone, Debug)]
pub struct Seen {
    pub state: State,
    /// When the state began.
    pub since: SystemTime,
    /// The number of the life that answered last; 0 before the first.
    pub life: u64,
    /// How the last life ended, and the end of what it wrote.
    pub end: Option<(String, Arc<[String]>)>,
}

impl Seen {
    /// An engine that is being started.
    pub fn starting() -> Self {
        Self {
            state: State::Starting,
            since: SystemTime::now(),
            life: 0,
            end: None,
        }
    }

    /// Takes in the engine's next state.
    pub fn take(&mut self, state: State) {
        match &state {
            State::Ready { life } => self.life = *life,
            State::Restarting {
                cause, last_lines, ..
            } => self.end = Some((cause.clone(), last_lines.clone())),
            State::Starting | State::Stopped => {}
        }
        self.since = SystemTime::now();
        self.state = state;
    }
}

/// What the control socket acts on.
#[derive(Debug)]
pub struct Control {
    pub process: EngineProcess,
    /// `None` where requests go to the engine directly.
    pub gate: Option<Arc<Gate>>,
    pub seen: watch::Receiver<Seen>,
    /// Longest wait for requests in flight.
    pub drain: Duration,
}

impl Control {
    /// Its routes; only the engine's owner reaches the socket.
    pub fn routes(self: Arc<Self>) -> Routes {
        Routes::default()
            .get("/status", self.on(Self::status))
            .post("/undrain", self.on(Self::undrain))
            .post("/restart", self.on(Self::restart))
            .post("/drain", move |_| {
                let control = self.clone();
                Box::pin(async move { control.drain().await })
            })
    }

    fn on(
        self: &Arc<Self>,
        handler: fn(&Self) -> Reply,
    ) -> impl Fn(Call) -> Answer + Send + Sync + 'static {
        let control = self.clone();
        move |_| {
            let reply = handler(&control);
            Box::pin(async move { reply })
        }
    }

    fn status(&self) -> Reply {
        let seen = self.seen.borrow().clone();
        let state = match seen.state {
            State::Starting => "starting",
            State::Ready { .. } => "ready",
            State::Restarting { .. } => "restarting",
            State::Stopped => "stopped",
        };
        let since = seen.since.duration_since(SystemTime::UNIX_EPOCH);
        let (cause, last_lines) = seen.end.unzip();
        let status = json!({
            "worker": self.process.spec.worker,
            "state": state,
            "life": seen.life,
            "since": since.unwrap_or_default().as_secs(),
            "draining": self.gate.as_ref().is_some_and(|gate| gate.is_draining()),
            "in_flight": self.gate.as_ref().map(|gate| gate.in_flight()),
            "cause": cause,
            "last_lines": last_lines.as_deref().unwrap_or_default(),
        });
        Reply::json(StatusCode::OK, &status)
    }

    async fn drain(&self) -> Reply {
        let Some(gate) = &self.gate else {
            return no_gate();
        };
        info!(in_flight = gate.in_flight(), "draining");
        gate.set_draining(true);
        let drained = tokio::time::timeout(self.drain, gate.idle()).await;
        let answer = json!({ "drained": drained.is_ok(), "in_flight": gate.in_flight() });
        Reply::json(StatusCode::OK, &answer)
    }

    fn undrain(&self) -> Reply {
        let Some(gate) = &self.gate else {
            return no_gate();
        };
        info!("taking requests again");
        gate.set_draining(false);
        Reply::json(StatusCode::OK, &json!({ "drained": false }))
    }

    fn restart(&self) -> Reply {
        info!(worker = %self.process.spec.worker, "told to restart the engine");
        self.process.restart();
        Reply::json(StatusCode::ACCEPTED, &json!({ "restarting": true }))
    }
}

fn no_gate() -> Reply {
    let message = "this engine has no gate (--listen), so that nothing can be held back from it";
    ApiError::new(409, ErrorKind::InvalidRequestError, "no_gate", message).into()
}
