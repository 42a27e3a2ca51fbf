//! Follows the set of workers: lists it, watches it from there on, and lists it again after any fault.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Instant;

use etcd_client::{Event, EventType, GetOptions, KeyValue, WatchOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::discovery::WorkerRecord;
use crate::discovery::etcd::Etcd;
use crate::discovery::etcd::fault::Fault;
use crate::discovery::etcd::link::Link;
use crate::discovery::membership::{
    self, Offenders, RECORD_BYTES_MAX, Seen, WORKERS_MAX, WORKERS_PREFIX, worker_of,
};
use crate::discovery::vanished::{Alarm, Vanished};
use crate::telemetry::labels::BadRecordLabels;

/// Keys of one page of a listing: as many of the largest values etcd takes fit one message.
const PAGE_KEYS: i64 = 16;

/// What one follower remembers from one session to the next.
struct Follower {
    etcd: Etcd,
    tell: mpsc::Sender<Seen>,
    vanished: Vanished,
    offenders: Offenders,
}

/// A listing, and the revision it is of.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) pairs: Vec<Pair>,
    revision: i64,
}

/// A key and its value, of which no more is kept than shows that it is too large.
pub(super) struct Pair {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// Id of the lease it stands under; 0 where there is none.
    pub(super) lease: i64,
}

impl Etcd {
    /// Tells of the set of workers and its changes until `stop`, through every fault of etcd. Who is
    /// absent is suspect and no more: after a fault, etcd may have forgotten everything.
    pub async fn follow(self, tell: mpsc::Sender<Seen>, stop: CancellationToken) {
        let mut follower = Follower {
            vanished: Vanished::new(self.config.lease()),
            etcd: self,
            tell,
            offenders: Offenders::default(),
        };
        let following = async {
            loop {
                let Err(fault) = follower.session().await;
                let wait = follower.etcd.down(&fault);
                tokio::time::sleep(wait).await;
            }
        };
        stop.run_until_cancelled(following).await;
    }
}

impl Follower {
    async fn session(&mut self) -> Result<Infallible, Fault> {
        let link = Link::connect(&self.etcd.config, self.etcd.turn).await?;
        let listing = list(&link).await?;
        let options = WatchOptions::new().with_prefix();
        let mut watched = link
            .watch(WORKERS_PREFIX, options, listing.revision)
            .await?;
        self.listed(&listing.pairs).await;
        self.etcd.up(&link.endpoint);
        loop {
            let response = watched.next().await?;
            for event in response.events() {
                self.happened(event).await;
            }
        }
    }

    async fn listed(&mut self, pairs: &[Pair]) {
        let present: HashSet<&[u8]> = pairs.iter().map(|pair| pair.key.as_slice()).collect();
        self.offenders.retain(|key| present.contains(key));
        let read = |pair: &Pair| self.read(&pair.key, &pair.value);
        let records: Vec<_> = pairs.iter().filter_map(read).collect();
        let workers = records.iter().map(|record| record.worker.clone());
        let alarm = self.vanished.listed(workers, Instant::now());
        self.alarm(alarm);
        info!(workers = records.len(), "workers listed in etcd");
        self.tell(Seen::Listed(records)).await;
    }

    async fn happened(&mut self, event: &Event) {
        let Some(kv) = event.kv() else {
            return;
        };
        match event.event_type() {
            EventType::Put => {
                let Some(record) = self.read(kv.key(), kv.value()) else {
                    return;
                };
                if !self.vanished.is(record.worker.clone()) {
                    let worker = &record.worker;
                    error!(%worker, workers_max = WORKERS_MAX, "too many workers in etcd, one is ignored");
                    return;
                }
                self.tell(Seen::Is(Box::new(record))).await;
            }
            EventType::Delete => {
                self.offenders.is_news(kv.key(), None);
                let Ok(worker) = worker_of(kv.key()) else {
                    return;
                };
                let alarm = self.vanished.absent(&worker, Instant::now());
                self.alarm(alarm);
                self.tell(Seen::Absent(worker)).await;
            }
        }
    }

    /// A key's record; `None` where it is bad, which is counted, and told of once.
    fn read(&mut self, key: &[u8], value: &[u8]) -> Option<WorkerRecord> {
        let outcome = membership::read(key, value);
        let fault = outcome.as_ref().err();
        let kind = fault.map(membership::RecordError::kind);
        if let Some(kind) = kind {
            let labels = BadRecordLabels { kind };
            self.etcd.metrics.bad_records.get_or_create(&labels).inc();
        }
        let is_news = self.offenders.is_news(key, kind);
        if let (Some(error), true) = (fault, is_news) {
            let key = String::from_utf8_lossy(key);
            warn!(%key, %error, "bad record of a worker in etcd, ignored");
        }
        outcome.ok()
    }

    fn alarm(&self, alarm: Option<Alarm>) {
        if let Some(Alarm { vanished, workers }) = alarm {
            self.etcd.metrics.membership_alarms.inc();
            error!(
                vanished,
                workers, "most workers vanished from etcd at once, who did not deregister is kept"
            );
        }
    }

    async fn tell(&self, seen: Seen) {
        if self.tell.send(seen).await.is_err() {
            // Whoever was told is gone, and `stop` is about to come.
            std::future::pending::<()>().await;
        }
    }
}

/// Lists all keys as of one revision, page by page.
pub(super) async fn list(link: &Link) -> Result<Listing, Fault> {
    let mut kv = link.kv();
    let mut end = WORKERS_PREFIX.as_bytes().to_vec();
    // The key after all with the prefix: 0 is the character after the slash.
    end.pop();
    end.push(b'/' + 1);
    let mut from = WORKERS_PREFIX.as_bytes().to_vec();
    let mut listing = Listing::default();
    loop {
        let options = GetOptions::new()
            .with_range(end.clone())
            .with_revision(listing.revision)
            .with_limit(PAGE_KEYS);
        let mut page = link.call(kv.get(from, Some(options))).await?;
        if listing.revision == 0 {
            listing.revision = page.header().map_or(0, |header| header.revision());
        }
        let has_more = page.more();
        listing.pairs.extend(page.take_kvs().into_iter().map(pair));
        let Some(last) = listing.pairs.last().filter(|_| has_more) else {
            return Ok(listing);
        };
        if listing.pairs.len() >= WORKERS_MAX {
            error!(
                workers_max = WORKERS_MAX,
                "too many workers in etcd, the rest is ignored"
            );
            return Ok(listing);
        }
        from = last.key.clone();
        from.push(0);
    }
}

fn pair(kv: KeyValue) -> Pair {
    let lease = kv.lease();
    let (key, mut value) = kv.into_key_value();
    value.truncate(RECORD_BYTES_MAX + 1);
    value.shrink_to_fit();
    Pair { key, value, lease }
}
