//! The command lines of engines.

mod arguments;
mod podman;
mod refusal;
pub(crate) mod words;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use crate::block::BlockSize;
use crate::config::instance::Kind;
use crate::discovery::engine_file::KvEndpoints;
use crate::engine::command::words::{fill, find};
use crate::engine::probe::HEALTH;
use crate::engine::run_dir::RunDir;
use crate::engine::{EngineAddress, EngineError, Spec};
use crate::gpu::VISIBLE;
use crate::id::WorkerId;

/// Longest path of a unix socket: `sun_path` has 108 bytes, the last of them zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The word of a command that asks for a unix socket to listen on.
const UDS: &str = "{uds}";

/// What a worker's engine is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub worker: WorkerId,
    pub kind: Kind,
    /// The name it serves its model under.
    pub name: String,
    /// The model's folder; `None` takes the mock's own.
    pub model: Option<String>,
    pub listen: Listen,
    pub ranks: Ranks,
    /// Tokens of a KV-cache block; `None` leaves it to the engine. A command sets its own.
    pub block_size: Option<BlockSize>,
    /// GPUs that the engine may see, by their UUIDs; `None` leaves the choice to it. With podman as its
    /// devices are named here.
    pub gpus: Option<Vec<String>>,
    /// GPUs that are the engine's own, by their UUIDs, whether it is told of them or not.
    pub own_gpus: Vec<String>,
    /// A folder whose files the engine may read as images.
    pub media_dir: Option<PathBuf>,
    /// The image that podman runs it from; `None` runs a program of this host.
    pub image: Option<String>,
    /// Further arguments; for [`Kind::Command`] the whole command line.
    pub args: Vec<String>,
}

/// Where an engine is to answer HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a unix socket in the run folder.
    Socket,
    /// On a port of 127.0.0.1.
    Port(u16),
}

/// The data-parallel ranks of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// One, whose events go through sockets in the run folder.
    One,
    /// Several: the ports of rank 0 on 127.0.0.1, the next rank's following. vLLM publishes no
    /// rank but the first on a unix socket, and listens on a TCP port for all the world: so it
    /// connects to where the agent listens.
    Several {
        count: NonZeroU16,
        events_port: u16,
        replay_port: u16,
    },
}

impl Ranks {
    /// `count` ranks, several of which have ports from `events_port` and `replay_port` on.
    pub fn new(count: u16, events_port: u16, replay_port: u16) -> Self {
        match NonZeroU16::new(count) {
            Some(count) if count.get() > 1 => Self::Several {
                count,
                events_port,
                replay_port,
            },
            _ => Self::One,
        }
    }

    fn count(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Several { count, .. } => count.get(),
        }
    }
}

/// Whether an engine command asks for a unix socket to listen on.
pub fn wants_socket(command: &[String]) -> bool {
    command.iter().any(|word| word.contains(UDS))
}

impl Plan {
    /// The engine's command line, its sockets in `run_dir`.
    ///
    /// # Errors
    /// When the program is missing, the command or an argument is unusable or a socket's path is
    /// too long.
    pub fn spec(&self, run_dir: &RunDir) -> Result<Spec, EngineError> {
        self.check()?;
        let sources = self.sources(run_dir)?;
        let address = self.address(run_dir)?;
        // There is at least one rank.
        let first = &sources[0];
        let (program, args) = match self.kind {
            Kind::Mock => (own_program()?, self.mock_args(&address, first)),
            Kind::Vllm => {
                let args = self.vllm_args(&address, first);
                self.program(run_dir, ("vllm", VLLM), args)?
            }
            Kind::Command => {
                let (program, args) = self.command(run_dir, first)?;
                self.program(run_dir, (&program, COMMAND), args)?
            }
        };
        Ok(Spec {
            worker: self.worker.clone(),
            program,
            args,
            environment: self.environment(),
            withheld: match self.kind {
                // It opens routes that sleep, reset or run code in the engine.
                Kind::Vllm => vec!["VLLM_SERVER_DEV_MODE"],
                Kind::Mock | Kind::Command => Vec::new(),
            },
            address,
            health: HEALTH,
            sources,
            media_dir: self.media_dir.clone(),
            gpus: self.own_gpus.clone(),
        })
    }

