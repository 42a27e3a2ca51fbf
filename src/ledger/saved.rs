//! A ledger as it is kept while no agent runs.

use serde::{Deserialize, Serialize};

use crate::block::BlockSize;
use crate::ledger::book::SavedBlock;
use crate::ledger::lower::SavedLower;
use crate::ledger::{Ledger, Loss, Options};

/// All that a ledger knows, but for the content of blocks whose parent is not known and for its
/// alarms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    model: String,
    placeholder: Option<u32>,
    block_size: Option<BlockSize>,
    size_from_events: bool,
    group: Option<u32>,
    loss: Option<Loss>,
    blocks: Vec<SavedBlock>,
    /// In slower tiers than the GPU; former agents kept none.
    #[serde(default)]
    lower: Vec<SavedLower>,
}

/// Why a saved ledger is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    #[error("it is of model {found:?}, not {wanted:?}")]
    OtherModel { found: String, wanted: String },
    #[error("it counts {copies} blocks, the engine has {capacity_blocks}")]
    OverCapacity { copies: u64, capacity_blocks: u64 },
    #[error("it names a block twice")]
    Contradiction,
}

impl Ledger {
    /// The ledger as it can be kept.
    pub fn save(&self) -> Saved {
        let namer = &self.book.namer;
        Saved {
            model: namer.model.to_string(),
            placeholder: namer.placeholder,
            block_size: self.block_size,
            size_from_events: self.size_from_events,
            group: self.group,
            loss: self.loss,
            blocks: self.book.save(),
            lower: self.lower.save(),
        }
    }

    /// The ledger that was saved; nothing of it is published yet.
    ///
    /// # Errors
    /// When it names its blocks in another way than `model` and `options` do, or cannot be true.
    pub fn restore(model: &str, options: Options, saved: Saved) -> Result<Self, SavedError> {
        if saved.model != model || saved.placeholder != options.placeholder {
            return Err(SavedError::OtherModel {
                found: saved.model,
                wanted: model.to_owned(),
            });
        }
        let mut ledger = Self::new(model, options);
        if !ledger.book.restore(saved.blocks) || !ledger.lower.restore(saved.lower) {
            return Err(SavedError::Contradiction);
        }
        let copies = ledger.copies();
        match ledger.capacity_blocks {
            Some(capacity_blocks) if copies > capacity_blocks => {
                return Err(SavedError::OverCapacity {
                    copies,
                    capacity_blocks,
                });
            }
            _ => {}
        }
        ledger.block_size = saved.block_size.or(ledger.block_size);
        ledger.size_from_events = saved.size_from_events;
        ledger.group = saved.group;
        ledger.loss = saved.loss;
        Ok(ledger)
    }
}
