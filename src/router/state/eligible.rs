//! Which seats a request may take: as wished, and as verdicts and circuits allow.

use std::time::Instant;

use crate::router::RouteError;
use crate::router::circuit::Passage;
use crate::router::footprint::{Footprint, Wish};
use crate::router::state::State;
use crate::router::state::seats::Seat;

impl State {
    /// Tells for each seat whether a request may take it; at least one may.
    ///
    /// Where the circuits of all that could take it are open, the one that was tried least lately
    /// is tried early: a request that would fail anyhow is the cheapest way to learn that a worker
    /// answers again.
    ///
    /// # Errors
    /// When none may: whom the request wishes for is not there or takes none, or nobody does.
    pub(super) fn eligible(
        &self,
        seats: &[Seat],
        footprint: &Footprint,
        wish: &Wish,
        now: Instant,
    ) -> Result<Vec<bool>, RouteError> {
        let wished: Vec<bool> = seats
            .iter()
            .map(|seat| wish.names(&seat.worker, seat.rank))
            .collect();
        if !wished.contains(&true) {
            return Err(not_found(seats, wish));
        }
        let left = |seat: &Seat| {
            wish.names(&seat.worker, seat.rank) && !wish.excluded.contains(&seat.worker)
        };
        let open = |seat: &Seat| left(seat) && seat.not_eligible.is_none();
        let open: Vec<bool> = seats.iter().map(open).collect();
        if open.contains(&true) {
            return Ok(open);
        }
        // Where nobody is heard it may be us who are cut off, or all may be too busy to answer soon.
        let silent = |seat: &Seat| left(seat) && self.is_only_silent(seat, now);
        let silent: Vec<bool> = seats.iter().map(silent).collect();
        if silent.contains(&true) {
            return Ok(silent);
        }
        let barred = seats.iter().filter(|seat| left(seat));
        let tried = barred.filter_map(|seat| Some((self.tried(seat, now)?, &seat.worker)));
        if let Some((_, worker)) = tried.min() {
            let early = |seat: &Seat| left(seat) && seat.worker == *worker;
            return Ok(seats.iter().map(early).collect());
        }
        let reason = |seat: &Seat| left(seat).then_some(seat.not_eligible).flatten();
        match (&wish.worker, seats.iter().find_map(reason)) {
            (Some(worker), Some(reason)) => Err(RouteError::WorkerUnavailable {
                worker: worker.clone(),
                reason: reason.into(),
            }),
            _ => Err(RouteError::NoEligibleWorker {
                model: footprint.model.to_string(),
                workers: seats.len(),
            }),
        }
    }

    fn is_only_silent(&self, seat: &Seat, now: Instant) -> bool {
        let member = self.workers.get(&seat.worker);
        member.is_some_and(|member| member.is_only_silent(now))
    }

    /// When a worker that nothing but its open circuit bars was last tried.
    fn tried(&self, seat: &Seat, now: Instant) -> Option<Instant> {
        let member = self.workers.get(&seat.worker)?;
        match member.circuit.passage(now) {
            Passage::Open(opening) if member.record.verdict.takes_requests() => {
                Some(opening.tried())
            }
            _ => None,
        }
    }
}

/// Why nobody is whom a request wishes for.
fn not_found(seats: &[Seat], wish: &Wish) -> RouteError {
    let is_there = |seat: &Seat| wish.worker.as_ref().is_none_or(|it| seat.worker == *it);
    match (&wish.worker, wish.rank) {
        (_, Some(rank)) if seats.iter().any(is_there) => RouteError::RankNotFound { rank },
        (Some(worker), _) => RouteError::WorkerNotFound {
            worker: worker.clone(),
        },
        (None, _) => RouteError::RankNotFound {
            rank: wish.rank.unwrap_or_default(),
        },
    }
}
