//! The agent's side of its feed: what it has told so far, and the routers that follow it.

mod rank;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::discovery::feed::{HEARTBEAT, Line, Standing, parts};
use crate::discovery::{Change, Update, WorkerRecord};
use crate::health::Verdict;
use crate::id::{DpRank, WorkerId};
use crate::index::KvEvent;
use crate::ledger::change::Changes;
use crate::ledger::tier::Tiers;
use crate::worker::feed::rank::Rank;

/// Most routers that follow at once: a rack of frontends, and some that reconnect.
const SUBSCRIBERS_MAX: usize = 64;

/// Most lines that wait for one router, some ten seconds of a busy engine. One that is further
/// behind starts again with a snapshot, which is shorter.
const QUEUE_LINES_MAX: usize = 4_096;

/// Most lines that wait for the bus, as for one router.
const BROADCAST_LINES_MAX: usize = QUEUE_LINES_MAX;

/// How long a router may wait for the first record, rather than ask again and again.
const FIRST_RECORD_MAX: Duration = Duration::from_secs(2);

/// Why nobody can follow now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    #[error("{SUBSCRIBERS_MAX} routers follow already")]
    TooMany,
    #[error("nothing is known of the engine yet")]
    NoRecord,
    #[error("the agent is stopping")]
    Closed,
}

/// What one agent has told so far, and who is told more. Its state stands behind one short lock: a
/// router that starts to follow gets all of it, and then every line, without a gap.
#[derive(Debug)]
pub struct Feed {
    worker: WorkerId,
    /// Tells this agent from others of its name.
    life: u64,
    state: Mutex<State>,
    record: watch::Sender<Option<Box<WorkerRecord>>>,
    /// Cancelled once the worker is taken out.
    deregistered: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Where other hosts reach the engine, where that differs from what the agent uses.
    public_address: Option<String>,
    ranks: BTreeMap<DpRank, Rank>,
    subscribers: Vec<mpsc::Sender<Bytes>>,
    /// Who tells it on the bus.
    broadcast: Option<mpsc::Sender<Counted>>,
    told: Tally,
    end: End,
}

/// How much was told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub lines: u64,
    /// Those of them that are no KV events, heartbeats left out.
    pub records: u64,
}

/// A line, and how much was told with it.
pub type Counted = (Tally, Line);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// The worker was taken out.
    Deregistered,
    /// The agent stops; its engine goes on.
    Closed,
}

/// A feed's lines, ready to be sent.
pub type Lines = BoxStream<'static, io::Result<Bytes>>;

