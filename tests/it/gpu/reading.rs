//! What polls read: all of it, nothing where there is nothing, and what fails.

use kvlens::gpu::owner::Owner;
use kvlens::health::reading::{
    Call, Code, Fabric, Failure, Foreign, Link, Memory, Mig, OfMost, Processes, Reading,
    RetiredPages,
};
use serde_json::{Map, Value, json};

use crate::fake_nvml::FakeNvml;
use crate::gpu::watched::{calls, often, polled, until, watch};

const LINKS: u32 = 18;

/// A GPU of which each field has a value of its own.
fn full() -> Map<String, Value> {
    let fields = [
        ("recovery_action", json!(7)),
        ("throttle_reasons", json!(0x24)),
        ("temperature", json!(61)),
        ("memory_temperature", json!(71)),
        ("utilization", json!(81)),
        ("power_milliwatts", json!(512_000)),
        ("performance_state", json!(2)),
        ("memory_total_bytes", json!(1_000_000)),
        ("memory_reserved_bytes", json!(100_000)),
        ("memory_used_bytes", json!(200_000)),
        ("ecc_corrected", json!(3)),
        ("ecc_uncorrected", json!(4)),
        ("remap_pending", json!(1)),
        ("remap_failed", json!(1)),
        ("pcie_replays", json!(5)),
        ("ecc_uncorrected_lifetime", json!(6)),
        ("sram_threshold_exceeded", json!(1)),
        ("remap_histogram", json!([10, 4, 3, 2, 9])),
        ("retired_pages_corrected", json!([1, 2, 3])),
        ("retired_pages_uncorrected", json!([4, 5])),
        ("retired_pages_pending", json!(1)),
        ("links_inactive", json!([3])),
        ("link_replays", json!({"1": 11})),
        ("link_recoveries", json!({"2": 12})),
        ("link_crc_errors", json!({"17": 13})),
        ("fabric_state", json!(3)),
        ("fabric_status", json!(999)),
        ("fabric_health", json!(2)),
        ("pcie_width", json!(8)),
        ("pcie_generation", json!(4)),
        ("pcie_fatal_errors", json!(14)),
        ("pcie_nonfatal_errors", json!(15)),
        ("temperature_slowdown", json!(88)),
        ("margin", json!(-3)),
        ("compute_mode", json!(3)),
        ("persistence", json!(0)),
        ("mig", json!(1)),
        ("mig_pending", json!(0)),
        (
            "processes",
            json!([{"pid": std::process::id(), "memory_bytes": 16}]),
        ),
        (
            "mps_processes",
            json!([{"pid": std::process::id(), "memory_bytes": 17}]),
        ),
    ];
    fields
        .map(|(field, value)| (field.to_owned(), value))
        .into_iter()
        .collect()
}

fn link(number: u32) -> Link {
    Link {
        number,
        is_active: number != 3,
        replays: if number == 1 { 11 } else { 0 },
        recoveries: if number == 2 { 12 } else { 0 },
        crc_errors: if number == 17 { 13 } else { 0 },
    }
}

fn full_reading() -> Reading {
    Reading {
        failures: Vec::new(),
        recovery_action: Some(7),
        throttle_reasons: Some(0x24),
        temperature_celsius: Some(61),
        memory_temperature_celsius: Some(71),
        utilization_percent: Some(81),
        power_milliwatts: Some(512_000),
        performance_state: Some(2),
        memory: Some(Memory {
            total_bytes: 1_000_000,
            free_bytes: 700_000,
        }),
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(4),
        remap_pending: Some(true),
        remap_failed: Some(true),
        pcie_replays: Some(5),
        ecc_uncorrected_lifetime: Some(6),
        sram_threshold_exceeded: Some(true),
        exhausted_banks: Some(9),
        retired_pages: Some(RetiredPages {
            corrected: 3,
            uncorrected: 2,
            is_pending: true,
        }),
        links: (0..LINKS).map(link).collect(),
        fabric: Some(Fabric {
            state: 3,
            status: 999,
            health: 2,
        }),
        pcie_width: Some(OfMost { now: 8, most: 16 }),
        pcie_generation: Some(OfMost { now: 4, most: 5 }),
        pcie_fatal_errors: Some(14),
        pcie_nonfatal_errors: Some(15),
        slowdown_celsius: Some(88),
        margin_celsius: Some(-3),
        processes: Some(Processes {
            own: 0,
            foreign: None,
        }),
        compute_mode: Some(3),
        is_persistent: Some(false),
        mig: Some(Mig {
            is_enabled: true,
            will_be_enabled: false,
        }),
        is_confidential_ready: Some(true),
    }
}

#[tokio::test]
async fn all_that_there_is_arrives() {
    let fake = FakeNvml::new(&json!({
        "gpus": [full()], "confidential_feature": 1, "confidential_ready": 1,
    }));
    let mut watched = watch(1, &often(&fake));
    let (reading, _) = until(&mut watched, 0, polled).await;
    assert_eq!(reading, full_reading());
    let gpus = watched.gpus();
    assert_eq!(gpus[0].index, Some(0));
    assert_eq!(gpus[0].name.as_deref(), Some("NVIDIA H200"));
}

