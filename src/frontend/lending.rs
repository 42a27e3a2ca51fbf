//! Images that engines fetch from us: to which of them they go that way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::http::lent::Loans;
use crate::id::WorkerId;

/// How long an engine that could not fetch is sent its images: a mended network shows soon, and a
/// broken one costs one failed request a minute.
const PAUSE: Duration = Duration::from_secs(60);

/// The images that are lent, and the workers that could not fetch them.
#[derive(Debug)]
pub struct Lending {
    pub loans: Loans,
    /// Until when nothing is lent to a worker; as many as failed within the last pause.
    paused: Mutex<HashMap<WorkerId, Instant>>,
}

impl Lending {
    /// Lends to every worker at first.
    pub fn new(loans: Loans) -> Self {
        Self {
            loans,
            paused: Mutex::default(),
        }
    }

    pub(crate) fn is_open_to(&self, worker: &WorkerId) -> bool {
        let now = Instant::now();
        self.lock().get(worker).is_none_or(|until| *until <= now)
    }

    /// Notes that a worker's engine could not fetch: its images go inside requests for a while.
    pub(crate) fn pause(&self, worker: &WorkerId, reason: &str) {
        warn!(%worker, reason, pause = ?PAUSE, "engine cannot fetch images");
        let now = Instant::now();
        let mut paused = self.lock();
        paused.retain(|_, until| *until > now);
        paused.insert(worker.clone(), now + PAUSE);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerId, Instant>> {
        // Nothing panics under it: what it guards is whole.
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_engine_that_cannot_fetch_is_left_alone() {
        let lending = Lending::new(Loans::new("http://host:1", 10));
        let [one, two] = ["gpu-0", "gpu-1"].map(|worker| WorkerId::new(worker).unwrap());
        lending.pause(&one, "a test's own");
        assert!(!lending.is_open_to(&one) && lending.is_open_to(&two));
        lending.lock().insert(one.clone(), Instant::now());
        assert!(lending.is_open_to(&one), "the pause is over");
        lending.pause(&two, "a test's own");
        assert_eq!(lending.lock().len(), 1, "what is over is forgotten");
    }
}
