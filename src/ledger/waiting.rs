//! Blocks whose parent is not known yet: kept with their content, so that they can be named once
//! it is.

use std::collections::HashMap;

use crate::ledger::EngineHash;
use crate::ledger::naming::Block;

/// Most blocks that wait. At 16 tokens each they take about 10 MB; more are forgotten, because an
/// agent that late is healed by a clearing and not by waiting.
pub const WAITING_MAX: usize = 1 << 16;

/// The blocks that wait, by themselves and by the parent they wait for.
#[derive(Debug, Default)]
pub struct Waiting {
    blocks: HashMap<EngineHash, (EngineHash, Block)>,
    children: HashMap<EngineHash, Vec<EngineHash>>,
}

impl Waiting {
    /// Counts the blocks that wait.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Keeps a block; false when too many wait. A block that waits already stays as it is.
    pub fn add(&mut self, hash: &EngineHash, parent: &EngineHash, block: Block) -> bool {
        if self.blocks.contains_key(hash) {
            return true;
        }
        if self.blocks.len() >= WAITING_MAX {
            return false;
        }
        let siblings = self.children.entry(parent.clone()).or_default();
        siblings.push(hash.clone());
        self.blocks.insert(hash.clone(), (parent.clone(), block));
        true
    }

    /// Forgets a block. Its children go on waiting for it.
    pub fn forget(&mut self, hash: &EngineHash) {
        let Some((parent, _)) = self.blocks.remove(hash) else {
            return;
        };
        if let Some(siblings) = self.children.get_mut(&parent) {
            siblings.retain(|sibling| sibling != hash);
            if siblings.is_empty() {
                self.children.remove(&parent);
            }
        }
    }

    /// Takes the blocks that waited for `parent`.
    pub fn take_children(&mut self, parent: &EngineHash) -> Vec<(EngineHash, Block)> {
        let children = self.children.remove(parent).unwrap_or_default();
        let taken = children.into_iter().filter_map(|child| {
            let (_, block) = self.blocks.remove(&child)?;
            Some((child, block))
        });
        taken.collect()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
