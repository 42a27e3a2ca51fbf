//! How much memory an index may take, and how it is shared out.

use crate::index::SLOTS_MAX;
use crate::index::slots::SLOT_BYTES;
use crate::index::table::{BUCKET_BYTES, TABLE_BITS, Table};

/// The memory an index may take unless it is told otherwise: some 30 million blocks, as 512 engines
/// with 60,000 blocks each hold.
pub const BYTES_MAX: u64 = 1 << 30;

/// The least it should be given: some 400,000 blocks, as a box of eight engines may hold.
pub const BYTES_MAX_LEAST: u64 = 1 << 24;

/// What the tables take before they hold anything.
const BARE_BYTES: u64 = (size_of::<Table>() as u64) << TABLE_BITS;

/// What an index lost for want of memory, in blocks of one slot each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Blocks that made room for newer ones.
    pub evicted_blocks: u64,
    /// Blocks that found no room.
    pub left_out_blocks: u64,
}

/// The memory of an index. Each part has a share of its own: an eighth for the slots, an eighth for
/// the holders of hot blocks, which must find room however many blocks there are, and the rest for
/// the tables.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) slots_max: usize,
    pub(super) bitmaps_bytes_max: u64,
    table_bytes_max: u64,
    /// What the tables take.
    pub(super) table_bytes: u64,
    pub(super) losses: Losses,
}

impl Room {
    pub(super) fn new(bytes_max: u64) -> Self {
        let share = bytes_max / 8;
        Self {
            slots_max: ((share / SLOT_BYTES) as usize).min(SLOTS_MAX),
            bitmaps_bytes_max: share,
            table_bytes_max: bytes_max - 2 * share,
            table_bytes: BARE_BYTES,
            losses: Losses::default(),
        }
    }

    /// Grows a table by a step; false where that would be too much.
    pub(super) fn grow(&mut self, table: &mut Table) -> bool {
        // While blocks move, the old buckets are there too. A little stays free, so that tables
        // which lose blocks can still move to fewer buckets.
        let kept_free = self.table_bytes_max >> 8;
        self.resize(table, table.next_buckets(), kept_free)
    }

    /// Gives back what a table does not need any more.
    pub(super) fn shrink(&mut self, table: &mut Table) {
        if let Some(buckets) = table.spare_buckets() {
            self.resize(table, buckets, 0);
        }
    }

    fn resize(&mut self, table: &mut Table, buckets: usize, kept_free: u64) -> bool {
        let wanted = buckets as u64 * BUCKET_BYTES;
        let fits = self.table_bytes + wanted + kept_free <= self.table_bytes_max;
        if fits {
            self.table_bytes = self.table_bytes - table.bytes() + wanted;
            table.resize(buckets);
        }
        fits
    }
}
