//! Times of one thing, done often.

use std::time::Duration;

#[derive(Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The time that `percent` of the samples do not pass.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }

    /// A row of a table: name, median and 99th percentile in microseconds.
    pub(crate) fn row(&self, name: &str) -> Vec<String> {
        let micros = |percent| format!("{:.1}", self.percentile(percent).as_secs_f64() * 1e6);
        vec![name.to_owned(), micros(50), micros(99)]
    }
}
