//! Whether a rank has enough to do, and whether a request has anywhere to go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::config::router::RouterConfig;
use crate::id::{DpRank, WorkerId};
use crate::router::footprint::{Footprint, Wish};
use crate::router::member::Member;
use crate::router::rank_state::RankState;

/// What the workers that a request may go to say to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// One of them has room.
    Free,
    /// All of them are busy.
    Busy,
    /// There are none, or none that takes requests.
    Nobody,
}

/// From when on a rank is busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threshold {
    /// In batches of the engine; 0 for never.
    batches: f64,
    /// An engine's batch where it does not say.
    batch_tokens: u64,
}

impl Threshold {
    pub(crate) fn new(config: &RouterConfig) -> Self {
        Self {
            batches: config.queue_threshold,
            batch_tokens: config.queue_batch_tokens,
        }
    }

    /// Looks at loads alone, not at what is held where: it is asked of each request, and of many
    /// that wait.
    pub(crate) fn fit(
        &self,
        workers: &BTreeMap<WorkerId, Member>,
        (name, wish): (&str, &Wish),
        now: Instant,
    ) -> Fit {
        let mut fit = Fit::Nobody;
        for (member, rank) in open_to(workers, (name, wish), now) {
            if !self.is_busy(member, rank) {
                return Fit::Free;
            }
            fit = Fit::Busy;
        }
        fit
    }

    fn is_busy(&self, member: &Member, rank: &RankState) -> bool {
        let batch_tokens = member.record.max_batched_tokens;
        let batch_tokens = batch_tokens.unwrap_or(self.batch_tokens) as f64;
        let queued_tokens = rank.shown_prefill_tokens(member.record.ledger.is_followed) as f64;
        self.batches > 0.0 && queued_tokens > self.batches * batch_tokens
    }
}

/// Every rank that a request for a model or an adapter may go to.
pub(crate) fn open_to<'a>(
    workers: &'a BTreeMap<WorkerId, Member>,
    (name, wish): (&'a str, &'a Wish),
    now: Instant,
) -> impl Iterator<Item = (&'a Member, &'a RankState)> {
    let members = workers.iter().filter(move |(worker, member)| {
        let is_eligible = member.not_eligible(now).is_none();
        is_eligible && member.record.serves(name) && !wish.excluded.contains(worker)
    });
    members.flat_map(move |(worker, member)| {
        let ranks = member.ranks.iter().zip(0..member.record.ranks.max(1));
        ranks
            .filter(|(_, rank)| wish.names(worker, DpRank(*rank)))
            .map(move |(state, _)| (member, state))
    })
}

/// The name by which a worker must serve a request.
pub(crate) fn served_name(footprint: &Footprint) -> &Arc<str> {
    footprint.adapter.as_ref().unwrap_or(&footprint.model)
}
