//! Reads a block's extra keys: which adapter, which salt, which media items touch it and where.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::{self, BlockItem, SequenceHash};
use crate::ledger::ExtraKey;

/// One block as an engine stored it.
#[derive(Clone, Debug)]
pub struct Block {
    pub tokens: Box<[u32]>,
    /// `None` where the engine sends no extra keys at all (vLLM up to 0.16).
    pub keys: Option<Vec<ExtraKey>>,
    pub lora: Option<Arc<str>>,
}

/// The media item that runs to the end of a block and maybe on. Kept only for engines that send
/// media ids without offsets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub id: Arc<str>,
    /// Where it starts, in tokens from the next block's first: below zero.
    pub start: i32,
}

/// What comes before a block.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    /// Nothing: it is a prompt's first.
    Start,
    Parent {
        hash: SequenceHash,
        open: Option<&'a Open>,
    },
}

/// A block's name, and the item still open at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub hash: SequenceHash,
    pub open: Option<Box<Open>>,
}

/// What the names of one model's blocks depend on beside the blocks.
#[derive(Clone, Debug)]
pub struct Namer {
    pub model: Box<str>,
    /// The token an image's placeholder range is made of; `None` where that is not known or its
    /// ranges hold other tokens too.
    pub placeholder: Option<u32>,
}

/// What the extra keys of one block say.
struct Reading {
    salt: Option<Arc<str>>,
    items: Vec<(Arc<str>, i32)>,
    open: Option<Box<Open>>,
}

impl Namer {
    /// Names a block; `None` when its extra keys are not understood, which makes its descendants
    /// nameless too. Never guesses.
    pub fn name(&self, block: &Block, before: Before<'_>) -> Option<Named> {
        let reading = self.read(block, before)?;
        let seed = match before {
            Before::Parent { hash, .. } => hash,
            Before::Start => {
                let lora = block.lora.as_deref().unwrap_or_default();
                block::root(
                    &self.model,
                    lora,
                    reading.salt.as_deref().unwrap_or_default(),
                )
            }
        };
        let items = reading.items.iter().map(|(id, offset)| BlockItem {
            id,
            offset: *offset,
        });
        Some(Named {
            hash: block::chain(seed, &block.tokens, items, &mut Vec::new()),
            open: reading.open,
        })
    }

    fn read(&self, block: &Block, before: Before<'_>) -> Option<Reading> {
        let is_first = matches!(before, Before::Start);
        let Some(keys) = &block.keys else {
            // Without extra keys an image can't be told from another: only text has a name, and
            // what is text shows only where the placeholder is known.
            let has_media = block.tokens.contains(&self.placeholder?);
            return (!has_media).then(Reading::plain);
        };
        let keys = strip_lora(keys, block.lora.as_deref())?;
        let texts = keys.iter().filter(|key| matches!(key, ExtraKey::Text(_)));
        let runs = self.runs(&block.tokens);
        // A bare text is the salt of a first block, after any items. Media ids are bare as well in
        // vLLM 0.17 and 0.18: then there is one for each run of placeholders.
        let has_pairs = keys.iter().any(|key| matches!(key, ExtraKey::Item(..)));
        let bare = texts.count();
        if has_pairs || runs.is_empty() || bare == 0 {
            return Reading::of_pairs(keys, is_first, block.lora.as_deref());
        }
        let (ids, salt) = match keys.split_last() {
            Some((ExtraKey::Text(salt), ids)) if is_first && bare == runs.len() + 1 => {
                (ids, Some(Arc::clone(salt)))
            }
            _ => (keys, None),
        };
        let mut reading = self.of_bare(ids, &runs, block, before)?;
        reading.salt = salt;
        Some(reading)
    }

    /// The runs of placeholder tokens as (start, end).
    fn runs(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            match runs.last_mut() {
                _ if Some(*token) != self.placeholder => {}
                Some((_, end)) if *end == at => *end += 1,
                _ => runs.push((at, at + 1)),
            }
        }
        runs
    }

    fn of_bare(
        &self,
        ids: &[ExtraKey],
        runs: &[(usize, usize)],
        block: &Block,
        before: Before<'_>,
    ) -> Option<Reading> {
        if ids.len() != runs.len() {
            return None;
        }
        let size = block.tokens.len() as i32;
        let mut reading = Reading::plain();
        for (key, (start, end)) in ids.iter().zip(runs) {
            let ExtraKey::Text(id) = key else {
                return None;
            };
            let id = plain_id(id, block.lora.as_deref());
            let start = match before {
                Before::Parent {
                    open: Some(open), ..
                } if *start == 0 && open.id == id => open.start,
                _ => *start as i32,
            };
            if *end == block.tokens.len() {
                reading.open = Some(Box::new(Open {
                    id: Arc::clone(&id),
                    start: start.checked_sub(size)?,
                }));
            }
            reading.items.push((id, start));
        }
        Some(reading)
    }
}

impl Reading {
    fn plain() -> Self {
        Self {
            salt: None,
            items: Vec::new(),
            open: None,
        }
    }

    fn of_pairs(keys: &[ExtraKey], is_first: bool, lora: Option<&str>) -> Option<Self> {
        let mut reading = Self::plain();
        for key in keys {
            match key {
                ExtraKey::Item(id, offset) if reading.salt.is_none() => {
                    let offset = i32::try_from(*offset).ok()?;
                    reading.items.push((plain_id(id, lora), offset));
                }
                ExtraKey::Text(salt) if is_first && reading.salt.is_none() => {
                    reading.salt = Some(Arc::clone(salt));
                }
                _ => return None,
            }
        }
        Some(reading)
    }
}

/// The keys after the adapter's name, which stands first in every block of its requests.
fn strip_lora<'a>(keys: &'a [ExtraKey], lora: Option<&str>) -> Option<&'a [ExtraKey]> {
    match (lora, keys.split_first()) {
        (None, _) => Some(keys),
        (Some(lora), Some((ExtraKey::Text(name), rest))) if **name == *lora => Some(rest),
        (Some(_), _) => None,
    }
}

/// The id a frontend knows: an engine whose adapters reach into the vision tower writes
/// `<adapter>:` in front.
fn plain_id(id: &Arc<str>, lora: Option<&str>) -> Arc<str> {
    let stripped = lora.and_then(|lora| id.strip_prefix(lora)?.strip_prefix(':'));
    stripped.map_or_else(|| Arc::clone(id), Arc::from)
}