    /// Lets arguments pass that the engine may be given.
    ///
    /// # Errors
    /// When one is ours to give.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self.kind {
            Kind::Vllm => refusal::check(&self.args),
            Kind::Mock | Kind::Command => Ok(()),
        }
    }

    fn address(&self, run_dir: &RunDir) -> Result<EngineAddress, EngineError> {
        match self.listen {
            Listen::Port(port) => Ok(EngineAddress::Tcp(SocketAddr::from((
                Ipv4Addr::LOCALHOST,
                port,
            )))),
            Listen::Socket => {
                let path = run_dir.socket(&self.worker, "http.sock");
                check_socket(&path)?;
                Ok(EngineAddress::Unix(path))
            }
        }
    }

    fn sources(&self, run_dir: &RunDir) -> Result<Vec<KvEndpoints>, EngineError> {
        match self.ranks {
            Ranks::One => Ok(vec![KvEndpoints {
                events: endpoint(&run_dir.socket(&self.worker, "kv"))?,
                bind: false,
                replay: endpoint(&run_dir.socket(&self.worker, "replay"))?,
            }]),
            Ranks::Several {
                count,
                events_port,
                replay_port,
            } => {
                let at = |first: u16, rank: u16| {
                    // A port over the last would be refused by the engine, by its number.
                    let port = u32::from(first) + u32::from(rank);
                    format!("tcp://127.0.0.1:{port}")
                };
                let source = |rank| KvEndpoints {
                    events: at(events_port, rank),
                    bind: true,
                    replay: at(replay_port, rank),
                };
                Ok((0..count.get()).map(source).collect())
            }
        }
    }

    /// The program to start and its arguments: its own, or podman's.
    fn program(
        &self,
        run_dir: &RunDir,
        (program, advice): (&str, &'static str),
        args: Vec<String>,
    ) -> Result<(PathBuf, Vec<String>), EngineError> {
        match &self.image {
            None => Ok((find(program, advice)?, args)),
            Some(image) => {
                let args = self.podman_args(image, run_dir.path(), (program, args));
                Ok((find("podman", PODMAN)?, args))
            }
        }
    }

    fn command(
        &self,
        run_dir: &RunDir,
        first: &KvEndpoints,
    ) -> Result<(String, Vec<String>), EngineError> {
        let port = match self.listen {
            Listen::Port(port) => port.to_string(),
            Listen::Socket => String::new(),
        };
        let socket = run_dir.socket(&self.worker, "http.sock");
        let socket = socket.display().to_string();
        let media = self.media_dir.as_ref();
        let media = media.map_or_else(String::new, |folder| folder.display().to_string());
        let ranks = self.ranks.count().to_string();
        let values = [
            ("{port}", port.as_str()),
            (UDS, socket.as_str()),
            ("{model}", self.model.as_deref().unwrap_or_default()),
            ("{name}", self.name.as_str()),
            ("{kv_events}", first.events.as_str()),
            ("{kv_replay}", first.replay.as_str()),
            ("{worker}", self.worker.as_str()),
            ("{ranks}", ranks.as_str()),
            ("{media_dir}", media.as_str()),
        ];
        let mut words = Vec::new();
        for word in &self.args {
            words.push(fill(word, &values)?);
        }
        let mut words = words.into_iter();
        let program = words.next().ok_or(EngineError::CommandEmpty)?;
        Ok((program, words.collect()))
    }

    fn environment(&self) -> Vec<(String, String)> {
        // Podman shows an engine its GPUs and no others.
        let gpus = self.gpus.iter().filter(|_| self.image.is_none());
        let gpus = gpus.map(|gpus| (VISIBLE, gpus.join(",")));
        // What a box serves is its owner's own affair.
        let quiet = [("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")]
            .map(|(name, text)| (name, text.to_owned()));
        let named = |(name, text): (&str, String)| (name.to_owned(), text);
        gpus.chain(quiet).map(named).collect()
    }
}

const COMMAND: &str = "name a program that exists, or give its path";
const PODMAN: &str = "install podman, or choose runtime = \"native\"";
const VLLM: &str = "install vLLM and activate its environment, or choose --engine mock or command";

fn own_program() -> Result<PathBuf, EngineError> {
    std::env::current_exe().map_err(|source| EngineError::OwnProgram { source })
}

fn endpoint(path: &Path) -> Result<String, EngineError> {
    check_socket(path)?;
    Ok(format!("ipc://{}", path.display()))
}

fn check_socket(path: &Path) -> Result<(), EngineError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(EngineError::SocketPath {
            path: path.display().to_string(),
            bytes,
            max: SOCKET_PATH_BYTES_MAX,
        });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(model: Option<&str>) -> Plan {
        Plan {
            worker: WorkerId::new("gpu-0").unwrap(),
            kind: Kind::Vllm,
            name: "org/model".to_owned(),
            model: model.map(str::to_owned),
            listen: Listen::Port(9000),
            ranks: Ranks::One,
            block_size: None,
            gpus: Some(vec!["GPU-1f".to_owned()]),
            own_gpus: vec!["GPU-1f".to_owned()],
            media_dir: None,
            image: None,
            args: vec!["--extra".to_owned()],
        }
    }

    pub(crate) fn run_dir() -> (tempfile::TempDir, RunDir) {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::create(Some(base.path())).unwrap();
        (base, run_dir)
    }

    #[test]
    fn a_socket_path_that_does_not_fit_is_refused() {
        let fits = format!("/{}", "x".repeat(106));
        assert_eq!(endpoint(Path::new(&fits)).unwrap(), format!("ipc://{fits}"));
        let error = endpoint(Path::new(&format!("{fits}x"))).unwrap_err();
        assert!(error.to_string().contains("engine.run_dir"), "{error}");
    }
}
