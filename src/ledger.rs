//! The agent's record of what its engine holds.

use std::sync::Arc;

/// The name an engine gives a block in its events: 64 bits, or the whole digest where the engine is
/// told to send bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EngineHash {
    Int(u64),
    Bytes(Arc<[u8]>),
}

/// One extra key of a block, as the engine sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtraKey {
    /// A bare text: an adapter's name, a salt, or (old engines) a media id.
    Text(Arc<str>),
    /// A media id and where the item starts, in tokens from the block's first.
    Item(Arc<str>, i64),
    /// Anything else: the block cannot be named.
    Unknown,
}

/// Blocks that an engine stored, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    pub hashes: Vec<EngineHash>,
    /// `None` for the first block of a prompt.
    pub parent: Option<EngineHash>,
    pub tokens: Vec<u32>,
    /// In tokens, as the engine says.
    pub block_size: u32,
    pub lora_name: Option<Arc<str>>,
    /// `GPU`, `CPU`, …; `None` where the engine does not say.
    pub medium: Option<Arc<str>>,
    /// One list per block; empty where the engine sends none.
    pub extra_keys: Vec<Vec<ExtraKey>>,
    pub group: Option<u32>,
    /// `full_attention`, …; `None` where the engine does not say.
    pub group_kind: Option<Arc<str>>,
    pub session_id: Option<Arc<str>>,
}

/// One event of an engine, whatever its wire form.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    Stored(Stored),
    Removed {
        hashes: Vec<EngineHash>,
        medium: Option<Arc<str>>,
        group: Option<u32>,
    },
    Cleared,
}
