//! Follows the feeds of agents in processes of their own, for ever: what they tell goes into the
//! router, and an agent that goes away takes nothing with it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError};
use crate::discovery::WorkerRecord;
use crate::dispatch::EngineClient;
use crate::id::WorkerId;
use crate::router::Router;
use crate::router::held::{Held, Leaving};
use crate::router::link::bus::BusLink;
use crate::router::link::{Link, LinkError, OpenFeed};
use crate::router::rules::Rules;

/// Waits between attempts to open a feed: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// The last of those while the agent is there and lines are lost: what is not known yet grows
/// meanwhile, and a snapshot of much takes more out of the bus than is lost.
const RESYNC_LAST: Duration = Duration::from_millis(500);

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
    /// Where agents that are found by their records tell; `None` where their listeners are asked.
    pub(crate) bus: Option<Bus>,
    /// Whether KV events are wanted, or records alone.
    pub(crate) with_blocks: bool,
    /// The feed that tells of each worker.
    claims: Mutex<HashMap<WorkerId, String>>,
}

/// What discovery says of a worker: its record as registered, `None` once it is absent.
pub type Registered = watch::Receiver<Option<Box<WorkerRecord>>>;

impl Feeds {
    /// Feeds for `router`, whose workers are served by `rules`. `client` shows the key that agents
    /// and gates ask for.
    pub fn new(
        router: Arc<Router>,
        rules: Arc<Rules>,
        stale_after: Duration,
        client: EngineClient,
    ) -> Self {
        Self {
            router,
            client,
            rules,
            stale_after,
            bus: None,
            with_blocks: true,
            claims: Mutex::default(),
        }
    }

    /// The same for agents that tell on a bus, KV events or records alone.
    #[must_use]
    pub fn over(self, bus: Option<Bus>, with_blocks: bool) -> Self {
        Self {
            bus,
            with_blocks,
            ..self
        }
    }

    /// Follows the feed of the agent at `url`, as `http://127.0.0.1:8200`, until `stop`: the worker is
    /// then to finish what it has.
    pub async fn follow(self: Arc<Self>, url: String, stop: CancellationToken) {
        let link = Link::Http {
            url: url.clone(),
            client: Box::new(self.client.clone()),
            worker: None,
        };
        let mut held = Held::new(self, url);
        let followed = async {
            let mut pace = Pace::default();
            loop {
                let broken = attempt(&mut held, &link, &mut pace).await;
                held.lose(&broken).await;
                held.watching(sleep(pace.next(&broken))).await;
            }
        };
        stop.run_until_cancelled::<_>(followed).await.unwrap_or(());
        held.leave(Leaving::Unnamed).await;
    }

    /// Follows the agent of a registered worker, until the worker is gone and registered no more.
    pub async fn follow_registered(self: Arc<Self>, worker: WorkerId, mut registered: Registered) {
        let source = format!("the record of {worker}");
        let mut held = Held::new(self.clone(), source.clone());
        let mut pace = Pace::default();
        // Whether the agent that is registered was asked in vain, and any may answer.
        let mut asks_any = false;
        // The life of an agent whose worker is gone: etcd may not have heard of it.
        let mut gone = None;
        while registered.borrow_and_update().is_some() || !held.is_empty() {
            let record = registered.borrow().clone();
            let was_empty = held.is_empty();
            let link = self.link(&worker, record.as_deref(), asks_any);
            let broken = match (self.claim(&worker, &source), link) {
                (Ok(()), Some(link)) => attempt(&mut held, &link, &mut pace).await,
                (Ok(()), None) => LinkError::NoFeed.into(),
                (Err(taken), _) => taken.into(),
            };
            asks_any = !asks_any && !broken.was_open;
            held.lose(&broken).await;
            let life = record.as_ref().map(|record| record.agent_life);
            if broken.error.is_final() || (held.is_empty() && !was_empty) {
                gone = life;
            }
            // The engine may answer though its agent is not heard.
            if let Some(record) = record.filter(|_| gone != life) {
                held.take_registered(&record);
            }
            let waiting = held.watching(sleep(pace.next(&broken)));
            let news = tokio::select! {
                () = waiting => None,
                changed = registered.changed() => changed.ok(),
            };
            if let (Some(()), Some(record)) = (news, registered.borrow().as_deref()) {
                held.take_news(record);
            }
        }
        self.release(&worker, &source);
    }

