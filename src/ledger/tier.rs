//! The tiers below the GPU in which an engine keeps blocks.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// A tier below the GPU: its blocks are loaded before they are of use, which costs less than to
/// compute them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The host's memory.
    Host,
    /// A disk, or what is as slow as one.
    Disk,
}

impl Tier {
    /// Every tier, the fastest first.
    pub const ALL: [Self; 2] = [Self::Host, Self::Disk];

    /// The tier of an event's medium; `None` for the GPU and for media of which nothing is known.
    pub fn of(medium: &str) -> Option<Self> {
        match medium {
            "CPU" | "CPU_PINNED" | "CPU_TIER1" | "CPU_TIER2" => Some(Self::Host),
            // vLLM 0.26 tells file systems from object stores; later releases call both storage.
            "DISK" | "NVME" | "STORAGE" | "FS" | "OBJ" => Some(Self::Disk),
            _ => None,
        }
    }
}

/// One of a kind for each tier below the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiers<T> {
    pub host: T,
    pub disk: T,
}

impl<T> Tiers<T> {
    /// What `make` makes of each tier.
    pub fn from_fn(mut make: impl FnMut(Tier) -> T) -> Self {
        Self {
            host: make(Tier::Host),
            disk: make(Tier::Disk),
        }
    }
}

impl<T> Index<Tier> for Tiers<T> {
    type Output = T;
    fn index(&self, tier: Tier) -> &T {
        match tier {
            Tier::Host => &self.host,
            Tier::Disk => &self.disk,
        }
    }
}

impl<T> IndexMut<Tier> for Tiers<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        match tier {
            Tier::Host => &mut self.host,
            Tier::Disk => &mut self.disk,
        }
    }
}
