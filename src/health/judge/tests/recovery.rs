//! How incidents end: quiet polls, canaries and restarts.

use super::*;
use crate::health::judge::Progress;
use Severity::{Degraded, Fatal, Info};

/// A GPU that was lost and answers again.
fn back_again() -> Bench {
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.poll(&failing(Call::Other, 15));
    assert_eq!(bench.verdict(), Verdict::Failed);
    bench
}

#[test]
fn three_clean_polls_and_a_canary_make_it_healthy_once() {
    let mut bench = back_again();
    let mut verdicts = Vec::new();
    let mut canaries = 0;
    for _ in 0..20 {
        bench.poll(&healthy());
        verdicts.push(bench.verdict());
        if bench.wants_canary() {
            canaries += 1;
            bench.canary(true);
        }
    }
    let (failed, healthy) = verdicts.split_at(3);
    assert_eq!(failed, [Verdict::Failed; 3]);
    assert!(healthy.iter().all(|verdict| *verdict == Verdict::Healthy));
    assert_eq!(canaries, 1);
    assert!(!bench.judge.take_restart());
}

#[test]
fn a_finding_that_comes_back_starts_recovery_over() {
    let mut bench = back_again();
    for clean in [2, 2, 3] {
        bench.polls(clean, &healthy());
        assert_eq!(bench.wants_canary(), clean == 3);
        bench.poll(&failing(Call::Other, 15));
        assert!(!bench.wants_canary());
    }
    bench.judge.canary(true, bench.now);
    assert_eq!(bench.verdict(), Verdict::Failed, "that canary was too late");
    bench.polls(3, &healthy());
    bench.canary(true);
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn without_an_engine_quiet_is_enough() {
    let mut bench = back_again();
    bench.context.has_engine = false;
    bench.polls(2, &healthy());
    assert_eq!(bench.verdict(), Verdict::Failed);
    bench.poll(&healthy());
    assert!(!bench.wants_canary());
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn a_canary_that_fails_is_asked_again_ever_later() {
    let mut bench = back_again();
    bench.polls(3, &healthy());
    for wait in [5, 10, 20, 40, 60, 60, 60] {
        bench.canary(false);
        bench.polls(wait - 1, &healthy());
        assert!(!bench.wants_canary(), "before {wait} s");
        bench.poll(&healthy());
        assert!(bench.wants_canary(), "after {wait} s");
    }
    assert_eq!(bench.verdict(), Verdict::Failed);
    assert!(
        !bench.judge.take_restart(),
        "no class but two restarts an engine"
    );

    bench.poll(&failing(Call::Other, 15));
    bench.polls(3, &healthy());
    bench.canary(false);
    bench.polls(5, &healthy());
    assert!(bench.wants_canary(), "what comes back is asked early again");
    bench.canary(true);
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn incidents_close_one_by_one() {
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.xid(48);
    let warm = changed(|reading| reading.temperature_celsius = Some(85));
    bench.polls(3, &warm);
    assert_eq!(bench.verdict(), Verdict::Draining);
    bench.canary(true);
    assert_eq!(bench.open(), [(Signal::Temperature, 0, Degraded)]);
    assert_eq!(bench.verdict(), Verdict::Degraded);
    bench.polls(3, &healthy());
    bench.canary(true);
    assert_eq!(bench.open(), []);
}

#[test]
fn an_incident_that_eases_steps_down_as_it_would_close() {
    let hot = changed(|reading| reading.temperature_celsius = Some(90));
    let warm = changed(|reading| reading.temperature_celsius = Some(85));
    let of = |severity| [(Signal::Temperature, 0, severity)];
    let mut bench = Bench::new();
    bench.polls(61, &hot);
    assert_eq!(bench.open(), of(Fatal));
    bench.polls(2, &warm);
    bench.poll(&healthy());
    assert_eq!(bench.open(), of(Fatal));
    bench.canary(true);
    assert_eq!(bench.open(), of(Degraded));
    let text = &bench.judge.state().incidents[0].text;
    assert!(text.starts_with("it has 85 °C"), "{text}");
    bench.polls(2, &healthy());
    assert!(!bench.wants_canary());
    bench.poll(&healthy());
    bench.canary(true);
    assert_eq!(bench.open(), []);
}

#[test]
fn what_gets_worse_again_has_not_eased() {
    let hot = changed(|reading| reading.temperature_celsius = Some(90));
    let warm = changed(|reading| reading.temperature_celsius = Some(85));
    let mut bench = Bench::new();
    bench.polls(61, &hot);
    bench.polls(3, &warm);
    bench.polls(61, &hot);
    bench.polls(3, &healthy());
    bench.canary(true);
    assert_eq!(bench.open(), [], "it was not warm since it was hot");
}

#[test]
fn what_eases_to_info_stays_as_long_as_it_is_seen() {
    let off = changed(|reading| reading.links[0].is_active = false);
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.context.gpus_of_worker = 8;
    bench.poll(&off);
    bench.context.gpus_of_worker = 1;
    bench.polls(900, &off);
    assert_eq!(bench.verdict(), Verdict::Draining);
    bench.canary(true);
    bench.xid(45);
    let incidents = bench.judge.state().incidents;
    assert_eq!(incidents[1].signal, Signal::NvlinkInactive);
    assert_eq!(incidents[1].since_millis, 1000);
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn a_passed_canary_makes_the_next_that_fails_the_first() {
    let hot = changed(|reading| reading.temperature_celsius = Some(90));
    let warm = changed(|reading| reading.temperature_celsius = Some(85));
    let mut bench = Bench::new();
    bench.polls(61, &hot);
    bench.polls(3, &warm);
    bench.canary(false);
    bench.polls(5, &warm);
    bench.canary(true);
    bench.polls(3, &healthy());
    bench.canary(false);
    bench.xid(13);
    assert!(!bench.wants_canary(), "what is nothing asks for nothing");
    bench.polls(5, &healthy());
    assert!(bench.wants_canary());
}

#[test]
fn what_is_info_alone_closes_ten_minutes_after_it_was_seen() {
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.xid(13);
    bench.polls(300, &healthy());
    bench.xid(13);
    bench.polls(600, &healthy());
    assert_eq!(bench.open(), [(Signal::Xid, 13, Info)]);
    bench.poll(&healthy());
    assert_eq!(bench.open(), []);
    assert!(!bench.wants_canary());
}

#[test]
fn a_contained_error_asks_for_a_canary_at_once_and_restarts_once_if_it_fails() {
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.xid(94);
    assert_eq!(bench.verdict(), Verdict::Degraded);
    bench.canary(false);
    assert!(bench.judge.take_restart());
    assert!(!bench.judge.take_restart(), "it is told once");
    bench.polls(5, &healthy());
    bench.xid(94);
    bench.canary(false);
    assert!(!bench.judge.take_restart(), "it is the same incident");
    bench.polls(10, &healthy());
    bench.canary(true);
    assert_eq!(bench.open(), []);

    bench.xid(94);
    bench.canary(false);
    assert!(bench.judge.take_restart(), "it is another incident");
}

#[test]
fn a_contained_error_whose_canary_passes_restarts_nothing() {
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.xid(94);
    bench.canary(true);
    for clean in 0..3 {
        assert_eq!(bench.verdict(), Verdict::Degraded, "after {clean} polls");
        assert!(!bench.wants_canary(), "one canary has passed since");
        bench.poll(&healthy());
    }
    assert_eq!(bench.open(), []);
    assert!(!bench.judge.take_restart());

    bench.xid(94);
    bench.canary(true);
    bench.poll(&healthy());
    bench.xid(94);
    assert!(bench.wants_canary(), "none has passed since the second");
    bench.context.has_engine = false;
    bench.poll(&healthy());
    assert!(!bench.wants_canary(), "there is nobody to ask");
}

#[test]
fn a_stuck_engine_is_restarted_once() {
    let full = changed(|reading| reading.utilization_percent = Some(100));
    let mut bench = Bench::new();
    bench.context.progress = Some(Progress {
        running: 1,
        generated_tokens: 7,
    });
    bench.polls(61, &full);
    assert!(!bench.judge.take_restart());
    bench.polls(1, &full);
    assert!(bench.judge.take_restart());
    bench.polls(100, &full);
    assert!(!bench.judge.take_restart());
    bench.context.progress = Some(Progress::default());
    bench.polls(3, &healthy());
    bench.canary(true);
    assert_eq!(bench.verdict(), Verdict::Healthy);

    let mut bench = Bench::configured("stuck", Info);
    bench.context.progress = Some(Progress {
        running: 1,
        generated_tokens: 7,
    });
    bench.polls(62, &full);
    assert_eq!(bench.open(), [(Signal::Stuck, 0, Info)]);
    assert!(
        !bench.judge.take_restart(),
        "what is nothing restarts nothing"
    );
}

#[test]
fn incidents_say_since_when_and_keep_their_text() {
    let mut bench = Bench::new();
    bench.pass(7);
    for celsius in [84, 85, 86] {
        bench.poll(&changed(|reading| {
            reading.temperature_celsius = Some(celsius);
        }));
        let incident = &bench.judge.state().incidents[0];
        assert_eq!(incident.since_millis, 7000);
        assert!(incident.text.starts_with("it has 84 °C"));
    }
}

#[test]
fn no_poll_is_no_clean_poll() {
    let mut bench = back_again();
    for _ in 0..10 {
        bench.xid(37);
        bench.unreachable(17);
        bench.unreachable(3);
        bench.event(4, 0);
    }
    let lost = bench.open()[0];
    assert_eq!(lost, (Signal::GpuLost, 15, Fatal));
    assert!(!bench.wants_canary());
}
