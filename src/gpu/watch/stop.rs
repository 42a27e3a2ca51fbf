//! The end of a watch, as its threads see it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Set once; wakes whoever waits.
#[derive(Debug, Default)]
pub(super) struct Stop {
    is_set: Mutex<bool>,
    bell: Condvar,
}

impl Stop {
    pub(super) fn set(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is set, or for so long; whether it is set.
    pub(super) fn wait(&self, most: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .bell
            .wait_timeout_while(is_set, most, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
