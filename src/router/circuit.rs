//! Whether a worker that has failed is tried again: a circuit that failures open, and that one
//! request closes.
//!
//! Closed, requests pass. After some failures in a row, or one refused connection, it opens: none
//! pass for a while. Then it is half open: one request passes, the probe. Its success closes the
//! circuit, its failure opens it for twice as long. A probe that ends without either (its client
//! went away, the engine was busy) makes room for another.

use std::time::{Duration, Instant};

use crate::config::circuit::CircuitConfig;
use crate::router::state::BookingKey;

/// What opened a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A connection was refused.
    Refused,
    /// It does not take our key.
    Barred,
    /// Requests failed, one after the other.
    Failed,
}

/// One worker's circuit.
#[derive(Debug)]
pub(crate) struct Circuit {
    config: CircuitConfig,
    /// Failures since the last success, while it is closed.
    failures: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    /// Half open once `until` has come.
    Open(Opening),
    Probed(Opening, BookingKey),
}

/// Since when, for how long and why a circuit is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) since: Instant,
    pub(crate) until: Instant,
    pub(crate) cause: Cause,
    pause: Duration,
    /// When it opened, or was last probed.
    tried: Instant,
}

/// What a circuit lets pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// All requests.
    Closed,
    /// One, and then none until it has ended.
    Probe(Opening),
    /// None: a probe is under way.
    Probing(Opening),
    /// None before its pause is over.
    Open(Opening),
}

impl Cause {
    /// What it is in an operator's words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Refused => "it refused a connection",
            Self::Barred => "it does not take our key, see discovery.key_file",
            Self::Failed => "requests failed one after the other",
        }
    }
}

impl Opening {
    /// Where this one stands among others that are to be probed: the least recently tried first.
    pub(crate) fn tried(&self) -> Instant {
        self.tried
    }
}

impl Passage {
    /// Why no request may pass; `None` where one may.
    pub(crate) fn barrier(self) -> Option<&'static str> {
        match self {
            Self::Closed | Self::Probe(_) => None,
            Self::Probing(_) => Some("circuit half open: a request is trying it"),
            Self::Open(opening) => Some(match opening.cause {
                Cause::Refused => "circuit open: it refused a connection",
                Cause::Barred => "circuit open: it does not take our key, see discovery.key_file",
                Cause::Failed => "circuit open: requests failed one after the other",
            }),
        }
    }
}

impl Circuit {
    /// A closed circuit.
    pub(crate) fn new(config: CircuitConfig) -> Self {
        Self {
            config,
            failures: 0,
            phase: Phase::Closed,
        }
    }

    /// Closes: another process answers for the worker now.
    pub(crate) fn renew(&mut self) {
        *self = Self::new(self.config);
    }

    /// What may pass now.
    pub(crate) fn passage(&self, now: Instant) -> Passage {
        match self.phase {
            Phase::Closed => Passage::Closed,
            Phase::Open(opening) if now < opening.until => Passage::Open(opening),
            Phase::Open(opening) => Passage::Probe(opening),
            Phase::Probed(opening, _) if now < opening.tried + opening.pause => {
                Passage::Probing(opening)
            }
            // The answer of a probe that comes in one piece may take minutes.
            Phase::Probed(opening, _) => Passage::Probe(opening),
        }
    }

    /// Notes that a request was placed here: on any but a closed circuit it is the probe.
    pub(crate) fn placed(&mut self, booking: BookingKey, now: Instant) {
        if let Phase::Open(opening) | Phase::Probed(opening, _) = self.phase {
            let opening = Opening {
                tried: now,
                ..opening
            };
            self.phase = Phase::Probed(opening, booking);
        }
    }

    /// Notes that a request has ended, however it did.
    pub(crate) fn ended(&mut self, booking: BookingKey) {
        if let Phase::Probed(opening, probe) = self.phase
            && probe == booking
        {
            self.phase = Phase::Open(opening);
        }
    }

    /// Notes that the worker has answered; true when that closes the circuit. Whichever request it
    /// was: the worker answers now.
    pub(crate) fn succeeded(&mut self) -> bool {
        self.failures = 0;
        let was_open = !matches!(self.phase, Phase::Closed);
        self.phase = Phase::Closed;
        was_open
    }

    /// Notes that it failed; true when that opens the circuit, anew or for longer. What fails before
    /// a pause is over changes nothing: it was sent before, or tried the worker early because there
    /// was no other.
    pub(crate) fn failed(&mut self, cause: Cause, now: Instant) -> bool {
        let pause = match self.phase {
            Phase::Closed => {
                self.failures = self.failures.saturating_add(1);
                if cause == Cause::Failed && self.failures < self.config.failures_max {
                    return false;
                }
                self.config.pause()
            }
            Phase::Open(opening) | Phase::Probed(opening, _) if now < opening.until => {
                self.phase = Phase::Open(opening);
                return false;
            }
            Phase::Open(opening) | Phase::Probed(opening, _) => {
                (opening.pause * 2).min(self.config.pause_max())
            }
        };
        self.failures = 0;
        self.phase = Phase::Open(Opening {
            since: now,
            until: now + pause,
            cause,
            pause,
            tried: now,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: CircuitConfig = CircuitConfig {
        failures_max: 3,
        pause_secs: 2,
        pause_secs_max: 12,
    };

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Fail(Cause),
        Succeed,
        Place(u64),
        End(u64),
        Wait(u64),
    }
    use Step::{End, Fail, Place, Succeed, Wait};

    /// A circuit at work, on a clock of its own.
    struct Run {
        circuit: Circuit,
        start: Instant,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                circuit: Circuit::new(CONFIG),
                start: now,
                now,
            }
        }

        fn step(&mut self, step: Step) -> bool {
            match step {
                Fail(cause) => self.circuit.failed(cause, self.now),
                Succeed => self.circuit.succeeded(),
                Place(key) => {
                    self.circuit.placed(BookingKey(key), self.now);
                    false
                }
                End(key) => {
                    self.circuit.ended(BookingKey(key));
                    false
                }
                Wait(secs) => {
                    self.now += Duration::from_secs(secs);
                    false
                }
            }
        }

        fn passage(&self) -> Passage {
            self.circuit.passage(self.now)
        }

        /// The phase in short, with the second until which it is open.
        fn shown(&self) -> (&'static str, u64) {
            let until = |opening: Opening| (opening.until - self.start).as_secs();
            match self.passage() {
                Passage::Closed => ("closed", 0),
                Passage::Probe(opening) => ("probe", until(opening)),
                Passage::Probing(opening) => ("probing", until(opening)),
                Passage::Open(opening) => ("open", until(opening)),
            }
        }
    }

