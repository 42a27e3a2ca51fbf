//! Open loops: what is due at fixed times is done then, whether or not that before it is over.

use std::sync::OnceLock;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::samples::Samples;

/// How often is looked for what has arrived; times are too long by half of this at most.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// Longest wait for what has not arrived once all is sent.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// So many a second, for so long, the first of them not counted.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) per_second: u32,
    pub(crate) warm: Duration,
    pub(crate) measured: Duration,
}

impl Pace {
    /// Does `act` with each number and the time when it is due. A thread of its own waits: the
    /// runtimes' timers are late by up to a millisecond.
    pub(crate) fn keep(self, mut act: impl FnMut(u32, Instant)) {
        let start = Instant::now() + Duration::from_millis(50);
        for number in 0..self.total() {
            let due = start + Duration::from_secs(1) / self.per_second * number;
            sleep(due.saturating_duration_since(Instant::now()));
            act(number, due);
        }
    }

    /// Sends each number when it is due, and takes the time until so many have arrived.
    pub(crate) fn journeys(
        self,
        mut send: impl FnMut(u32) + Send,
        arrived: impl Fn() -> u64,
    ) -> Samples {
        let total = self.total() as usize;
        let sent: Vec<OnceLock<Instant>> = (0..total).map(|_| OnceLock::new()).collect();
        let latest = Instant::now() + self.warm + self.measured + ARRIVAL_MAX;
        let mut samples = Samples::default();
        scope(|scope| {
            scope.spawn(|| {
                self.keep(|number, _| {
                    sent[number as usize].get_or_init(Instant::now);
                    send(number);
                });
            });
            let mut seen = 0;
            while seen < total {
                let now_there = (arrived() as usize).min(total);
                let now = Instant::now();
                for number in seen..now_there {
                    let sent = sent[number].get().expect("what arrives was sent");
                    if self.counts(number as u32) {
                        samples.push(now - *sent);
                    }
                }
                seen = now_there.max(seen);
                assert!(now < latest, "{seen} of {total} have arrived");
                sleep(LOOK_EVERY);
            }
        });
        samples
    }

    /// Whether this one is measured.
    pub(crate) fn counts(self, number: u32) -> bool {
        f64::from(number) >= f64::from(self.per_second) * self.warm.as_secs_f64()
    }

    fn total(self) -> u32 {
        let lasts = self.warm + self.measured;
        (f64::from(self.per_second) * lasts.as_secs_f64()) as u32
    }
}
