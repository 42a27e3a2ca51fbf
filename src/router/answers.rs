//! A router that answers others over the bus: placements, explanations, and that it is there.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::bus::{Bus, Heard, subjects, wire};
use crate::id::RouterId;
use crate::router::asked::{Answer, Asked, Placed, Request};
use crate::router::sharing::{self, Note, What};
use crate::router::{Placement, RouteError, Router};

/// How often a router says that it is there.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_millis(250);

/// A request that has not been placed by then waits, and its frontend is told so.
const WAITS_AFTER: Duration = Duration::from_millis(100);

/// How often it is told again.
pub(crate) const WAITS_EVERY: Duration = Duration::from_millis(500);

/// Most questions that are answered at once beyond those that may wait: some milliseconds' worth.
const BEYOND_QUEUE_MAX: usize = 4_096;

/// Most explanations at once: people ask for them, and each looks at every worker.
const EXPLAINED_MAX: usize = 16;

/// A router and the bus over which it is asked.
#[derive(Clone, Debug)]
pub struct Answers {
    router: Arc<Router>,
    bus: Bus,
    id: RouterId,
}

impl Answers {
    /// Answers under the name `id`.
    pub fn new(router: Arc<Router>, bus: Bus, id: RouterId) -> Self {
        Self { router, bus, id }
    }

    /// Answers until `stop`; those who are answered by then are answered to the end.
    pub async fn run(self, queue_requests_max: usize, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(queue_requests_max + BEYOND_QUEUE_MAX));
        let answering = TaskTracker::new();
        let placing = self.clone().serve(subjects::place(self.id.as_str()), {
            let (answers, answering) = (self.clone(), answering.clone());
            move |heard| {
                let Ok(place) = room.clone().try_acquire_owned() else {
                    warn!("too many requests at once, one is left to another router");
                    return;
                };
                let answers = answers.clone();
                let mut answer = Box::pin(async move {
                    answers.place(heard).await;
                    drop(place);
                });
                // Nearly all are placed at once, in less time than another thread takes to wake.
                let is_placed = answer.as_mut().now_or_never().is_some();
                if !is_placed {
                    answering.spawn(answer);
                }
            }
        });
        let explaining = self.clone().serve(subjects::explain(self.id.as_str()), {
            let (answers, answering) = (self.clone(), answering.clone());
            let room = Arc::new(Semaphore::new(EXPLAINED_MAX));
            move |heard| {
                let Ok(place) = room.clone().try_acquire_owned() else {
                    return;
                };
                let answers = answers.clone();
                answering.spawn(async move {
                    answers.explain(&heard).await;
                    drop(place);
                });
            }
        });
        let alive = self.say_alive();
        let all = async { tokio::join!(placing, explaining, alive) };
        stop.run_until_cancelled(all).await;
        answering.close();
        answering.wait().await;
        // Who was placed last must hear of it before the process ends.
        if let Err(error) = self.bus.flush().await {
            debug!(%error, "last answers not sent");
        }
    }

    async fn say_alive(&self) {
        let mut beats = interval(ALIVE_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subject = subjects::alive(self.id.as_str());
        loop {
            beats.tick().await;
            // A router without workers would only refuse what others can place.
            if self.router.workers().is_empty() {
                continue;
            }
            if let Err(error) = self.bus.publish(subject.clone(), &()).await {
                debug!(%error, "frontends not told that the router is there");
            }
        }
    }

    async fn serve(self, subject: String, mut take: impl FnMut(Heard)) {
        loop {
            let mut questions = self.bus.hear(subject.clone()).await;
            while let Some(heard) = questions.next().await {
                take(heard);
            }
        }
    }

    async fn place(&self, heard: Heard) {
        let asked: Asked = match wire::decode("a request to place", &heard.payload) {
            Ok(asked) => asked,
            Err(error) => return self.router.misheard(&heard.subject, &error.to_string()),
        };
        let Some(reply) = heard.reply else {
            return;
        };
        let (from, names) = (asked.from, (asked.life, asked.key));
        let (footprint, wish) = asked.request.parts();
        let placed = async {
            match asked.may_wait {
                true => self.router.admit(&footprint, &wish).await,
                false => self.router.place(&footprint, &wish),
            }
        };
        let mut placed = std::pin::pin!(placed);
        let mut waited = WAITS_AFTER;
        let waiting = self.router.waits_for(&from, names.1);
        let placed = loop {
            tokio::select! {
                biased;
                placed = &mut placed => break placed,
                () = waiting.withdrawn.cancelled() => return,
                () = sleep(waited) => self.reply(&reply, &Answer::Waits).await,
            }
            waited = WAITS_EVERY;
        };
        let answer = match placed {
            Ok(placement) => {
                Answer::Placed(Box::new(self.router.hand_over(placement, &from, names)))
            }
            Err(error) => Answer::Refused(error),
        };
        self.reply(&reply, &answer).await;
    }

    async fn explain(&self, heard: &Heard) {
        let (Some(reply), asked) = (&heard.reply, wire::decode("a request", &heard.payload)) else {
            return;
        };
        let asked: Request = match asked {
            Ok(asked) => asked,
            Err(error) => return self.router.misheard(&heard.subject, &error.to_string()),
        };
        let (footprint, wish) = asked.parts();
        let explained = json!({
            "router": self.id,
            "mode": wish.mode.unwrap_or(self.router.mode()),
            "formula": self.router.formula(),
            "candidates": self.router.explain(&footprint, &wish),
        });
        // As text: a frontend passes it on as it is.
        self.reply(reply, &explained.to_string()).await;
    }

    async fn reply(&self, reply: &str, answer: &impl Serialize) {
        let sent = self
            .bus
            .send(reply.to_owned(), None, wire::encode(answer))
            .await;
        if let Err(error) = sent {
            debug!(%error, "answer not sent");
        }
    }
}

