//! Chance that its seed alone decides, so that a run can be repeated.

use std::f64::consts::TAU;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How far a normal distribution's 90th percentile lies from its median, in standard deviations.
const P90_DEVIATIONS: f64 = 1.281_551_6;

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    seed: u64,
    drawn: u64,
}

/// A log-normal distribution of token counts, told by its median and 90th percentile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) max: u32,
}

/// Ranks 1 to `n`, rank r with a probability that falls as 1 / r^exponent.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    /// Running sums of the weights, divided by the last.
    shares: Vec<f64>,
}

impl Chance {
    /// The stream of one seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// 64 evenly spread bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.drawn += 1;
        xxh3_64_with_seed(&self.drawn.to_le_bytes(), self.seed)
    }

    /// From 0 up to, never as much as, 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        // 53 random bits make a fraction of every size a double can tell apart.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }

    /// A waiting time of this mean, as between events that know nothing of each other.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.fraction()).ln()
    }

    /// A count of tokens, at least 1.
    pub(crate) fn tokens(&mut self, tokens: Tokens) -> u32 {
        let deviation = (tokens.p90 / tokens.p50).ln() / P90_DEVIATIONS;
        let radius = (-2.0 * (1.0 - self.fraction()).ln()).sqrt();
        let normal = radius * (TAU * self.fraction()).cos();
        let drawn = tokens.p50 * (deviation * normal).exp();
        (drawn.round() as u32).clamp(1, tokens.max)
    }

    /// A rank, 0 the most likely.
    pub(crate) fn rank(&mut self, zipf: &Zipf) -> usize {
        let drawn = self.fraction();
        let at = zipf.shares.partition_point(|share| *share <= drawn);
        at.min(zipf.shares.len().saturating_sub(1))
    }
}

impl Zipf {
    pub(crate) fn new(n: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let weights = (1..=n).map(|rank| f64::from(rank).powf(-exponent));
        let sums: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Self {
            shares: sums.iter().map(|share| share / sum).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_their_distributions() {
        let mut chance = Chance::new(7);
        let tokens = Tokens {
            p50: 361.0,
            p90: 1_170.0,
            max: 16_384,
        };
        let mut drawn: Vec<u32> = (0..20_000).map(|_| chance.tokens(tokens)).collect();
        drawn.sort_unstable();
        let (p50, p90) = (drawn[10_000], drawn[18_000]);
        assert!((345..377).contains(&p50), "{p50}");
        assert!((1_110..1_230).contains(&p90), "{p90}");

        let zipf = Zipf::new(100, 1.0);
        let firsts = (0..10_000).filter(|_| chance.rank(&zipf) == 0).count();
        // 1 of 5.187, the 100th harmonic number.
        assert!((1_800..2_060).contains(&firsts), "{firsts}");

        let mean = (0..10_000).map(|_| chance.exponential(2.0)).sum::<f64>() / 10_000.0;
        assert!((1.9..2.1).contains(&mean), "{mean}");
    }

    #[test]
    fn a_seed_decides_everything() {
        let draw = |seed| Chance::new(seed).bits();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
