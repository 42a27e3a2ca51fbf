//! `[router]`: how a worker is chosen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::circuit::CircuitConfig;
use crate::select::{Policy, RouterMode};

/// How a worker is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// How a worker is chosen.
    pub mode: RouterMode,
    /// How much a block already held counts against a block of load; 0 ignores overlap.
    #[schemars(range(min = 0))]
    pub overlap_score_weight: f64,
    /// Randomness of the choice: 0 takes the cheapest worker, more spreads requests.
    #[schemars(range(min = 0))]
    pub temperature: f64,
    /// Whether clients may choose worker, rank and mode by the headers x-kvlens-worker, x-kvlens-rank
    /// and x-kvlens-router-mode; requests with such a header are refused otherwise.
    pub allow_overrides: bool,
    /// When a worker that fails gets no requests for a while.
    pub circuit: CircuitConfig,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            mode: RouterMode::default(),
            overlap_score_weight: 1.0,
            temperature: 0.0,
            allow_overrides: false,
            circuit: CircuitConfig::default(),
        }
    }
}

impl RouterConfig {
    /// What the choice depends on beside the candidates.
    pub fn policy(&self) -> Policy {
        Policy {
            mode: self.mode,
            overlap_weight: self.overlap_score_weight,
            temperature: self.temperature,
        }
    }
}
