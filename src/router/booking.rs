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
}

impl Booking {
    pub(crate) fn new(router: Arc<Router>, key: BookingKey) -> Self {
        Self { router, key }
    }

    /// Frees the prefill share: the first token has come.
    pub fn first_token(&self) {
        self.router.lock().prefill_done(self.key);
    }

    /// Holds what the engine says of its cache against the events that it sends.
    pub fn answered(&self, answered: Answered) {
        self.router.answered(self.key, answered);
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.router.lock().free(self.key);
    }
}
