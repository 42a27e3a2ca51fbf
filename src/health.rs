//! Whether a worker may be used, as a verdict.

pub mod reading;

use serde::{Deserialize, Serialize};

/// What is held true of a worker's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing has been read yet.
    #[default]
    Unknown,
    /// The engine loads its model.
    Starting,
    Healthy,
    /// Kept, but others are preferred.
    Degraded,
    /// Finishes what it has, takes nothing new.
    Draining,
    Failed,
}

impl Verdict {
    /// Every verdict there is.
    pub const ALL: [Self; 6] = [
        Self::Unknown,
        Self::Starting,
        Self::Healthy,
        Self::Degraded,
        Self::Draining,
        Self::Failed,
    ];

    /// Whether new requests may be placed there.
    pub fn takes_requests(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy | Self::Degraded)
    }

    /// Whether requests in flight there may still be answered.
    pub fn keeps_requests(self) -> bool {
        !matches!(self, Self::Starting | Self::Failed)
    }
}
