//! Our index and the peer's, `ChainIndex` of the crate kv-index, under one hand.

use kv_index::{ChainBlockMap, ChainIndex, ContentHash, StoredBlock};
use kvlens::block::SequenceHash;
use kvlens::id::DpRank;
use kvlens::index::{Applied, Index, KvEvent};

use crate::fleet::{self, WORKERS};
use crate::trace::{Block, Prompt, Told};

/// An index that is measured. Events and prompts are brought into its own form before.
pub(crate) trait Contender {
    type Event;
    type Prompt;

    fn new() -> Self;
    fn event(told: &Told) -> Self::Event;
    fn prompt(prompt: &Prompt) -> Self::Prompt;
    fn apply(&mut self, event: &Self::Event);
    /// Counts the workers that hold some of the prompt.
    fn query(&self, prompt: &Self::Prompt) -> usize;
    /// The worker and leading blocks of each.
    fn answer(&self, prompt: &Self::Prompt) -> Vec<(u32, u32)>;
}

pub(crate) struct Ours(pub(crate) Index);

impl Contender for Ours {
    type Event = KvEvent;
    type Prompt = Vec<SequenceHash>;

    fn new() -> Self {
        Self(Index::new())
    }

    fn event(told: &Told) -> KvEvent {
        told.event.clone()
    }

    fn prompt(prompt: &Prompt) -> Self::Prompt {
        prompt.iter().map(|block| block.sequence).collect()
    }

    fn apply(&mut self, event: &KvEvent) {
        let applied = self.0.apply(event);
        assert!(matches!(applied, Applied::Yes(_)), "{applied:?}");
    }

    fn query(&self, prompt: &Self::Prompt) -> usize {
        self.0.overlap(prompt).len()
    }

    fn answer(&self, prompt: &Self::Prompt) -> Vec<(u32, u32)> {
        let slot = |number| self.0.slot(&fleet::worker(number), DpRank(0));
        let slots: Vec<_> = (0..WORKERS).map(slot).collect();
        let worker = |slot| slots.iter().position(|known| *known == Some(slot));
        let overlaps = self.0.overlap(prompt).into_iter();
        overlaps
            .filter_map(|overlap| Some((worker(overlap.slot)? as u32, overlap.blocks)))
            .collect()
    }
}

pub(crate) struct Peer {
    index: ChainIndex,
    maps: Vec<ChainBlockMap>,
}

pub(crate) enum PeerEvent {
    Removed(u32, Vec<kv_index::SequenceHash>),
    Stored(u32, Vec<StoredBlock>, Option<kv_index::SequenceHash>),
}

impl Contender for Peer {
    type Event = PeerEvent;
    type Prompt = Vec<ContentHash>;

    fn new() -> Self {
        let index = ChainIndex::with_max_workers(WORKERS as usize);
        for number in 0..WORKERS {
            let id = index.intern_worker(fleet::worker(number).as_str());
            assert_eq!(id.ok(), Some(number));
        }
        let maps = (0..WORKERS).map(|_| ChainBlockMap::new()).collect();
        Self { index, maps }
    }

    fn event(told: &Told) -> PeerEvent {
        let name = |hash: &SequenceHash| kv_index::SequenceHash(hash.0);
        let stored = |block: &Block| StoredBlock {
            seq_hash: name(&block.sequence),
            content_hash: ContentHash(block.content),
        };
        match told.stored.is_empty() {
            true => PeerEvent::Removed(told.worker, told.event.removed.iter().map(name).collect()),
            false => PeerEvent::Stored(
                told.worker,
                told.stored.iter().map(stored).collect(),
                told.parent.as_ref().map(name),
            ),
        }
    }

    fn prompt(prompt: &Prompt) -> Self::Prompt {
        prompt
            .iter()
            .map(|block| ContentHash(block.content))
            .collect()
    }

    fn apply(&mut self, event: &PeerEvent) {
        match event {
            PeerEvent::Removed(worker, hashes) => {
                let map = &mut self.maps[*worker as usize];
                self.index.apply_removed(*worker, hashes, map);
            }
            PeerEvent::Stored(worker, blocks, parent) => {
                let map = &mut self.maps[*worker as usize];
                let applied = self.index.apply_stored(*worker, blocks, *parent, map);
                assert!(applied.is_ok(), "{applied:?}");
            }
        }
    }

    fn query(&self, prompt: &Self::Prompt) -> usize {
        self.index.find_matches(prompt, false).scores.len()
    }

    fn answer(&self, prompt: &Self::Prompt) -> Vec<(u32, u32)> {
        let found = self.index.find_matches(prompt, false);
        found.scores.into_iter().collect()
    }
}
