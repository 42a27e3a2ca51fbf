//! Drivers and GPUs that cannot be reached, and then can. Where a GPU is opened anew, a second one keeps the
//! fake library in use, as it listens only while it is.

use std::fs;

use kvlens::gpu::watch;
use kvlens::health::reading::Code;
use serde_json::json;

use crate::fake_nvml::FakeNvml;
use crate::gpu::watched::{
    calls, gpu, healthy, often, opened, polled, unreachable, until, uuid, watch,
};

#[tokio::test]
async fn a_driver_that_appears_later_is_found() {
    let fake = FakeNvml::new(&json!({ "gpus": [{}], "init_return": 9 }));
    let elsewhere = fake.library().with_extension("elsewhere");
    fs::rename(fake.library(), &elsewhere).expect("it can be renamed");
    let mut watched = watch(1, &often(&fake));
    let ((code, text), _) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::LIBRARY_NOT_FOUND);
    assert!(
        text.contains("libnvidia-ml.so.1 is not installed"),
        "{text}"
    );
    fs::rename(&elsewhere, fake.library()).expect("it can be renamed");
    let not_loaded =
        |seen: &_| unreachable(seen).filter(|(code, _)| *code == Code::DRIVER_NOT_LOADED);
    until(&mut watched, 0, not_loaded).await;
    fake.tell(&json!({ "set": { "init_return": 0 } }));
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn a_driver_of_another_version_than_its_library_is_said_so() {
    let fake = FakeNvml::new(&json!({ "gpus": [{}], "init_return": 18 }));
    let mut watched = watch(1, &often(&fake));
    let ((code, text), _) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::LIB_RM_VERSION_MISMATCH);
    assert!(text.contains("another version"), "{text}");
    fake.tell(&json!({ "set": { "init_return": 0 } }));
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn a_reset_gpu_is_found_again() {
    let fake = healthy(2);
    let mut watched = watch(2, &often(&fake));
    opened(&mut watched).await;
    fake.tell(&json!({ "gpu": 0, "reset": true }));
    let ((code, _), _) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::GPU_IS_LOST);
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn a_gpu_that_waits_for_its_reset_is_let_go() {
    let fake = healthy(2);
    let mut watched = watch(2, &often(&fake));
    opened(&mut watched).await;
    let errors = json!({ "nvmlDeviceGetTemperature": 16 });
    fake.set(0, &json!({ "errors": errors }));
    let waits = |seen: &_| {
        let reading = polled(seen)?;
        let mut codes = reading.failures.iter().map(|failure| failure.code);
        codes.any(|code| code == Code::RESET_REQUIRED).then_some(())
    };
    until(&mut watched, 0, waits).await;
    let opened = calls(&fake, 0, "nvmlDeviceGetHandleByUUID");
    until(&mut watched, 0, waits).await;
    assert!(calls(&fake, 0, "nvmlDeviceGetHandleByUUID") > opened);
    fake.tell(&json!({ "gpu": 0, "set": { "errors": null }, "reset": true }));
    let sound = |seen: &_| polled(seen).filter(|reading| reading.failures.is_empty());
    until(&mut watched, 0, sound).await;
}

#[tokio::test]
async fn a_gpu_that_is_not_there_is_named() {
    let fake = healthy(1);
    let mut watched = watch::start(vec![gpu(5), gpu(0)], &often(&fake)).expect("threads");
    let ((code, text), _) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::NOT_FOUND);
    assert!(text.contains(&uuid(5)), "{text}");
    until(&mut watched, 1, polled).await;
}

#[tokio::test]
async fn a_driver_that_bars_the_way_fails_with_its_code() {
    for code in [
        Code::OPERATING_SYSTEM,
        Code::NO_PERMISSION,
        Code::UNKNOWN,
        Code::NOT_READY,
    ] {
        let fake = healthy(2);
        let mut watched = watch(2, &often(&fake));
        opened(&mut watched).await;
        fake.set(0, &json!({ "error": code.0 }));
        let barred = |seen: &_| {
            let reading = polled(seen)?;
            reading
                .failures
                .iter()
                .any(|failure| failure.code == code)
                .then_some(())
        };
        until(&mut watched, 0, barred).await;
        let refused = |seen: &_| unreachable(seen).filter(|(told, _)| *told == code);
        until(&mut watched, 0, refused).await;
    }
}

#[tokio::test]
async fn a_part_of_a_gpu_is_watched_by_its_whole() {
    let fake = healthy(1);
    let mut part = gpu(0);
    part.uuid = format!("MIG-{}/1/0", uuid(0));
    let mut watched = watch::start(vec![part], &often(&fake)).expect("threads");
    until(&mut watched, 0, polled).await;
}
