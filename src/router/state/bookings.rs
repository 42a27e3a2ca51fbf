//! What requests hold while they are in flight, from booking to freeing.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::index::assumed::Stay;
use crate::router::footprint::Footprint;
use crate::router::member::Member;
use crate::router::rank_state::RankState;
use crate::router::state::seats::Seat;
use crate::router::state::{BookingKey, Chosen, State};
use crate::select::Policy;
use crate::select::cost::Cost;
use crate::select::load::{Output, Share};

/// Blocks that an engine is assumed to have room for where it does not say: as many as the index
/// would take of it.
const ASSUMED_BLOCKS_MAX: u64 = 1 << 20;

impl State {
    pub(crate) fn book(
        &mut self,
        seat: Seat,
        cost: Cost,
        footprint: &Footprint,
        now: Instant,
    ) -> Chosen {
        let key = self.reserve();
        self.book_as(key, (seat, cost), footprint, now)
    }

    /// The same under a name that was reserved.
    pub(crate) fn book_as(
        &mut self,
        key: BookingKey,
        (seat, cost): (Seat, Cost),
        footprint: &Footprint,
        now: Instant,
    ) -> Chosen {
        let share = share(&seat, footprint, self.policy);
        let mut chosen = Chosen {
            worker: seat.worker,
            rank: seat.rank,
            ranks: 1,
            address: Arc::default(),
            block_size: seat.candidate.block_size,
            overlap_blocks: seat.candidate.overlap_blocks,
            lower_blocks: seat.candidate.host_blocks + seat.candidate.disk_blocks,
            prompt_blocks: seat.prompt_blocks,
            cost,
            media_dir: None,
            report_session: None,
            parity_failed: None,
            basis: seat.basis,
            gone: CancellationToken::new(),
            booking: key,
        };
        let new_blocks = share.blocks.saturating_sub(chosen.overlap_blocks);
        self.turn_over(new_blocks);
        let since = now.saturating_duration_since(self.began);
        if let Some(member) = self.workers.get_mut(&chosen.worker) {
            member.describe(&mut chosen);
            // Prompts with images may still be named otherwise there, though this one is not.
            let tells_all = member.parity_failed().is_none();
            let capacity_blocks = member.record.capacity_blocks.unwrap_or(ASSUMED_BLOCKS_MAX);
            let stay = Stay {
                time_max: self.config.assumed_for(),
                blocks_max: capacity_blocks.min(ASSUMED_BLOCKS_MAX) as usize,
            };
            if let Some(rank) = member.ranks.get_mut(chosen.rank.0 as usize) {
                rank.churn.add(new_blocks, self.turnovers);
                if seat.basis.is_approximate() {
                    rank.assumed.sent(&share.hashes, since, stay);
                } else if tells_all {
                    rank.assumed.clear();
                }
                for image in &*footprint.media {
                    let tokens_max = self.config.media_affinity_tokens;
                    rank.affinity.sent(image.digest, image.tokens, tokens_max);
                }
                if let Some(outbox) = &mut self.outbox {
                    outbox.booked(key, (&chosen.worker, chosen.rank), &share);
                }
                rank.book(key, share, now);
            }
        }
        self.seats.insert(key, (chosen.worker.clone(), chosen.rank));
        chosen
    }

    pub(crate) fn prefill_done(&mut self, key: BookingKey, now: Instant) {
        if let Some(outbox) = &mut self.outbox {
            outbox.prefill_done(key);
        }
        if let Some(rank) = self.rank_of(key) {
            rank.prefill_done(key, now);
        }
    }

    /// Notes how many tokens of an answer have come.
    pub(crate) fn progress(&mut self, key: BookingKey, seen_tokens: u32) {
        if let Some(rank) = self.rank_of(key)
            && let Some(booked) = rank.booked.get_mut(&key)
        {
            rank.in_flight.progress(&mut booked.share, seen_tokens);
        }
    }

    pub(crate) fn free(&mut self, key: BookingKey) {
        if let Some(outbox) = &mut self.outbox {
            outbox.freed(key);
        }
        if let Some(rank) = self.rank_of(key) {
            rank.free(key);
        }
        if let Some((worker, _)) = self.seats.remove(&key)
            && let Some(member) = self.workers.get_mut(&worker)
        {
            member.circuit.ended(key);
        }
    }

