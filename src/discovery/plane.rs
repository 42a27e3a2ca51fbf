//! Whether what connects hosts works: the last word of each client of it, for pages and for `doctor`.

use std::time::Duration;

use jiff::Timestamp;

/// Time before a second try.
const DELAY_FIRST: Duration = Duration::from_millis(100);

/// Longest time between two tries: whatever is back is found again within two seconds.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// Whether etcd or NATS works, as one client of it last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneState {
    Up,
    Down {
        since: Timestamp,
        /// Why, for a person.
        cause: String,
    },
}

impl PlaneState {
    /// The state of a client that has not tried yet.
    pub fn untried() -> Self {
        Self::down(None, "not connected yet".to_owned())
    }

    /// It fails for `cause`; since `former` where it failed already.
    pub fn down(former: Option<&Self>, cause: String) -> Self {
        let since = match former {
            Some(Self::Down { since, .. }) => *since,
            _ => Timestamp::now(),
        };
        Self::Down { since, cause }
    }
}

/// The time before each next try: 100 ms, doubled up to 1 s.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    next: Duration,
}

impl Default for Delay {
    fn default() -> Self {
        Self { next: DELAY_FIRST }
    }
}

impl Delay {
    /// The time before the try that comes next.
    pub fn take(&mut self) -> Duration {
        let taken = self.next;
        self.next = (taken * 2).min(DELAY_MAX);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_no_rarer_than_each_second() {
        let mut delay = Delay::default();
        let taken: Vec<_> = (0..6).map(|_| delay.take().as_millis()).collect();
        assert_eq!(taken, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn what_stays_down_keeps_its_beginning() {
        let first = PlaneState::untried();
        let second = PlaneState::down(Some(&first), "no route".to_owned());
        let since = |state: &PlaneState| match state {
            PlaneState::Down { since, .. } => *since,
            PlaneState::Up => unreachable!("both are down"),
        };
        assert_eq!(since(&first), since(&second));
        assert_ne!(first, second);
    }
}
