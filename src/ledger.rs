//! The agent's record of what its engine holds: from engine events to the sequence hashes that an
//! agent publishes.

pub mod book;
pub mod change;
pub mod closed;
pub mod counts;
pub mod lower;
pub mod naming;
pub mod saved;
pub mod tier;
pub mod waiting;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::{BlockSize, SequenceHash};
use crate::ledger::book::{Arrival, Book};
use crate::ledger::change::Changes;
use crate::ledger::counts::{Alarm, Counts};
use crate::ledger::lower::Lower;
use crate::ledger::naming::{Block, Namer};
use crate::ledger::tier::Tiers;

/// The name an engine gives a block in its events: 64 bits, or the whole digest where the engine is
/// told to send bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// What one batch changed, net: clearing first, then removals, then stores. After it a block is
/// published only with all before it; see [`closed::Closed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Every tier was.
    pub cleared: bool,
    /// From the GPU.
    pub removed: Vec<SequenceHash>,
    /// On the GPU.
    pub stored: Vec<SequenceHash>,
    pub lower: Tiers<Changes>,
}

/// What a ledger may know beside the model's name.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The token an image's placeholder range is made of; only engines that send media ids without
    /// offsets (vLLM 0.17, 0.18) or none (up to 0.16) need it. With `None` nothing tells where their
    /// images are: blocks with bare media ids are unhashable, and without extra keys every block is.
    pub placeholder: Option<u32>,
    /// The engine's number of blocks.
    pub capacity_blocks: Option<u64>,
    /// The block size the engine's metrics say; its events win.
    pub block_size: Option<BlockSize>,
    /// The session id of our own full reports: a prompt's first block under it means presence,
    /// not one more copy.
    pub session_id: Option<Arc<str>>,
}

/// Knows what one rank of an engine holds, and says what of it changed. Pure.
///
/// Only blocks of one cache group count: the first full-attention group that stores something on the
/// GPU. What is in slower tiers is known apart.
#[derive(Debug)]
pub struct Ledger {
    book: Book,
    lower: Lower,
    capacity_blocks: Option<u64>,
    session_id: Option<Arc<str>>,
    block_size: Option<BlockSize>,
    size_from_events: bool,
    group: Option<u32>,
    loss: Option<Loss>,
}

/// Blocks that the engine may hold unseen.
///
/// An engine takes the block that was used longest ago for each one it stores (vLLM's block pool is
/// such a queue). Once it has stored as many as it has blocks, all that it held unseen is gone but
/// for what was hit meanwhile, and hits are reported while the ledger is partial. A block that was
/// hit unreported costs a prediction that is too low, and one stored behind it shows the loss anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Loss {
    /// Blocks stored since.
    stored: u64,
}

impl Ledger {
    /// An empty ledger; `model` is the base name, as hashed.
    pub fn new(model: &str, options: Options) -> Self {
        Self {
            book: Book::new(Namer {
                model: model.into(),
                placeholder: options.placeholder,
            }),
            lower: Lower::default(),
            capacity_blocks: options.capacity_blocks,
            session_id: options.session_id,
            block_size: options.block_size,
            size_from_events: false,
            group: None,
            loss: None,
        }
    }

    /// Applies one batch and says what it changed, net.
    pub fn apply(&mut self, mut events: Vec<EngineEvent>) -> Published {
        let told = self.take_lower(&mut events);
        for event in events {
            match event {
                EngineEvent::Stored(stored) => self.store(stored),
                EngineEvent::Removed {
                    hashes,
                    medium,
                    group,
                } => self.remove(&hashes, medium.as_deref(), group),
                EngineEvent::Cleared => self.clear(),
            }
        }
        self.heal();
        self.apply_lower(told);
        self.publish()
    }

    /// Forgets everything, as for a new engine process or a reset; returned as published.
    pub fn reset(&mut self) -> Published {
        self.clear();
        (self.size_from_events, self.block_size, self.group) = (false, None, None);
        self.publish()
    }

    /// Forgets every block, because the engine was told to and will say so only later.
    pub fn clear_at_once(&mut self) -> Published {
        self.clear();
        self.publish()
    }

    /// Takes what the engine's metrics say; the block size of its events wins.
    pub fn describe(&mut self, capacity_blocks: Option<u64>, block_size: Option<BlockSize>) {
        self.capacity_blocks = capacity_blocks;
        if !self.size_from_events {
            self.block_size = block_size;
        } else if block_size.is_some_and(|size| Some(size) != self.block_size) {
            self.book.counts.add(Alarm::BlockSizeChanged);
        }
    }

    /// Says that the engine may hold blocks of which nothing was seen.
    pub fn mark_partial(&mut self) {
        self.loss = Some(Loss::default());
    }

    /// Says that events were lost. What they removed is not known, so every block is forgotten:
    /// a ledger may know too few, never too many.
    pub fn lose(&mut self) -> Published {
        let knew_any = !self.book.is_empty() || !self.lower.is_empty();
        if knew_any {
            self.clear();
        }
        self.mark_partial();
        self.publish()
    }

    /// Notes a batch that could not be read, as lost and as an alarm.
    pub fn mark_unreadable(&mut self) -> Published {
        self.book.counts.add(Alarm::Unreadable);
        self.lose()
    }

