//! What the judge remembers: counters, rates and for how long something holds.

use super::*;
use crate::health::judge::Progress;
use crate::health::reading::Foreign;
use Severity::Degraded;

/// Changes a counter of a reading to a count.
type Counter = fn(&mut Reading, u64);

const COUNTERS: [(Signal, u64, Counter); 6] = [
    (Signal::EccUncorrected, 0, |r, count| {
        r.ecc_uncorrected = Some(count);
    }),
    (Signal::EccCorrectedRate, 0, |r, count| {
        r.ecc_corrected = Some(count);
    }),
    (Signal::PcieReplay, 0, |r, count| {
        r.pcie_replays = Some(count);
    }),
    (Signal::PcieErrors, 0, |r, count| {
        r.pcie_fatal_errors = Some(count);
    }),
    (Signal::PcieErrors, 0, |r, count| {
        r.pcie_nonfatal_errors = Some(count);
    }),
    (Signal::NvlinkErrors, 5, |r, count| {
        r.links[5].recoveries = count;
    }),
];

#[test]
fn a_counter_tells_of_what_comes_after_its_first_value() {
    for (signal, code, set) in COUNTERS {
        let at = |count| changed(|reading| set(reading, count));
        let mut bench = Bench::new();
        bench.polls(5, &at(5000));
        assert_eq!(bench.open(), [], "{signal:?}: it was so before");
        bench.polls(5, &at(20));
        assert_eq!(bench.open(), [], "{signal:?}: the driver was loaded again");
        bench.poll(&at(100));
        let open = bench.open();
        let keys: Vec<_> = open
            .iter()
            .map(|(signal, code, _)| (*signal, *code))
            .collect();
        assert_eq!(keys, [(signal, code)]);
    }
}

#[test]
fn a_counter_that_is_not_read_for_a_while_keeps_its_place() {
    let at = |count| changed(|reading| reading.ecc_uncorrected = count);
    let mut bench = Bench::new();
    bench.poll(&at(Some(7)));
    bench.poll(&at(None));
    bench.poll(&at(Some(8)));
    assert_eq!(bench.verdict(), Verdict::Draining);
}

#[test]
fn rates_forget_what_is_long_ago() {
    let rows: [(Signal, Counter, u64, u64); 3] = [
        (
            Signal::EccCorrectedRate,
            |r, count| r.ecc_corrected = Some(count),
            10,
            3600,
        ),
        (
            Signal::PcieReplay,
            |r, count| r.pcie_replays = Some(count),
            8,
            60,
        ),
        (
            Signal::NvlinkErrors,
            |r, count| r.links[0].crc_errors = count,
            999,
            10,
        ),
    ];
    for (signal, set, most, span) in rows {
        let at = |count| changed(|reading| set(reading, count));
        let mut bench = Bench::new();
        bench.poll(&at(50));
        bench.poll(&at(50 + most));
        assert_eq!(bench.open(), [], "{signal:?}: as many as may be");
        bench.pass(span - 1);
        bench.poll(&at(50 + 2 * most));
        assert_eq!(bench.open(), [], "{signal:?}: the first are long ago");
        bench.pass(span / 2);
        bench.poll(&at(51 + 2 * most));
        assert_eq!(bench.verdict(), Verdict::Degraded, "{signal:?}");
    }
}

#[test]
fn the_errors_of_a_life_degrade_where_they_grew_while_nobody_looked() {
    let at = |count| changed(|reading| reading.ecc_uncorrected_lifetime = Some(count));
    for (before, first, then, verdict) in [
        (Some(3), 4, 4, Verdict::Degraded),
        (Some(4), 4, 4, Verdict::Healthy),
        (Some(4), 4, 5, Verdict::Healthy),
        (None, 4, 5, Verdict::Healthy),
        (Some(9), 0, 0, Verdict::Healthy),
    ] {
        let mut bench = Bench::new();
        bench.context.lifetime_before = before;
        bench.poll(&at(first));
        bench.poll(&at(then));
        assert_eq!(bench.verdict(), verdict, "{before:?}, {first}, {then}");
        let is_told = bench.open().len() == usize::from(then > 0);
        assert!(is_told, "{:?}", bench.open());
    }
}

#[test]
fn what_must_last_starts_again_after_a_gap() {
    let throttled = |bits| changed(|reading| reading.throttle_reasons = Some(bits));
    let hot = changed(|reading| reading.temperature_celsius = Some(90));
    for (slow, secs, found) in [
        (throttled(0x8), 5, (Signal::HwSlowdown, 0x8, Degraded)),
        (throttled(0x20), 30, (Signal::SwSlowdown, 0x20, Degraded)),
        (hot, 60, (Signal::Temperature, 0, Severity::Fatal)),
    ] {
        let gaps: [fn(&mut Bench); 4] = [
            |bench| bench.poll(&healthy()),
            |bench| bench.poll(&Reading::default()),
            |bench| bench.unreachable(27),
            |bench| bench.hang(1),
        ];
        for gap in gaps {
            let mut bench = Bench::new();
            bench.polls(secs, &slow);
            gap(&mut bench);
            bench.polls(secs, &slow);
            assert!(!bench.open().contains(&found), "{found:?} is too early");
            bench.poll(&slow);
            assert!(bench.open().contains(&found), "{found:?} is too late");
        }
    }
}

