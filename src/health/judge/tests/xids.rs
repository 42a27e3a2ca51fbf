//! XIDs and recovery events.

use super::*;
use crate::health::xid::Class;
use Severity::{Degraded, Fatal, Info};

#[test]
fn xids_that_the_gpu_survives_do_not_drain_it() {
    for xid in [13, 31, 43, 45, 63, 94] {
        let mut bench = Bench::new();
        bench.poll(&healthy());
        for _ in 0..20 {
            bench.xid(xid);
            let verdict = bench.verdict();
            let is_kept = matches!(verdict, Verdict::Healthy | Verdict::Degraded);
            assert!(is_kept, "XID {xid}: {verdict:?}");
        }
    }
}

#[test]
fn each_class_has_its_verdict_alone_and_among_others() {
    use Verdict::{Degraded, Draining, Failed, Healthy};
    for (xid, class, alone, among) in [
        (31, Class::Application, Healthy, Healthy),
        (37, Class::Noted, Healthy, Healthy),
        (45, Class::Removed, Healthy, Healthy),
        (63, Class::Mended, Healthy, Healthy),
        (92, Class::Trend, Degraded, Degraded),
        (94, Class::Contained, Degraded, Degraded),
        (48, Class::Reset, Draining, Draining),
        (74, Class::Link, Degraded, Draining),
        (149, Class::Link, Degraded, Draining),
        (79, Class::Reboot, Failed, Failed),
        (54, Class::Firmware, Draining, Draining),
        (154, Class::Advice, Degraded, Degraded),
        (999, Class::Unknown, Draining, Draining),
    ] {
        assert_eq!(Class::of(xid), class);
        for (gpus_of_worker, expected) in [(1, alone), (8, among)] {
            let mut bench = Bench::new();
            bench.context.gpus_of_worker = gpus_of_worker;
            bench.xid(xid);
            assert_eq!(bench.verdict(), expected, "XID {xid} of {gpus_of_worker}");
        }
    }
}

#[test]
fn the_third_xid_of_applications_within_ten_minutes_degrades() {
    let mut bench = Bench::new();
    bench.xid(13);
    bench.pass(300);
    bench.xid(31);
    bench.pass(301);
    bench.xid(31);
    bench.xid(37);
    bench.xid(45);
    assert_eq!(bench.verdict(), Verdict::Healthy, "13 was too long ago");
    bench.xid(43);
    let severities = [(31, Degraded), (37, Info), (43, Degraded), (45, Info)];
    let open = severities.map(|(xid, severity)| (Signal::Xid, xid, severity));
    assert_eq!(bench.open(), open);

    let mut bench = Bench::new();
    bench.xid(13);
    bench.pass(600);
    bench.xid(13);
    bench.xid(13);
    assert_eq!(bench.open(), [(Signal::Xid, 13, Degraded)], "just within");
}

#[test]
fn an_xid_can_be_given_another_severity_by_number_and_class() {
    for (key, severity, xid, verdict) in [
        ("xid_109", Info, 109, Verdict::Healthy),
        ("xid_109", Info, 110, Verdict::Draining),
        ("xid_reset", Degraded, 109, Verdict::Degraded),
        ("xid_application", Fatal, 13, Verdict::Draining),
        ("xid_unknown", Info, 555, Verdict::Healthy),
        ("xid_reboot", Degraded, 79, Verdict::Degraded),
        ("xid_94", Info, 94, Verdict::Healthy),
        ("xid_154", Fatal, 154, Verdict::Draining),
        ("xid", Info, 79, Verdict::Healthy),
    ] {
        let mut bench = Bench::configured(key, severity);
        bench.xid(xid);
        assert_eq!(bench.verdict(), verdict, "{key} and XID {xid}");
    }
    let mut bench = Bench::configured("xid_application", Info);
    (0..9).for_each(|_| bench.xid(13));
    assert_eq!(bench.verdict(), Verdict::Healthy, "however many they are");
    let mut bench = Bench::configured("xid_94", Info);
    bench.xid(94);
    assert!(!bench.wants_canary(), "what is nothing needs no proof");
}

#[test]
fn a_signal_can_be_given_another_severity() {
    let mut bench = Bench::configured("pcie_replay", Fatal);
    bench.poll(&healthy());
    bench.poll(&changed(|reading| reading.pcie_replays = Some(4009)));
    assert_eq!(bench.verdict(), Verdict::Draining);
    let mut bench = Bench::configured("gpu_lost", Info);
    bench.poll(&failing(Call::Other, 15));
    assert_eq!(bench.verdict(), Verdict::Healthy);
}

#[test]
fn a_recovery_event_stands_until_the_advice_is_read() {
    for event in [(0x8000, 1), (0x4000, 0), (Event::XID, 154)] {
        let mut bench = Bench::new();
        bench.poll(&healthy());
        bench.event(event.0, event.1);
        assert_eq!(bench.open(), [(Signal::RecoveryEvent, event.1, Degraded)]);
        bench.poll(&changed(|reading| reading.recovery_action = Some(1)));
        assert_eq!(bench.open(), [(Signal::RecoveryAction, 1, Fatal)]);

        let mut bench = Bench::new();
        bench.event(event.0, event.1);
        bench.poll(&healthy());
        assert_eq!(bench.open(), [], "there is nothing to do");

        let mut bench = Bench::new();
        bench.event(event.0, event.1);
        bench.polls(3, &changed(|reading| reading.recovery_action = None));
        assert_eq!(bench.verdict(), Verdict::Degraded);
        bench.canary(true);
        assert_eq!(bench.open(), [], "where there is no advice, as all else");
    }
}

#[test]
fn events_that_polls_see_too_open_nothing() {
    for kind in [
        0,
        1,
        2,
        4,
        0x10,
        0x80,
        Event::MIG_CONFIG_CHANGE,
        0x200,
        1 << 40,
    ] {
        let mut bench = Bench::new();
        bench.event(kind, 79);
        assert_eq!(bench.open(), [], "{kind:#x}");
    }
}

#[test]
fn an_uncorrected_error_is_degraded_if_xid_94_contains_it_whichever_comes_first() {
    let error = changed(|reading| reading.ecc_uncorrected = Some(3));
    let degraded = [
        (Signal::Xid, 94, Degraded),
        (Signal::EccUncorrected, 0, Degraded),
    ];
    for xid_first in [true, false] {
        let mut bench = Bench::new();
        bench.poll(&healthy());
        if xid_first {
            bench.xid(94);
            bench.pass(60);
            bench.poll(&error);
        } else {
            bench.poll(&error);
            assert_eq!(bench.verdict(), Verdict::Draining);
            bench.pass(59);
            bench.xid(94);
        }
        assert_eq!(bench.open(), degraded);
        assert_eq!(bench.verdict(), Verdict::Degraded);
    }
    let mut bench = Bench::new();
    bench.poll(&healthy());
    bench.xid(94);
    bench.pass(61);
    bench.poll(&error);
    assert_eq!(bench.verdict(), Verdict::Draining, "another error");
    bench.pass(60);
    bench.xid(94);
    assert_eq!(bench.verdict(), Verdict::Draining, "it was long ago");

    let mut bench = Bench::configured("ecc_uncorrected", Fatal);
    bench.poll(&healthy());
    bench.poll(&error);
    bench.xid(94);
    assert_eq!(bench.verdict(), Verdict::Draining, "as configured");
}
