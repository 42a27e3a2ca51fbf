//! `[discovery]`: which workers a frontend knows of.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::network::Network;

/// Which workers a frontend knows of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiscoveryConfig {
    /// The agents' listeners, as `http://127.0.0.1:8200`.
    pub workers: Vec<String>,
    /// File of more such addresses, one a line, read again whenever it changes. A change counts once
    /// it was seen twice, a second apart; a file that comes to name nobody changes nothing.
    pub workers_file: Option<PathBuf>,
    /// Networks, as `10.0.0.0/8`, in which a worker's address must lie for requests to go there;
    /// none of them allows all. Unix sockets are of this host and always allowed.
    pub networks: Vec<Network>,
    /// File whose first bearer key is shown to agents and to their engines' gates, not readable for
    /// everybody.
    pub key_file: Option<PathBuf>,
    /// How long the blocks of a worker whose agent is away are believed in, in seconds.
    #[schemars(range(min = 1))]
    pub stale_after_secs: u64,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            workers: Vec::new(),
            workers_file: None,
            networks: Vec::new(),
            key_file: None,
            stale_after_secs: 3600,
        }
    }
}

impl DiscoveryConfig {
    /// How long the blocks of a worker whose agent is away are believed in.
    pub fn stale_after(&self) -> Duration {
        Duration::from_secs(self.stale_after_secs)
    }
}
