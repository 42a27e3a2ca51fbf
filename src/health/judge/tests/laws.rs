//! What holds whatever is observed, in whatever order.

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::health::incident::{GpuState, Incident};
use crate::health::judge::Progress;

/// What is done to a judge.
#[derive(Clone, Debug)]
enum Step {
    Take(Observation),
    Canary(bool),
    Context(Context),
    Pass(u64),
}

fn reading() -> impl Strategy<Value = Reading> {
    let number = || prop_oneof![0_u64..4, any::<u64>()];
    let counters = prop::collection::vec(prop::option::of(number()), 8);
    let heats = prop::collection::vec(prop::option::of(any::<i32>()), 3);
    let flags = prop::collection::vec(prop::option::of(any::<bool>()), 6);
    let failure = (0..3_u8, 0_u32..40).prop_map(|(call, code)| Failure {
        call: [Call::Other, Call::PowerUsage, Call::ValidateInforom][usize::from(call)],
        code: Code(if code == 39 { 999 } else { code }),
    });
    let failures = prop::collection::vec(failure, 0..4);
    let links = prop::collection::vec((any::<u32>(), any::<bool>(), number()), 0..4);
    (counters, heats, flags, failures, links).prop_map(|(counts, heats, flags, failures, links)| {
        let small = |at: usize| counts[at].and_then(|count| u32::try_from(count).ok());
        let link = |(number, is_active, count)| Link {
            number,
            is_active,
            replays: count,
            recoveries: count,
            crc_errors: count,
        };
        Reading {
            failures,
            recovery_action: counts[0],
            throttle_reasons: counts[1],
            temperature_celsius: heats[0],
            slowdown_celsius: heats[1],
            margin_celsius: heats[2],
            utilization_percent: small(2),
            performance_state: small(3),
            memory: counts[4].map(|count| Memory {
                total_bytes: count,
                free_bytes: count / 2,
            }),
            ecc_corrected: counts[5],
            ecc_uncorrected: counts[6],
            ecc_uncorrected_lifetime: counts[7],
            pcie_replays: counts[5],
            pcie_fatal_errors: counts[6],
            pcie_nonfatal_errors: counts[7],
            sram_threshold_exceeded: flags[0],
            remap_pending: flags[1],
            remap_failed: flags[2],
            is_persistent: flags[3],
            is_confidential_ready: flags[4],
            exhausted_banks: small(0),
            retired_pages: small(5).map(|count| RetiredPages {
                corrected: count,
                uncorrected: count,
                is_pending: count == 1,
            }),
            fabric: small(6).map(|count| Fabric {
                state: count,
                status: count / 2,
                health: count,
            }),
            compute_mode: small(7),
            processes: flags[5].map(|_| Processes::default()),
            links: links.into_iter().map(link).collect(),
            ..Reading::default()
        }
    })
}

fn observation() -> impl Strategy<Value = Observation> {
    let kinds = prop_oneof![
        4 => Just(Event::XID),
        1 => Just(Event::GPU_UNAVAILABLE),
        1 => Just(Event::RECOVERY_ACTION),
        1 => any::<u64>(),
    ];
    let event = (kinds, prop_oneof![4 => 0_u64..180, 1 => any::<u64>()]);
    let event = event.prop_map(|(kind, value)| Observation::Event(Event { kind, value }));
    let unreachable = prop_oneof![0_u32..40, Just(999)].prop_map(|code| Observation::Unreachable {
        code: Code(code),
        text: "no way".to_owned(),
    });
    prop_oneof![
        4 => reading().prop_map(|reading| Observation::Polled(Box::new(reading))),
        3 => Just(Observation::Polled(Box::new(healthy()))),
        4 => event,
        1 => unreachable,
        1 => (0_u64..20).prop_map(|secs| Observation::Hanging(Duration::from_secs(secs))),
    ]
}

fn context() -> impl Strategy<Value = Context> {
    let numbers = (0_usize..9, prop::option::of(0.0..1.0), any::<Option<u64>>());
    let progress = prop::option::of((0_u64..3, 0_u64..3));
    (any::<[bool; 3]>(), numbers, progress).prop_map(|(flags, numbers, progress)| Context {
        has_engine: flags[0],
        is_engine_starting: flags[1],
        expects_mig: flags[2],
        gpus_of_worker: numbers.0,
        memory_needed: numbers.1,
        lifetime_before: numbers.2,
        progress: progress.map(|(running, generated_tokens)| Progress {
            running,
            generated_tokens,
        }),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => observation().prop_map(Step::Take),
        2 => any::<bool>().prop_map(Step::Canary),
        1 => context().prop_map(Step::Context),
        4 => prop_oneof![Just(1), 0_u64..5000].prop_map(Step::Pass),
    ]
}

/// What holds of every judge at every time.
fn check(bench: &Bench) {
    let judgement = bench.judge.state();
    let incidents = &judgement.incidents;
    assert!(incidents.len() <= 256);
    let start = match bench.judge.is_read {
        true => Verdict::Healthy,
        false => Verdict::Unknown,
    };
    let verdicts = incidents.iter().map(Incident::verdict);
    assert_eq!(judgement.verdict, verdicts.fold(start, Verdict::worse));
    let keys: Vec<_> = incidents.iter().map(|i| (i.signal, i.code)).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "one of each: {keys:?}");
    for incident in incidents {
        let row = incident.signal.row();
        assert!(row.severities.contains(&incident.severity), "{incident:?}");
        assert!(!incident.text.is_empty() && !incident.action.is_empty());
    }
}

