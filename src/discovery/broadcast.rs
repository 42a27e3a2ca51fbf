//! The feed on the bus: its lines, numbered because the bus loses some, and snapshots in chunks.

use serde::{Deserialize, Serialize};

use crate::discovery::feed::Line;

/// One line as it is broadcast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbered {
    /// Of the agent: the numbers of another begin anew.
    pub life: u64,
    /// Counts the lines of its subject; where only records are told, those alone: a heartbeat then
    /// repeats the last one's.
    pub number: u64,
    pub line: Line,
}

/// Asked of an agent: all it knows now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAsked {
    /// Not only the record.
    pub with_blocks: bool,
    /// The agent that is meant, where two may have one name; another one does not answer.
    #[serde(default)]
    pub life: Option<u64>,
}

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    pub life: u64,
    /// Of the last line on the subject that it takes in.
    pub number: u64,
    /// Counts the pieces from 0.
    pub index: u32,
    pub line: Line,
    pub is_last: bool,
}
