//! `[frontend.retries]`: how many requests may be placed again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many requests may be placed again when their engine failed before the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetriesConfig {
    /// Retries for each request: 0.2 lets failures add a fifth to the traffic, no more.
    #[schemars(range(min = 0, max = 1))]
    pub ratio: f64,
    /// Retries allowed each second beside that, so that a quiet server can still retry.
    #[schemars(range(min = 0, max = 10_000))]
    pub per_second: u32,
}

impl Default for RetriesConfig {
    /// Linkerd's own defaults, which years of operation have found to ride out the loss of a server
    /// and not to feed an overload.
    fn default() -> Self {
        Self {
            ratio: 0.2,
            per_second: 10,
        }
    }
}