    #[test]
    fn failures_open_it_and_one_success_closes_it() {
        const FAIL: Step = Fail(Cause::Failed);
        const REFUSE: Step = Fail(Cause::Refused);
        for (steps, expected) in [
            (&[][..], ("closed", 0)),
            (&[FAIL, FAIL], ("closed", 0)),
            (&[FAIL, FAIL, Succeed, FAIL, FAIL], ("closed", 0)),
            (&[FAIL, FAIL, FAIL], ("open", 2)),
            (&[REFUSE], ("open", 2)),
            (&[REFUSE, Wait(1), FAIL, REFUSE], ("open", 2)),
            (&[REFUSE, Wait(2)], ("probe", 2)),
            (&[REFUSE, Wait(2), Place(1)], ("probing", 2)),
            // A probe whose client goes away makes room for another.
            (&[REFUSE, Wait(2), Place(1), End(7)], ("probing", 2)),
            (&[REFUSE, Wait(2), Place(1), End(1)], ("probe", 2)),
            (&[REFUSE, Wait(2), Place(1), Succeed], ("closed", 0)),
            (&[REFUSE, Wait(2), Place(1), FAIL], ("open", 6)),
            (&[REFUSE, Wait(2), Place(1), End(1), FAIL], ("open", 6)),
            // 2, 4, 8, then no more than 12 seconds.
            (&[REFUSE, Wait(2), FAIL, Wait(4), FAIL], ("open", 14)),
            (
                &[REFUSE, Wait(2), FAIL, Wait(4), FAIL, Wait(8), FAIL],
                ("open", 26),
            ),
            // After a success the pause is the first one again.
            (&[REFUSE, Wait(2), FAIL, Succeed, REFUSE], ("open", 4)),
            // Tried early, because there was no other.
            (&[REFUSE, Place(1)], ("probing", 2)),
            (&[REFUSE, Place(1), FAIL], ("open", 2)),
            (&[REFUSE, Place(1), Succeed], ("closed", 0)),
        ] {
            let mut run = Run::new();
            for step in steps {
                run.step(*step);
            }
            assert_eq!(run.shown(), expected, "{steps:?}");
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Fail(Cause::Failed)),
            Just(Fail(Cause::Refused)),
            Just(Fail(Cause::Barred)),
            Just(Succeed),
            (0u64..4).prop_map(Place),
            (0u64..4).prop_map(End),
            (0u64..15).prop_map(Wait),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_heals(steps in prop::collection::vec(step(), 0..40)) {
            let mut run = Run::new();
            for step in steps {
                let was_closed = run.passage() == Passage::Closed;
                let turned = run.step(step);
                let opening = match run.passage() {
                    Passage::Closed => None,
                    Passage::Open(opening) | Passage::Probe(opening) | Passage::Probing(opening) => {
                        Some(opening)
                    }
                };
                match step {
                    // One refusal is enough; a success always is.
                    Fail(Cause::Refused | Cause::Barred) => prop_assert!(opening.is_some()),
                    Succeed => prop_assert_eq!((opening, turned), (None, !was_closed)),
                    // Nothing else closes or opens it.
                    Place(_) | End(_) | Wait(_) => prop_assert_eq!(opening.is_none(), was_closed),
                    Fail(Cause::Failed) => prop_assert!(!turned || opening.is_some()),
                }
                if let Some(opening) = opening {
                    let pause = opening.until - opening.since;
                    prop_assert!(pause >= CONFIG.pause() && pause <= CONFIG.pause_max());
                    prop_assert!(opening.since <= run.now && opening.tried() >= opening.since);
                }
            }
            // It is never barred for good: a pause ends, a probe ends, and a success is enough.
            run.step(Wait(CONFIG.pause_secs_max));
            for key in 0..4 {
                run.step(End(key));
            }
            prop_assert_eq!(run.passage().barrier(), None);
            run.step(Place(9));
            run.step(Succeed);
            prop_assert_eq!(run.passage(), Passage::Closed);
        }

        #[test]
        fn at_most_one_request_tries_it(keys in prop::collection::vec(0u64..50, 1..20)) {
            let mut run = Run::new();
            run.step(Fail(Cause::Refused));
            run.step(Wait(CONFIG.pause_secs));
            let mut passed = 0;
            for key in keys {
                if run.passage().barrier().is_none() {
                    run.step(Place(key));
                    passed += 1;
                }
            }
            prop_assert_eq!(passed, 1);
        }
    }
}
