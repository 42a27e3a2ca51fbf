//! Membership: the record of each worker, and changes to the set.

pub mod engine_file;

use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::health::Verdict;
use crate::id::{Incarnation, WorkerId};
use crate::index::KvEvent;

/// Version of [`WorkerRecord`]'s form.
pub const RECORD_VERSION: u32 = 1;

/// Whether a ledger names all that its engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    Complete,
    /// Some blocks could not be named.
    Partial,
}

/// The state of an agent's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerState {
    pub completeness: Completeness,
    /// Last sequence number applied; of rank 0 where there are several.
    pub sequence: u64,
    pub blocks: u64,
}

/// An engine's kind and version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineRelease {
    pub kind: String,
    pub version: String,
}

/// All that others need to know of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRecord {
    pub version: u32,
    pub worker: WorkerId,
    pub incarnation: Incarnation,
    /// Where the engine answers, as `http://host:port` or, on the same host, `unix:/path`.
    pub address: String,
    /// The model's base name, as hashed.
    pub model: String,
    /// Other names that requests may use for it.
    pub aliases: Vec<String>,
    /// Names of the LoRA adapters it serves.
    pub adapters: Vec<String>,
    pub engine: EngineRelease,
    /// `None` until the engine has said it.
    pub block_size: Option<BlockSize>,
    pub capacity_blocks: Option<u64>,
    /// The longest prompt plus answer that the engine takes; `None` where it does not say.
    pub context_tokens_max: Option<u32>,
    /// Number of data-parallel ranks.
    pub ranks: u32,
    pub verdict: Verdict,
    pub ledger: LedgerState,
}

impl WorkerRecord {
    /// Whether requests for `name` may go there: its model, an alias or an adapter.
    pub fn serves(&self, name: &str) -> bool {
        let others = || self.aliases.iter().chain(&self.adapters);
        self.model == name || others().any(|other| other == name)
    }
}

/// A change to the set of workers.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A worker is there, or its record has changed.
    Up(Box<WorkerRecord>),
    /// A worker is gone: everything it held is forgotten.
    Down(WorkerId),
}

/// What an agent tells a router, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    Change(Change),
    Kv(KvEvent),
}
