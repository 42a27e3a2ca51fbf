//! The books of a ledger: engine hash to name and copies, sequence hash to engine hash, and what a
//! batch changed of what is published.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::block::SequenceHash;
use crate::ledger::change::{Changes, Touched};
use crate::ledger::closed::Closed;
use crate::ledger::counts::{Alarm, Counts};
use crate::ledger::naming::{Before, Block, Named, Namer, Open};
use crate::ledger::tier::Tiers;
use crate::ledger::waiting::Waiting;
use crate::ledger::{EngineHash, Published};

/// What the ledger knows of one block of the engine.
#[derive(Debug)]
struct Held {
    name: Name,
    /// Engines store a block twice and remove it twice. Never zero.
    copies: u32,
    open: Option<Box<Open>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Name {
    Known(SequenceHash),
    /// Its extra keys, or an ancestor's, were not understood.
    Unhashable,
    /// Its parent is not known.
    Waiting,
}

/// What a block turned out to be.
#[derive(Debug)]
struct Identity {
    name: Name,
    /// The name of the block before it; `None` for a prompt's first and where it has no name.
    parent: Option<SequenceHash>,
    open: Option<Box<Open>>,
}

impl Name {
    fn known(self) -> Option<SequenceHash> {
        match self {
            Self::Known(name) => Some(name),
            Self::Unhashable | Self::Waiting => None,
        }
    }
}

/// One block of the engine, as it is kept while no agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBlock {
    hash: EngineHash,
    name: Name,
    /// The name of the block before it.
    parent: Option<SequenceHash>,
    copies: u32,
    open: Option<Box<Open>>,
}

/// One block on its way into the books.
#[derive(Debug)]
pub struct Arrival<'a> {
    pub hash: &'a EngineHash,
    pub parent: Option<&'a EngineHash>,
    pub block: Block,
    /// The engine reports that it holds the block, not that it stored one more copy.
    pub is_presence: bool,
}

/// Every block the engine holds, by both its names.
#[derive(Debug)]
pub struct Book {
    pub namer: Namer,
    pub counts: Counts,
    pub waiting: Waiting,
    held: HashMap<EngineHash, Held>,
    /// The engine hash of each name.
    owners: HashMap<SequenceHash, EngineHash>,
    /// Which names are published.
    pub closed: Closed,
    /// The engine's blocks in use, copies and nameless ones included.
    pub copies: u64,
    touched: Touched,
    is_cleared: bool,
}

impl Book {
    /// Empty books.
    pub fn new(namer: Namer) -> Self {
        Self {
            namer,
            counts: Counts::default(),
            waiting: Waiting::default(),
            held: HashMap::new(),
            owners: HashMap::new(),
            closed: Closed::default(),
            copies: 0,
            touched: Touched::default(),
            is_cleared: false,
        }
    }

    /// Whether no block of the engine is known, not even one without a name.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Every block. The content of those that wait for a parent is left out: they go on without a
    /// name until the engine reports them.
    pub fn save(&self) -> Vec<SavedBlock> {
        let saved = |(hash, held): (&EngineHash, &Held)| SavedBlock {
            hash: hash.clone(),
            name: held.name,
            parent: held.name.known().and_then(|name| self.closed.parent(name)),
            copies: held.copies,
            open: held.open.clone(),
        };
        self.held.iter().map(saved).collect()
    }

    /// Puts saved blocks into empty books; false when they contradict each other.
    pub fn restore(&mut self, blocks: Vec<SavedBlock>) -> bool {
        for block in blocks {
            if let Name::Known(name) = block.name {
                if self.owners.insert(name, block.hash.clone()).is_some() {
                    return false;
                }
                self.closed.hold(name, block.parent, |_| {});
            }
            self.copies += u64::from(block.copies);
            let held = Held {
                name: block.name,
                copies: block.copies,
                open: block.open,
            };
            if block.copies == 0 || self.held.insert(block.hash, held).is_some() {
                return false;
            }
        }
        true
    }

    /// Enters a block; false when its parent is not known and it has to wait.
    pub fn store(&mut self, arrival: Arrival<'_>) -> bool {
        let Arrival { hash, parent, .. } = arrival;
        let identity = match parent {
            None => self.name(&arrival.block, Before::Start),
            Some(parent) => self.name_after(parent, &arrival.block),
        };
        let mut is_placed = true;
        if let (Name::Waiting, Some(parent), false) = (identity.name, parent, self.is_known(hash)) {
            is_placed = false;
            self.counts.add(Alarm::UnknownParent);
            if !self.waiting.add(hash, parent, arrival.block) {
                self.counts.add(Alarm::WaitingDropped);
                return false;
            }
        }
        self.hold(hash, identity, arrival.is_presence);
        self.name_waiting(hash);
        is_placed
    }

    /// The name of a block, where it has one.
    pub fn name_of(&self, hash: &EngineHash) -> Option<SequenceHash> {
        self.held.get(hash)?.name.known()
    }

