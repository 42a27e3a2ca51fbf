//! `[router.circuit]`: when a worker that fails gets no requests for a while.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a worker that fails gets no requests for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitConfig {
    /// Failures in a row after which a worker gets no requests for a while; one that refuses a
    /// connection gets none at once.
    #[schemars(range(min = 1))]
    pub failures_max: u32,
    /// How long it gets none the first time, in seconds; doubled each time that the one request
    /// which tries it then fails too.
    #[schemars(range(min = 1, max = 3600))]
    pub pause_secs: u64,
    /// Longest time that it gets none, in seconds.
    #[schemars(range(min = 1, max = 3600))]
    pub pause_secs_max: u64,
}

impl Default for CircuitConfig {
    /// A refused connection pauses long enough for the agent to see why, short enough that one
    /// refusal by chance costs little. The longest pause is that between an engine's restarts.
    fn default() -> Self {
        Self {
            failures_max: 5,
            pause_secs: 2,
            pause_secs_max: 30,
        }
    }
}

impl CircuitConfig {
    /// How long a worker gets no requests the first time.
    pub fn pause(&self) -> Duration {
        Duration::from_secs(self.pause_secs).min(self.pause_max())
    }

    /// Longest time that it gets none.
    pub fn pause_max(&self) -> Duration {
        Duration::from_secs(self.pause_secs_max)
    }
}
