//! Agents of workers that are only pretended, in one process: each has a feed and a connection to the
//! bus of its own. And a router that follows them.

use std::sync::Arc;
use std::time::Duration;

use kvlens::block::SequenceHash;
use kvlens::bus::Bus;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::etcd::Etcd;
use kvlens::discovery::plane::PlaneState;
use kvlens::discovery::{Change, Update};
use kvlens::dispatch::EngineClient;
use kvlens::router::Router;
use kvlens::router::feed::Feeds;
use kvlens::router::rules::Rules;
use kvlens::telemetry::metrics::Metrics;
use kvlens::worker::broadcast;
use kvlens::worker::feed::{self, Feed};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::fleet::{self, events};
use crate::servers::Server;

/// Agents, until they are dropped. They have threads of their own, as agents on other hosts have.
pub(crate) struct Agents {
    pub(crate) feeds: Vec<Arc<Feed>>,
    runtime: Runtime,
    /// What each agent sees; they go on telling until these are dropped.
    updates: Vec<mpsc::Sender<Update>>,
}

impl Agents {
    /// Workers 0 and up, each with the blocks it holds.
    pub(crate) fn start(nats: &Server, held: Vec<Vec<SequenceHash>>) -> Self {
        let runtime = runtime();
        let (mut feeds, mut senders) = (Vec::new(), Vec::new());
        for (number, blocks) in (0..).zip(held) {
            let feed = Feed::new(fleet::worker(number));
            let record = Box::new(fleet::record(number));
            feed.publish(Update::Change(Change::Up(record)));
            for event in events(number, &blocks) {
                feed.publish(Update::Kv(event));
            }
            let bus = runtime.block_on(nats.bus(feed.worker().as_str()));
            let told = broadcast::run(feed.clone(), bus, CancellationToken::new());
            runtime.spawn(told);
            let (updates, received) = mpsc::channel(1_024);
            runtime.spawn(feed::run(feed.clone(), received));
            senders.push(updates);
            feeds.push(feed);
        }
        Self {
            feeds,
            runtime,
            updates: senders,
        }
    }

    /// Registers all of them, for as long as they live.
    pub(crate) fn register(&self, etcd: &Server) {
        for feed in &self.feeds {
            let metrics = Arc::new(Metrics::default());
            let (plane, _) = watch::channel(PlaneState::untried());
            let client = Etcd::new(etcd.etcd_config(), metrics, plane);
            let stop = CancellationToken::new();
            let registered = client.register(feed.record(), feed.deregistered(), stop);
            self.runtime.spawn(registered);
        }
    }

    /// Runs a task that sees for the agent of a worker.
    pub(crate) fn see<T: Future<Output = ()> + Send + 'static>(
        &self,
        worker: usize,
        task: impl FnOnce(mpsc::Sender<Update>) -> T,
    ) {
        self.runtime.spawn(task(self.updates[worker].clone()));
    }
}

/// A runtime of one thread: several of them share the machine, as programs on several hosts do not.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// A router that follows workers 0 to `workers` over the bus, their blocks included or not, while the
/// runtime lasts.
pub(crate) fn follow(runtime: &Runtime, bus: &Bus, workers: u32, with_blocks: bool) -> Arc<Router> {
    let router = Router::new(&RouterConfig::default(), Arc::new(Metrics::default()));
    let rules = Arc::new(Rules::any());
    let never = Duration::from_secs(3_600);
    let feeds = Feeds::new(router.clone(), rules, never, EngineClient::new());
    let feeds = Arc::new(feeds.over(Some(bus.clone()), with_blocks));
    for number in 0..workers {
        let record = fleet::record(number);
        let (told, registered) = watch::channel(Some(Box::new(record)));
        let feeds = feeds.clone();
        runtime.spawn(async move {
            // Registered for as long as it is followed.
            let _told = told;
            let followed = feeds.follow_registered(fleet::worker(number), registered);
            followed.await;
        });
    }
    router
}
