//! What an answer disproves of the index.

use crate::discovery::Completeness;
use crate::router::state::{BookingKey, State};

/// Blocks that an engine did not find though the index said that it held them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disproved {
    pub(crate) blocks: usize,
    /// The ledger that the index had them from.
    pub(crate) ledger: Completeness,
}

impl State {
    /// See [`Booking::found_cached`](crate::router::booking::Booking::found_cached); `None` when
    /// the worker or the booking is gone.
    pub(crate) fn disprove(&self, key: BookingKey, cached_blocks: u32) -> Option<Disproved> {
        let (worker, rank) = self.seats.get(&key)?;
        let member = self.workers.get(worker)?;
        let on = member.ranks.get(rank.0 as usize)?;
        let blocks = on.disproved(on.booked.get(&key)?, cached_blocks);
        let ledger = member.record.ledger.completeness;
        Some(Disproved { blocks, ledger })
    }
}
