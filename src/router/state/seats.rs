//! The candidates of a request: every rank of every worker that serves its model.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use crate::block::{BlockSize, SequenceHash};
use crate::discovery::{Completeness, ParityScope};
use crate::health::Verdict;
use crate::id::{DpRank, WorkerId};
use crate::index::holders::Slot;
use crate::ledger::tier::Tiers;
use crate::router::basis::Basis;
use crate::router::footprint::Footprint;
use crate::router::member::Member;
use crate::router::rank_state::RankState;
use crate::router::state::State;
use crate::select::{Candidate, Room, Standing};

/// One rank of one worker as a request sees it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) worker: WorkerId,
    pub(crate) rank: DpRank,
    pub(crate) prompt_blocks: u32,
    pub(crate) not_eligible: Option<&'static str>,
    /// As much of the overlap as the index vouches for.
    pub(crate) indexed_blocks: u32,
    pub(crate) basis: Basis,
    pub(crate) candidate: Candidate,
}

impl State {
    /// Every rank of every worker that serves the model.
    pub(crate) fn seats(&self, footprint: &Footprint, now: Instant) -> Vec<Seat> {
        let name = footprint.adapter.as_ref().unwrap_or(&footprint.model);
        let mut held: HashMap<Slot, u32> = HashMap::new();
        for (_, hashes) in &footprint.hashes {
            // Hashes of two block sizes never meet, so the answers can share one map.
            let overlaps = self.index.overlap(hashes).into_iter();
            held.extend(overlaps.map(|overlap| (overlap.slot, overlap.blocks)));
        }
        let serving = self.workers.values();
        let members = serving.filter(|member| member.record.serves(name));
        // An engine that has not said its size yet most likely has that of the others; where not, no
        // name of theirs is one of its own.
        let common_size = members
            .clone()
            .find_map(|member| member.record.block_size)
            .unwrap_or(BlockSize::ONE);
        let seats = members.flat_map(|member| {
            let ranks = member.ranks.iter().enumerate();
            let ranks = ranks.take(member.record.ranks.max(1) as usize);
            ranks.map(move |(rank, state)| (member, DpRank(rank as u32), state))
        });
        seats
            .map(|(member, rank, state)| {
                let slot = self.index.slot(&member.record.worker, rank);
                let held = slot.and_then(|slot| held.get(&slot).copied()).unwrap_or(0);
                let block_size = member.record.block_size.unwrap_or(common_size);
                let place = (member, rank, block_size);
                self.seat(footprint, place, (state, slot, held), now)
            })
            .collect()
    }

    fn seat(
        &self,
        footprint: &Footprint,
        (member, rank, block_size): (&Member, DpRank, BlockSize),
        (state, slot, held_blocks): (&RankState, Option<Slot>, u32),
        now: Instant,
    ) -> Seat {
        let hashes = footprint.hashes_for(block_size);
        let shared_blocks = hashes.map_or(0, |hashes| state.in_flight.shared_blocks(hashes));
        let parity_failed = member.parity_failed();
        let nameable_blocks = match parity_failed {
            None => u32::MAX,
            Some(ParityScope::Text) => 0,
            Some(ParityScope::Media) => block_size.full_blocks(footprint.text_tokens),
        };
        let basis = self.basis(member, slot, footprint);
        // Equal prompts of ours are equal prompts of the engine's, whatever it makes of them.
        let assumed_blocks = match (basis.is_approximate(), hashes) {
            (true, Some(hashes)) => state.assumed.overlap_blocks(hashes),
            _ => 0,
        };
        let told_blocks = match self.config.use_kv_events {
            true => held_blocks.min(nameable_blocks),
            false => 0,
        };
        let cacheable_blocks = block_size.cacheable_blocks(footprint.prompt_tokens);
        let shared_now = match basis {
            // What is named otherwise there cannot be told from what is not there.
            Basis::Events => shared_blocks.min(nameable_blocks),
            _ => shared_blocks,
        };
        let overlap_blocks = told_blocks.max(assumed_blocks).max(shared_now);
        let overlap_blocks = overlap_blocks.min(cacheable_blocks);
        let behind = overlap_blocks..cacheable_blocks.min(nameable_blocks);
        let lower = match (basis, hashes) {
            (Basis::Events, Some(hashes)) => {
                let worker = &member.record.worker;
                self.index.lower_run(worker, rank, part(hashes, behind))
            }
            _ => Tiers::default(),
        };
        let held_blocks = overlap_blocks + lower.host + lower.disk;
        let candidate = Candidate {
            block_size,
            overlap_blocks,
            host_blocks: lower.host,
            disk_blocks: lower.disk,
            shared_blocks,
            encoded_tokens: encoded_tokens(footprint, state, held_blocks * block_size.tokens()),
            room: self.room(member, slot, state),
            load: state.load(),
            standing: self.standing(member),
        };
        Seat {
            worker: member.record.worker.clone(),
            rank,
            prompt_blocks: block_size.full_blocks(footprint.prompt_tokens),
            not_eligible: member.not_eligible(now),
            indexed_blocks: told_blocks.min(cacheable_blocks),
            basis,
            candidate,
        }
    }

