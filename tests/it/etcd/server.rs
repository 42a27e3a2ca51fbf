//! A real etcd of one member, which can be killed, stopped and started again.

use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Longest time that a member takes to start on a loaded machine.
const START_MAX: Duration = Duration::from_secs(20);

/// How the member's listener is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    Plain,
    /// With the certificate of this file below `tests/golden/tls`.
    Tls(&'static str),
    /// The same, and clients show one too.
    MutualTls(&'static str),
}

pub(crate) struct Server {
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    peer_port: u16,
    protection: Protection,
}

impl Server {
    /// Starts a member that answers.
    pub(crate) async fn start(protection: Protection) -> Self {
        // Held until both are known, so that they are two.
        let free = [(); 2].map(|()| StdListener::bind("127.0.0.1:0").expect("a port is free"));
        let [port, peer_port] = free.map(|free| free.local_addr().expect("it listens").port());
        let mut server = Self {
            child: None,
            folder: TempDir::new().expect("a folder can be made"),
            port,
            peer_port,
            protection,
        };
        server.again().await;
        server
    }

    /// Starts the member again where it was, and waits until it answers.
    pub(crate) async fn again(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log can be made");
        let mut command = Command::new("etcd");
        command
            .args(["--name", "one", "--log-level", "error"])
            // A member alone need not wait long for the others to elect it.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &self.peer_url()])
            .args(["--initial-advertise-peer-urls", &self.peer_url()])
            .args(["--initial-cluster", &format!("one={}", self.peer_url())])
            .args(self.tls_arguments())
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().expect("etcd is installed"));
        let answers = async {
            while !self.answers().await {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let started = timeout(START_MAX, answers).await;
        assert!(started.is_ok(), "etcd did not start");
    }

    async fn answers(&self) -> bool {
        if self.protection != Protection::Plain {
            let address = ("127.0.0.1", self.port);
            return tokio::net::TcpStream::connect(address).await.is_ok();
        }
        match Client::connect([self.url()], None).await {
            // It needs the leader, unlike a status.
            Ok(mut client) => client.get("/", None).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it was started");
            child.wait().expect("it was started");
        }
    }

    /// Loses all data of a member that does not run.
    pub(crate) fn lose_data(&self) {
        assert!(self.child.is_none(), "it runs");
        std::fs::remove_dir_all(self.data()).expect("it had data");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it runs");
    }

    pub(crate) fn url(&self) -> String {
        let scheme = match self.protection {
            Protection::Plain => "http",
            _ => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A client of its own, for what others do there.
    pub(crate) async fn client(&self) -> Client {
        let client = Client::connect([self.url()], None).await;
        client.expect("a client connects when it is used")
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn tls_arguments(&self) -> Vec<String> {
        let golden = |name: &str| golden_tls(name).display().to_string();
        let (certificate, mutual) = match self.protection {
            Protection::Plain => return Vec::new(),
            Protection::Tls(file) => (file, false),
            Protection::MutualTls(file) => (file, true),
        };
        let mut arguments = vec![
            format!("--cert-file={}", golden(certificate)),
            format!("--key-file={}", golden("member.key.pem")),
        ];
        if mutual {
            arguments.push("--client-cert-auth".to_owned());
            arguments.push(format!("--trusted-ca-file={}", golden("ca.pem")));
        }
        arguments
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file below `tests/golden/tls`.
pub(crate) fn golden_tls(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tls");
    folder.join(name)
}
