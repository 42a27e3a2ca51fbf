//! Registers one worker: keeps its record in etcd under a lease, whatever becomes of etcd.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Error as EtcdError, EventType, KeyValue, LeaseKeepAliveStream, LeaseKeeper,
    PutOptions, Txn, TxnOp, WatchOptions,
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::discovery::WorkerRecord;
use crate::discovery::etcd::Etcd;
use crate::discovery::etcd::fault::{Fault, FaultKind};
use crate::discovery::etcd::link::{Link, Watched};
use crate::discovery::membership::key_of;

/// Least time between two puts of one worker, but for a change of its verdict.
const PUT_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks at a worker id that another agent has.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The record of the worker, `None` while nothing is known of its engine.
type Record = watch::Receiver<Option<Box<WorkerRecord>>>;

/// What one registration remembers from one session to the next.
struct Registrar {
    etcd: Etcd,
    record: Record,
    deregistered: CancellationToken,
    /// The lease of the session before, which etcd may still have.
    lease: Option<i64>,
    /// Whether the key was ours in this life of the agent.
    has_held: bool,
}

/// Our key, as of the last put.
struct Held {
    key: String,
    lease: i64,
    revision: i64,
    /// What of the record was put.
    said: Box<WorkerRecord>,
    put_at: Instant,
}

impl Etcd {
    /// Keeps the worker's record in etcd until `stop`, through every fault of etcd. The key then stays
    /// until its lease ends, because an agent that stops takes no worker out; `deregistered` deletes it
    /// at once, for as long as this agent lives.
    pub async fn register(
        self,
        record: Record,
        deregistered: CancellationToken,
        stop: CancellationToken,
    ) {
        let mut registrar = Registrar {
            etcd: self,
            record,
            deregistered,
            lease: None,
            has_held: false,
        };
        stop.run_until_cancelled(registrar.keep()).await;
    }
}

impl Registrar {
    async fn keep(&mut self) {
        while let Err(fault) = self.session().await {
            let is_taken = matches!(fault, Fault::Taken { .. });
            if is_taken && self.etcd.shown != Some(FaultKind::Taken) {
                self.etcd.metrics.taken_worker_ids.inc();
            }
            let wait = self.etcd.down(&fault);
            let wait = if is_taken { LOOK_EVERY } else { wait };
            tokio::time::sleep(wait).await;
        }
        // Deregistered, and nothing may put the key again.
        std::future::pending().await
    }

    /// Holds the key until a fault, or until it is deleted because the worker is deregistered.
    async fn session(&mut self) -> Result<(), Fault> {
        let own = known(&mut self.record).await;
        let key = key_of(&own.worker);
        let link = Link::connect(&self.etcd.config, self.etcd.turn).await?;
        let mut found = link.call(link.kv().get(key.as_str(), None)).await?;
        let found = found.take_kvs().pop();
        let holder = found
            .as_ref()
            .and_then(|kv| holder(kv, &own, self.has_held));
        let revision = found.map_or(0, |kv| kv.mod_revision());
        match (holder, self.deregistered.is_cancelled()) {
            (None, true) => return remove(&link, &key, revision).await,
            (Some(_), true) => return Ok(()),
            (Some(holder), false) => {
                let worker = own.worker.clone();
                return Err(Fault::Taken { worker, holder });
            }
            (None, false) => {}
        }
        let (keeper, answers) = self.lease(&link).await?;
        let mut held = Held {
            key,
            lease: keeper.id(),
            revision,
            said: own.clone(),
            put_at: Instant::now(),
        };
        held.put(&link, own).await?;
        self.has_held = true;
        let options = WatchOptions::new();
        let watched = link.watch(&held.key, options, held.revision).await?;
        self.etcd.up(&link.endpoint);
        info!(worker = %held.said.worker, endpoint = link.endpoint, "worker registered in etcd");
        self.hold(&link, held, (keeper, answers, watched)).await
    }

