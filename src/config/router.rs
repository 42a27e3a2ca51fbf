//! `[router]`: how a worker is chosen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::index::room::BYTES_MAX;
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
    /// The memory that the index of blocks may take, in bytes; 1 GiB knows some 30 million blocks.
    /// Beyond it the blocks of the workers that were silent longest are forgotten first.
    #[schemars(range(min = 16_777_216))]
    pub index_bytes_max: u64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            mode: RouterMode::default(),
            overlap_score_weight: 1.0,
            temperature: 0.0,
            index_bytes_max: BYTES_MAX,
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
