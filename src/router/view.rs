//! What the router shows of itself: workers, models, and why a request would go where.

use std::sync::Arc;

use serde::Serialize;

use crate::block::BlockSize;
use crate::discovery::WorkerRecord;
use crate::id::{DpRank, WorkerId};
use crate::router::basis::Basis;
use crate::select::cost::Cost;
use crate::select::load::Load;

/// What a request's `model` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelView {
    /// The base name, as hashed.
    pub base: Arc<str>,
    /// The adapter, where the name is one's.
    pub adapter: Option<Arc<str>>,
    /// The distinct block sizes of the workers that serve it, most common first.
    pub block_sizes: Vec<BlockSize>,
    /// The longest prompt and answer together that every one of them takes, in tokens; `None` where
    /// none says.
    pub context_tokens_max: Option<u32>,
}

/// A worker and what it does.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerView {
    #[serde(flatten)]
    pub record: WorkerRecord,
    /// Blocks of its GPUs in the index, over all ranks.
    pub indexed_blocks: u64,
    /// Blocks of its hosts' memory in the index, over all ranks.
    pub host_blocks: u64,
    /// Blocks of its disks in the index, over all ranks.
    pub disk_blocks: u64,
    /// The engine's own number of the last batch of events that the index has taken in, one entry
    /// per data-parallel rank; `None` before the first.
    pub applied_sequences: Vec<Option<u64>>,
    /// From what each data-parallel rank's overlaps are told.
    pub basis: Vec<Basis>,
    /// The load that requests are placed by, one entry per data-parallel rank.
    pub load: Vec<Load>,
    pub circuit: CircuitView,
}

/// Whether a worker that has failed gets requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CircuitView {
    /// It does.
    Closed,
    /// It gets none before a while has passed.
    Open {
        since: String,
        until: String,
        cause: &'static str,
    },
    /// It gets one, on whose success more depend.
    HalfOpen { since: String, cause: &'static str },
}

/// One candidate of a request, and what it would cost there.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateView {
    pub worker: WorkerId,
    pub rank: DpRank,
    /// Why no request goes there now; `None` for one that may be chosen.
    pub not_eligible: Option<&'static str>,
    pub overlap_blocks: u32,
    /// Blocks right behind the overlap that it would load from its host's memory.
    pub host_blocks: u32,
    /// The same from its disk.
    pub disk_blocks: u32,
    pub prompt_blocks: u32,
    /// From what the overlap is told.
    pub basis: Basis,
    /// Tokens of images that it encoded lately, and would not encode again.
    pub encoded_tokens: u32,
    pub load: Load,
    pub cost: Cost,
    pub chosen: bool,
}