#[tokio::test]
async fn each_change_is_seen() {
    let fake = FakeNvml::new(&json!({
        "gpus": [{}], "confidential_feature": 1, "confidential_ready": 0,
    }));
    let mut watched = watch(1, &often(&fake));
    let (healthy, _) = until(&mut watched, 0, polled).await;
    assert!(healthy.failures.is_empty(), "{:?}", healthy.failures);
    assert_eq!(healthy.is_confidential_ready, Some(false));
    for (field, value) in &full() {
        // Seen with others, or not a change.
        if ["memory_reserved_bytes", "fabric_state", "mig_pending"].contains(&field.as_str()) {
            continue;
        }
        let before = fake.tell(&json!({ "gpu": 0, "get": true }))["gpu"][field].clone();
        // What is absent when a GPU is opened is not asked for again.
        if before.is_null()
            || ["temperature_slowdown", "processes", "mps_processes"].contains(&field.as_str())
        {
            continue;
        }
        fake.set(0, &json!({ field: value }));
        let changed = |seen: &_| polled(seen).filter(|reading| *reading != healthy);
        let (reading, _) = until(&mut watched, 0, changed).await;
        assert_eq!(reading.failures, [], "{field}");
        fake.tell(&json!({ "restore": 0 }));
        let restored = |seen: &_| polled(seen).filter(|reading| *reading == healthy);
        until(&mut watched, 0, restored).await;
    }
}

/// A GPU of a kind that has little of what can be read.
fn bare() -> Value {
    let absent = [
        "recovery_action",
        "throttle_reasons",
        "memory_temperature",
        "utilization",
        "power_milliwatts",
        "performance_state",
        "ecc",
        "ecc_pending",
        "ecc_corrected",
        "ecc_uncorrected",
        "ecc_corrected_lifetime",
        "ecc_uncorrected_lifetime",
        "sram",
        "sram_threshold_exceeded",
        "remapped_corrected",
        "remapped_uncorrected",
        "remap_pending",
        "remap_failed",
        "remap_histogram",
        "pcie_width",
        "pcie_width_max",
        "pcie_generation",
        "pcie_generation_max",
        "pcie_replays",
        "pcie_fatal_errors",
        "pcie_nonfatal_errors",
        "links",
        "fabric_state",
        "temperature_slowdown",
        "margin",
        "compute_mode",
        "persistence",
        "mig",
        "inforom",
        "supported_events",
        "processes",
        "graphics_processes",
        "mps_processes",
    ];
    absent
        .iter()
        .map(|field| ((*field).to_owned(), Value::Null))
        .collect()
}

#[tokio::test]
async fn what_is_absent_is_none_and_asked_for_once() {
    let fake = FakeNvml::new(&json!({ "gpus": [bare()] }));
    let mut watched = watch(1, &often(&fake));
    let (reading, _) = until(&mut watched, 0, polled).await;
    let bare = Reading {
        temperature_celsius: Some(45),
        memory: reading.memory,
        ..Reading::default()
    };
    assert!(reading.memory.is_some());
    assert_eq!(reading, bare);
    let symbols = [
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlEventSetWait_v2",
    ];
    let count = |fake: &FakeNvml| symbols.map(|symbol| calls(fake, 0, symbol));
    let before = count(&fake);
    for _ in 0..5 {
        until(&mut watched, 0, polled).await;
    }
    assert_eq!(count(&fake), before);
    assert!(calls(&fake, 0, "nvmlDeviceGetMemoryInfo_v2") >= 5);
}

#[tokio::test]
async fn what_fails_is_told_with_its_code() {
    let fake = FakeNvml::new(&json!({ "gpus": [{ "inforom": 14 }] }));
    let mut watched = watch(1, &often(&fake));
    let failure = |call, code| Failure {
        call,
        code: Code(code),
    };
    let inforom = failure(Call::ValidateInforom, 14);
    let with = |failures: Vec<Failure>| {
        move |seen: &_| polled(seen).filter(|reading| reading.failures == failures)
    };
    until(&mut watched, 0, with(vec![inforom])).await;
    for (symbol, code, told) in [
        ("nvmlDeviceGetPowerUsage", 999, Some(Call::PowerUsage)),
        ("nvmlDeviceGetMemoryInfo_v2", 27, Some(Call::Other)),
        ("nvmlDeviceGetFieldValues", 17, Some(Call::Other)),
        ("nvmlDeviceGetTemperature", 11, Some(Call::Other)),
        // Of those calls alone.
        ("nvmlDeviceGetTemperature", 4, None),
        ("nvmlDeviceGetTemperature", 999, None),
    ] {
        fake.set(0, &json!({ "errors": { symbol: code } }));
        let called = calls(&fake, 0, symbol);
        let mut failures: Vec<_> = told.map(|call| failure(call, code)).into_iter().collect();
        failures.push(inforom);
        until(&mut watched, 0, with(failures)).await;
        until(&mut watched, 0, polled).await;
        assert!(calls(&fake, 0, symbol) > called, "{symbol} is asked again");
        fake.set(0, &json!({ "errors": null }));
        until(&mut watched, 0, with(vec![inforom])).await;
    }
    assert_eq!(calls(&fake, 0, "nvmlDeviceValidateInforom"), 1);
}

#[tokio::test]
async fn a_process_of_another_group_is_foreign() {
    let pid = std::process::id();
    let fake =
        FakeNvml::new(&json!({ "gpus": [{ "processes": [{ "pid": pid, "memory_bytes": 9 }] }] }));
    let mut watched = watch(1, &often(&fake));
    until(&mut watched, 0, polled).await;
    watched.belongs_to(Owner {
        cgroup: Some("/of-nobody".to_owned()),
    });
    let foreign = Foreign {
        pid,
        memory_bytes: 9,
    };
    let processes = Processes {
        own: 0,
        foreign: Some(foreign),
    };
    let sorted = |seen: &_| polled(seen).filter(|reading| reading.processes == Some(processes));
    until(&mut watched, 0, sorted).await;
}