    fn is_known(&self, hash: &EngineHash) -> bool {
        matches!(self.held.get(hash), Some(held) if held.name != Name::Waiting)
    }

    /// What a child of `parent` follows, or the name it shares with it.
    fn before(&self, parent: &EngineHash) -> Result<Before<'_>, Name> {
        let held = self.held.get(parent).ok_or(Name::Waiting)?;
        match held.name {
            Name::Known(hash) => Ok(Before::Parent {
                hash,
                open: held.open.as_deref(),
            }),
            other => Err(other),
        }
    }

    fn name_after(&self, parent: &EngineHash, block: &Block) -> Identity {
        match self.before(parent) {
            Ok(before) => self.name(block, before),
            Err(name) => Identity {
                name,
                parent: None,
                open: None,
            },
        }
    }

    fn name(&self, block: &Block, before: Before<'_>) -> Identity {
        let (name, open) = match self.namer.name(block, before) {
            Some(Named { hash, open }) => (Name::Known(hash), open),
            None => (Name::Unhashable, None),
        };
        let parent = match before {
            Before::Start => None,
            Before::Parent { hash, .. } => Some(hash),
        };
        Identity { name, parent, open }
    }

    /// Notes one more copy of a block, or its presence alone, under the name it turned out to have.
    fn hold(&mut self, hash: &EngineHash, identity: Identity, is_presence: bool) {
        let Identity { name, parent, open } = identity;
        if name == Name::Unhashable {
            self.counts.add(Alarm::Unhashable);
        }
        let Some(held) = self.held.get_mut(hash) else {
            let held = Held {
                name,
                copies: 1,
                open,
            };
            self.held.insert(hash.clone(), held);
            self.copies += 1;
            return self.own(hash, name, parent);
        };
        if !is_presence {
            held.copies = held.copies.saturating_add(1);
            self.copies += 1;
        }
        let old = held.name;
        if old == name || !matches!(name, Name::Known(_)) {
            return;
        }
        (held.name, held.open) = (name, open);
        match old {
            Name::Known(old) => {
                self.counts.add(Alarm::Renamed);
                self.disown(hash, old);
            }
            Name::Waiting => self.waiting.forget(hash),
            Name::Unhashable => {}
        }
        self.own(hash, name, parent);
    }

    /// Takes a block's name into the books. Another engine hash that had it is dropped with all its
    /// copies.
    fn own(&mut self, hash: &EngineHash, name: Name, parent: Option<SequenceHash>) {
        let Name::Known(name) = name else {
            return;
        };
        let touched = &mut self.touched;
        self.closed
            .hold(name, parent, |name| touched.touch(name, false));
        let Some(older) = self.owners.insert(name, hash.clone()) else {
            return;
        };
        if older != *hash {
            self.counts.add(Alarm::Twin);
            let dropped = self.held.remove(&older);
            self.copies -= dropped.map_or(0, |held| u64::from(held.copies));
        }
    }

    fn disown(&mut self, hash: &EngineHash, name: SequenceHash) {
        if self.owners.get(&name) == Some(hash) {
            self.owners.remove(&name);
            let touched = &mut self.touched;
            self.closed.drop(name, |name| touched.touch(name, true));
        }
    }

    /// Names the blocks that waited for `hash`, and those that waited for them.
    fn name_waiting(&mut self, hash: &EngineHash) {
        if self.waiting.is_empty() || !self.is_known(hash) {
            return;
        }
        let mut ready = vec![hash.clone()];
        while let Some(parent) = ready.pop() {
            for (child, block) in self.waiting.take_children(&parent) {
                let identity = self.name_after(&parent, &block);
                let Some(held) = self.held.get_mut(&child) else {
                    continue;
                };
                let name = identity.name;
                (held.name, held.open) = (name, identity.open);
                if name == Name::Unhashable {
                    self.counts.add(Alarm::Unhashable);
                }
                self.own(&child, name, identity.parent);
                ready.push(child);
            }
        }
    }

    /// Takes out one copy of a block; false when the block is not known.
    pub fn release(&mut self, hash: &EngineHash) -> bool {
        let Some(held) = self.held.get_mut(hash) else {
            return false;
        };
        self.copies -= 1;
        held.copies -= 1;
        if held.copies > 0 {
            return true;
        }
        let name = held.name;
        self.held.remove(hash);
        match name {
            Name::Known(name) => self.disown(hash, name),
            Name::Waiting => self.waiting.forget(hash),
            Name::Unhashable => {}
        }
        true
    }

    /// Forgets every block.
    pub fn clear(&mut self) {
        self.held.clear();
        self.owners.clear();
        self.closed = Closed::default();
        self.waiting.clear();
        self.copies = 0;
        self.touched = Touched::default();
        self.is_cleared = true;
    }

    /// What changed since this was last asked, net.
    pub fn publish(&mut self) -> Published {
        let Changes { removed, stored } = self.touched.take(|hash| self.closed.is_published(*hash));
        Published {
            cleared: std::mem::take(&mut self.is_cleared),
            removed,
            stored,
            lower: Tiers::default(),
        }
    }
}
