//! A NATS server of the test's own.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvlens::bus::Bus;
use kvlens::config::nats::NatsConfig;
use kvlens::config::router::RouterConfig;
use kvlens::dispatch::EngineClient;
use kvlens::router::Router;
use kvlens::router::feed::Feeds;
use kvlens::router::rules::Rules;
use kvlens::telemetry::metrics::Metrics;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::end_to_end::stack::until;
use crate::feed::parties::{Agent, name};

/// Dropped, it is killed.
pub(crate) struct Server {
    port: u16,
    process: Child,
    /// Its configuration, for as long as it runs.
    _rules: Option<tempfile::NamedTempFile>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::at(free_port(), None).await
    }

    /// One with this in its configuration.
    pub(crate) async fn configured(rules: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a folder for it");
        std::fs::write(file.path(), rules).expect("it is ours");
        Self::at(free_port(), Some(file)).await
    }

    async fn at(port: u16, rules: Option<tempfile::NamedTempFile>) -> Self {
        let server = Self {
            port,
            process: spawn(port, rules.as_ref().map(tempfile::NamedTempFile::path)),
            _rules: rules,
        };
        let answers = async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
        };
        until("nats answers", answers).await;
        server
    }

    pub(crate) async fn kill(mut self) -> u16 {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it is ours");
        self.port
    }

    pub(crate) async fn again(port: u16) -> Self {
        Self::at(port, None).await
    }

    pub(crate) fn config(&self) -> NatsConfig {
        NatsConfig {
            servers: vec![self.url()],
            ..NatsConfig::default()
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn bus(&self, name: &str) -> Bus {
        let bus = Bus::connect(&self.config(), name)
            .await
            .expect("an address");
        until("the bus is up", async || bus.is_up()).await;
        bus
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("it is bound").port()
}

fn spawn(port: u16, rules: Option<&Path>) -> Child {
    let rules = rules.map(|path| [OsStr::new("--config"), path.as_os_str()]);
    Command::new("nats-server")
        .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
        .args(rules.into_iter().flatten())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server is installed")
}

/// An agent that tells on the bus, until it is dropped.
pub(crate) struct Told {
    pub(crate) agent: Agent,
    _tasks: JoinSet<()>,
}

impl Told {
    pub(crate) async fn start(server: &Server, worker: &str) -> Self {
        let agent = Agent::start("127.0.0.1:0", worker).await;
        let bus = server.bus(worker).await;
        let mut tasks = JoinSet::new();
        let feed = agent.feed.clone();
        tasks.spawn(kvlens::worker::broadcast::run(
            feed.clone(),
            bus,
            CancellationToken::new(),
        ));
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                feed.beat();
            }
        });
        Self {
            agent,
            _tasks: tasks,
        }
    }
}

/// A router that follows registered workers over the bus.
pub(crate) fn follow(bus: &Bus, workers: &[&str], tasks: &mut JoinSet<()>) -> Arc<Router> {
    let metrics = Arc::new(Metrics::default());
    let router = Router::new(&RouterConfig::default(), metrics);
    let feeds = Feeds::new(
        router.clone(),
        Arc::new(Rules::any()),
        Duration::from_secs(3_600),
        EngineClient::new(),
    );
    let feeds = Arc::new(feeds.over(Some(bus.clone()), true));
    for worker in workers {
        let record = crate::feed::parties::record(worker, "http://127.0.0.1:1");
        let (registered, seen) = watch::channel(Some(Box::new(record)));
        let feeds = feeds.clone();
        let worker = name(worker);
        tasks.spawn(async move {
            // Registered for as long as it is followed.
            let _registered = registered;
            feeds.follow_registered(worker, seen).await;
        });
    }
    router
}