    async fn hold(
        &mut self,
        link: &Link,
        mut held: Held,
        (mut keeper, mut answers, mut watched): (LeaseKeeper, LeaseKeepAliveStream, Watched),
    ) -> Result<(), Fault> {
        let third = self.etcd.config.lease() / 3;
        let mut keeping = interval_at(Instant::now() + third, third);
        keeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = held.due(&self.record);
            tokio::select! {
                () = self.deregistered.cancelled() => {
                    return remove(link, &held.key, held.revision).await;
                }
                () = changed(&mut self.record) => {}
                () = sleep_until(due.unwrap_or(held.put_at)), if due.is_some() => {
                    let record = known(&mut self.record).await;
                    held.put(link, record).await?;
                }
                _ = keeping.tick() => link.call(keeper.keep_alive()).await?,
                answer = answers.message() => {
                    let answer = answer.map_err(|error| Fault::of(&link.endpoint, &error))?;
                    if answer.is_none_or(|answer| answer.ttl() <= 0) {
                        let endpoint = link.endpoint.clone();
                        return Err(Fault::LeaseLost { endpoint });
                    }
                }
                response = watched.next() => {
                    for event in response?.events() {
                        let kv = event.kv();
                        let is_news = kv.is_some_and(|kv| kv.mod_revision() > held.revision);
                        if is_news {
                            return Err(Fault::KeyChanged {
                                endpoint: link.endpoint.clone(),
                                is_deleted: event.event_type() == EventType::Delete,
                            });
                        }
                    }
                }
            }
        }
    }

    /// The lease of the session before, or another where etcd has that one no more.
    async fn lease(&mut self, link: &Link) -> Result<(LeaseKeeper, LeaseKeepAliveStream), Fault> {
        let mut leases = link.leases();
        if let Some(id) = self.lease {
            let kept = async {
                match leases.keep_alive(id).await {
                    Ok(kept) => Ok(Some(kept)),
                    Err(EtcdError::LeaseKeepAliveError(_)) => Ok(None),
                    Err(error) => Err(error),
                }
            };
            if let Some(kept) = link.call(kept).await? {
                return Ok(kept);
            }
            self.lease = None;
        }
        let seconds = i64::try_from(self.etcd.config.lease_secs).unwrap_or(i64::MAX);
        let granted = link.call(leases.grant(seconds, None)).await?;
        self.lease = Some(granted.id());
        link.call(leases.keep_alive(granted.id())).await
    }
}

impl Held {
    /// When the record is to be put again; `None` while what was put still holds.
    fn due(&self, record: &Record) -> Option<Instant> {
        let record = record.borrow();
        let record = record.as_ref()?;
        if record.verdict != self.said.verdict {
            return Some(Instant::now());
        }
        (record.lasting() != *self.said).then(|| self.put_at + PUT_EVERY)
    }

    /// Puts the record where the key is as we last saw it.
    async fn put(&mut self, link: &Link, record: Box<WorkerRecord>) -> Result<(), Fault> {
        let unread = WorkerRecord {
            // Who finds it reads it later, when the engine does something else.
            engine_load: Vec::new(),
            engine_readings: 0,
            ..*record
        };
        let said = unread.lasting();
        // A type of ours, without maps of odd keys, always has a JSON form.
        let value = serde_json::to_vec(&unread).unwrap_or_default();
        let options = PutOptions::new().with_lease(self.lease);
        let put = TxnOp::put(self.key.as_str(), value, Some(options));
        self.revision = swap(link, &self.key, (self.revision, put)).await?;
        self.put_at = Instant::now();
        *self.said = said;
        Ok(())
    }
}

/// Does `operation` where the key was last changed at `revision`, 0 for a key that is not there; the
/// revision of that.
async fn swap(link: &Link, key: &str, (revision, operation): (i64, TxnOp)) -> Result<i64, Fault> {
    let as_seen = Compare::mod_revision(key, CompareOp::Equal, revision);
    let txn = Txn::new().when([as_seen]).and_then([operation]);
    let done = link.call(link.kv().txn(txn)).await?;
    match done.succeeded() {
        true => Ok(done.header().map_or(revision, |header| header.revision())),
        false => Err(Fault::KeyChanged {
            endpoint: link.endpoint.clone(),
            is_deleted: false,
        }),
    }
}

async fn remove(link: &Link, key: &str, revision: i64) -> Result<(), Fault> {
    swap(link, key, (revision, TxnOp::delete(key, None))).await?;
    info!(key, "worker deregistered from etcd");
    Ok(())
}

