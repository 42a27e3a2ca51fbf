//! Whether a router in a process of its own answers: it asks itself over the bus, as a frontend asks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::bus::{Bus, subjects};
use crate::id::RouterId;
use crate::router::Router;
use crate::router::asked::{Asked, Request};
use crate::router::footprint::{Footprint, Wish};

/// Between two questions to a router that has not begun.
const PAUSE: Duration = Duration::from_millis(20);

/// Longest wait for one answer to itself.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A router, asked by itself.
#[derive(Debug)]
pub(crate) struct OwnQuestion {
    router: Arc<Router>,
    bus: Bus,
    id: RouterId,
    /// It has answered itself over the bus, so the bus lets it.
    was_heard: AtomicBool,
}

impl OwnQuestion {
    pub(crate) fn new(router: Arc<Router>, bus: Bus, id: RouterId) -> Self {
        Self {
            router,
            bus,
            id,
            was_heard: AtomicBool::new(false),
        }
    }

    /// Waits until it answers over the bus.
    pub(crate) async fn begun(&self) {
        while !self.answers(ANSWER_MAX).await {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether it answers within `deadline`: over the bus where that carries anything, else by its state
    /// alone. A bus that is away, or takes no question of its own from a router, is no fault of it.
    pub(crate) async fn is_well(&self, deadline: Duration) -> bool {
        // Time for the question, for the echo, and to spare.
        let patience = deadline / 3;
        if self.answers(patience).await {
            return true;
        }
        let is_stuck = self.was_heard.load(Ordering::Relaxed) && self.bus.echoes(patience).await;
        // Who holds the lock of the state for ever holds this up too, and so the watchdog.
        self.router.workers();
        !is_stuck
    }

    async fn answers(&self, patience: Duration) -> bool {
        // Of no model: nobody is chosen.
        let nothing = Asked {
            from: self.id.clone(),
            life: 0,
            key: 0,
            may_wait: false,
            request: Request::new(&Footprint::new("", 0), &Wish::default()),
        };
        let subject = subjects::place(self.id.as_str());
        let answer = async {
            let mut answers = self.bus.ask(subject, &nothing).await?;
            answers.next(patience).await
        };
        let is_heard = answer.await.is_ok();
        if is_heard {
            self.was_heard.store(true, Ordering::Relaxed);
        }
        is_heard
    }
}
