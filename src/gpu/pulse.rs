//! When a call began that has not returned, for whoever watches from outside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The call in progress of one thread.
#[derive(Debug)]
pub(crate) struct Pulse {
    origin: Instant,
    /// Milliseconds from `origin` to when the call ought to be answered at once, plus 1; 0 for none.
    due_millis: AtomicU64,
}

/// A call; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Calling<'a>(&'a Pulse);

impl Pulse {
    pub(crate) fn new(origin: Instant) -> Self {
        Self {
            origin,
            due_millis: AtomicU64::new(0),
        }
    }

    /// Says that a call begins.
    pub(crate) fn call(&self) -> Calling<'_> {
        self.call_for(Duration::ZERO)
    }

    /// Says that a call begins that may rest for so long before it counts.
    pub(crate) fn call_for(&self, rest: Duration) -> Calling<'_> {
        let due_millis = (self.origin.elapsed() + rest).as_millis() as u64;
        self.due_millis.store(due_millis + 1, Ordering::Relaxed);
        Calling(self)
    }

    /// When, from the origin, the call in progress began.
    pub(crate) fn began(&self) -> Option<Duration> {
        let due_millis = self.due_millis.load(Ordering::Relaxed);
        due_millis.checked_sub(1).map(Duration::from_millis)
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.due_millis.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_seen_while_it_lasts() {
        let pulse = Pulse::new(Instant::now());
        assert_eq!(pulse.began(), None);
        let call = pulse.call();
        assert!(pulse.began().is_some());
        drop(call);
        assert_eq!(pulse.began(), None);
        let call = pulse.call_for(Duration::from_secs(60));
        assert!(pulse.began() >= Some(Duration::from_secs(60)));
        drop(call);
        assert_eq!(pulse.began(), None);
    }
}
