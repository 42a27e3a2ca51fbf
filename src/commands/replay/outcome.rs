//! What a policy made of a trace.

use std::time::Duration;

use serde::Serialize;

/// What is counted while a trace is replayed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// From a request's arrival to its first token.
    pub(crate) ttft: Vec<Duration>,
    pub(crate) prompt_tokens: u64,
    /// Of those, tokens that were found in a cache.
    pub(crate) cached_tokens: u64,
    /// Tokens that each worker computed.
    pub(crate) computed_tokens: Vec<u64>,
}

/// The figures of one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Outcome {
    pub policy: String,
    /// Share of all prompt tokens that was found in a cache.
    pub hit_rate: f64,
    pub ttft_ms: Ttft,
    /// Tokens that the busiest worker computed, over those of the mean one.
    pub imbalance: f64,
    /// Times to the first token, shortest first.
    #[serde(skip)]
    pub(crate) ttft: Vec<Duration>,
}

/// Times to the first token, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Ttft {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
}

impl Tally {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            computed_tokens: vec![0; workers],
            ..Self::default()
        }
    }

    /// Counts a prompt that a worker computes.
    pub(crate) fn add(&mut self, worker: usize, cached_tokens: u32, computed_tokens: u32) {
        self.prompt_tokens += u64::from(cached_tokens) + u64::from(computed_tokens);
        self.cached_tokens += u64::from(cached_tokens);
        self.computed_tokens[worker] += u64::from(computed_tokens);
    }

    /// The figures.
    pub(crate) fn outcome(mut self, policy: String) -> Outcome {
        self.ttft.sort_unstable();
        let busiest = self.computed_tokens.iter().max().copied().unwrap_or(0);
        let sum: u64 = self.computed_tokens.iter().sum();
        let workers = self.computed_tokens.len();
        let ttft_sum: Duration = self.ttft.iter().sum();
        Outcome {
            policy,
            hit_rate: ratio(self.cached_tokens as f64, self.prompt_tokens as f64),
            ttft_ms: Ttft {
                mean: ratio(milliseconds(ttft_sum), self.ttft.len() as f64),
                p50: milliseconds(percentile(&self.ttft, 50)),
                p99: milliseconds(percentile(&self.ttft, 99)),
            },
            imbalance: ratio(busiest as f64 * workers as f64, sum as f64),
            ttft: self.ttft,
        }
    }
}

/// `a / b`, and 0 where there is nothing to divide by.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The least of the sorted ones that at least `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    let at = rank.saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shares_and_percentiles() {
        let mut tally = Tally::new(2);
        for (worker, cached_tokens, computed_tokens) in [(0, 0, 300), (1, 60, 40), (1, 0, 60)] {
            tally.add(worker, cached_tokens, computed_tokens);
        }
        tally.ttft = (1..=200).rev().map(Duration::from_millis).collect();
        let outcome = tally.outcome("kv".to_owned());
        assert!((outcome.hit_rate - 60.0 / 460.0).abs() < 1e-9);
        assert!((outcome.imbalance - 1.5).abs() < 1e-9);
        let Ttft { mean, p50, p99 } = outcome.ttft_ms;
        assert_eq!((mean, p50, p99), (100.5, 100.0, 198.0));
        // Of few the worst is the 99th percentile.
        let few = [1, 1, 100].map(Duration::from_millis);
        assert_eq!(
            [50, 99].map(|percent| percentile(&few, percent)),
            [few[0], few[2]]
        );
    }

    #[test]
    fn nothing_is_zero() {
        let outcome = Tally::new(1).outcome(String::new());
        assert_eq!((outcome.hit_rate, outcome.imbalance), (0.0, 0.0));
        assert_eq!(outcome.ttft_ms.mean, 0.0);
    }
}