    /// Ends prefills that must be over by now, and assumptions that are too old.
    pub(crate) fn settle(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.began);
        let stay = Stay {
            time_max: self.config.assumed_for(),
            blocks_max: usize::MAX,
        };
        for rank in self.workers.values_mut().flat_map(|m| &mut m.ranks) {
            rank.settle(now);
            rank.assumed.expire(since, stay);
        }
    }

    fn rank_of(&mut self, key: BookingKey) -> Option<&mut RankState> {
        let (worker, rank) = self.seats.get(&key)?;
        let member = self.workers.get_mut(worker)?;
        member.ranks.get_mut(rank.0 as usize)
    }

    /// Counts new blocks that are sent somewhere against what all caches hold together.
    fn turn_over(&mut self, new_blocks: u32) {
        let capacity = |member: &Member| {
            member.record.capacity_blocks.unwrap_or(0) * u64::from(member.record.ranks)
        };
        let capacity_blocks: u64 = self.workers.values().map(capacity).sum();
        self.turnovers += f64::from(new_blocks) / capacity_blocks.max(1) as f64;
    }
}

/// What a request adds to the load there. What it loads from slower tiers counts as in its own cost:
/// the time that loading takes, in tokens to compute.
fn share(seat: &Seat, footprint: &Footprint, policy: Policy) -> Share {
    let block_size = seat.candidate.block_size;
    let uncached_tokens = seat.candidate.uncached_tokens(footprint.all_tokens());
    let spared_tokens = seat.candidate.loading_spares_tokens(policy).round() as u32;
    let hashes = footprint.hashes_for(block_size).cloned();
    Share {
        prefill_tokens: u64::from(uncached_tokens.saturating_sub(spared_tokens)),
        is_whole: !footprint.stream,
        output: Output {
            expected_tokens: footprint.hints.output_tokens.unwrap_or(0),
            seen_tokens: 0,
            block_size,
        },
        blocks: footprint.all_tokens().div_ceil(block_size.tokens()),
        hashes: hashes.unwrap_or_default(),
        indexed_blocks: seat.indexed_blocks,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::block::{BlockSize, SequenceHash};
    use crate::config::router::{ApproximatePolicy, RouterConfig};
    use crate::discovery::WorkerRecord;
    use crate::health::Verdict;
    use crate::id::WorkerId;
    use crate::router::footprint::Wish;

    const SIZE: u32 = 16;

    fn state(policy: ApproximatePolicy) -> State {
        let config = RouterConfig {
            use_kv_events: false,
            approximate_policy: policy,
            ttl_secs: 10.0,
            ..RouterConfig::default()
        };
        let mut state = State::new(&config);
        let mut record = WorkerRecord::new(WorkerId::new("w").unwrap(), "http://w", "m");
        record.block_size = BlockSize::new(SIZE);
        record.capacity_blocks = Some(4);
        record.verdict = Verdict::Healthy;
        state.upsert(record);
        state
    }

    /// Places a prompt of these blocks that is over at once; its overlap.
    fn place(state: &mut State, blocks: &[u64], now: Instant) -> u32 {
        let hashes = blocks.iter().copied().map(SequenceHash).collect();
        let footprint = Footprint {
            hashes: vec![(BlockSize::new(SIZE).unwrap(), hashes)],
            ..Footprint::new("m", blocks.len() as u32 * SIZE + 1)
        };
        let chosen = state.place(&footprint, &Wish::default(), now).unwrap();
        state.free(chosen.booking);
        chosen.overlap_blocks
    }

    #[test]
    fn assumptions_last_for_their_time_or_while_there_is_room() {
        use ApproximatePolicy::{Lru, Ttl};
        for (policy, steps) in [
            (
                Ttl,
                &[(0, &[1, 2, 3][..], 0), (9, &[1, 2], 2), (18, &[1, 2, 3], 2)][..],
            ),
            (Ttl, &[(0, &[1, 2, 3], 0), (10, &[1, 2, 3], 0)]),
            (
                Ttl,
                &[(0, &[1, 2, 3], 0), (1, &[8, 9], 0), (2, &[1, 2, 3], 2)],
            ),
            (Lru, &[(0, &[1, 2, 3], 0), (1_000, &[1, 2, 3], 3)]),
            (
                Lru,
                &[
                    (0, &[1, 2, 3], 0),
                    (1, &[6, 7, 8, 9], 0),
                    (2, &[1, 2, 3], 0),
                ],
            ),
        ] {
            let mut state = state(policy);
            let began = Instant::now();
            for (seconds, blocks, overlap_blocks) in steps {
                let now = began + Duration::from_secs(*seconds);
                let found = place(&mut state, blocks, now);
                assert_eq!(found, *overlap_blocks, "{policy:?} {blocks:?} at {seconds}");
            }
        }
    }
}
