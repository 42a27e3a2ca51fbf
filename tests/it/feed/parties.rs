//! An agent's side and a router's side, in one process, with real HTTP between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::feed::FEED_PATH;
use kvlens::discovery::{Change, Completeness, Update, WorkerRecord};
use kvlens::dispatch::EngineClient;
use kvlens::health::Verdict;
use kvlens::http::listener::bind;
use kvlens::http::reply::Reply;
use kvlens::http::serve::serve;
use kvlens::http::{Limits, Routes};
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::router::feed::Feeds;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::rules::Rules;
use kvlens::router::view::WorkerView;
use kvlens::router::{Placement, Router};
use kvlens::telemetry::metrics::Metrics;
use kvlens::worker::feed::Feed;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::end_to_end::stack::until;

/// A server on an address, until it is ended.
pub(crate) struct Served {
    /// As `127.0.0.1:4711`.
    pub(crate) address: String,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Served {
    pub(crate) async fn start(address: &str, routes: Routes) -> Self {
        let listener = bind(address.parse().expect("an address")).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let stop = CancellationToken::new();
        let limits = Limits {
            body_bytes_max: 1_000,
            bodies_in_flight_bytes_max: 10_000,
            header_bytes_max: 10_000,
            header_read: Duration::from_secs(10),
            body_read: Duration::from_secs(10),
            connections_max: 100,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, routes, limits, stop.clone()));
        Self {
            address,
            stop,
            tasks,
        }
    }

    /// An engine of which only the health can be asked.
    pub(crate) async fn engine(address: &str) -> Self {
        let healthy = Routes::default().get("/health", |_| {
            Box::pin(async { Reply::text(::http::StatusCode::OK, "") })
        });
        Self::start(address, healthy).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the listener and every connection.
    pub(crate) async fn end(mut self) -> String {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.address
    }
}

/// An agent's feed, served.
pub(crate) struct Agent {
    pub(crate) feed: Arc<Feed>,
    pub(crate) served: Served,
    /// How often it was asked for its feed.
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Agent {
    pub(crate) async fn start(address: &str, worker: &str) -> Self {
        let feed = Feed::new(name(worker));
        let asked = Arc::new(AtomicUsize::new(0));
        let (served, count) = (feed.clone(), asked.clone());
        let routes = Routes::default().get(FEED_PATH, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let feed = served.clone();
            Box::pin(async move {
                match feed.follow().await {
                    Ok(lines) => Reply::events(lines),
                    Err(error) => {
                        let status = ::http::StatusCode::SERVICE_UNAVAILABLE;
                        Reply::text(status, error.to_string())
                    }
                }
            })
        });
        Self {
            feed,
            served: Served::start(address, routes).await,
            asked,
        }
    }

    pub(crate) fn up(&self, record: &WorkerRecord) {
        let up = Change::Up(Box::new(record.clone()));
        self.feed.publish(Update::Change(up));
    }

    pub(crate) fn tell(&self, event: KvEvent) {
        self.feed.publish(Update::Kv(event));
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends without a word; its address, for the next one.
    pub(crate) async fn end(self) -> String {
        self.feed.close();
        self.served.end().await
    }
}

/// A router that follows agents.
pub(crate) struct Follower {
    pub(crate) router: Arc<Router>,
    feeds: Arc<Feeds>,
    tasks: JoinSet<()>,
}

impl Follower {
    pub(crate) fn of(urls: &[String]) -> Self {
        Self::patient(urls, Duration::from_secs(3600))
    }

    /// One that believes in blocks no agent tells of for so long.
    pub(crate) fn patient(urls: &[String], stale_after: Duration) -> Self {
        Self::ruled(urls, stale_after, Rules::of_model("demo", None))
    }

    /// One that serves workers by other rules.
    pub(crate) fn ruled(urls: &[String], stale_after: Duration, rules: Rules) -> Self {
        let router = Router::new(&RouterConfig::default(), Arc::new(Metrics::default()));
        let rules = Arc::new(rules);
        let feeds = Feeds::new(router.clone(), rules, stale_after, EngineClient::new());
        let feeds = Arc::new(feeds);
        let mut follower = Self {
            router,
            feeds,
            tasks: JoinSet::new(),
        };
        for url in urls {
            follower.follow(url);
        }
        follower
    }

    /// Until what is returned is cancelled: the agent is then named no more.
    pub(crate) fn follow(&mut self, url: &str) -> CancellationToken {
        let stop = CancellationToken::new();
        let feeds = self.feeds.clone();
        self.tasks.spawn(feeds.follow(url.to_owned(), stop.clone()));
        stop
    }

    /// Follows a worker that is registered, for as long as the other end is held.
    pub(crate) fn follow_registered(
        &mut self,
        record: &WorkerRecord,
    ) -> watch::Sender<Option<Box<WorkerRecord>>> {
        let (told, registered) = watch::channel(Some(Box::new(record.clone())));
        let worker = record.worker.clone();
        let feeds = self.feeds.clone();
        self.tasks
            .spawn(feeds.follow_registered(worker, registered));
        told
    }

    /// The one worker; `None` while there is none.
    pub(crate) fn worker(&self) -> Option<WorkerView> {
        self.router.workers().pop()
    }

    /// Waits until the worker is as wanted.
    pub(crate) async fn until(
        &self,
        what: &str,
        wanted: impl Fn(&WorkerView) -> bool,
    ) -> WorkerView {
        until(what, async || self.worker().is_some_and(|w| wanted(&w))).await;
        self.worker().expect("it was there")
    }

    /// Waits until the worker has so many blocks in the index.
    pub(crate) async fn until_blocks(&self, blocks: u64) {
        let what = format!("{blocks} blocks");
        self.until(&what, |worker| worker.indexed_blocks == blocks)
            .await;
    }

    /// Places a request of one block.
    pub(crate) fn place(&self, hash: u64) -> Placement {
        let size = BlockSize::new(16).expect("16 is not zero");
        let footprint = Footprint {
            hashes: vec![(size, [SequenceHash(hash)].into())],
            ..Footprint::new("demo", 17)
        };
        self.router
            .place(&footprint, &Wish::default())
            .expect("a worker")
    }
}

pub(crate) fn name(worker: &str) -> WorkerId {
    WorkerId::new(worker).expect("a legal name")
}

/// The record of a worker that takes requests.
pub(crate) fn record(worker: &str, engine: &str) -> WorkerRecord {
    let mut record = WorkerRecord::new(name(worker), engine, "demo");
    record.block_size = BlockSize::new(16);
    record.verdict = Verdict::Healthy;
    record.ledger.completeness = Completeness::Complete;
    record
}

/// An event of a rank of worker `w`, of its first life.
pub(crate) fn event(rank: u32, sequence: u64) -> KvEvent {
    KvEvent {
        worker: name("w"),
        rank: DpRank(rank),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: Vec::new(),
        stored: Vec::new(),
        lower: Tiers::default(),
    }
}

pub(crate) fn hashes(numbers: std::ops::Range<u64>) -> Vec<SequenceHash> {
    numbers.map(SequenceHash).collect()
}