impl Feed {
    /// The feed of an agent that knows nothing yet.
    pub fn new(worker: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            worker,
            life: uuid::Uuid::new_v4().as_u64_pair().0,
            state: Mutex::default(),
            record: watch::Sender::new(None),
            deregistered: CancellationToken::new(),
        })
    }

    /// Sets the address that records name, where other hosts need another than the agent.
    pub fn set_public_address(&self, address: Option<String>) {
        self.lock().public_address = address;
    }

    /// The worker's record as told last, and each one to come.
    pub fn record(&self) -> watch::Receiver<Option<Box<WorkerRecord>>> {
        self.record.subscribe()
    }

    /// Tells an update of the agent to all who follow.
    pub fn publish(&self, update: Update) {
        let mut state = self.lock();
        if state.end != End::Open {
            return;
        }
        match update {
            Update::Change(Change::Up(record)) => self.tell_record(&mut state, *record),
            Update::Change(Change::Down(_)) => self.lose_engine(&mut state),
            Update::Kv(event) => state.tell(event),
        }
    }

    /// Tells all who follow where each rank stands.
    pub fn beat(&self) {
        let mut state = self.lock();
        let beat = state.heartbeat();
        state.send(&beat);
    }

    /// Follows the feed: a snapshot, and then every line as it comes.
    ///
    /// # Errors
    /// When too many follow, nothing is known after a while, or the agent stops.
    pub async fn follow(&self) -> Result<Lines, FollowError> {
        let mut record = self.record();
        // What came is looked at below.
        let first = timeout(FIRST_RECORD_MAX, record.wait_for(Option::is_some));
        first.await.map(drop).ok();
        self.subscribe()
    }

    fn subscribe(&self) -> Result<Lines, FollowError> {
        let mut state = self.lock();
        let record = self.record.borrow().clone();
        match (state.end, &record) {
            (End::Open, Some(_)) => {}
            (End::Open, None) => return Err(FollowError::NoRecord),
            (End::Closed, _) => return Err(FollowError::Closed),
            (End::Deregistered, _) => {
                let lines = [Line::hello(&self.worker), Line::Down];
                return Ok(stream::iter(lines.map(|line| Ok(line.encode()))).boxed());
            }
        }
        state
            .subscribers
            .retain(|subscriber| !subscriber.is_closed());
        if state.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(FollowError::TooMany);
        }
        let (sender, queue) = mpsc::channel(QUEUE_LINES_MAX);
        state.subscribers.push(sender);
        // Written as they are read: the text of a million hashes is never held at once.
        let lines = self.lines(&state, true).map(|line| line.encode());
        drop(state);
        let queued = stream::unfold(queue, async |mut queue| {
            let line: Bytes = queue.recv().await?;
            Some((line, queue))
        });
        Ok(stream::iter(lines).chain(queued).map(Ok).boxed())
    }

    /// All that is told from now on, for the bus. One line too many in its queue is left out, as the
    /// numbers show.
    pub fn broadcast(&self) -> mpsc::Receiver<Counted> {
        let (sender, queue) = mpsc::channel(BROADCAST_LINES_MAX);
        self.lock().broadcast = Some(sender);
        queue
    }

    /// Cancelled once the worker is taken out.
    pub fn deregistered(&self) -> CancellationToken {
        self.deregistered.clone()
    }

    /// Which worker it tells of.
    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// Tells this agent from others of its name.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// What is known now, as lines that end with a heartbeat, and how much was told before them. A
    /// worker of which nothing is known yet has none but the first and the last.
    pub fn snapshot(
        &self,
        with_blocks: bool,
    ) -> (Tally, impl Iterator<Item = Line> + Send + use<>) {
        let state = self.lock();
        (state.told, self.lines(&state, with_blocks))
    }

    fn lines(&self, state: &State, with_blocks: bool) -> impl Iterator<Item = Line> + Send + use<> {
        let record = self.record.borrow().clone();
        let events = match with_blocks {
            true => state.snapshot(&self.worker),
            false => Vec::new(),
        };
        let last = match state.end {
            End::Deregistered => Line::Down,
            End::Open | End::Closed => state.heartbeat(),
        };
        std::iter::once(Line::hello(&self.worker))
            .chain(record.map(Line::Record))
            .chain(events.into_iter().flat_map(parts))
            .chain(std::iter::once(last))
    }

    /// Takes the worker out: routers give it nothing new, and forget it once it has nothing left.
    pub fn deregister(&self) {
        let mut state = self.lock();
        if state.end == End::Open {
            info!(worker = %self.worker, "worker deregistered");
            state.send(&Line::Down);
            state.finish(End::Deregistered);
            self.deregistered.cancel();
        }
    }

    /// Ends the feed of an agent that stops. Routers keep the worker, and go on without the agent.
    pub fn close(&self) {
        self.lock().finish(End::Closed);
    }

    /// Whether the worker was taken out.
    pub fn is_deregistered(&self) -> bool {
        self.lock().end == End::Deregistered
    }

    fn tell_record(&self, state: &mut State, mut record: WorkerRecord) {
        if let Some(address) = &state.public_address {
            address.clone_into(&mut record.address);
        }
        record.agent_life = self.life;
        let record = Box::new(record);
        self.record.send_replace(Some(record.clone()));
        state.send(&Line::Record(record));
    }

    /// The agent says that its engine is no more: the worker stays in sight, and holds nothing.
    fn lose_engine(&self, state: &mut State) {
        let Some(record) = self.record.borrow().clone() else {
            return;
        };
        let ranks: Vec<_> = state
            .ranks
            .iter()
            .map(|(rank, held)| held.cleared(&self.worker, *rank))
            .collect();
        ranks.into_iter().for_each(|event| state.tell(event));
        let record = WorkerRecord {
            verdict: Verdict::Failed,
            cause: Some("engine is gone".to_owned()),
            ..*record
        };
        self.tell_record(state, record);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock may lose a line, which the next heartbeat shows.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, event: KvEvent) {
        let rank = self.ranks.entry(event.rank);
        rank.or_insert_with(|| Rank::new(&event)).apply(&event);
        for line in parts(event) {
            self.send(&line);
        }
    }

    fn send(&mut self, line: &Line) {
        self.told.lines += 1;
        if matches!(line, Line::Record(_) | Line::Down) {
            self.told.records += 1;
        }
        if let Some(broadcast) = &self.broadcast {
            // Full or gone: the numbers show that it is missing.
            broadcast.try_send((self.told, line.clone())).ok();
        }
        if self.subscribers.is_empty() {
            return;
        }
        let line = line.encode();
        self.subscribers.retain(|subscriber| {
            let sent = subscriber.try_send(line.clone());
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                warn!(
                    lines = QUEUE_LINES_MAX,
                    "a router is too slow and starts again"
                );
            }
            sent.is_ok()
        });
    }

    fn heartbeat(&self) -> Line {
        let standing = |(rank, held): (&DpRank, &Rank)| Standing {
            rank: *rank,
            incarnation: held.incarnation,
            sequence: held.sequence,
            blocks: held.hashes.len() as u64,
            lower_blocks: Tiers::from_fn(|tier| held.lower[tier].len() as u64),
        };
        Line::Heartbeat(self.ranks.iter().map(standing).collect())
    }

    /// An event for each rank that clears it and stores all it holds.
    fn snapshot(&self, worker: &WorkerId) -> Vec<KvEvent> {
        let event = |(rank, held): (&DpRank, &Rank)| KvEvent {
            stored: held.hashes.iter().copied().collect(),
            lower: Tiers::from_fn(|tier| Changes {
                removed: Vec::new(),
                stored: held.lower[tier].iter().copied().collect(),
            }),
            ..held.cleared(worker, *rank)
        };
        self.ranks.iter().map(event).collect()
    }

    fn finish(&mut self, end: End) {
        self.end = end;
        self.subscribers.clear();
    }
}

/// Tells what the agent says, and a heartbeat from time to time, until the agent has ended.
pub async fn run(feed: Arc<Feed>, mut updates: mpsc::Receiver<Update>) {
    let mut beats = interval(HEARTBEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => feed.publish(update),
                None => return,
            },
            _ = beats.tick() => feed.beat(),
        }
    }
}
