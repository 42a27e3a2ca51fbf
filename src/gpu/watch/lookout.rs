//! When a call lasts too long.

use std::time::Duration;

/// Looks from outside at the calls of one thread. Times are from the watch's start.
#[derive(Debug)]
pub(super) struct Lookout {
    deadline: Duration,
    /// The call that was seen last, by when it began, and after how long it is next told of.
    call: Option<(Duration, Duration)>,
}

impl Lookout {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            // A deadline of nothing would be told of without end.
            deadline: deadline.max(Duration::from_millis(1)),
            call: None,
        }
    }

    /// How long the call that `began` then has lasted, once for each deadline that it has.
    pub(super) fn look(&mut self, began: Option<Duration>, now: Duration) -> Option<Duration> {
        let began = began?;
        let due = match self.call {
            Some((call, due)) if call == began => due,
            _ => self.deadline,
        };
        let lasts = now.saturating_sub(began);
        if lasts < due {
            return None;
        }
        self.call = Some((began, lasts + self.deadline));
        Some(lasts)
    }

    /// Time until the call may be told of: a call that begins after `now` is not overdue before that.
    pub(super) fn next(&self, began: Option<Duration>, now: Duration) -> Duration {
        let due = match (began, self.call) {
            (None, _) => return self.deadline,
            (Some(began), Some((call, due))) if call == began => began + due,
            (Some(began), _) => began + self.deadline,
        };
        // One that returns at once is followed by others, of which any may hang.
        due.saturating_sub(now).min(self.deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_call_is_told_of_once_for_each_deadline() {
        let mut lookout = Lookout::new(millis(1000));
        for (began, now, lasts, next) in [
            (None, 0, None, 1000),
            (Some(100), 200, None, 900),
            (Some(100), 1100, Some(1000), 1000),
            (Some(100), 1101, None, 999),
            (Some(100), 2150, Some(2050), 1000),
            (Some(100), 3100, None, 50),
            (Some(3150), 3200, None, 950),
            (Some(3150), 4150, Some(1000), 1000),
            (None, 4200, None, 1000),
            // A wait for events that is not even due.
            (Some(9000), 4300, None, 1000),
        ] {
            let began = began.map(millis);
            assert_eq!(lookout.look(began, millis(now)), lasts.map(millis), "{now}");
            assert_eq!(lookout.next(began, millis(now)), millis(next), "{now}");
        }
    }
}
