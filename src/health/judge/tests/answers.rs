//! Calls that gave no value, one after the other and together.

use super::*;
use Severity::{Degraded, Fatal, Unknown};

#[test]
fn what_one_call_alone_was_answered_says_nothing_of_the_gpu() {
    let codes = [2, 3, 4, 5, 7, 8, 10, 13, 19, 20, 21, 22, 24, 25, 26, 31];
    for code in codes {
        let mut bench = Bench::new();
        bench.polls(10, &failing(Call::Other, code));
        assert_eq!(bench.open(), [], "{code}");
    }
    for code in [3, 13, 24, 25, 26] {
        let mut bench = Bench::new();
        bench.polls(10, &failing(Call::PowerUsage, code));
        bench.polls(10, &failing(Call::ValidateInforom, code));
        assert_eq!(bench.open(), [], "{code}");
    }
}

#[test]
fn an_answer_that_all_calls_got_is_not_about_power_or_the_inforom() {
    let calls = [Call::Other, Call::PowerUsage, Call::ValidateInforom];
    for (code, found) in [
        (15, vec![(Signal::GpuLost, 15, Fatal)]),
        (16, vec![(Signal::ResetRequired, 16, Fatal)]),
        (17, vec![(Signal::OsBlocked, 17, Fatal)]),
        (999, vec![(Signal::OsBlocked, 999, Fatal)]),
        (4, vec![]),
    ] {
        let failures = calls.map(|call| Failure {
            call,
            code: Code(code),
        });
        let mut bench = Bench::new();
        bench.polls(3, &changed(|reading| reading.failures = failures.into()));
        assert_eq!(bench.open(), found);
    }
}

#[test]
fn the_operating_system_has_to_refuse_three_times_in_a_row() {
    let blocked = failing(Call::Other, 17);
    let mut bench = Bench::new();
    bench.polls(2, &blocked);
    bench.poll(&healthy());
    bench.polls(2, &blocked);
    assert_eq!(bench.verdict(), Verdict::Healthy);
    bench.unreachable(999);
    assert_eq!(bench.verdict(), Verdict::Draining, "polls or not");

    let mut bench = Bench::new();
    bench.unreachable(17);
    bench.unreachable(17);
    assert_eq!(bench.verdict(), Verdict::Unknown, "nothing was read yet");
    bench.unreachable(4);
    bench.unreachable(17);
    assert_eq!(bench.open(), [(Signal::NoDriver, 4, Unknown)]);
}

#[test]
fn what_leaves_nothing_to_compute_on_is_failed_and_what_finishes_is_draining() {
    for (code, verdict) in [
        (4, Verdict::Unknown),
        (6, Verdict::Failed),
        (9, Verdict::Unknown),
        (11, Verdict::Draining),
        (12, Verdict::Unknown),
        (15, Verdict::Failed),
        (16, Verdict::Draining),
        (18, Verdict::Draining),
        (23, Verdict::Draining),
        (27, Verdict::Unknown),
        (28, Verdict::Failed),
        (29, Verdict::Degraded),
        (30, Verdict::Draining),
    ] {
        let mut bench = Bench::new();
        bench.poll(&healthy());
        bench.unreachable(code);
        assert_eq!(bench.verdict(), verdict, "{code}");
    }
}

#[test]
fn hangs_are_fatal_once_they_are_three_in_a_row_or_one_is_long() {
    let open = |severity| [(Signal::Hang, 0, severity)];
    let mut bench = Bench::new();
    for secs in 1..10 {
        bench.hang(secs);
        assert_eq!(bench.open(), open(Unknown), "it is one call that hangs on");
    }
    assert_eq!(bench.verdict(), Verdict::Unknown);
    bench.hang(10);
    assert_eq!(bench.verdict(), Verdict::Failed);

    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.hang(1);
        bench.hang(2);
        bench.poll(&healthy());
        assert_eq!(bench.open(), open(Unknown));
    }
    bench.hang(1);
    assert_eq!(bench.open(), open(Fatal), "each ended late");

    let mut bench = Bench::new();
    for severity in [Unknown, Unknown, Fatal] {
        bench.hang(1);
        assert_eq!(bench.open(), open(severity), "each is another call");
    }

    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.hang(1);
        bench.polls(2, &healthy());
        assert_eq!(
            bench.open(),
            open(Unknown),
            "a poll between them was in time"
        );
    }
}

#[test]
fn a_hang_that_is_over_clears_by_polls_and_a_canary() {
    let mut bench = Bench::new();
    bench.hang(10);
    bench.polls(2, &healthy());
    assert!(!bench.wants_canary());
    bench.poll(&healthy());
    assert_eq!(bench.verdict(), Verdict::Failed);
    bench.canary(true);
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn a_corrupted_inforom_degrades_whichever_call_says_so() {
    let mut bench = Bench::new();
    bench.poll(&failing(Call::Other, 14));
    bench.unreachable(14);
    assert_eq!(bench.open(), [(Signal::Inforom, 0, Degraded)]);
}
