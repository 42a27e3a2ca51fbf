//! `[units]`: what of kvlens this host runs as units of systemd.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The folder of all that an operator says to units.
pub const CONFIG_DIR: &str = "/etc/kvlens";

/// The configuration as units read it.
pub const CONFIG_FILE: &str = "/etc/kvlens/kvlens.toml";

/// Where the secrets of units are, a folder for each [`Role`].
pub const CREDENTIALS_DIR: &str = "/etc/kvlens/credentials";

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

/// What a unit is to kvlens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum Role {
    Etcd,
    Nats,
    Router,
    Frontend,
    Engine,
    Worker,
}

impl Role {
    pub const ALL: [Self; 6] = [
        Self::Etcd,
        Self::Nats,
        Self::Router,
        Self::Frontend,
        Self::Engine,
        Self::Worker,
    ];

    /// Its name, which its credentials' folder has too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Nats => "nats",
            Self::Router => "router",
            Self::Frontend => "frontend",
            Self::Engine => "engine",
            Self::Worker => "worker",
        }
    }
}

impl From<Role> for &'static str {
    fn from(role: Role) -> Self {
        role.name()
    }
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
