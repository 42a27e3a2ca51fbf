//! How many requests may be placed again: a share of the traffic, so that retries cannot turn a
//! fault into an overload.

use std::time::Duration;

use crate::config::retries::RetriesConfig;

/// Retries that traffic can save up: as many as one engine may have in hand when it dies, each of
/// which is retried once. vLLM runs up to 1,024 at once.
const SAVED_MAX: f64 = 1_024.0;

/// For how long a quiet server saves up the retries that it may make each second.
const QUIET: Duration = Duration::from_secs(10);

/// A bucket of retries: each request puts in a share of one, each retry takes one out. Time fills it
/// too, up to what a quiet server needs. A time is what has passed since some start.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    config: RetriesConfig,
    retries: f64,
    filled: Duration,
}

impl RetryBudget {
    /// A budget from which a server that has just started can retry at once.
    pub fn new(config: RetriesConfig) -> Self {
        Self {
            config,
            retries: quiet_retries(config),
            filled: Duration::ZERO,
        }
    }

    /// Counts a request.
    pub fn request(&mut self) {
        let most = SAVED_MAX.max(quiet_retries(self.config));
        self.retries = (self.retries + self.config.ratio).min(most);
    }

    /// Takes one retry; false where none is left.
    pub fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        let most = quiet_retries(self.config);
        if self.retries < most {
            let earned = passed * f64::from(self.config.per_second);
            self.retries = (self.retries + earned).min(most);
        }
        let is_left = self.retries >= 1.0;
        if is_left {
            self.retries -= 1.0;
        }
        is_left
    }
}

fn quiet_retries(config: RetriesConfig) -> f64 {
    f64::from(config.per_second) * QUIET.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(budget: &mut RetryBudget, now: Duration) -> usize {
        (0..10_000).take_while(|_| budget.take(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_above_a_floor() {
        for (ratio, per_second, requests, secs, expected) in [
            (0.25, 0, 0, 0, 0),
            (0.25, 0, 100, 0, 25),
            (0.25, 0, 100, 60, 25),
            (0.25, 0, 1_000_000, 0, 1_024),
            (0.0, 1, 100, 0, 10),
            (0.25, 1, 100, 0, 35),
            // Time fills no more than the floor.
            (0.0, 1, 0, 3_600, 10),
            (0.0, 0, 1_000, 3_600, 0),
        ] {
            let mut budget = RetryBudget::new(RetriesConfig { ratio, per_second });
            for _ in 0..requests {
                budget.request();
            }
            let now = Duration::from_secs(secs);
            let row = (ratio, per_second, requests, secs);
            assert_eq!(taken(&mut budget, now), expected, "{row:?}");
        }
    }

    #[test]
    fn a_quiet_server_can_retry_again_after_a_while() {
        let mut budget = RetryBudget::new(RetriesConfig::default());
        assert_eq!(taken(&mut budget, Duration::ZERO), 100);
        for (millis, expected) in [(0, 0), (500, 5), (1_500, 10), (60_000, 100)] {
            let now = Duration::from_millis(millis);
            assert_eq!(taken(&mut budget, now), expected, "{millis} ms");
        }
        // A clock that stands still, or goes back, gives nothing.
        assert_eq!(taken(&mut budget, Duration::from_secs(59)), 0);
    }

    proptest! {
        #[test]
        fn retries_never_exceed_the_share_and_the_floor(
            steps in prop::collection::vec((0u32..50, 0u32..50, 0u64..2_000), 1..40),
        ) {
            let config = RetriesConfig { ratio: 0.2, per_second: 2 };
            let mut budget = RetryBudget::new(config);
            let (mut requests, mut retries, mut now) = (0, 0, Duration::ZERO);
            for (more, wanted, millis) in steps {
                now += Duration::from_millis(millis);
                for _ in 0..more {
                    budget.request();
                    requests += 1;
                }
                retries += (0..wanted).filter(|_| budget.take(now)).count();
                let share = 0.2 * f64::from(requests);
                let floor = 20.0 + 2.0 * now.as_secs_f64();
                prop_assert!(retries as f64 <= share + floor + 1e-6);
            }
        }
    }
}
