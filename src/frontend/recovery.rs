//! What a frontend remembers of engines that failed, so that mending one request does no harm to
//! others: how many retries are left, and which requests engines have died of.

pub mod budget;
pub mod deadly;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::config::frontend::FrontendConfig;
use crate::frontend::recovery::budget::RetryBudget;
use crate::frontend::recovery::deadly::{DeadlyRequests, RequestDigest};

/// Most that is held of requests until their streams end, so that they can be continued: some
/// thousand chats with a picture each. Streams beyond it are not continued.
const HELD_KIB_MAX: usize = 512 << 10;

/// Retries that are left, and requests that are refused.
#[derive(Debug)]
pub struct Recovery {
    /// Streams that break off are continued on another worker where that can be done.
    pub continue_streams: bool,
    /// What may be held of requests until their streams end, in KiB.
    pub(crate) held: Arc<Semaphore>,
    started: Instant,
    budget: Mutex<RetryBudget>,
    deadly: Mutex<DeadlyRequests>,
}

impl Recovery {
    /// All retries left, and nothing refused.
    pub fn new(config: &FrontendConfig) -> Self {
        Self {
            continue_streams: config.continue_streams,
            held: Arc::new(Semaphore::new(HELD_KIB_MAX)),
            started: Instant::now(),
            budget: Mutex::new(RetryBudget::new(config.retries)),
            deadly: Mutex::default(),
        }
    }

    /// Counts a request, which earns its share of a retry.
    pub(crate) fn request(&self) {
        // A panic under a lock leaves a count slightly off at worst, here and below.
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.request();
    }

    /// Takes one retry; false where none is left.
    pub(crate) fn take_retry(&self) -> bool {
        let now = self.started.elapsed();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(now)
    }

    /// Refuses from now on, for a while, what engines have died of.
    pub(crate) fn note_deadly(&self, request: RequestDigest) {
        let now = self.started.elapsed();
        let mut deadly = self.deadly.lock().unwrap_or_else(PoisonError::into_inner);
        deadly.note(request, now);
    }

    /// Whether engines have died of a request lately; `digest` is asked for only where one of its
    /// length is refused, because making it reads the whole body.
    pub(crate) fn is_deadly(
        &self,
        body_bytes: usize,
        digest: impl FnOnce() -> RequestDigest,
    ) -> bool {
        let now = self.started.elapsed();
        let lock = || self.deadly.lock().unwrap_or_else(PoisonError::into_inner);
        if !lock().knows_length(body_bytes, now) {
            return false;
        }
        let digest = digest();
        lock().knows(&digest, now)
    }
}
