//! What the state shows of itself: workers, and models by the names that requests use.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::block::BlockSize;
use crate::id::{DpRank, WorkerId};
use crate::index::gap::BEFORE_FIRST;
use crate::ledger::tier::Tier;
use crate::router::basis::Basis;
use crate::router::member::Member;
use crate::router::outcome;
use crate::router::state::State;
use crate::router::view::{ModelView, WorkerView};

/// Most distinct block sizes hashed for one request; workers of further sizes are chosen by load
/// alone, so that a fleet of many sizes cannot multiply a request's hashing.
const BLOCK_SIZES_MAX: usize = 4;

impl State {
    pub(crate) fn worker_views(&self, now: Instant) -> Vec<WorkerView> {
        let view = |member: &Member| {
            let worker = &member.record.worker;
            let ranks = (0..member.ranks.len()).map(|rank| DpRank(rank as u32));
            WorkerView {
                record: member.shown(),
                indexed_blocks: self.index.worker_blocks(worker),
                host_blocks: self.index.lower_blocks(worker, Tier::Host),
                disk_blocks: self.index.lower_blocks(worker, Tier::Disk),
                applied_sequences: ranks
                    .clone()
                    .map(|rank| self.applied_sequence(worker, rank))
                    .collect(),
                basis: ranks.map(|rank| self.shown_basis(member, rank)).collect(),
                load: member.loads(),
                circuit: outcome::shown(&member.circuit, now),
            }
        };
        self.workers.values().map(view).collect()
    }

    /// The basis of a prompt that has all there is to prompts.
    fn shown_basis(&self, member: &Member, rank: DpRank) -> Basis {
        let slot = self.index.slot(&member.record.worker, rank);
        match (self.known_by(member, slot), member.parity_failed()) {
            (Basis::Events, Some(_)) => Basis::Parity,
            (basis, _) => basis,
        }
    }

    /// Counts the workers of which a rank's overlaps are told from what it was sent.
    pub(crate) fn approximate_workers(&self) -> usize {
        let is_approximate = |member: &&Member| {
            let mut ranks = (0..member.ranks.len()).map(|rank| DpRank(rank as u32));
            ranks.any(|rank| self.shown_basis(member, rank).is_approximate())
        };
        let serving = self.workers.values();
        let serving = serving.filter(|member| member.record.verdict.takes_requests());
        serving.filter(is_approximate).count()
    }

    fn applied_sequence(&self, worker: &WorkerId, rank: DpRank) -> Option<u64> {
        let slot = self.index.slot(worker, rank)?;
        let (_, sequence) = self.index.progress(slot)?.last()?;
        (sequence != BEFORE_FIRST).then_some(sequence)
    }

    pub(crate) fn model_view(&self, name: &str) -> Option<ModelView> {
        let serves = |member: &&Member| member.record.serves(name);
        let first = &self.workers.values().find(serves)?.record;
        let adapter = first
            .adapters
            .iter()
            .any(|adapter| adapter == name)
            .then(|| name.into());
        let mut sizes: BTreeMap<BlockSize, usize> = BTreeMap::new();
        for member in self.workers.values().filter(serves) {
            if let Some(size) = member.record.block_size {
                *sizes.entry(size).or_default() += 1;
            }
        }
        let mut block_sizes: Vec<BlockSize> = sizes.keys().copied().collect();
        block_sizes.sort_by_key(|size| std::cmp::Reverse(sizes[size]));
        block_sizes.truncate(BLOCK_SIZES_MAX);
        let contexts = self.workers.values().filter(serves);
        let contexts = contexts.filter_map(|member| member.record.context_tokens_max);
        Some(ModelView {
            base: first.model.as_str().into(),
            adapter,
            block_sizes,
            context_tokens_max: contexts.min(),
        })
    }

    pub(crate) fn model_names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let records = || self.workers.values().map(|member| &member.record);
        let bases = records().map(|record| &record.model);
        let others = records().flat_map(|record| record.aliases.iter().chain(&record.adapters));
        for name in bases.chain(others) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}
