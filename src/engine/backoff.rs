//! How long to wait before an engine is started again.

use std::time::Duration;

use crate::config::engine::EngineConfig;

/// Waits that double with each failure, up to a longest, and start over after a long good life.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    reset: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with the shortest wait.
    pub fn new(config: &EngineConfig) -> Self {
        Self {
            first: config.backoff_first(),
            longest: config.backoff_max(),
            reset: config.backoff_reset(),
            next: config.backoff_first(),
        }
    }

    /// The wait after a life of which the engine was ready for `ready`.
    pub fn after(&mut self, ready: Duration) -> Duration {
        if ready >= self.reset {
            self.next = self.first;
        }
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_limit_and_start_over() {
        let mut backoff = Backoff::new(&EngineConfig {
            backoff_first_millis: 500,
            backoff_max_secs: 3,
            backoff_reset_secs: 60,
            ..EngineConfig::default()
        });
        for (ready_secs, wait_millis) in [
            (0, 500),
            (0, 1000),
            (59, 2000),
            (0, 3000),
            (0, 3000),
            (60, 500),
            (0, 1000),
        ] {
            let wait = backoff.after(Duration::from_secs(ready_secs));
            assert_eq!(wait, Duration::from_millis(wait_millis));
        }
    }
}
