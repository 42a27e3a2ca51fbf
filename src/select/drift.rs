//! What an engine says that it does, against what is booked there: others may use it too, and what
//! was booked may be over.

/// Readings that must agree. A reading is up to a second old, and what was booked since is no drift.
const READINGS: usize = 3;

/// How far an engine's own count of something is from ours, by its last readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drift {
    /// The engine's count less ours; the oldest is replaced next.
    differences: [i64; READINGS],
    readings: usize,
}

impl Drift {
    /// Takes in a reading, and what was counted here when it came.
    pub fn observe(&mut self, engine: u64, ours: u64) {
        let difference = engine.cast_signed() - ours.cast_signed();
        self.differences[self.readings % READINGS] = difference;
        self.readings += 1;
    }

    /// Begins again: what was read before says nothing of now.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Our count corrected: by as much as all the last readings say, and not at all where they
    /// disagree on the direction.
    pub fn corrected(&self, ours: u64) -> u64 {
        if self.readings < READINGS {
            return ours;
        }
        let least = self.differences.iter().min().copied().unwrap_or(0);
        let most = self.differences.iter().max().copied().unwrap_or(0);
        // All above 0: the least of them; all below: the one closest to 0.
        let common = least.max(0) + most.min(0);
        ours.saturating_add_signed(common)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_all_readings_say_is_drift() {
        for (readings, ours, corrected) in [
            (&[(5, 0), (5, 0)][..], 0, 0),     // too few
            (&[(5, 0), (4, 0), (6, 0)], 1, 5), // somebody else's four at least
            (&[(0, 3), (0, 2), (1, 3)], 3, 1), // two were over and not given back
            (&[(0, 3), (0, 3), (0, 3)], 1, 0), // never below nothing
            (&[(5, 0), (0, 0), (5, 0)], 2, 2),
            (&[(5, 0), (0, 5), (5, 0)], 2, 2),
            (&[(9, 0), (9, 0), (9, 0), (2, 2)], 2, 2), // healed by itself
        ] {
            let mut drift = Drift::default();
            for (engine, ours) in readings {
                drift.observe(*engine, *ours);
            }
            assert_eq!(drift.corrected(ours), corrected, "{readings:?}");
            drift.forget();
            assert_eq!(drift.corrected(ours), ours);
        }
    }
}
