//! What one member of etcd says when it is asked once. Nothing there is changed: no key is put, no
//! lease is taken.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use etcd_client::GetOptions;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, timeout};

use crate::config::etcd::EtcdConfig;
use crate::discovery::WorkerRecord;
use crate::discovery::etcd::fault::Fault;
use crate::discovery::etcd::follow::{Pair, list};
use crate::discovery::etcd::link::Link;
use crate::discovery::membership::{self, WORKERS_PREFIX};

/// Time for the leases: they are shown and no more.
const LEASES_MAX: Duration = Duration::from_millis(500);

/// Leases that are asked about at once.
const LEASES_AT_ONCE: usize = 32;

/// What a member answered.
#[derive(Debug)]
pub(crate) struct Member {
    /// `None` where it does not tell us.
    pub(crate) version: Option<String>,
    /// Time of one question to it, and to its leader.
    pub(crate) round_trip: Duration,
    pub(crate) workers: Vec<(WorkerRecord, Lease)>,
    /// Keys whose records cannot be used, and why.
    pub(crate) bad: Vec<(String, String)>,
}

/// How long a record stays without word from its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// For ever.
    Absent,
    Left(Duration),
    /// etcd did not say.
    Unknown,
}

/// Asks the member that is the `number`th of the configuration.
///
/// # Errors
/// When it cannot be reached, or does not let us read.
pub(crate) async fn ask(config: &EtcdConfig, number: usize) -> Result<Member, Fault> {
    let link = Link::connect(config, number).await?;
    let listing = list(&link).await?;
    // Timed once the connection is there.
    let asked = Instant::now();
    let options = GetOptions::new().with_prefix().with_count_only();
    link.call(link.kv().get(WORKERS_PREFIX, Some(options)))
        .await?;
    let round_trip = asked.elapsed();
    let version = link.call(link.maintenance().status()).await.ok();
    let leases = leases(&link, &listing.pairs).await;
    let mut member = Member {
        version: version.map(|status| status.version().to_owned()),
        round_trip,
        workers: Vec::new(),
        bad: Vec::new(),
    };
    for Pair { key, value, lease } in &listing.pairs {
        let left = match lease {
            0 => Lease::Absent,
            id => leases.get(id).copied().unwrap_or(Lease::Unknown),
        };
        match membership::read(key, value) {
            Ok(record) => member.workers.push((record, left)),
            Err(error) => {
                let key = String::from_utf8_lossy(key).into_owned();
                member.bad.push((key, error.to_string()));
            }
        }
    }
    Ok(member)
}

/// What is left of each lease, as far as etcd says it in time.
async fn leases(link: &Link, pairs: &[Pair]) -> HashMap<i64, Lease> {
    let ids: BTreeSet<i64> = pairs.iter().map(|pair| pair.lease).collect();
    let ids = ids.into_iter().filter(|id| *id != 0);
    let asking = ids.map(|id| async move {
        let mut client = link.leases();
        let answer = link.call(client.time_to_live(id, None)).await.ok()?;
        // One that ran out meanwhile is -1.
        let secs = u64::try_from(answer.ttl()).unwrap_or(0);
        Some((id, Lease::Left(Duration::from_secs(secs))))
    });
    let mut answers = stream::iter(asking).buffer_unordered(LEASES_AT_ONCE);
    let mut found = HashMap::new();
    let collecting = async {
        while let Some(answer) = answers.next().await {
            found.extend(answer);
        }
    };
    // What is not known by then stays unknown.
    timeout(LEASES_MAX, collecting).await.ok();
    found
}
