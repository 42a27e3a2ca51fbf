//! `[cluster]`: what every process of a cluster must have alike.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What every frontend, router and agent of a cluster must have alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// File of the key that seals the names of blocks before they leave a process, not readable for
    /// everybody: who listens between hosts without it cannot find out prompts by guessing. Unset,
    /// names are not sealed. `kvlens up` tells nobody and needs none.
    pub hash_key_file: Option<PathBuf>,
}
