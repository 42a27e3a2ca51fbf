//! Engines that run as our child processes: how they are called, watched, restarted and ended.

pub mod backoff;
pub mod command;
pub mod control;
mod entrance;
pub mod flags;
pub mod gate;
mod leftover;
mod output;
mod port;
mod probe;
mod process;
pub mod requests;
pub mod role;
pub mod run_dir;
mod standing;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::engine::EngineConfig;
use crate::discovery::engine_file::KvEndpoints;
use crate::engine::process::Supervisor;
use crate::engine::run_dir::RunDir;
use crate::id::WorkerId;

/// One engine to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub worker: WorkerId,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Set in addition to our own environment.
    pub environment: Vec<(String, String)>,
    /// Variables of our own environment that the engine does not get.
    pub withheld: Vec<&'static str>,
    /// Where the engine answers HTTP.
    pub address: EngineAddress,
    /// What it is asked there to know how it is.
    pub health: &'static str,
    /// Where each of its ranks publishes and replays KV events, rank 0 first.
    pub sources: Vec<KvEndpoints>,
    /// A folder whose files the engine may read as images.
    pub media_dir: Option<PathBuf>,
    /// The GPUs that are its own, by their UUIDs.
    pub gpus: Vec<String>,
}

/// Where an engine answers HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why an engine cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("program {program:?} is not found in PATH; {advice}")]
    ProgramMissing {
        program: String,
        advice: &'static str,
    },
    #[error("engine command is empty; put it after --, as: -- my-engine --port {{port}}")]
    CommandEmpty,
    #[error("engine command has {placeholder:?}, which is none of {known}")]
    Placeholder { placeholder: String, known: String },
    #[error(
        "socket path {path:?} has {bytes} bytes, more than the {max} a unix socket may have; set engine.run_dir to a folder with a shorter path"
    )]
    SocketPath {
        path: String,
        bytes: usize,
        max: usize,
    },
    #[error("engine argument {argument:?} is refused: {reason}")]
    Argument {
        argument: String,
        reason: &'static str,
    },
    #[error("own executable cannot be found")]
    OwnProgram { source: std::io::Error },
    #[error("no free port on 127.0.0.1")]
    Port { source: std::io::Error },
}

impl EngineError {
    /// Whether it stays until somebody changes the command line or the host.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::OwnProgram { .. } | Self::Port { .. })
    }
}

/// How an engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its process runs but does not answer yet.
    Starting,
    /// It answers. `life` counts its processes from 1: another life holds none of the blocks the
    /// former held.
    Ready { life: u64 },
    /// It ended, or was ended, and is started again.
    Restarting {
        after: Duration,
        /// How it ended.
        cause: String,
        /// The end of what it wrote.
        last_lines: Arc<[String]>,
    },
    /// It was stopped for good.
    Stopped,
}

/// An engine under our care; it ends with the launcher's `stop`.
#[derive(Clone, Debug)]
pub struct EngineProcess {
    pub spec: Spec,
    /// How the engine is; closed once it is stopped.
    pub state: watch::Receiver<State>,
    restart: Arc<Notify>,
}

impl EngineProcess {
    /// Waits until the engine answers; false when it is stopped first.
    pub async fn ready(&mut self) -> bool {
        let settled = |state: &State| matches!(state, State::Ready { .. } | State::Stopped);
        let state = self.state.wait_for(settled).await;
        state.is_ok_and(|state| matches!(*state, State::Ready { .. }))
    }

    /// Has the engine ended and started again, at once where it waits to be.
    pub fn restart(&self) {
        self.restart.notify_one();
    }
}

/// Starts engines and keeps them running until `stop`.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub config: EngineConfig,
    /// Holds the sockets and process ids of this run.
    pub run_dir: Arc<RunDir>,
    /// The tasks that watch the engines: wait for them, so that every engine has ended.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Launcher {
    /// Starts an engine, and starts it again whenever it ends.
    pub fn launch(&self, spec: Spec) -> EngineProcess {
        let (sender, state) = watch::channel(State::Starting);
        let restart = Arc::new(Notify::new());
        let supervisor = Supervisor {
            spec: spec.clone(),
            config: self.config.clone(),
            run_dir: Arc::clone(&self.run_dir),
            state: sender,
            restart: restart.clone(),
            stop: self.stop.clone(),
        };
        self.tasks.spawn(supervisor.run());
        EngineProcess {
            spec,
            state,
            restart,
        }
    }
}

/// Finds as many free ports on 127.0.0.1, all different. Nothing keeps them free: while an
/// engine's port is taken the engine is not started, its state says so, and it is tried again.
///
/// # Errors
/// When the system has none left.
pub fn free_ports(count: usize) -> Result<Vec<u16>, EngineError> {
    free_port_runs(count, 1)
}

/// The same for `runs` runs of `length` ports in a row; the first port of each.
///
/// # Errors
/// When the system has none left.
pub fn free_port_runs(runs: usize, length: u16) -> Result<Vec<u16>, EngineError> {
    port::free_runs(runs, length).map_err(|source| EngineError::Port { source })
}
