//! Which named blocks an engine holds in slower tiers than the GPU, in its host's memory and on disk.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::{BlockMap, SequenceHash};
use crate::ledger::change::{Changes, Touched};
use crate::ledger::counts::Alarm;
use crate::ledger::tier::{Tier, Tiers};
use crate::ledger::{EngineEvent, EngineHash, Ledger};

/// Most blocks that are known in slower tiers: of 16 tokens at 128 KiB each, 2 TB of one engine's rank.
/// They take some 100 MB; one more is left out.
pub const LOWER_BLOCKS_MAX: usize = 1 << 20;

/// One block in slower tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    name: SequenceHash,
    /// vLLM stores in chunks, and tells of a block that two of them share once for each, also when they
    /// go. Not zero in every tier.
    copies: Tiers<u32>,
}

/// One block in slower tiers, as it is kept while no agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLower {
    hash: EngineHash,
    name: SequenceHash,
    copies: Tiers<u32>,
}

/// Every named block that the engine holds in slower tiers.
#[derive(Debug, Default)]
pub struct Lower {
    held: HashMap<EngineHash, Held>,
    /// How many copies of all engine hashes have a name. Not zero in every tier.
    named: BlockMap<Tiers<u32>>,
    touched: Tiers<Touched>,
}

/// What one event says of a slower tier.
#[derive(Debug)]
pub(super) struct Told {
    tier: Tier,
    group: Option<u32>,
    group_kind: Option<Arc<str>>,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Each with the name that it had before the batch.
    Stored(Vec<(EngineHash, Option<SequenceHash>)>),
    Removed(Vec<EngineHash>),
}

impl Lower {
    /// Whether no block is known.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The name of a block that is held in any tier.
    pub fn name_of(&self, hash: &EngineHash) -> Option<SequenceHash> {
        self.held.get(hash).map(|held| held.name)
    }

    /// Notes one more copy of a block; false when too many are known. A block that is held keeps its name.
    pub fn store(&mut self, tier: Tier, hash: EngineHash, name: SequenceHash) -> bool {
        if self.held.len() >= LOWER_BLOCKS_MAX && !self.held.contains_key(&hash) {
            return false;
        }
        let held = self.held.entry(hash).or_insert(Held {
            name,
            copies: Tiers::default(),
        });
        let named = self.named.entry(held.name).or_default();
        self.touched[tier].touch(held.name, named[tier] > 0);
        held.copies[tier] += 1;
        named[tier] += 1;
        true
    }

    /// Takes out one copy of a block. Of one that is not known nothing follows: it had no name, or was
    /// forgotten.
    pub fn release(&mut self, tier: Tier, hash: &EngineHash) {
        let Some(held) = self.held.get_mut(hash).filter(|held| held.copies[tier] > 0) else {
            return;
        };
        held.copies[tier] -= 1;
        let name = held.name;
        if held.copies == Tiers::default() {
            self.held.remove(hash);
        }
        let Some(named) = self.named.get_mut(&name) else {
            return;
        };
        self.touched[tier].touch(name, true);
        named[tier] -= 1;
        if *named == Tiers::default() {
            self.named.remove(&name);
        }
    }

    /// Forgets every block.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What changed since this was last asked, net.
    pub fn publish(&mut self) -> Tiers<Changes> {
        let Self { named, touched, .. } = self;
        Tiers::from_fn(|tier| touched[tier].take(|name| is_in(named.get(name), tier)))
    }

    /// Every name, as stored.
    pub fn all(&self) -> Tiers<Changes> {
        let names = |tier| {
            let held = self.named.iter();
            held.filter_map(move |(name, copies)| is_in(Some(copies), tier).then_some(*name))
        };
        Tiers::from_fn(|tier| Changes {
            removed: Vec::new(),
            stored: names(tier).collect(),
        })
    }

    /// Every block, as it can be kept.
    pub fn save(&self) -> Vec<SavedLower> {
        let saved = |(hash, held): (&EngineHash, &Held)| SavedLower {
            hash: hash.clone(),
            name: held.name,
            copies: held.copies,
        };
        self.held.iter().map(saved).collect()
    }