    fn link(
        &self,
        worker: &WorkerId,
        record: Option<&WorkerRecord>,
        asks_any: bool,
    ) -> Option<Link> {
        if let Some(bus) = &self.bus {
            return Some(Link::Bus(Box::new(BusLink {
                bus: bus.clone(),
                worker: worker.clone(),
                with_blocks: self.with_blocks,
                life: record
                    .map(|record| record.agent_life)
                    .filter(|life| *life != 0 && !asks_any),
            })));
        }
        // It would be shown our key.
        let is_reached = |url: &String| self.rules.reaches(url);
        Some(Link::Http {
            url: record?.agent.clone().filter(is_reached)?,
            client: Box::new(self.client.clone()),
            worker: Some(worker.clone()),
        })
    }

    /// Lets the feed at `source` alone tell of `worker`.
    ///
    /// # Errors
    /// When another feed tells of it.
    pub(crate) fn claim(&self, worker: &WorkerId, source: &str) -> Result<(), LinkError> {
        match self.claims().entry(worker.clone()) {
            Entry::Occupied(taken) if taken.get() != source => Err(LinkError::Taken {
                worker: worker.clone(),
                other: taken.get().clone(),
            }),
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(free) => {
                free.insert(source.to_owned());
                Ok(())
            }
        }
    }

    /// Gives a worker's name free again, where the feed at `source` has it.
    pub(crate) fn release(&self, worker: &WorkerId, source: &str) {
        let mut claims = self.claims();
        if claims.get(worker).is_some_and(|taken| taken == source) {
            claims.remove(worker);
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<WorkerId, String>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the next attempt waits.
#[derive(Debug)]
struct Pace {
    wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { wait: RETRY_FIRST }
    }
}

impl Pace {
    /// The wait before the next attempt.
    fn next(&mut self, broken: &Broken) -> Duration {
        // While the bus is away an attempt costs nothing, and its return must not be waited for long.
        let is_away = matches!(broken.error, LinkError::Bus(BusError::Away { .. }));
        let last = match is_away || (broken.was_open && broken.error.is_gap()) {
            true => RESYNC_LAST,
            false => RETRY_LAST,
        };
        let wait = self.wait.min(last);
        self.wait = (self.wait * 2).min(RETRY_LAST);
        wait
    }
}

/// How a feed ended.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) error: LinkError,
    /// Its snapshot had been taken in: the agent was there.
    pub(crate) was_open: bool,
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Self {
        Self {
            error,
            was_open: false,
        }
    }
}

/// Opens a feed and takes in what it tells until it breaks off.
async fn attempt(held: &mut Held, link: &Link, pace: &mut Pace) -> Broken {
    let opened = held.watching(link.open()).await;
    let since = Instant::now();
    let taken = opened.and_then(|(worker, snapshot, feed)| {
        held.take_in(&worker, snapshot)?;
        Ok(feed)
    });
    let broken = match taken {
        Ok(feed) => Broken {
            error: read(held, feed).await,
            was_open: true,
        },
        Err(error) => error.into(),
    };
    if since.elapsed() >= STEADY {
        *pace = Pace::default();
    }
    broken
}

/// Takes in what a feed tells, until it breaks off.
async fn read(held: &mut Held, mut feed: OpenFeed) -> LinkError {
    loop {
        let taken = match held.hearing(feed.next()).await {
            Ok(told) => held.take(told),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return error;
        }
    }
}