/// A placement that another router waits for; dropped, it does no more.
pub(crate) struct AskedFor<'a> {
    router: &'a Router,
    name: (RouterId, u64),
    /// Cancelled when it is not wanted any more.
    pub(crate) withdrawn: CancellationToken,
}

impl Drop for AskedFor<'_> {
    fn drop(&mut self) {
        self.router.asked().remove(&self.name);
    }
}

impl Router {
    /// Notes that another router waits for a placement.
    pub(crate) fn waits_for(&self, from: &RouterId, key: u64) -> AskedFor<'_> {
        let withdrawn = CancellationToken::new();
        let name = (from.clone(), key);
        self.asked().insert(name.clone(), withdrawn.clone());
        AskedFor {
            router: self,
            name,
            withdrawn,
        }
    }

    /// Gives up what others do not wait for any more.
    pub(crate) fn note_withdrawn(&self, from: &RouterId, told: &sharing::Message) {
        let What::Notes(notes) = &told.what else {
            return;
        };
        let asked = self.asked();
        for note in notes {
            if let Note::Freed(key) = note
                && let Some(withdrawn) = asked.get(&(from.clone(), *key))
            {
                withdrawn.cancel();
            }
        }
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<(RouterId, u64), CancellationToken>> {
        // Each change under the lock is one step: a panic leaves nothing half done.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a placement to the router that asked for it: its booking is that router's from now on,
    /// under the name it has there.
    pub(crate) fn hand_over(
        &self,
        placement: Placement,
        to: &RouterId,
        names: (u64, u64),
    ) -> Placed {
        let booking = placement.booking.hand_over();
        self.lock().adopt(to, names, booking, Instant::now());
        Placed {
            worker: placement.worker,
            rank: placement.rank,
            overlap_blocks: placement.overlap_blocks,
            lower_blocks: placement.lower_blocks,
            cost: placement.cost,
            queued: placement.queued,
            parity_failed: placement.parity_failed,
            basis: placement.basis,
        }
    }
}

impl RouteError {
    /// Whether another router might know better: this one may just have begun.
    pub(crate) fn may_be_better_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::UnknownModel { .. } | Self::NoEligibleWorker { .. } | Self::WorkerNotFound { .. }
        )
    }
}