    /// From what this rank's overlap with a prompt is told.
    fn basis(&self, member: &Member, slot: Option<Slot>, footprint: &Footprint) -> Basis {
        let has_media = footprint.text_tokens < footprint.prompt_tokens;
        match (self.known_by(member, slot), member.parity_failed()) {
            (Basis::Events, Some(ParityScope::Text)) => Basis::Parity,
            (Basis::Events, Some(ParityScope::Media)) if has_media => Basis::Parity,
            (basis, _) => basis,
        }
    }

    /// The same, whatever the prompt.
    pub(crate) fn known_by(&self, member: &Member, slot: Option<Slot>) -> Basis {
        if !self.config.use_kv_events {
            return Basis::EventsUnused;
        }
        let ledger = &member.record.ledger;
        if !ledger.is_followed {
            return Basis::Unfollowed;
        }
        let knows_none = slot.is_none_or(|slot| self.index.blocks(slot) == 0);
        match ledger.completeness {
            Completeness::Partial if knows_none => Basis::NothingNamed,
            _ => Basis::Events,
        }
    }

    fn standing(&self, member: &Member) -> Standing {
        let weights = member.record.labels.iter();
        let weights = weights.filter_map(|label| self.preferences.get(label));
        Standing {
            // Of one whose GPUs cannot be read nobody knows better.
            is_degraded: matches!(member.record.verdict, Verdict::Degraded | Verdict::Unknown),
            device: member.record.device,
            preference: weights.sum(),
        }
    }

    /// What there is room for in a rank's cache; `None` where its ledger may not know all of it.
    fn room(&self, member: &Member, slot: Option<Slot>, state: &RankState) -> Option<Room> {
        let record = &member.record;
        let (capacity, size) = (record.capacity_blocks?, record.block_size?);
        if record.ledger.completeness == Completeness::Partial {
            return None;
        }
        // What the index had no memory for fills the cache all the same.
        let held = slot.map_or(0, |slot| self.index.told_blocks(slot));
        let coming = state.in_flight.load().prefill_tokens / u64::from(size.tokens());
        Some(Room {
            free_blocks: capacity.saturating_sub(held + coming),
            young: state.churn.young(capacity, self.turnovers),
        })
    }
}

/// The hashes of those of these blocks that there are.
fn part(hashes: &[SequenceHash], blocks: Range<u32>) -> &[SequenceHash] {
    let end = hashes.len().min(blocks.end as usize);
    &hashes[end.min(blocks.start as usize)..end]
}

/// Tokens of those images that the rank encoded lately, and of which some must be computed.
fn encoded_tokens(footprint: &Footprint, state: &RankState, cached_tokens: u32) -> u32 {
    let images = footprint.media.iter();
    let computed = images.filter(|image| image.start + image.tokens > cached_tokens);
    let encoded = computed.filter(|image| state.affinity.has(&image.digest));
    encoded.map(|image| image.tokens).sum()
}
