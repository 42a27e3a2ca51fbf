//! What the judge makes of observations.

mod answers;
mod laws;
mod memory;
mod recovery;
mod rows;
mod xids;

use std::time::Duration;

use crate::health::Verdict;
use crate::health::incident::Severity;
use crate::health::judge::{Context, Judge};
use crate::health::limits::Limits;
use crate::health::reading::{
    Call, Code, Event, Fabric, Failure, Link, Memory, Mig, Observation, OfMost, Processes, Reading,
    RetiredPages,
};
use crate::health::signal::Signal;

/// An H200 at work.
fn healthy() -> Reading {
    let link = |number| Link {
        number,
        is_active: true,
        replays: 7,
        ..Link::default()
    };
    Reading {
        failures: Vec::new(),
        recovery_action: Some(0),
        throttle_reasons: Some(0),
        temperature_celsius: Some(55),
        memory_temperature_celsius: Some(60),
        utilization_percent: Some(80),
        power_milliwatts: Some(500_000),
        performance_state: Some(0),
        memory: Some(Memory {
            total_bytes: 141 << 30,
            free_bytes: 140 << 30,
        }),
        ecc_corrected: Some(1_000_000),
        ecc_uncorrected: Some(2),
        remap_pending: Some(false),
        remap_failed: Some(false),
        pcie_replays: Some(4000),
        ecc_uncorrected_lifetime: Some(0),
        sram_threshold_exceeded: Some(false),
        exhausted_banks: Some(0),
        retired_pages: Some(RetiredPages::default()),
        links: (0..18).map(link).collect(),
        fabric: Some(Fabric {
            state: 3,
            status: 0,
            health: 1,
        }),
        pcie_width: Some(OfMost { now: 16, most: 16 }),
        pcie_generation: Some(OfMost { now: 5, most: 5 }),
        pcie_fatal_errors: Some(3),
        pcie_nonfatal_errors: Some(3),
        slowdown_celsius: Some(87),
        margin_celsius: Some(32),
        processes: Some(Processes::default()),
        compute_mode: Some(0),
        is_persistent: Some(true),
        mig: Some(Mig::default()),
        is_confidential_ready: None,
    }
}

/// A judge with its clock, which each poll puts on by a second.
struct Bench {
    judge: Judge,
    context: Context,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            judge: Judge::new(limits),
            context: Context {
                has_engine: true,
                gpus_of_worker: 1,
                ..Context::default()
            },
            now: Duration::ZERO,
        }
    }

    /// With `key = severity`.
    fn configured(key: &str, severity: Severity) -> Self {
        assert_eq!(Limits::override_fault(key), None);
        Self::with(Limits {
            severities: [(key.to_owned(), severity)].into(),
            ..Limits::default()
        })
    }

    fn take(&mut self, observation: &Observation) {
        self.judge.take(observation, &self.context, self.now);
    }

    fn poll(&mut self, reading: &Reading) {
        self.take(&Observation::Polled(Box::new(reading.clone())));
        self.pass(1);
    }

    fn polls(&mut self, count: u64, reading: &Reading) {
        for _ in 0..count {
            self.poll(reading);
        }
    }

    fn xid(&mut self, xid: u64) {
        self.event(Event::XID, xid);
    }

    fn event(&mut self, kind: u64, value: u64) {
        self.take(&Observation::Event(Event { kind, value }));
    }

    fn hang(&mut self, secs: u64) {
        self.take(&Observation::Hanging(Duration::from_secs(secs)));
    }

    fn unreachable(&mut self, code: u32) {
        self.take(&Observation::Unreachable {
            code: Code(code),
            text: format!("no way: {code}"),
        });
    }

    fn pass(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
    }

    fn canary(&mut self, passed: bool) {
        assert!(self.wants_canary(), "nobody asked for a canary");
        self.judge.canary(passed, self.now);
    }

    fn wants_canary(&self) -> bool {
        self.judge.wants_canary(self.now)
    }

    fn open(&self) -> Vec<(Signal, u64, Severity)> {
        let incidents = self.judge.state().incidents;
        let shown = incidents.iter().map(|i| (i.signal, i.code, i.severity));
        shown.collect()
    }

    fn verdict(&self) -> Verdict {
        self.judge.state().verdict
    }
}

fn changed(change: impl FnOnce(&mut Reading)) -> Reading {
    let mut reading = healthy();
    change(&mut reading);
    reading
}

fn failing(call: Call, code: u32) -> Reading {
    changed(|reading| {
        reading.failures.push(Failure {
            call,
            code: Code(code),
        });
    })
}