#[test]
fn a_lower_generation_of_pcie_counts_at_work_alone() {
    let slow = |used, state| {
        changed(|reading| {
            reading.pcie_generation = Some(OfMost { now: 1, most: 5 });
            reading.utilization_percent = used;
            reading.performance_state = state;
        })
    };
    for (used, state, is_fault) in [
        (Some(0), Some(8), false),
        (Some(0), None, false),
        (None, None, false),
        (None, Some(2), false),
        (Some(1), Some(8), true),
        (Some(0), Some(0), true),
    ] {
        let mut bench = Bench::new();
        bench.polls(60, &slow(used, state));
        assert_eq!(!bench.open().is_empty(), is_fault, "{used:?} {state:?}");
    }
    let mut bench = Bench::new();
    bench.polls(60, &slow(Some(0), Some(8)));
    bench.polls(9, &slow(Some(90), Some(0)));
    assert_eq!(bench.open(), [], "it was read while the GPU was idle");
}

#[test]
fn memory_counts_before_the_engine_has_some_of_it() {
    let short = |own, foreign| {
        changed(|reading| {
            reading.memory = Some(Memory {
                total_bytes: 100,
                free_bytes: 10,
            });
            reading.processes = Some(Processes { own, foreign });
        })
    };
    let small = Some(Foreign::default());
    for (is_engine_starting, needed, own, is_fault) in [
        (true, Some(0.9), 0, true),
        (true, Some(0.05), 0, false),
        (true, Some(0.1), 0, false),
        (true, Some(0.9), 1, false),
        (false, Some(0.9), 0, false),
        (true, None, 0, false),
    ] {
        let mut bench = Bench::new();
        bench.context.is_engine_starting = is_engine_starting;
        bench.context.memory_needed = needed;
        bench.polls(20, &short(own, small));
        assert_eq!(!bench.open().is_empty(), is_fault, "{needed:?} {own}");
    }
}

#[test]
fn an_engine_is_stuck_only_while_it_has_requests_and_makes_no_token() {
    let full = changed(|reading| reading.utilization_percent = Some(100));
    let mut bench = Bench::new();
    for tokens in 0..200 {
        let progress = |running, generated_tokens| Progress {
            running,
            generated_tokens,
        };
        bench.context.progress = Some(progress(4, tokens / 50));
        bench.poll(&full);
        assert_eq!(bench.open(), [], "a token each 50 s");
    }
    bench.context.progress = Some(Progress::default());
    bench.polls(100, &full);
    assert_eq!(bench.open(), [], "it has no requests");
    bench.context.progress = None;
    bench.polls(100, &full);
    assert_eq!(bench.open(), [], "it does not say what it does");
}

#[test]
fn a_link_that_never_was_active_may_stay_so() {
    let off = changed(|reading| reading.links[17].is_active = false);
    let mut bench = Bench::new();
    bench.context.gpus_of_worker = 8;
    bench.polls(5, &off);
    assert_eq!(bench.open(), []);
    bench.poll(&healthy());
    bench.poll(&off);
    assert_eq!(bench.verdict(), Verdict::Draining);
}

#[test]
fn a_process_with_little_memory_is_let_be() {
    let foreign = Some(Foreign {
        pid: 42,
        memory_bytes: 512 << 20,
    });
    let shared = changed(|reading| reading.processes = Some(Processes { own: 1, foreign }));
    let mut bench = Bench::new();
    bench.polls(5, &shared);
    assert_eq!(bench.open(), []);
}

#[test]
fn both_halves_of_slowdown_by_software_are_told_apart() {
    let both = changed(|reading| reading.throttle_reasons = Some(0x24));
    let mut bench = Bench::new();
    bench.polls(31, &both);
    let capped = (Signal::SwSlowdown, 0x4, Severity::Info);
    assert_eq!(bench.open(), [capped, (Signal::SwSlowdown, 0x20, Degraded)]);
}

#[test]
fn what_just_holds_the_limits_is_no_fault() {
    let retired = |corrected, uncorrected| {
        changed(|reading| {
            reading.retired_pages = Some(RetiredPages {
                corrected,
                uncorrected,
                is_pending: false,
            });
        })
    };
    let cool = changed(|reading| reading.temperature_celsius = Some(83));
    let margin = changed(|reading| {
        reading.slowdown_celsius = None;
        reading.margin_celsius = Some(4);
    });
    for reading in [retired(48, 15), retired(63, 0), cool, margin] {
        let mut bench = Bench::new();
        bench.polls(100, &reading);
        assert_eq!(bench.open(), []);
    }
}

#[test]
fn no_more_is_remembered_than_a_gpu_has() {
    let link = |number| Link {
        number,
        is_active: true,
        ..Link::default()
    };
    let many = changed(|reading| reading.links = (0..1000).map(link).collect());
    let off = changed(|reading| {
        reading.links = (0..1000).map(link).collect();
        reading.links[63].is_active = false;
        reading.links[64].is_active = false;
    });
    let mut bench = Bench::new();
    bench.poll(&many);
    bench.poll(&off);
    let found = (Signal::NvlinkInactive, 63, Severity::Info);
    assert_eq!(bench.open(), [found], "the 65th is one too many");
    (0..1000).for_each(|_| bench.xid(13));
    assert_eq!(bench.judge.past.application_xids.len(), 64);
    assert_eq!(bench.judge.past.links.len(), 64);
}
