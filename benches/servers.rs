//! What a rack needs beside kvlens, on loopback: NATS and etcd, each as its own process, killed when
//! dropped. And a router as its own process.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvlens::bus::Bus;
use kvlens::config::etcd::EtcdConfig;
use kvlens::config::nats::NatsConfig;
use tempfile::TempDir;

/// Longest time that anything takes to come up on a loaded machine.
pub(crate) const UP_MAX: Duration = Duration::from_secs(20);

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A server that answers.
pub(crate) struct Server {
    _process: Killed,
    port: u16,
    /// What it keeps.
    _folder: TempDir,
}

impl Server {
    /// `None` where it is not installed.
    pub(crate) fn nats() -> Option<Self> {
        let port = free_port();
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
        Self::start(command, port, folder())
    }

    /// `None` where it is not installed.
    pub(crate) fn etcd() -> Option<Self> {
        let (port, peer_port, folder) = (free_port(), free_port(), folder());
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut command = Command::new("etcd");
        command
            .args(["--name", "rack", "--log-level", "error"])
            .arg("--data-dir")
            .arg(folder.path())
            .args(["--listen-client-urls", &url(port)])
            .args(["--advertise-client-urls", &url(port)])
            .args(["--listen-peer-urls", &url(peer_port)])
            .args(["--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("rack={}", url(peer_port))])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        Self::start(command, port, folder)
    }

    fn start(mut command: Command, port: u16, folder: TempDir) -> Option<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            started => Killed(started.expect("it can be started")),
        };
        until("a server answers", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        Some(Self {
            _process: process,
            port,
            _folder: folder,
        })
    }

    fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How clients of it are configured, where it is etcd.
    pub(crate) fn etcd_config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.etcd_url()],
            ..EtcdConfig::default()
        }
    }

    /// A connection of kvlens's own, where it is NATS.
    pub(crate) async fn bus(&self, name: &str) -> Bus {
        let config = NatsConfig {
            servers: vec![self.nats_url()],
            ..NatsConfig::default()
        };
        let bus = Bus::connect(&config, name).await.expect("an address");
        while !bus.is_up() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bus
    }

    /// A bare connection, where it is NATS.
    pub(crate) async fn bare(&self) -> async_nats::Client {
        let client = async_nats::connect(self.nats_url()).await;
        client.expect("it answers")
    }
}

/// Waits for something that comes about soon.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let latest = Instant::now() + UP_MAX;
    while !is_so() {
        assert!(Instant::now() < latest, "not within {UP_MAX:?}: {what}");
        sleep(Duration::from_millis(1));
    }
}

/// In memory: what a disk takes to sync is not what is measured.
fn folder() -> TempDir {
    let made = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
    made.expect("a temporary folder")
}

fn free_port() -> u16 {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    free.local_addr().expect("it is bound").port()
}

/// `kvlens router`, named `rack`.
pub(crate) struct Routing {
    process: Killed,
    /// Its admin listener.
    pub(crate) admin: String,
    pub(crate) started: Instant,
}

impl Routing {
    pub(crate) const ID: &str = "rack";

    pub(crate) fn start(nats: &Server, etcd: &Server) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let log = tempfile::tempfile().expect("a temporary file");
        let started = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_kvlens"))
            .args(["router", "--id", Self::ID, "--admin", &admin])
            .args(["--nats", &nats.nats_url(), "--etcd", &etcd.etcd_url()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("kvlens starts");
        Self {
            process: Killed(process),
            admin: format!("http://{admin}"),
            started,
        }
    }

    /// CPU time that all its threads have used.
    pub(crate) fn cpu_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.0.id()));
        let nanos = tasks.into_iter().flatten().flatten().filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }
}
