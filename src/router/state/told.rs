//! A placement that another router made, booked here as it was told.

use std::time::Instant;

use crate::router::asked::Placed;
use crate::router::basis::Basis;
use crate::router::footprint::Footprint;
use crate::router::state::{BookingKey, Chosen, State};

impl State {
    /// A name for a booking that is still to be made.
    pub(crate) fn reserve(&mut self) -> BookingKey {
        let key = BookingKey(self.next_booking);
        self.next_booking += 1;
        key
    }

    /// Books a request under `key` where another router has placed it; `None` where its worker is not
    /// known here, or takes no requests as seen from here.
    pub(crate) fn book_told(
        &mut self,
        key: BookingKey,
        footprint: &Footprint,
        told: &Placed,
        now: Instant,
    ) -> Option<Chosen> {
        let seats = self.seats(footprint, now).into_iter();
        let mut seats = seats.filter(|seat| seat.worker == told.worker && seat.rank == told.rank);
        let mut seat = seats.next().filter(|seat| seat.not_eligible.is_none())?;
        seat.basis = told.basis;
        seat.candidate.overlap_blocks = told.overlap_blocks;
        seat.candidate.host_blocks = told.lower_blocks;
        seat.candidate.disk_blocks = 0;
        seat.indexed_blocks = match told.basis {
            Basis::Events => told.overlap_blocks,
            _ => 0,
        };
        self.turn += 1;
        let mut chosen = self.book_as(key, (seat, told.cost), footprint, now);
        chosen.parity_failed = told.parity_failed.or(chosen.parity_failed);
        if let Some(member) = self.workers.get_mut(&chosen.worker) {
            member.circuit.placed(key, now);
        }
        Some(chosen)
    }
}
