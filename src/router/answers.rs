//! A router that answers others over the bus: placements, explanations, and that it is there.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::bus::{Bus, Heard, Listener, subjects, wire};
use crate::id::RouterId;
use crate::router::asked::{Answer, Asked, Request};
use crate::router::{RouteError, Router};

/// How often a router says that it is there.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_millis(250);

/// A request that has not been placed by then waits, and its frontend is told so.
const WAITS_AFTER: Duration = Duration::from_millis(100);

/// How often it is told again.
pub(crate) const WAITS_EVERY: Duration = Duration::from_millis(500);

/// Most questions that are answered at once beyond those that may wait: some milliseconds' worth.
const BEYOND_QUEUE_MAX: usize = 4_096;

/// Wait before the bus is asked again for what it refused.
const RETRY: Duration = Duration::from_millis(500);

/// A router and the bus over which it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    pub(crate) router: Arc<Router>,
    pub(crate) bus: Bus,
    pub(crate) id: RouterId,
}

impl Answers {
    /// Answers until `stop`; those who are answered by then are answered to the end.
    pub(crate) async fn run(self, queue_requests_max: usize, stop: CancellationToken) {
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
                answering.spawn(async move {
                    answers.place(heard).await;
                    drop(place);
                });
            }
        });
        let explaining = self.clone().serve(subjects::explain(self.id.as_str()), {
            let (answers, answering) = (self.clone(), answering.clone());
            move |heard| {
                let answers = answers.clone();
                answering.spawn(async move { answers.explain(&heard).await });
            }
        });
        let all = async { tokio::join!(placing, explaining, self.say_alive()) };
        stop.run_until_cancelled(all).await;
        answering.close();
        answering.wait().await;
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
            let mut questions = self.listen(&subject).await;
            while let Some(heard) = questions.next().await {
                take(heard);
            }
        }
    }

    async fn listen(&self, subject: &str) -> Listener {
        loop {
            match self.bus.listen(subject.to_owned()).await {
                Ok(listener) => return listener,
                Err(error) => warn!(%error, "cannot be asked over the bus"),
            }
            sleep(RETRY).await;
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
        let placed = loop {
            tokio::select! {
                biased;
                placed = &mut placed => break placed,
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

impl RouteError {
    /// Whether another router might know better: this one may just have begun.
    pub(crate) fn may_be_better_elsewhere(&self) -> bool {
        matches!(
            self,
            Self::UnknownModel { .. } | Self::NoEligibleWorker { .. } | Self::WorkerNotFound { .. }
        )
    }
}
