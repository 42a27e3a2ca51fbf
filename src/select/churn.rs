//! How young a cache's content is: of several full caches, which loses least by taking in more.

/// The new blocks that one rank was sent. They fade as the caches of all ranks turn over: once as
/// many came as all of them hold, those from before count a third (1/e).
#[derive(Clone, Copy, Debug, Default)]
pub struct Churn {
    blocks: f64,
    /// When they were counted, in turnovers.
    at: f64,
}

impl Churn {
    /// Counts what was sent at `now`, in turnovers of all caches together.
    pub fn add(&mut self, blocks: u32, now: f64) {
        self.blocks = self.faded(now) + f64::from(blocks);
        self.at = now;
    }

    /// The share of a cache of `capacity_blocks` that is young, 0 to 1.
    pub fn young(&self, capacity_blocks: u64, now: f64) -> f64 {
        (self.faded(now) / capacity_blocks.max(1) as f64).min(1.0)
    }

    fn faded(&self, now: f64) -> f64 {
        self.blocks * (self.at - now).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_lately_is_young() {
        let mut churn = Churn::default();
        assert!(churn.young(100, 5.0).abs() < 1e-9);
        churn.add(50, 5.0);
        for (now, young) in [(5.0, 0.5), (6.0, 0.184), (15.0, 0.0)] {
            assert!((churn.young(100, now) - young).abs() < 1e-3, "at {now}");
        }
        churn.add(500, 6.0);
        assert!(
            (churn.young(100, 6.0) - 1.0).abs() < 1e-9,
            "never more than all of it"
        );
    }
}
