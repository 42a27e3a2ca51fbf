//! Which worker holds which blocks: applies KV events and answers how much of a prompt each holds.

use serde::{Deserialize, Serialize};

use crate::block::SequenceHash;
use crate::id::{DpRank, Incarnation, WorkerId};

/// What changed in one worker's cache, net: applied as cleared, then removed, then stored. Carries
/// no tokens, salts or parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEvent {
    pub worker: WorkerId,
    pub rank: DpRank,
    pub incarnation: Incarnation,
    /// The sequence number of the engine's batch that this event ends with.
    pub sequence: u64,
    pub cleared: bool,
    pub removed: Vec<SequenceHash>,
    pub stored: Vec<SequenceHash>,
}
