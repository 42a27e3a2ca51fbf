//! A request's share of a worker's load, given back when it is dropped.

use std::sync::Arc;

use crate::router::state::BookingKey;
use crate::router::{Answered, Router};

/// What one placed request holds on its worker. A client that goes away drops it, and cannot leak
/// capacity.
#[derive(Debug)]
pub struct Booking {
    router: Arc<Router>,
    key: BookingKey,
    is_handed_over: bool,
}

impl Booking {
    pub(crate) fn new(router: Arc<Router>, key: BookingKey) -> Self {
        Self {
            router,
            key,
            is_handed_over: false,
        }
    }

    /// Lets somebody else free it, by its name.
    pub(crate) fn hand_over(mut self) -> BookingKey {
        self.is_handed_over = true;
        self.key
    }

    /// Frees the prefill share: the first token has come.
    pub fn first_token(&self) {
        self.router
            .make_room(|state, now| state.prefill_done(self.key, now));
    }

    /// Notes how many tokens of the answer have come; now and then is enough.
    pub fn progress(&self, seen_tokens: u32) {
        self.router.lock().progress(self.key, seen_tokens);
    }

    /// Holds what the engine says of its cache against the events that it sends.
    pub fn answered(&self, answered: Answered) {
        self.router.answered(self.key, answered);
    }

    /// Holds what the engine found in its cache against what the index had said when the request was
    /// booked, and counts the blocks that it did not find. They stay in the index: the request that
    /// missed them has just computed them, so they are true again. What was evicted between booking
    /// and computing, and stored anew since, is not counted. To be called for a request of one choice
    /// alone: of several the engine reports one, which may have found what another had just computed.
    pub fn found_cached(&self, cached_blocks: u32) {
        self.router.disprove(self.key, cached_blocks);
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        if !self.is_handed_over {
            self.router.make_room(|state, _| state.free(self.key));
        }
    }
}
