//! GPUs, looked at once.

use std::fs;
use std::time::{Duration, Instant};

use kvlens::gpu::owner::Owner;
use kvlens::gpu::snapshot;
use kvlens::health::reading::{Code, Observation};
use serde_json::json;

use crate::fake_nvml::FakeNvml;
use crate::gpu::watched::{gpu, polled, unreachable, uuid};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn all_gpus_are_seen_and_the_sick_ones_as_what_they_are() {
    let fake = FakeNvml::new(&json!({ "gpus": [{}, { "error": 15 }, { "hang": "forever" }, {}] }));
    let deadline = Duration::from_secs(3);
    let gpus = Some((0..4).map(gpu).collect());
    let began = Instant::now();
    let seen = snapshot::take(gpus, Some(&fake.library()), &Owner::default(), deadline);
    assert!(began.elapsed() < LONG);
    let seen = seen.expect("there is a driver");
    assert_eq!(seen.len(), 4);
    for sound in [0, 3] {
        let (gpu, observation) = &seen[sound];
        assert_eq!((gpu.index, &gpu.uuid), (Some(sound as u32), &uuid(sound)));
        assert_eq!(gpu.name.as_deref(), Some("NVIDIA H200"));
        assert!(polled(observation).is_some(), "{observation:?}");
    }
    let (code, _) = unreachable(&seen[1].1).expect("it is lost");
    assert_eq!(code, Code::GPU_IS_LOST);
    assert_eq!(seen[2].1, Observation::Hanging(deadline));
}

#[test]
fn the_driver_is_asked_which_gpus_there_are() {
    let errors = json!({ "nvmlDeviceGetUUID": 15 });
    let fake = FakeNvml::new(&json!({ "gpus": [{}, { "errors": errors }, {}] }));
    let seen = snapshot::take(None, Some(&fake.library()), &Owner::default(), LONG);
    let seen = seen.expect("there is a driver");
    let uuids = [uuid(0), String::new(), uuid(2)];
    for (index, ((gpu, observation), uuid)) in (0..).zip(seen.iter().zip(uuids)) {
        assert_eq!((gpu.index, &gpu.uuid), (Some(index), &uuid));
        assert_eq!(
            polled(observation).is_some(),
            !uuid.is_empty(),
            "{observation:?}"
        );
    }
}

#[test]
fn no_driver_is_said() {
    let fake = FakeNvml::new(&json!({}));
    fs::remove_file(fake.library()).expect("it is there");
    let seen = snapshot::take(None, Some(&fake.library()), &Owner::default(), LONG);
    let (code, _) = unreachable(&seen.expect_err("there is none")).expect("it is not there");
    assert_eq!(code, Code::LIBRARY_NOT_FOUND);
}
