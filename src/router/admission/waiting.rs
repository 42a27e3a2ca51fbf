//! One request's wait.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::router::Router;
use crate::router::admission::{LOOK_EVERY, Outcome};
use crate::select::queue::Ticket;

/// A request's stand in the queue. Dropped, it leaves the queue; where its turn came meanwhile, the
/// placement that it no longer takes frees its booking.
#[derive(Debug)]
pub(crate) struct Waiting {
    router: Arc<Router>,
    ticket: Ticket,
    /// When it has waited as long as a request may.
    deadline: Instant,
    // Dropped after it has left the queue, so that nothing is sent after that.
    outcome: oneshot::Receiver<Outcome>,
}

impl Waiting {
    pub(crate) fn new(
        router: Arc<Router>,
        (ticket, outcome): (Ticket, oneshot::Receiver<Outcome>),
        deadline: Instant,
    ) -> Self {
        Self {
            router,
            ticket,
            deadline,
            outcome,
        }
    }

    /// Waits for what is decided.
    pub(crate) async fn outcome(mut self) -> Outcome {
        loop {
            let mut look = Instant::now() + LOOK_EVERY;
            if Instant::now() < self.deadline {
                look = look.min(self.deadline);
            }
            tokio::select! {
                biased;
                outcome = &mut self.outcome => {
                    return outcome.expect("a waiter is answered when it is taken out");
                }
                () = sleep_until(look) => self.router.look(),
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.router.leave(self.ticket);
    }
}
