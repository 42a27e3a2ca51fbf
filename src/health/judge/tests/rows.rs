//! Each signal alone: a healthy GPU with one change.

mod driver;
mod load;
mod memory;
mod sharing;

use std::collections::BTreeSet;

use super::*;

type Found = (Signal, u64, Severity);
type Steps = Box<dyn Fn(&mut Bench)>;
type Change = fn(&mut Reading);

/// What shows one signal, and nothing else.
struct Row {
    found: Found,
    words: &'static str,
    /// What is done to a healthy GPU.
    steps: Steps,
    /// The same with what the signal is read from absent, where that is a field.
    absent: Option<Steps>,
}

/// A field that has changed, and that is absent.
macro_rules! set {
    ($field:ident = $value:expr) => {{
        let changes: (Change, Change) = (|r| r.$field = Some($value), |r| r.$field = None);
        changes
    }};
}
use set;

/// A signal that is no field's.
fn row(found: Found, words: &'static str, steps: impl Fn(&mut Bench) + 'static) -> Row {
    Row {
        found,
        words,
        steps: Box::new(steps),
        absent: None,
    }
}

/// A signal that the first of `changes` shows at once, and not if the second took its field away.
fn read(found: Found, words: &'static str, changes: (Change, Change)) -> Row {
    read_after(0, found, words, changes)
}

/// The same, for a signal that shows after `secs`.
fn read_after(
    secs: u64,
    found: Found,
    words: &'static str,
    (change, lack): (Change, Change),
) -> Row {
    let steps = move |bench: &mut Bench| {
        bench.polls(secs, &changed(change));
        assert!(!bench.open().contains(&found), "{found:?} is too early");
        bench.poll(&changed(change));
    };
    let absent = move |bench: &mut Bench| {
        let lacking = changed(|reading| {
            change(reading);
            lack(reading);
        });
        bench.polls(secs + 1, &lacking);
    };
    Row {
        absent: Some(Box::new(absent)),
        ..row(found, words, steps)
    }
}

impl Row {
    /// The same around a GPU where `change` is true.
    fn among(self, change: fn(&mut Context)) -> Self {
        let within = |steps: Steps| -> Steps {
            Box::new(move |bench| {
                change(&mut bench.context);
                steps(bench);
            })
        };
        Self {
            steps: within(self.steps),
            absent: self.absent.map(within),
            ..self
        }
    }

    fn check(&self) {
        let mut bench = Bench::new();
        bench.polls(2, &healthy());
        (self.steps)(&mut bench);
        assert_eq!(bench.open(), [self.found]);
        let (signal, code, severity) = self.found;
        let incident = &bench.judge.state().incidents[0];
        let (text, words) = (&incident.text, self.words);
        assert!(text.contains(words), "{text:?} lacks {words:?}");
        assert!(signal.row().severities.contains(&severity), "{signal:?}");
        let has_own_action = matches!(signal, Signal::RecoveryAction | Signal::Xid) || code == 154;
        assert!(has_own_action || incident.action == signal.row().action);
        assert!(!incident.action.is_empty());
    }

    fn check_absent(&self, absent: &Steps) {
        let mut bench = Bench::new();
        bench.polls(2, &healthy());
        absent(&mut bench);
        assert_eq!(bench.open(), [], "{:?} without its field", self.found);
        assert_eq!(bench.verdict(), Verdict::Healthy);
    }
}

fn peers(context: &mut Context) {
    context.gpus_of_worker = 8;
}

fn starting(context: &mut Context) {
    context.is_engine_starting = true;
    context.memory_needed = Some(0.9);
}

#[test]
fn each_signal_alone_is_its_incident_alone() {
    let rows = [
        memory::rows(),
        load::rows(),
        load::rows_of_links(),
        sharing::rows(),
        driver::rows(),
        driver::rows_of_actions(),
    ];
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    for row in &rows {
        row.check();
        if let Some(absent) = &row.absent {
            row.check_absent(absent);
        }
    }
    let seen: BTreeSet<Signal> = rows.iter().map(|row| row.found.0).collect();
    assert_eq!(seen, BTreeSet::from(Signal::ALL), "a signal has no row");
}

#[test]
fn a_healthy_gpu_has_no_incidents_and_neither_has_one_that_says_little() {
    let geforce = Reading {
        temperature_celsius: Some(40),
        utilization_percent: Some(3),
        ..Reading::default()
    };
    for reading in [healthy(), geforce, Reading::default()] {
        let mut bench = Bench::new();
        assert_eq!(bench.verdict(), Verdict::Unknown, "nothing is read yet");
        for _ in 0..100 {
            bench.poll(&reading);
            assert_eq!(bench.open(), []);
            assert_eq!(bench.verdict(), Verdict::Healthy);
        }
    }
}