    /// Puts saved blocks in; false when they contradict each other.
    pub fn restore(&mut self, blocks: Vec<SavedLower>) -> bool {
        for SavedLower { hash, name, copies } in blocks {
            let named = self.named.entry(name).or_default();
            for tier in Tier::ALL {
                named[tier] = named[tier].saturating_add(copies[tier]);
            }
            let is_nowhere = copies == Tiers::default();
            if is_nowhere || self.held.insert(hash, Held { name, copies }).is_some() {
                return false;
            }
        }
        true
    }
}

impl Ledger {
    /// Takes what a batch says of slower tiers out of it; what it says before a clearing is void.
    pub(super) fn take_lower(&self, events: &mut Vec<EngineEvent>) -> Vec<Told> {
        let mut told = Vec::new();
        if !events.iter().any(|event| tier_of(event).is_some()) {
            return told;
        }
        for event in std::mem::take(events) {
            match tier_of(&event) {
                Some(tier) => told.extend(self.told(tier, event)),
                None => {
                    if event == EngineEvent::Cleared {
                        told.clear();
                    }
                    events.push(event);
                }
            }
        }
        told
    }

    /// Applies what a batch says of slower tiers, after what it says of the GPU: vLLM tells of them last.
    /// Its events have no content that could be named, only hashes. So a block has the name that it has
    /// on the GPU, or had before the batch that evicts it, or has in another tier.
    ///
    /// Where vLLM offloads chunks of several blocks it names the last of each alone, and the holes end
    /// what is found of a prompt, unless `self_describing_kv_events` makes it name them all.
    pub(super) fn apply_lower(&mut self, told: Vec<Told>) {
        for Told {
            tier,
            group,
            group_kind,
            what,
        } in told
        {
            let is_ours = self.group.is_none_or(|ours| ours == group.unwrap_or(0));
            if !is_ours || group_kind.is_some_and(|kind| &*kind != "full_attention") {
                self.book.counts.add(Alarm::OtherTier);
                continue;
            }
            match what {
                What::Removed(hashes) => {
                    hashes
                        .iter()
                        .for_each(|hash| self.lower.release(tier, hash));
                }
                What::Stored(hashes) => {
                    for (hash, name) in hashes {
                        self.store_lower(tier, hash, name);
                    }
                }
            }
        }
    }

    fn store_lower(&mut self, tier: Tier, hash: EngineHash, had: Option<SequenceHash>) {
        let name = self.book.name_of(&hash).or(had);
        let Some(name) = name.or_else(|| self.lower.name_of(&hash)) else {
            return self.book.counts.add(Alarm::UnnamedLower);
        };
        if !self.lower.store(tier, hash, name) {
            self.book.counts.add(Alarm::LowerFull);
        }
    }

    fn told(&self, tier: Tier, event: EngineEvent) -> Option<Told> {
        let named = |hash: EngineHash| {
            let name = self.book.name_of(&hash);
            (hash, name)
        };
        let (what, group, group_kind) = match event {
            EngineEvent::Stored(stored) => {
                let hashes = stored.hashes.into_iter().map(named).collect();
                (What::Stored(hashes), stored.group, stored.group_kind)
            }
            EngineEvent::Removed { hashes, group, .. } => (What::Removed(hashes), group, None),
            EngineEvent::Cleared => return None,
        };
        Some(Told {
            tier,
            group,
            group_kind,
            what,
        })
    }
}

fn is_in(copies: Option<&Tiers<u32>>, tier: Tier) -> bool {
    copies.is_some_and(|copies| copies[tier] > 0)
}

fn tier_of(event: &EngineEvent) -> Option<Tier> {
    match event {
        EngineEvent::Stored(stored) => Tier::of(stored.medium.as_deref()?),
        EngineEvent::Removed { medium, .. } => Tier::of(medium.as_deref()?),
        EngineEvent::Cleared => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_are_left_out() {
        let mut lower = Lower::default();
        let mut store = |tier, number| {
            let name = SequenceHash(number);
            lower.store(tier, EngineHash::Int(number), name)
        };
        let most = LOWER_BLOCKS_MAX as u64;
        assert!((0..most).all(|number| store(Tier::Host, number)));
        assert!(!store(Tier::Host, most) && !store(Tier::Disk, most));
        assert!(store(Tier::Disk, 7), "it is known already");
        lower.release(Tier::Host, &EngineHash::Int(1));
        assert!(lower.store(Tier::Host, EngineHash::Int(most), SequenceHash(most)));
    }
}
