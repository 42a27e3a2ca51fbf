//! Our own bookings, as other routers are told of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::id::{DpRank, WorkerId};
use crate::router::Answered;
use crate::router::sharing::{Booked, NOTE_HASHES_MAX, Note};
use crate::router::state::{BookingKey, State};
use crate::select::load::Share;

/// Most notes that wait to be told, some seconds of a busy router. What is left out is told within a
/// second as live, or not as live any more.
const NOTES_MAX: usize = 65_536;

/// What is still to be told.
#[derive(Debug)]
pub(crate) struct Outbox {
    notes: Vec<Note>,
    live: BTreeSet<BookingKey>,
    wake: Arc<Notify>,
}

impl Outbox {
    fn note(&mut self, note: Note) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note);
        }
        self.wake.notify_one();
    }

    pub(super) fn booked(
        &mut self,
        key: BookingKey,
        (worker, rank): (&WorkerId, DpRank),
        share: &Share,
    ) {
        self.live.insert(key);
        let mut booked = booked(key, (worker, rank), share);
        booked.hashes = share.hashes.iter().copied().take(NOTE_HASHES_MAX).collect();
        self.note(Note::Booked(Box::new(booked)));
    }

    pub(super) fn prefill_done(&mut self, key: BookingKey) {
        if self.live.contains(&key) {
            self.note(Note::PrefillDone(key.0));
        }
    }

    pub(super) fn answered(&mut self, key: BookingKey, answered: Answered) {
        if self.live.contains(&key) {
            self.note(Note::Answered(key.0, answered));
        }
    }

    pub(super) fn freed(&mut self, key: BookingKey) {
        if self.live.remove(&key) {
            self.note(Note::Freed(key.0));
        }
    }
}

/// A booking without the names of its blocks.
fn booked(key: BookingKey, (worker, rank): (&WorkerId, DpRank), share: &Share) -> Booked {
    Booked {
        key: key.0,
        worker: worker.clone(),
        rank,
        prefill_tokens: share.prefill_tokens,
        is_whole: share.is_whole,
        output_tokens: share.output.expected_tokens.max(share.output.seen_tokens),
        block_size: share.output.block_size,
        blocks: share.blocks,
        hashes: Vec::new(),
    }
}

impl State {
    /// Notes from now on what is booked here; `wake` is told whenever there is something to tell.
    pub(crate) fn note_bookings(&mut self, wake: Arc<Notify>) {
        self.outbox = Some(Outbox {
            notes: Vec::new(),
            live: BTreeSet::new(),
            wake,
        });
    }

    /// What is to be told.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        let outbox = self.outbox.as_mut();
        outbox
            .map(|outbox| std::mem::take(&mut outbox.notes))
            .unwrap_or_default()
    }

    /// All of our own bookings that are live.
    pub(crate) fn live_bookings(&self) -> Vec<Booked> {
        let live = self.outbox.iter().flat_map(|outbox| &outbox.live);
        let booked = live.filter_map(|key| {
            let (worker, rank) = self.seats.get(key)?;
            let state = self.workers.get(worker)?.ranks.get(rank.0 as usize)?;
            let share = &state.booked.get(key)?.share;
            Some(booked(*key, (worker, *rank), share))
        });
        booked.collect()
    }
}
