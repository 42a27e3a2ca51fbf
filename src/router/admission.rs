//! Requests that wait for room: let in when they must wait, placed when room is made.

mod busy;
mod pass;
mod waiting;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::yield_now;

use crate::config::router::RouterConfig;
use crate::router::admission::busy::Threshold;
use crate::router::admission::waiting::Waiting;
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::{Chosen, State};
use crate::router::{Placement, RouteError, Router};
use crate::select::queue::{Queue, QueueFull, Ticket};
use crate::telemetry::labels::{QueueLabels, QueueRefusal};

/// How often those who wait look for themselves whether they can be placed: nobody tells them of the
/// end of a worker's pause or of a prefill that must be over by now, and whoever leaves may have
/// stood before others that could be placed. A look of many at once is one pass over the queue, so
/// as many as may wait cost a few percent of a core.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Most requests that are decided on together: to put so many in order takes a millisecond under the
/// router's lock.
pub(crate) const ARRIVALS_MAX: usize = 64;

/// What a waiting request is told.
type Outcome = Result<Placement, RouteError>;

/// Who waits, beside the state that decides on them.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Those that have come at this instant; see [`Router::admit`].
    arrivals: VecDeque<(Ticket, Waiter)>,
    queue: Queue,
    /// One for each ticket in the queue.
    waiters: BTreeMap<Ticket, Waiter>,
    threshold: Threshold,
    wait_max: Duration,
    /// From when the queue counts time.
    start: Instant,
    /// When it was last looked whether those who wait can be placed.
    looked: Instant,
}

/// A request that waits, and where its answer goes.
#[derive(Debug)]
struct Waiter {
    footprint: Footprint,
    wish: Wish,
    since: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// A decision that is still to be told, once the state's lock is free.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) ticket: Ticket,
    answer: oneshot::Sender<Outcome>,
    /// How long it stood in the queue; `None` where it never had to.
    queued: Option<Duration>,
    pub(crate) outcome: Result<Chosen, RouteError>,
}

impl Admission {
    pub(crate) fn new(config: &RouterConfig) -> Self {
        let limits = config.queue_limits();
        let start = now();
        Self {
            arrivals: VecDeque::new(),
            queue: Queue::new(config.queue_policy, limits),
            waiters: BTreeMap::new(),
            threshold: Threshold::new(config),
            wait_max: limits.wait_max,
            start,
            looked: start,
        }
    }

    fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Takes a request out, whether or not anything was decided on it; `None` where it was.
    fn take(&mut self, ticket: Ticket) -> Option<Waiter> {
        if let Some(at) = self.arrivals.iter().position(|(its, _)| *its == ticket) {
            return self.arrivals.remove(at).map(|(_, waiter)| waiter);
        }
        self.queue.remove(ticket);
        self.waiters.remove(&ticket)
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Whether those who wait should look again: it is time to, or one has waited long enough.
    fn is_due(&self, now: Instant) -> bool {
        let is_old = self.looked + LOOK_EVERY <= now;
        !self.is_empty() && (is_old || self.queue.has_expired(self.elapsed(now)))
    }
}

impl Router {
    /// Chooses a worker as wished, and books the request there before it answers. Requests that come
    /// at one instant are decided on together, in the order of the queue's policy: whatever is ready
    /// to run goes up to here before the first of them goes on. Where all workers that a request may
    /// go to are busy, or others of its model wait already, it waits for its turn; the worker is then
    /// chosen by what is held where when the turn comes. Dropped while it waits, it is forgotten at
    /// once.
    ///
    /// # Errors
    /// When no worker serves the model, or none that does can take requests any more; when too much
    /// waits already, and when it has waited as long as a request may.
    pub async fn admit(self: &Arc<Self>, footprint: &Footprint, wish: &Wish) -> Outcome {
        let (waiting, is_full) = self.arrive(footprint, wish);
        if !is_full {
            yield_now().await;
        }
        self.receive();
        waiting.outcome().await
    }

    /// Lets a request come; true when as many have come as are decided on together.
    fn arrive(self: &Arc<Self>, footprint: &Footprint, wish: &Wish) -> (Waiting, bool) {
        let now = now();
        let mut state = self.lock();
        let stand = state.arrive(footprint, wish, now);
        let is_full = state.admission.arrivals.len() >= ARRIVALS_MAX;
        let deadline = tokio::time::Instant::from_std(now) + state.admission.wait_max;
        (Waiting::new(self.clone(), stand, deadline), is_full)
    }