/// The record, as soon as there is one.
async fn known(record: &mut Record) -> Box<WorkerRecord> {
    loop {
        let now = record.borrow_and_update().clone();
        match now {
            Some(record) => return record,
            None => changed(record).await,
        }
    }
}

/// Waits for another record, without end where the agent has ended.
async fn changed(record: &mut Record) {
    if record.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What names an agent in any version of a record.
#[derive(Deserialize)]
struct Holder {
    address: String,
    #[serde(default)]
    agent: Option<String>,
    #[serde(default)]
    agent_life: u64,
}

/// Who else has the key, and keeps it; `None` where we may take it.
fn holder(kv: &KeyValue, own: &WorkerRecord, has_held: bool) -> Option<String> {
    match kv.lease() {
        // Nobody keeps it alive, and nothing ends it: no agent put it so.
        0 => None,
        _ => other(kv.value(), own, has_held),
    }
}

/// The agent that put `value`, where that is neither this life of ours nor, as far as we never had the
/// key in this life, a former one. Who once had it and lost it to another must not take it back, or two
/// agents would take it from each other without end.
fn other(value: &[u8], own: &WorkerRecord, has_held: bool) -> Option<String> {
    let Ok(holder) = serde_json::from_slice::<Holder>(value) else {
        return Some("an unknown address".to_owned());
    };
    let is_same_place = match (&holder.agent, &own.agent) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => holder.address == own.address,
    };
    let is_ours = holder.agent_life == own.agent_life || (is_same_place && !has_held);
    (!is_ours).then(|| holder.agent.unwrap_or(holder.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::WorkerId;

    fn record(life: u64, agent: Option<&str>, address: &str) -> WorkerRecord {
        WorkerRecord {
            agent_life: life,
            agent: agent.map(str::to_owned),
            ..WorkerRecord::new(WorkerId::new("gpu-0").unwrap(), address, "m")
        }
    }

    #[test]
    fn an_id_is_taken_by_another_agent_alone() {
        let (a, b) = (Some("http://a:1"), Some("http://b:1"));
        let own = record(7, a, "http://a:2");
        for (value, has_held, expected) in [
            (record(7, a, "http://a:2"), true, None),
            (record(7, b, "http://b:2"), true, None), // Our life, at a former address.
            (record(6, a, "http://a:2"), false, None),
            (record(6, a, "http://a:3"), false, None),
            (record(6, a, "http://a:2"), true, a),
            (record(6, b, "http://b:2"), false, b),
            (record(6, b, "http://a:2"), false, b),
            (record(6, None, "http://a:2"), false, None),
            (record(6, None, "http://b:2"), false, Some("http://b:2")),
        ] {
            let text = serde_json::to_vec(&value).unwrap();
            let found = other(&text, &own, has_held);
            assert_eq!(found.as_deref(), expected, "{value:?} {has_held}");
        }
        assert_eq!(
            other(b"{}", &own, false).as_deref(),
            Some("an unknown address")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_matters_is_put_soon_and_a_verdict_at_once() {
        use crate::health::Verdict;
        let own = record(1, None, "http://a:2");
        let held = Held {
            key: String::new(),
            lease: 1,
            revision: 1,
            said: Box::new(own.clone()),
            put_at: Instant::now(),
        };
        let soon = Some(held.put_at + PUT_EVERY);
        let change = |change: &dyn Fn(&mut WorkerRecord)| {
            let mut record = own.clone();
            change(&mut record);
            held.due(&watch::channel(Some(Box::new(record))).1)
        };
        assert_eq!(change(&|_| ()), None);
        assert_eq!(change(&|r| r.engine_readings = 3), None);
        assert_eq!(change(&|r| r.ledger.sequence = 3), None);
        assert_eq!(change(&|r| r.ledger.blocks = 3), None);
        assert_eq!(change(&|r| r.cause = Some("hot".to_owned())), soon);
        assert_eq!(change(&|r| r.capacity_blocks = Some(1)), soon);
        assert_eq!(change(&|r| r.ledger.is_followed = false), soon);
        assert_eq!(
            change(&|r| r.verdict = Verdict::Degraded),
            Some(held.put_at)
        );
    }
}