    /// Whether the engine may hold blocks that were never published.
    pub fn is_partial(&self) -> bool {
        self.loss.is_some()
    }

    /// The block size, once known.
    pub fn block_size(&self) -> Option<BlockSize> {
        self.block_size
    }

    /// Counts the sequence hashes that are published.
    pub fn blocks(&self) -> u64 {
        self.book.closed.len() as u64
    }

    /// All that is held, as it is published to one who knows nothing.
    pub fn all(&self) -> Published {
        Published {
            cleared: true,
            removed: Vec::new(),
            stored: self.book.closed.names().collect(),
            lower: self.lower.all(),
        }
    }

    /// Counts the engine's blocks in use, copies and nameless ones included.
    pub fn copies(&self) -> u64 {
        self.book.copies
    }

    /// Counts the blocks whose parent is not known.
    pub fn waiting_blocks(&self) -> usize {
        self.book.waiting.len()
    }

    /// The alarms met so far.
    pub fn counts(&self) -> &Counts {
        &self.book.counts
    }

    /// The name of a block that is published.
    pub fn name(&self, hash: &EngineHash) -> Option<SequenceHash> {
        let name = self.book.name_of(hash)?;
        self.book.closed.is_published(name).then_some(name)
    }

    fn store(&mut self, stored: Stored) {
        if !self.counts_tier(&stored) || !self.has_shape(&stored) {
            return;
        }
        let is_presence = stored.parent.is_none()
            && self.session_id.is_some()
            && stored.session_id == self.session_id;
        let size = stored.block_size as usize;
        let mut keys = stored.extra_keys.into_iter();
        let sends_keys = keys.len() > 0;
        let mut parent = stored.parent;
        for (hash, tokens) in stored
            .hashes
            .into_iter()
            .zip(stored.tokens.chunks_exact(size))
        {
            let block = Block {
                tokens: tokens.into(),
                keys: sends_keys.then(|| keys.next().unwrap_or_default()),
                lora: stored.lora_name.clone(),
            };
            let is_placed = self.book.store(Arrival {
                hash: &hash,
                parent: parent.as_ref(),
                block,
                is_presence,
            });
            if !is_placed {
                self.mark_partial();
            } else if let Some(loss) = self.loss.as_mut().filter(|_| !is_presence) {
                loss.stored += 1;
            }
            parent = Some(hash);
        }
        if self
            .capacity_blocks
            .is_some_and(|most| self.book.copies > most)
        {
            self.book.counts.add(Alarm::OverCapacity);
            self.clear();
            self.mark_partial();
        }
    }

    /// Ends a loss that can have left nothing behind; see [`Loss`].
    fn heal(&mut self) {
        let (Some(loss), Some(capacity)) = (self.loss, self.capacity_blocks) else {
            return;
        };
        if loss.stored >= capacity && self.book.waiting.is_empty() {
            self.loss = None;
        }
    }

    fn publish(&mut self) -> Published {
        Published {
            lower: self.lower.publish(),
            ..self.book.publish()
        }
    }

    /// Whether an event is of the GPU and of the group that counts, which the first one decides.
    fn counts_tier(&mut self, stored: &Stored) -> bool {
        let is_gpu = is_gpu(stored.medium.as_deref());
        let kind = stored.group_kind.as_deref();
        let group = stored.group.unwrap_or(0);
        let is_full = kind.map_or(group == 0, |kind| kind == "full_attention");
        let counts = is_gpu && is_full && *self.group.get_or_insert(group) == group;
        if !counts {
            self.book.counts.add(Alarm::OtherTier);
        }
        counts
    }

    fn has_shape(&mut self, stored: &Stored) -> bool {
        let blocks = stored.hashes.len();
        let tokens = (stored.block_size as usize).checked_mul(blocks);
        let keys = stored.extra_keys.len();
        let (Some(size), true) = (
            BlockSize::new(stored.block_size),
            tokens == Some(stored.tokens.len()) && (keys == 0 || keys == blocks),
        ) else {
            self.book.counts.add(Alarm::BadShape);
            return false;
        };
        if self.block_size.is_some_and(|known| known != size) {
            self.book.counts.add(Alarm::BlockSizeChanged);
            if self.size_from_events {
                // Blocks of two sizes share no chain; those after it come out as waiting.
                return false;
            }
        }
        self.size_from_events = true;
        self.block_size = Some(size);
        true
    }

    fn remove(&mut self, hashes: &[EngineHash], medium: Option<&str>, group: Option<u32>) {
        let is_ours = self.group.is_none_or(|ours| ours == group.unwrap_or(0));
        if !is_gpu(medium) || !is_ours {
            return self.book.counts.add(Alarm::OtherTier);
        }
        for hash in hashes {
            // After a loss the engine goes on to remove what was never seen.
            if !self.book.release(hash) && self.loss.is_none() {
                self.book.counts.add(Alarm::RemovedUnknown);
            }
        }
    }

    /// An engine's clearing says nothing of slower tiers: vLLM keeps them unless it is asked not to. What
    /// it may have forgotten is forgotten here, so that never too much is predicted.
    fn clear(&mut self) {
        self.book.clear();
        self.lower.clear();
        self.loss = None;
    }
}

/// Engines that name no medium have one tier.
fn is_gpu(medium: Option<&str>) -> bool {
    medium.is_none_or(|medium| medium == "GPU")
}
