//! Whether what connects hosts works: the last word of each client of it, for pages and metrics.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::bus::standing::{BusState, Standing};
use crate::telemetry::labels::{Plane, PlaneLabels};
use crate::telemetry::metrics::Metrics;

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

/// How etcd and NATS are, as the clients of one process see them; `None` for what is not used.
#[derive(Clone, Debug, Default)]
pub struct Planes {
    pub etcd: Option<watch::Receiver<PlaneState>>,
    pub nats: Option<Standing>,
}

impl Planes {
    /// What is away, and why, for a person; `None` where nothing is.
    pub fn away(&self) -> Option<String> {
        let etcd = self.etcd.as_ref().map(|state| state.borrow().clone());
        away(etcd, self.nats.as_ref().map(Standing::now))
    }

    /// Brings the metrics up to date.
    pub fn show(&self, metrics: &Metrics) {
        let etcd = self
            .etcd
            .as_ref()
            .map(|state| *state.borrow() == PlaneState::Up);
        let nats = self.nats.as_ref().map(Standing::is_up);
        for (plane, is_up) in [(Plane::Etcd, etcd), (Plane::Nats, nats)] {
            if let Some(is_up) = is_up {
                let gauge = metrics.plane_up.get_or_create(&PlaneLabels { plane });
                gauge.set(i64::from(is_up));
            }
        }
    }
}

fn away(etcd: Option<PlaneState>, nats: Option<BusState>) -> Option<String> {
    let etcd = match etcd {
        Some(PlaneState::Down { since, cause }) => {
            let since = since.strftime("%FT%TZ");
            Some(format!("etcd is away since {since}: {cause}"))
        }
        Some(PlaneState::Up) | None => None,
    };
    let nats = match nats {
        Some(BusState::Away { cause }) => Some(format!("NATS is away: {cause}")),
        Some(BusState::Up) | None => None,
    };
    match (etcd, nats) {
        (Some(etcd), Some(nats)) => Some(format!("{etcd}; {nats}")),
        (etcd, nats) => etcd.or(nats),
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
    fn what_is_away_is_told_with_its_cause() {
        let down = PlaneState::Down {
            since: Timestamp::from_second(1_700_000_000).unwrap(),
            cause: "no route".to_owned(),
        };
        let cause = "it closed".to_owned();
        let gone = BusState::Away { cause };
        let told = "etcd is away since 2023-11-14T22:13:20Z: no route";
        for (etcd, nats, expected) in [
            (
                Some(&down),
                Some(gone.clone()),
                Some(format!("{told}; NATS is away: it closed")),
            ),
            (Some(&down), Some(BusState::Up), Some(told.to_owned())),
            (
                Some(&PlaneState::Up),
                Some(gone),
                Some("NATS is away: it closed".to_owned()),
            ),
            (Some(&PlaneState::Up), Some(BusState::Up), None),
            (None, None, None),
        ] {
            assert_eq!(away(etcd.cloned(), nats), expected);
        }
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
