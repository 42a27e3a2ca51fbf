//! Whether an event follows the one before it: sequence numbers and incarnations of one slot.

use crate::id::Incarnation;

/// The sequence number of an event that comes before an engine's first batch, 0: one less.
pub const BEFORE_FIRST: u64 = u64::MAX;

/// How an event stands to those applied before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next one, or one that makes all before it irrelevant because it clears first.
    InOrder,
    /// Applied before, or older than what was.
    Duplicate,
    /// Some in between are missing.
    Gap { missed: u64 },
    /// The engine is another process: what its former life held is gone.
    NewIncarnation,
}

/// The last event of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    last: Option<(Incarnation, u64)>,
}

impl Progress {
    /// The incarnation and sequence number seen last.
    pub fn last(self) -> Option<(Incarnation, u64)> {
        self.last
    }

    /// Places an event and remembers it. One that clears first (a snapshot is such a one) is never
    /// a gap, and replaces what has its own sequence number; an older one stays a duplicate.
    pub fn observe(&mut self, incarnation: Incarnation, sequence: u64, cleared: bool) -> Step {
        let step = match self.last {
            None => Step::InOrder,
            Some((known, _)) if known != incarnation => Step::NewIncarnation,
            // Numbers wrap, so that 0 follows BEFORE_FIRST.
            Some((_, last)) => match sequence.wrapping_sub(last).cast_signed() {
                ahead if ahead < 0 => Step::Duplicate,
                0 if !cleared => Step::Duplicate,
                ahead if ahead > 1 && !cleared => Step::Gap {
                    missed: ahead.unsigned_abs() - 1,
                },
                _ => Step::InOrder,
            },
        };
        if step != Step::Duplicate {
            self.last = Some((incarnation, sequence));
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_placed_by_incarnation_and_sequence() {
        let mut progress = Progress::default();
        let gap = Step::Gap { missed: 2 };
        for (incarnation, sequence, cleared, step) in [
            (1, 7, false, Step::InOrder), // the first may have any number
            (1, 8, false, Step::InOrder),
            (1, 8, false, Step::Duplicate),
            (1, 7, true, Step::Duplicate), // an old snapshot must not undo newer events
            (1, 8, true, Step::InOrder),
            (1, 11, false, gap),
            (1, 20, true, Step::InOrder), // nothing before a clearing matters
            (2, BEFORE_FIRST, true, Step::NewIncarnation),
            (2, 0, false, Step::InOrder),
            (2, 1, false, Step::InOrder),
            (2, BEFORE_FIRST, true, Step::Duplicate),
        ] {
            let seen = progress.observe(Incarnation(incarnation), sequence, cleared);
            assert_eq!(seen, step, "incarnation {incarnation} sequence {sequence}");
        }
        assert_eq!(progress.last(), Some((Incarnation(2), 1)));
    }
}