    /// Decides on all that have come, one after the other: what goes wrong with one is not the others'
    /// fault, and whoever else needs the state waits for one.
    fn receive(&self) {
        let count = self.lock().order_arrivals(now());
        for _ in 0..count {
            let decided = {
                let mut state = self.lock();
                let decided = state.receive(now());
                self.show_queue(&state.admission);
                decided
            };
            self.tell(decided.unwrap_or_default());
        }
    }

    /// Makes a change that may free room, and gives the room to those who wait.
    pub(crate) fn make_room<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = now();
        let (changed, decided) = {
            let mut state = self.lock();
            let changed = change(&mut state, now);
            (changed, self.let_in(&mut state, now))
        };
        self.tell(decided);
        changed
    }

    /// Makes a change to the set of workers. Those who wait for workers that can take no more
    /// requests are told, and others may find room on new ones.
    pub(crate) fn change_workers<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = now();
        let (changed, decided) = {
            let mut state = self.lock();
            let changed = change(&mut state, now);
            let mut decided = state.dismiss(now);
            decided.extend(self.let_in(&mut state, now));
            if !decided.is_empty() {
                self.show_queue(&state.admission);
            }
            (changed, decided)
        };
        self.tell(decided);
        changed
    }

    /// Looks whether those who wait can be placed, unless that was done just now.
    fn look(&self) {
        let decided = {
            let mut state = self.lock();
            let now = now();
            match state.admission.is_due(now) {
                true => self.let_in(&mut state, now),
                false => Vec::new(),
            }
        };
        self.tell(decided);
    }

    /// Forgets a waiting request; one whose turn has come is forgotten already.
    fn leave(&self, ticket: Ticket) {
        let mut state = self.lock();
        if state.admission.take(ticket).is_some() {
            self.show_queue(&state.admission);
        }
    }

    fn let_in(&self, state: &mut State, now: Instant) -> Vec<Decided> {
        if state.admission.is_empty() {
            return Vec::new();
        }
        let decided = state.let_in(now);
        self.show_queue(&state.admission);
        decided
    }

    /// Tells those who waited what was decided. Never under the state's lock: a placement that
    /// nobody takes any more frees its booking here.
    fn tell(&self, decided: Vec<Decided>) {
        for Decided {
            answer,
            queued,
            outcome,
            ..
        } in decided
        {
            // Whoever waits owns the router too, so without an owner nobody waits.
            let Some(router) = self.this.upgrade() else {
                return;
            };
            match (&outcome, queued) {
                (Ok(_), Some(queued)) => self.metrics.queue_wait.observe(queued.as_secs_f64()),
                (Err(error), queued) => self.count_refusal(error, queued.is_some()),
                (Ok(_), None) => {}
            }
            let queued = queued.unwrap_or_default();
            drop(answer.send(outcome.map(|chosen| router.placement(chosen, queued))));
        }
    }

    /// Counts a request that did not get out of the queue to a worker, or not into it.
    fn count_refusal(&self, error: &RouteError, has_waited: bool) {
        let reason = match error {
            RouteError::QueueFull { full, .. } => match full {
                QueueFull::Requests { .. } => QueueRefusal::Requests,
                QueueFull::Tokens { .. } => QueueRefusal::Tokens,
                QueueFull::Tenant { .. } => QueueRefusal::Tenant,
            },
            RouteError::QueueTimeout { .. } => QueueRefusal::Expired,
            _ if has_waited => QueueRefusal::NoWorker,
            _ => return,
        };
        let labels = QueueLabels { reason };
        self.metrics.queue_refusals.get_or_create(&labels).inc();
    }

    /// Shows how much waits; under the state's lock, so that the last one to show is right.
    fn show_queue(&self, admission: &Admission) {
        let depth = admission.queue.requests() as i64;
        self.metrics.queue_depth.set(depth);
        let tokens = admission.queue.tokens() as i64;
        self.metrics.queue_tokens.set(tokens);
    }
}

/// The time by tokio's clock, which is what deadlines are kept by.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
