//! `[units]`: what of kvlens this host runs as units of systemd.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of kvlens that a host can run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// etcd and NATS.
    Control,
    /// A router.
    Router,
    /// A frontend.
    Frontend,
    /// The engines of `[workers.NAME]`, an agent beside each.
    Inference,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Control, Self::Router, Self::Frontend, Self::Inference];
}

/// What of kvlens this host runs as units of systemd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UnitsConfig {
    /// The parts that this host runs; `control` is etcd and NATS.
    pub roles: Vec<Part>,
    /// Name of this host's router, which no other router has; unset, the host's name.
    pub router: Option<String>,
}

impl Default for UnitsConfig {
    fn default() -> Self {
        Self {
            roles: Part::ALL.into(),
            router: None,
        }
    }
}

impl UnitsConfig {
    /// Whether this host runs `part`.
    pub fn has(&self, part: Part) -> bool {
        self.roles.contains(&part)
    }
}
