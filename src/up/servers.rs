//! etcd and NATS of one box, as child processes on loopback: cared for as engines are, and logged so
//! by their names.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::config::engine::EngineConfig;
use crate::engine::command::words::find;
use crate::engine::run_dir::RunDir;
use crate::engine::{EngineAddress, EngineProcess, Launcher, Spec, free_ports};
use crate::id::WorkerId;
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::up::{UpError, progress};

/// Longest wait until both answer: a loaded machine takes seconds.
const READY_MAX: Duration = Duration::from_secs(30);

const ETCD: &str = "etcd";
const NATS: &str = "nats";

const ETCD_PROGRAM: &str = "etcd";
const NATS_PROGRAM: &str = "nats-server";

const ETCD_ADVICE: &str = "--planes cluster starts it: install it (Debian: etcd-server; with Nix, nix run \
    has it), or leave --planes out";
const NATS_ADVICE: &str = "--planes cluster starts it: install it (Debian: nats-server; with Nix, nix run \
    has it), or leave --planes out";

/// Those that etcd would take from our environment beside our flags, and refuse for it.
const ETCD_VARIABLES: [&str; 12] = [
    "ETCD_CONFIG_FILE",
    "ETCD_NAME",
    "ETCD_DATA_DIR",
    "ETCD_LISTEN_CLIENT_URLS",
    "ETCD_ADVERTISE_CLIENT_URLS",
    "ETCD_LISTEN_PEER_URLS",
    "ETCD_INITIAL_ADVERTISE_PEER_URLS",
    "ETCD_INITIAL_CLUSTER",
    "ETCD_LOG_LEVEL",
    "ETCD_LOGGER",
    "ETCD_HEARTBEAT_INTERVAL",
    "ETCD_ELECTION_TIMEOUT",
];

/// The two, running. Dropped, they end.
#[derive(Debug)]
pub(crate) struct Servers {
    etcd_url: String,
    nats_url: String,
    /// What etcd keeps, for as long as this run.
    folder: PathBuf,
    processes: [EngineProcess; 2],
    launcher: Launcher,
    said: Tasks,
    _end: DropGuard,
}

/// Lets a host pass that has both programs.
///
/// # Errors
/// When one is missing.
pub(crate) fn check() -> Result<(), UpError> {
    find(ETCD_PROGRAM, ETCD_ADVICE)?;
    find(NATS_PROGRAM, NATS_ADVICE)?;
    Ok(())
}

