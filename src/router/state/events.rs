//! What engines tell: KV events, and answers that say which blocks an event must name.

use std::time::Instant;

use crate::discovery::{Completeness, ParityScope};
use crate::index::gap::Step;
use crate::index::{Applied, KvEvent};
use crate::router::confirm::Confirm;
use crate::router::member::Member;
use crate::router::state::{BookingKey, State};
use crate::router::{Answered, ParityTurn};

impl State {
    /// Applies one event; one of a worker we do not know is dropped, for its blocks could never be
    /// placed on.
    pub(crate) fn apply_event(
        &mut self,
        event: &KvEvent,
        now: Instant,
    ) -> (Applied, Option<ParityTurn>) {
        let Some(member) = self.workers.get_mut(&event.worker) else {
            return (Applied::Duplicate, None);
        };
        let applied = self.index.apply(event);
        let Applied::Yes(step) = applied else {
            return (applied, None);
        };
        let before = member.confirm.failed();
        if step == Step::NewIncarnation {
            // Another process, and maybe another release, that has shown nothing yet.
            member.confirm = Confirm::default();
        }
        member.confirm.observe(event);
        if let Some(rank) = member.ranks.get_mut(event.rank.0 as usize) {
            rank.in_flight.note_stored(&event.stored);
        }
        (applied, turn(member, before, now))
    }

    /// Holds an answer against the events: its prompt's first block that was not cached, and its
    /// last one, were computed, and must be stored under our names; the last, because its name
    /// covers every image.
    pub(crate) fn answered(
        &mut self,
        key: BookingKey,
        answered: Answered,
        now: Instant,
    ) -> Option<ParityTurn> {
        let (worker, rank) = self.seats.get(&key)?;
        let member = self.workers.get_mut(worker)?;
        let state = member.ranks.get(rank.0 as usize)?;
        let hashes = &state.shares.get(&key)?.hashes;
        let first = answered.block_size.full_blocks(answered.cached_tokens) as usize;
        let text_blocks = answered.block_size.full_blocks(answered.text_tokens) as usize;
        let slot = self.index.slot(worker, *rank);
        let before = member.confirm.failed();
        let last = hashes.len().saturating_sub(1);
        for at in [first, last].into_iter().skip(usize::from(first == last)) {
            let Some(hash) = hashes.get(at).filter(|_| at >= first) else {
                continue;
            };
            let scope = match at < text_blocks {
                true => ParityScope::Text,
                false => ParityScope::Media,
            };
            let holders = self.index.overlap(std::slice::from_ref(hash));
            let is_held = holders.iter().any(|held| Some(held.slot) == slot);
            if is_held || state.in_flight.was_stored(*hash) {
                member.confirm.confirm(scope);
            } else {
                member.confirm.expect((*rank, *hash), scope, now);
            }
        }
        turn(member, before, now)
    }
}

/// Ends waits that are over; what the router must say of the worker, if anything has changed since
/// `before`.
fn turn(member: &mut Member, before: Option<ParityScope>, now: Instant) -> Option<ParityTurn> {
    let is_complete = member.record.ledger.completeness == Completeness::Complete;
    member.confirm.expire(now, is_complete);
    let failed = member.confirm.failed();
    (failed != before).then(|| ParityTurn {
        worker: member.record.worker.clone(),
        failed,
    })
}
