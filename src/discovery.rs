//! Membership: the record of each worker, and changes to the set.

pub mod address;
pub mod broadcast;
pub mod engine_file;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod feed;
pub mod flags;
pub mod gpus;
pub mod hash_key;
pub mod membership;
pub mod model_files;
pub mod plane;
pub mod vanished;
pub mod workers_file;

use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::health::Verdict;
use crate::health::incident::GpuState;
use crate::id::{Incarnation, WorkerId};
use crate::index::KvEvent;
use crate::select::Device;

/// Version of [`WorkerRecord`]'s form.
pub const RECORD_VERSION: u32 = 1;

/// Whether a reader that knows a form up to version `known` reads version `found`: its own, and the one
/// before.
pub fn is_readable(found: u32, known: u32) -> bool {
    found == known || found.checked_add(1) == Some(known)
}

/// Whether a ledger names all that its engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    Complete,
    /// Some blocks could not be named.
    Partial,
}

/// The state of an agent's ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerState {
    pub completeness: Completeness,
    /// Last sequence number applied; of rank 0 where there are several.
    pub sequence: u64,
    pub blocks: u64,
    /// Why it is partial, or what else is not as it should be, for a person.
    #[serde(default)]
    pub cause: Option<String>,
    /// Whether an agent follows the engine's events now.
    #[serde(default = "followed")]
    pub is_followed: bool,
    /// While set, each request asks the engine to report the blocks it reuses under this session
    /// id, so that the ledger learns what it missed.
    #[serde(default)]
    pub report_session: Option<String>,
}

/// What records of before it said so stand for.
fn followed() -> bool {
    true
}

/// What one rank of an engine says that it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineLoad {
    /// Requests that it computes.
    pub running: u64,
    /// Requests that wait for that.
    pub waiting: u64,
    /// Blocks that they hold; `None` where it does not say.
    pub used_blocks: Option<u64>,
}

/// Whether the prompts that the engine makes are those that we hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Parity {
    /// Not compared: the engine cannot tell its prompts, or has not yet.
    #[default]
    Unchecked,
    Exact,
    Failed {
        scope: ParityScope,
        /// Where they differ, for a person.
        reason: String,
    },
}

/// Which prompts differ from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParityScope {
    /// All: no block of that engine can be named.
    Text,
    /// Those with images: the blocks before the first image are still right.
    Media,
}

/// An engine's kind and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Where the agent's own listener answers, as `http://host:port`; `None` where there is none.
    #[serde(default)]
    pub agent: Option<String>,
    /// One life of the agent: another agent of the same name has another.
    #[serde(default)]
    pub agent_life: u64,
    /// The model's base name, as hashed.
    pub model: String,
    /// BLAKE3 of the model's files that render and tokenise, which the agent serves; `None` where
    /// it has none.
    #[serde(default)]
    pub model_digest: Option<String>,
    /// Fingerprint of the key that the names of its blocks are sealed with; `None` where they are
    /// not.
    #[serde(default)]
    pub hash_key: Option<String>,
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
    /// Most tokens that the engine computes in one step; `None` where it does not say.
    #[serde(default)]
    pub max_batched_tokens: Option<u64>,
    /// What the engine computes on.
    #[serde(default)]
    pub device: Device,
    /// What operators call it by, for routers that prefer some workers.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What the engine says that it does, one entry per rank; empty where it does not say.
    #[serde(default)]
    pub engine_load: Vec<EngineLoad>,
    /// How often it was asked that: each reading has another number, whatever it says.
    #[serde(default)]
    pub engine_readings: u64,
    pub verdict: Verdict,
    /// Why the verdict is not healthy, for a person.
    #[serde(default)]
    pub cause: Option<String>,
    /// How each of its GPUs is; empty where they are not watched.
    #[serde(default, deserialize_with = "gpus::known")]
    pub gpus: Vec<GpuState>,
    pub ledger: LedgerState,
    #[serde(default)]
    pub parity: Parity,
    /// A folder on the engine's host from which it reads images by `file://`; `None` where images
    /// come inside requests.
    #[serde(default)]
    pub media_dir: Option<String>,
}

impl WorkerRecord {
    /// The record of a worker of which nothing else is known yet.
    pub fn new(worker: WorkerId, address: &str, model: &str) -> Self {
        Self {
            version: RECORD_VERSION,
            worker,
            incarnation: Incarnation(0),
            address: address.to_owned(),
            agent: None,
            agent_life: 0,
            model: model.to_owned(),
            model_digest: None,
            hash_key: None,
            aliases: Vec::new(),
            adapters: Vec::new(),
            engine: EngineRelease::default(),
            block_size: None,
            capacity_blocks: None,
            context_tokens_max: None,
            ranks: 1,
            max_batched_tokens: None,
            device: Device::default(),
            labels: Vec::new(),
            engine_load: Vec::new(),
            engine_readings: 0,
            verdict: Verdict::Unknown,
            cause: None,
            gpus: Vec::new(),
            ledger: LedgerState {
                completeness: Completeness::Partial,
                sequence: 0,
                blocks: 0,
                cause: None,
                is_followed: true,
                report_session: None,
            },
            parity: Parity::default(),
            media_dir: None,
        }
    }

    /// The record without what changes with every step of the engine, and is told elsewhere.
    #[must_use]
    pub fn lasting(&self) -> Self {
        let ledger = LedgerState {
            sequence: 0,
            blocks: 0,
            ..self.ledger.clone()
        };
        Self {
            engine_load: Vec::new(),
            engine_readings: 0,
            ledger,
            ..self.clone()
        }
    }

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
