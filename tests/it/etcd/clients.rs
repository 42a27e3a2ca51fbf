//! An agent that registers and a router that follows, without what they do beside that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvlens::config::etcd::EtcdConfig;
use kvlens::discovery::WorkerRecord;
use kvlens::discovery::etcd::Etcd;
use kvlens::discovery::membership::Seen;
use kvlens::discovery::plane::PlaneState;
use kvlens::health::Verdict;
use kvlens::id::WorkerId;
use kvlens::telemetry::metrics::Metrics;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest time that anything takes here: what a hanging member takes to be noticed, twice.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// The shortest lease, so that its end can be waited for.
pub(crate) fn config(url: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![url.to_owned()],
        lease_secs: 2,
        ..EtcdConfig::default()
    }
}

pub(crate) fn record(worker: &str, agent: &str, life: u64) -> WorkerRecord {
    let worker = WorkerId::new(worker).expect("it is a worker id");
    WorkerRecord {
        agent: Some(agent.to_owned()),
        agent_life: life,
        verdict: Verdict::Healthy,
        ..WorkerRecord::new(worker, &format!("{agent}00"), "m")
    }
}

/// The state of etcd as one client says it.
pub(crate) struct Plane(watch::Receiver<PlaneState>);

impl Plane {
    fn new() -> (watch::Sender<PlaneState>, Self) {
        let (tell, told) = watch::channel(PlaneState::untried());
        (tell, Self(told))
    }

    pub(crate) async fn until_up(&mut self) {
        self.until(|state| *state == PlaneState::Up).await;
    }

    /// Waits until it is down for a cause with `part` in it.
    pub(crate) async fn until_down(&mut self, part: &str) {
        let is = |state: &PlaneState| match state {
            PlaneState::Up => false,
            PlaneState::Down { cause, .. } => cause.contains(part),
        };
        self.until(is).await;
    }

    async fn until(&mut self, is: impl FnMut(&PlaneState) -> bool) {
        let reached = timeout(WAIT_MAX, self.0.wait_for(is)).await.is_ok();
        assert!(reached, "{:?}", self.0.borrow());
    }
}

/// An agent's registration. Dropped, it ends as if it was killed.
pub(crate) struct Agent {
    pub(crate) record: watch::Sender<Option<Box<WorkerRecord>>>,
    pub(crate) plane: Plane,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) deregistered: CancellationToken,
    _running: JoinSet<()>,
}

impl Agent {
    pub(crate) fn start(config: EtcdConfig, record: WorkerRecord) -> Self {
        let (tell, plane) = Plane::new();
        let metrics = Arc::new(Metrics::default());
        let (record, told) = watch::channel(Some(Box::new(record)));
        let deregistered = CancellationToken::new();
        let etcd = Etcd::new(config, metrics.clone(), tell);
        let mut running = JoinSet::new();
        running.spawn(etcd.register(told, deregistered.clone(), CancellationToken::new()));
        Self {
            record,
            plane,
            metrics,
            deregistered,
            _running: running,
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut WorkerRecord)) {
        self.record.send_modify(|record| {
            change(record.as_mut().expect("it has one"));
        });
    }
}

/// Who follows the set, and the set as was told.
pub(crate) struct Follower {
    told: mpsc::Receiver<Seen>,
    pub(crate) set: BTreeMap<String, WorkerRecord>,
    /// Listings so far.
    pub(crate) listings: usize,
    pub(crate) plane: Plane,
    pub(crate) metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Follower {
    pub(crate) fn start(config: EtcdConfig) -> Self {
        let (tell_plane, plane) = Plane::new();
        let metrics = Arc::new(Metrics::default());
        let (tell, told) = mpsc::channel(16);
        let etcd = Etcd::new(config, metrics.clone(), tell_plane);
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(etcd.follow(tell, stop.clone()));
        Self {
            told,
            set: BTreeMap::new(),
            listings: 0,
            plane,
            metrics,
            stop,
            running,
        }
    }

    /// Waits until what was told makes `is` true.
    pub(crate) async fn until(&mut self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            let seen = timeout(WAIT_MAX, self.told.recv()).await;
            let seen = seen.unwrap_or_else(|_| panic!("still {:?}", self.set));
            self.take(seen.expect("it follows"));
        }
    }

    fn take(&mut self, seen: Seen) {
        let name = |worker: &WorkerId| worker.as_str().to_owned();
        match seen {
            Seen::Listed(records) => {
                let pair = |record: WorkerRecord| (name(&record.worker), record);
                self.set = records.into_iter().map(pair).collect();
                self.listings += 1;
            }
            Seen::Is(record) => {
                self.set.insert(name(&record.worker), *record);
            }
            Seen::Absent(worker) => {
                self.set.remove(worker.as_str());
            }
        }
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.set.keys().map(String::as_str).collect()
    }

    pub(crate) fn verdict(&self, worker: &str) -> Option<Verdict> {
        self.set.get(worker).map(|record| record.verdict)
    }

    /// Ends it, as a process that stops does.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let ended = timeout(WAIT_MAX, self.running.join_next()).await;
        assert!(matches!(ended, Ok(Some(Ok(())))), "{ended:?}");
    }
}