/// What one observation can show, each apart from the others.
fn simultaneous() -> Vec<Observation> {
    let polled = |change: fn(&mut Reading)| Observation::Polled(Box::new(changed(change)));
    let xid = |value| {
        Observation::Event(Event {
            kind: Event::XID,
            value,
        })
    };
    let xids = [13, 31, 43, 45, 48, 63, 74, 79, 92, 94, 119, 151, 999];
    let mut all = xids.map(xid).to_vec();
    all.push(Observation::Event(Event {
        kind: Event::RECOVERY_ACTION,
        value: 1,
    }));
    all.push(Observation::Hanging(Duration::from_secs(1)));
    // One poll alone has a field, as a field that is read well again would be a sign of recovery.
    all.push(polled(|reading| {
        reading.ecc_uncorrected = Some(3);
        reading.remap_failed = Some(true);
        reading.recovery_action = None;
    }));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_judge_stands_whatever_comes(steps in prop::collection::vec(step(), 0..200)) {
        let mut bench = Bench::new();
        for step in steps {
            match step {
                Step::Take(observation) => bench.take(&observation),
                Step::Canary(passed) => bench.judge.canary(passed, bench.now),
                Step::Context(context) => bench.context = context,
                Step::Pass(secs) => bench.pass(secs),
            }
            check(&bench);
        }
        bench.context = Context { has_engine: true, ..Context::default() };
        // The first poll may still tell of growth, which rates forget after an hour.
        bench.poll(&healthy());
        bench.pass(3600);
        bench.polls(3, &healthy());
        for _ in 0..3 {
            bench.judge.canary(true, bench.now);
            bench.polls(3, &healthy());
        }
        bench.pass(600);
        bench.poll(&healthy());
        prop_assert_eq!(bench.open(), [], "nothing stays for ever");
        prop_assert_eq!(bench.verdict(), Verdict::Healthy);
    }

    #[test]
    fn what_comes_together_may_come_in_any_order(
        (some, shuffled) in subsequence(simultaneous(), 0..16)
            .prop_flat_map(|some| (Just(some.clone()), Just(some).prop_shuffle())),
        gpus_of_worker in 1_usize..3,
    ) {
        let states = [some, shuffled].map(|observations| {
            let mut bench = Bench::new();
            bench.context.gpus_of_worker = gpus_of_worker;
            bench.poll(&healthy());
            for observation in &observations {
                bench.take(observation);
            }
            (bench.judge.state(), bench.wants_canary())
        });
        prop_assert_eq!(&states[0], &states[1]);
    }
}

#[test]
fn more_incidents_than_there_is_room_for_leave_the_worst() {
    let mut bench = Bench::new();
    bench.xid(79);
    for xid in 1000..2000 {
        bench.event(Event::RECOVERY_ACTION, xid);
    }
    bench.xid(48);
    let open = bench.open();
    assert_eq!(open.len(), 256);
    for xid in [48, 79] {
        assert!(open.contains(&(Signal::Xid, xid, Severity::Fatal)), "{xid}");
    }
    for xid in 10_000..11_000 {
        bench.xid(xid);
    }
    bench.event(Event::RECOVERY_ACTION, 1);
    bench.xid(13);
    let open = bench.open();
    assert_eq!(open.len(), 256);
    assert!(
        open.iter()
            .all(|(.., severity)| *severity == Severity::Fatal)
    );
}

#[test]
fn a_state_is_read_from_what_was_written_of_it() {
    let mut bench = Bench::new();
    bench.xid(79);
    let judgement = bench.judge.state();
    let state = GpuState {
        index: Some(3),
        uuid: "GPU-1".to_owned(),
        name: None,
        verdict: judgement.verdict,
        incidents: judgement.incidents,
    };
    let json = serde_json::to_value(&state).unwrap();
    let expected = serde_json::json!({
        "index": 3,
        "uuid": "GPU-1",
        "name": null,
        "verdict": "failed",
        "incidents": [{
            "signal": "xid",
            "code": 79,
            "severity": "fatal",
            "text": "XID 79: GPU has fallen off the bus",
            "action": "reboot the host, as a reset cannot help; have the GPU replaced if it comes again",
            "since_millis": 0
        }]
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<GpuState>(json).unwrap(), state);
}
