//! What every bench needs: CPU time, percentiles and one table.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time this thread has used: other programs on the machine do not count.
pub(crate) fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

/// Times of one thing, done often.
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

    /// The median and the 99th percentile, as two cells of a table.
    pub(crate) fn cells(&self) -> [String; 2] {
        [50, 99].map(|percent| micros(self.percentile(percent)))
    }
}

/// A duration as a cell, in microseconds.
pub(crate) fn micros(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}

/// Prints rows under a title and a header, columns aligned; the first column is text.
pub(crate) fn table(title: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    println!("{title}");
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("  {}", cells.collect::<Vec<_>>().join("  "));
    }
}

/// Prints a figure against its target.
pub(crate) fn target(what: &str, met: bool) {
    println!("  target {what}: {}", if met { "met" } else { "MISSED" });
}
