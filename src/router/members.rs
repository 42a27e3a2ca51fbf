//! Which agents a router follows: those that are named, those in a file, and those of the workers in
//! etcd. Whoever is absent from etcd is followed on: that is a suspicion, and no end.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::Config;
use crate::config::etcd::EtcdConfig;
use crate::discovery::WorkerRecord;
use crate::discovery::address::{BadAgents, agents};
use crate::discovery::membership::{Seen, WORKERS_MAX};
use crate::discovery::plane::PlaneState;
use crate::discovery::workers_file;
use crate::id::WorkerId;
use crate::router::feed::Feeds;
use crate::telemetry::metrics::Metrics;

/// What a source of membership tells that waits to be taken in.
const SEEN_MAX: usize = 1_024;

/// Where workers are found.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Agents' listeners that the configuration names.
    named: Vec<String>,
    file: Option<PathBuf>,
    etcd: Option<EtcdConfig>,
}

/// Why workers cannot be found so.
#[derive(Debug, thiserror::Error)]
pub enum BadSources {
    #[error(transparent)]
    Agents(#[from] BadAgents),
    #[error(
        "no worker can be found; name etcd with --etcd, or the listener of each agent with \
         --worker-url, discovery.workers or discovery.workers_file"
    )]
    None,
}

impl Sources {
    /// The sources that a configuration names, at least one.
    ///
    /// # Errors
    /// When there is none, or an address is none.
    pub fn new(config: &Config) -> Result<Self, BadSources> {
        let discovery = &config.discovery;
        let sources = Self {
            named: agents(discovery.workers.iter().map(String::as_str))?,
            file: discovery.workers_file.clone(),
            etcd: config.etcd.is_used().then(|| config.etcd.clone()),
        };
        match sources.named.is_empty() && sources.file.is_none() && sources.etcd.is_none() {
            true => Err(BadSources::None),
            false => Ok(sources),
        }
    }
}

/// For a person, a few of many.
impl std::fmt::Display for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.named[..], &self.file, &self.etcd) {
            ([first], None, None) => write!(f, "the agent at {first}"),
            ([first, rest @ ..], None, None) => {
                write!(f, "the agents at {first} and {} more", rest.len())
            }
            (_, Some(path), None) => write!(f, "the agents in {}", path.display()),
            _ => f.write_str("an agent to register in etcd"),
        }
    }
}

/// Those who follow agents.
struct Members {
    feeds: Arc<Feeds>,
    tasks: JoinSet<Followed>,
    /// What is named now.
    named: Vec<String>,
    /// By the address of the agent's listener; those too that are named no more and still have
    /// something in flight.
    listed: HashMap<String, CancellationToken>,
    registered: HashMap<WorkerId, watch::Sender<Option<Box<WorkerRecord>>>>,
}

/// Who is followed no more.
enum Followed {
    Listed(String),
    Registered(WorkerId),
}

/// Follows all agents that the sources name, for ever. `plane` is told how etcd is.
pub async fn follow(
    feeds: Arc<Feeds>,
    sources: Sources,
    metrics: Arc<Metrics>,
    plane: watch::Sender<PlaneState>,
) {
    let mut members = Members {
        feeds,
        tasks: JoinSet::new(),
        named: Vec::new(),
        listed: HashMap::new(),
        registered: HashMap::new(),
    };
    let mut sources_tasks = JoinSet::new();
    let (list, mut listed) = watch::channel(Vec::new());
    if let Some(path) = sources.file {
        sources_tasks.spawn(workers_file::follow(path, list, CancellationToken::new()));
    }
    let (seen, mut told) = mpsc::channel(SEEN_MAX);
    if let Some(config) = sources.etcd {
        sources_tasks.spawn(follow_etcd(config, metrics, plane, seen));
    }
    members.list(sources.named.clone());
    loop {
        tokio::select! {
            Ok(()) = listed.changed() => {
                let found = listed.borrow_and_update().clone();
                members.list([sources.named.clone(), found].concat());
            }
            Some(seen) = told.recv() => members.see(seen),
            Some(ended) = members.tasks.join_next() => members.end(ended),
            Some(ended) = sources_tasks.join_next() => {
                error!(error = ?ended.err(), "a source of workers ended");
            }
            else => return std::future::pending().await,
        }
    }
}

#[cfg(feature = "etcd")]
async fn follow_etcd(
    config: EtcdConfig,
    metrics: Arc<Metrics>,
    plane: watch::Sender<PlaneState>,
    seen: mpsc::Sender<Seen>,
) {
    let etcd = crate::discovery::etcd::Etcd::new(config, metrics, plane);
    etcd.follow(seen, CancellationToken::new()).await;
}

/// Without it, the configuration that names it is refused.
#[cfg(not(feature = "etcd"))]
async fn follow_etcd(
    _config: EtcdConfig,
    _metrics: Arc<Metrics>,
    _plane: watch::Sender<PlaneState>,
    _seen: mpsc::Sender<Seen>,
) {
    std::future::pending::<()>().await;
}

impl Members {
    /// Follows exactly these listeners: one that is named no more was taken out by whoever wrote it.
    fn list(&mut self, named: Vec<String>) {
        self.named = named;
        for (url, stop) in &self.listed {
            if !self.named.contains(url) {
                stop.cancel();
            }
        }
        for url in self.named.clone() {
            // One that is named again while it leaves is followed anew once it has left.
            if self.listed.contains_key(&url) || self.is_full() {
                continue;
            }
            let stop = CancellationToken::new();
            self.listed.insert(url.clone(), stop.clone());
            let follower = self.feeds.clone().follow(url.clone(), stop);
            self.tasks.spawn(async move {
                follower.await;
                Followed::Listed(url)
            });
        }
    }

    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Listed(records) => {
                let is_there = |worker: &WorkerId| records.iter().any(|r| r.worker == *worker);
                for (worker, told) in &self.registered {
                    if !is_there(worker) {
                        told.send_if_modified(|record| record.take().is_some());
                    }
                }
                records.into_iter().for_each(|record| self.register(record));
            }
            Seen::Is(record) => self.register(*record),
            Seen::Absent(worker) => {
                if let Some(told) = self.registered.get(&worker) {
                    told.send_if_modified(|record| record.take().is_some());
                }
            }
        }
    }

    fn register(&mut self, record: WorkerRecord) {
        let worker = record.worker.clone();
        if let Some(told) = self.registered.get(&worker) {
            told.send_replace(Some(Box::new(record)));
            return;
        }
        if self.is_full() {
            return;
        }
        let (told, registered) = watch::channel(Some(Box::new(record)));
        self.registered.insert(worker.clone(), told);
        let follower = self.feeds.clone();
        self.tasks.spawn(async move {
            follower.follow_registered(worker.clone(), registered).await;
            Followed::Registered(worker)
        });
    }

    fn is_full(&self) -> bool {
        let is_full = self.tasks.len() >= WORKERS_MAX;
        if is_full {
            warn!(workers_max = WORKERS_MAX, "more workers than are followed");
        }
        is_full
    }

    fn end(&mut self, ended: Result<Followed, tokio::task::JoinError>) {
        match ended {
            Ok(Followed::Listed(url)) => {
                self.listed.remove(&url);
                self.list(self.named.clone());
            }
            Ok(Followed::Registered(worker)) => {
                // It may have been registered again just now.
                let former = self.registered.remove(&worker);
                if let Some(record) = former.and_then(|told| told.borrow().clone()) {
                    self.register(*record);
                }
            }
            Err(error) => error!(%error, "a follower of an agent panicked"),
        }
    }
}