impl Servers {
    /// Starts both, each again whenever it ends.
    ///
    /// # Errors
    /// When a program is missing, or there is no free port.
    pub(crate) fn launch(config: &EngineConfig, run_dir: &Arc<RunDir>) -> Result<Self, UpError> {
        let ports = free_ports(4)?;
        let folder = run_dir.path().join(ETCD);
        let specs = [
            etcd((ports[0], ports[1]), &folder)?,
            nats((ports[2], ports[3]))?,
        ];
        let launcher = Launcher {
            config: patience(config),
            run_dir: run_dir.clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let processes = specs.map(|spec| launcher.launch(spec));
        let (said, _) = progress::follow(&processes, None);
        Ok(Self {
            etcd_url: format!("http://{}", local(ports[0])),
            nats_url: format!("nats://{}", local(ports[2])),
            folder,
            processes,
            _end: launcher.stop.clone().drop_guard(),
            launcher,
            said,
        })
    }

    /// Waits until both answer.
    ///
    /// # Errors
    /// When one does not in time.
    pub(crate) async fn ready(&self) -> Result<(), UpError> {
        let until = tokio::time::Instant::now() + READY_MAX;
        for process in &self.processes {
            let mut process = process.clone();
            if tokio::time::timeout_at(until, process.ready())
                .await
                .is_err()
            {
                return Err(UpError::ServerSilent {
                    name: process.spec.worker,
                    waited: READY_MAX,
                });
            }
        }
        Ok(())
    }

    /// The configuration of whoever is to meet here.
    pub(crate) fn name_in(&self, config: &mut Config) {
        config.etcd.endpoints = vec![self.etcd_url.clone()];
        config.nats.servers = vec![self.nats_url.clone()];
    }

    /// For a person: where they are, what is kept, and how to look at what is told there.
    pub(crate) fn opening(&self) -> impl Display {
        let Self {
            etcd_url, nats_url, ..
        } = self;
        format!(
            "etcd at {etcd_url}, what it keeps is in {} until this ends; NATS at {nats_url}\n\
             both are open to every user of this machine; what is told there: kvlens doctor --etcd {etcd_url} --nats {nats_url}",
            self.folder.display()
        )
    }

    /// Waits for what follows them to end by itself.
    pub(crate) async fn next_end(&mut self) -> TaskEnd {
        self.said.next_end().await
    }

    /// Ends both.
    pub(crate) async fn end(self) {
        self.launcher.stop.cancel();
        self.launcher.tasks.close();
        self.launcher.tasks.wait().await;
    }
}

/// They start in tenths of a second, and a box is worse off without them than with one more try.
fn patience(config: &EngineConfig) -> EngineConfig {
    EngineConfig {
        ready_secs: 30,
        probe_millis: 20,
        watch_millis: 1_000,
        watch_deadline_millis: 5_000,
        watch_failures_max: 5,
        backoff_first_millis: 200,
        backoff_max_secs: 5,
        backoff_reset_secs: 60,
        grace_secs: 5,
        ..config.clone()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A member alone in its cluster.
fn etcd((clients, peers): (u16, u16), folder: &Path) -> Result<Spec, UpError> {
    let (clients, peers) = (local(clients), local(peers));
    let (for_clients, for_peers) = (format!("http://{clients}"), format!("http://{peers}"));
    let flags = [
        ("--name", ETCD.to_owned()),
        ("--data-dir", folder.display().to_string()),
        ("--listen-client-urls", for_clients.clone()),
        ("--advertise-client-urls", for_clients),
        ("--listen-peer-urls", for_peers.clone()),
        ("--initial-advertise-peer-urls", for_peers.clone()),
        ("--initial-cluster", format!("{ETCD}={for_peers}")),
        ("--log-level", "error".to_owned()),
        // Else the voting is told at any level.
        ("--logger", "zap".to_owned()),
        // Nobody else votes.
        ("--heartbeat-interval", "20".to_owned()),
        ("--election-timeout", "200".to_owned()),
    ];
    let words = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    Ok(Spec {
        // Older ones run on arm64 only where they are told to.
        environment: vec![("ETCD_UNSUPPORTED_ARCH".to_owned(), "arm64".to_owned())],
        withheld: ETCD_VARIABLES.to_vec(),
        ..spec(
            ETCD,
            (ETCD_PROGRAM, ETCD_ADVICE),
            (clients, "/health"),
            words,
        )?
    })
}

/// A server that keeps nothing, and says on a port of its own how it is.
fn nats((clients, figures): (u16, u16)) -> Result<Spec, UpError> {
    let host = Ipv4Addr::LOCALHOST.to_string();
    let flags = [
        ("--addr", host),
        ("--port", clients.to_string()),
        ("--http_port", figures.to_string()),
    ];
    let words = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    let asked = (local(figures), "/healthz");
    spec(NATS, (NATS_PROGRAM, NATS_ADVICE), asked, words)
}

fn spec(
    name: &str,
    (program, advice): (&str, &'static str),
    (address, health): (SocketAddr, &'static str),
    args: impl Iterator<Item = String>,
) -> Result<Spec, UpError> {
    let worker = WorkerId::new(name).map_err(|source| UpError::Worker {
        worker: name.to_owned(),
        source,
    })?;
    Ok(Spec {
        worker,
        program: find(program, advice)?,
        args: args.collect(),
        environment: Vec::new(),
        withheld: Vec::new(),
        address: EngineAddress::Tcp(address),
        health,
        sources: Vec::new(),
        media_dir: None,
        gpus: Vec::new(),
    })
}
