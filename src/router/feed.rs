//! Follows the feeds of agents in processes of their own, for ever: what they tell goes into the
//! router, and an agent that goes away takes nothing with it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::dispatch::EngineClient;
use crate::id::WorkerId;
use crate::router::Router;
use crate::router::held::Held;
use crate::router::link::{Link, LinkError, OpenFeed};
use crate::router::rules::Rules;

/// Waits between attempts to open a feed: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// A feed that lasted so long was a good one: the next attempt follows at once.
const STEADY: Duration = Duration::from_secs(5);

/// What the followers of one router's feeds share.
#[derive(Debug)]
pub struct Feeds {
    pub(crate) router: Arc<Router>,
    pub(crate) client: EngineClient,
    /// Which workers are given requests.
    pub(crate) rules: Arc<Rules>,
    /// How long the blocks of a worker whose agent is away are believed in.
    pub(crate) stale_after: Duration,
    /// The feed that tells of each worker.
    claims: Mutex<HashMap<WorkerId, String>>,
}

impl Feeds {
    /// Feeds for `router`, whose workers are served by `rules`. `client` shows the key that agents
    /// and gates ask for.
    pub fn new(
        router: Arc<Router>,
        rules: Arc<Rules>,
        stale_after: Duration,
        client: EngineClient,
    ) -> Arc<Self> {
        Arc::new(Self {
            router,
            client,
            rules,
            stale_after,
            claims: Mutex::default(),
        })
    }

    /// Follows the feed of the agent at `url`, as `http://127.0.0.1:8200`, for ever.
    pub async fn follow(self: Arc<Self>, url: String) {
        let link = Link {
            url: url.clone(),
            client: self.client.clone(),
        };
        let mut held = Held::new(self, url);
        let mut wait = RETRY_FIRST;
        loop {
            let opened = held.watching(link.open()).await;
            let since = Instant::now();
            let taken = opened.and_then(|(worker, snapshot, feed)| {
                held.take_in(&worker, snapshot)?;
                Ok(feed)
            });
            let error = match taken {
                Ok(feed) => read(&mut held, feed).await,
                Err(error) => error,
            };
            wait = match since.elapsed() >= STEADY {
                true => RETRY_FIRST,
                false => (wait * 2).min(RETRY_LAST),
            };
            held.lose(&error).await;
            held.watching(sleep(wait)).await;
        }
    }

    /// Lets the feed at `url` alone tell of `worker`.
    ///
    /// # Errors
    /// When another feed tells of it.
    pub(crate) fn claim(&self, worker: &WorkerId, url: &str) -> Result<(), LinkError> {
        match self.claims().entry(worker.clone()) {
            Entry::Occupied(taken) if taken.get() != url => Err(LinkError::Taken {
                worker: worker.clone(),
                other: taken.get().clone(),
            }),
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(free) => {
                free.insert(url.to_owned());
                Ok(())
            }
        }
    }

    /// Gives a worker's name free again.
    pub(crate) fn release(&self, worker: &WorkerId) {
        self.claims().remove(worker);
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<WorkerId, String>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes in what a feed tells, until it breaks off.
async fn read(held: &mut Held, mut feed: OpenFeed) -> LinkError {
    loop {
        let taken = match held.watching(feed.next()).await {
            Ok(told) => held.take(told),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return error;
        }
    }
}
