//! Whether so many workers vanished at once that it is rather their source of membership that is at
//! fault.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::discovery::membership::WORKERS_MAX;
use crate::id::WorkerId;

/// Of the workers that were there, more than half and at least two vanished within one lease,
/// deregistered ones included: etcd tells of both alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Workers that vanished.
    pub vanished: usize,
    /// Workers that were there before, those included.
    pub workers: usize,
}

/// Fewest workers that vanish together: one alone says nothing of the others, and a rack of one or two
/// would raise the alarm with each that stops.
const VANISHED_MIN: usize = 2;

/// The workers that are there, and those that vanished within the last lease.
#[derive(Debug)]
pub struct Vanished {
    lease: Duration,
    /// When a worker vanished; `None` while it is there.
    workers: HashMap<WorkerId, Option<Instant>>,
    is_raised: bool,
}

impl Vanished {
    /// Nothing seen yet; `lease` is the time within which vanishing together counts.
    pub fn new(lease: Duration) -> Self {
        Self {
            lease,
            workers: HashMap::new(),
            is_raised: false,
        }
    }

    /// Notes a worker that is there; false where there are too many to take one more.
    pub fn is(&mut self, worker: WorkerId) -> bool {
        let has_room = self.workers.len() < WORKERS_MAX || self.workers.contains_key(&worker);
        if has_room {
            self.workers.insert(worker, None);
        }
        has_room
    }

    /// Notes a worker that is absent.
    pub fn absent(&mut self, worker: &WorkerId, now: Instant) -> Option<Alarm> {
        if let Some(since) = self.workers.get_mut(worker) {
            since.get_or_insert(now);
        }
        self.look(now)
    }

    /// Notes the whole set.
    pub fn listed(
        &mut self,
        present: impl IntoIterator<Item = WorkerId>,
        now: Instant,
    ) -> Option<Alarm> {
        for since in self.workers.values_mut() {
            since.get_or_insert(now);
        }
        for worker in present {
            self.is(worker);
        }
        self.look(now)
    }

    /// The alarm where there is one that was not raised yet: it is raised once, until it is over.
    fn look(&mut self, now: Instant) -> Option<Alarm> {
        let lease = self.lease;
        self.workers
            .retain(|_, since| since.is_none_or(|since| now.duration_since(since) <= lease));
        let workers = self.workers.len();
        let vanished = self.workers.values().flatten().count();
        let was_raised = self.is_raised;
        self.is_raised = vanished >= VANISHED_MIN && vanished * 2 > workers;
        (self.is_raised && !was_raised).then_some(Alarm { vanished, workers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn worker(number: usize) -> WorkerId {
        WorkerId::new(&format!("w-{number}")).unwrap()
    }

    fn seen(count: usize, start: Instant) -> Vanished {
        let mut vanished = Vanished::new(LEASE);
        assert_eq!(vanished.listed((0..count).map(worker), start), None);
        vanished
    }

    #[test]
    fn more_than_half_within_one_lease_is_an_alarm() {
        let start = Instant::now();
        // Workers, the seconds at which one after the other vanishes, and who raises the alarm.
        for (count, seconds, alarm) in [
            (4, &[0_u64, 1, 2, 3] as &[_], Some(2)),
            (5, &[0, 9, 10], Some(2)),
            (5, &[0, 5, 11, 17], Some(3)), // Two of three that were there at 7 s.
            (8, &[0, 11, 22, 33], None),
            (2, &[0], None),
            (2, &[0, 9], Some(1)),
            (2, &[0, 11], None), // The one that is left, alone.
            (1, &[0], None),
        ] {
            let mut vanished = seen(count, start);
            let raised = seconds.iter().enumerate().find_map(|(number, seconds)| {
                let now = start + Duration::from_secs(*seconds);
                vanished.absent(&worker(number), now).map(|_| number)
            });
            assert_eq!(raised, alarm, "{count} {seconds:?}");
        }
    }

    #[test]
    fn an_empty_listing_is_an_alarm_once() {
        let start = Instant::now();
        let mut vanished = seen(3, start);
        let all = Alarm {
            vanished: 3,
            workers: 3,
        };
        assert_eq!(vanished.listed([], start), Some(all));
        assert_eq!(vanished.listed([], start), None, "raised already");
        assert_eq!(vanished.listed((0..3).map(worker), start), None);
        assert_eq!(
            vanished.listed([worker(0)], start).map(|a| a.vanished),
            Some(2)
        );
        assert_eq!(
            Vanished::new(LEASE).listed([], start),
            None,
            "there was none"
        );
    }

    #[test]
    fn who_vanished_long_ago_counts_no_more() {
        let start = Instant::now();
        let mut vanished = seen(4, start);
        assert_eq!(vanished.absent(&worker(0), start), None);
        assert_eq!(vanished.absent(&worker(1), start), None);
        let later = start + LEASE + Duration::from_secs(1);
        assert_eq!(vanished.absent(&worker(2), later), None, "one of two");
        assert_eq!(vanished.absent(&worker(9), later), None, "never seen");
    }
}
