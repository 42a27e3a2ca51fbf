//! What an agent tells, taken in as a router would.

use std::sync::Arc;
use std::time::Duration;

use kvlens::discovery::{Change, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::WorkerId;
use kvlens::index::Index;
use kvlens::worker::reset::Command;
use kvlens::worker::run;
use kvlens::worker::spec::AgentSpec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// What a router would do with the updates, as far as these tests need it.
pub(crate) struct Seen {
    pub(crate) updates: mpsc::Receiver<Update>,
    pub(crate) index: Index,
    pub(crate) record: Option<WorkerRecord>,
    /// Events that cleared.
    pub(crate) clearings: u32,
    /// The blocks in the index each time that the worker became healthy.
    pub(crate) healthy_with: Vec<u64>,
    pub(crate) is_down: bool,
}

impl Seen {
    /// Takes updates until `done`; panics when that takes too long.
    pub(crate) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let update = timeout(Duration::from_secs(20), self.updates.recv()).await;
            self.take(update.expect("in time").expect("an agent"));
        }
    }

    fn take(&mut self, update: Update) {
        assert!(!self.is_down, "{update:?}");
        match update {
            Update::Kv(event) => {
                assert_eq!(event.worker, worker());
                assert!(self.record.is_some(), "no event before its worker");
                self.clearings += u32::from(event.cleared);
                self.index.apply(&event);
            }
            Update::Change(Change::Up(record)) => {
                assert_eq!(record.verdict == Verdict::Healthy, record.cause.is_none());
                let is_healthy = record.verdict == Verdict::Healthy;
                if is_healthy && self.verdict() != Some(Verdict::Healthy) {
                    self.healthy_with.push(self.index.total_blocks());
                }
                self.record = Some(*record);
            }
            Update::Change(Change::Down(_)) => self.is_down = true,
        }
    }

    pub(crate) fn record(&self) -> &WorkerRecord {
        self.record.as_ref().expect("a record")
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.record.as_ref().map(|record| record.verdict)
    }

    pub(crate) fn cause(&self) -> &str {
        self.record().cause.as_deref().unwrap_or_default()
    }

    pub(crate) async fn until_verdict(&mut self, verdict: Verdict) {
        self.until(|seen| seen.verdict() == Some(verdict)).await;
    }
}

pub(crate) fn worker() -> WorkerId {
    WorkerId::new("gpu-0").expect("a legal id")
}

/// An agent, and what it tells.
pub(crate) struct Following {
    pub(crate) seen: Seen,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) stop: CancellationToken,
    pub(crate) agent: JoinSet<()>,
}

pub(crate) fn following(spec: AgentSpec) -> Following {
    let (sender, updates) = mpsc::channel(64);
    let (commands, received) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let mut agent = JoinSet::new();
    let (mut received, until) = (received, stop.clone());
    agent.spawn(async move {
        run(spec, &mut received, Arc::default(), sender, until).await;
    });
    let seen = Seen {
        updates,
        index: Index::new(),
        record: None,
        clearings: 0,
        healthy_with: Vec::new(),
        is_down: false,
    };
    Following {
        seen,
        commands,
        stop,
        agent,
    }
}
