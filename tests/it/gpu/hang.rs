//! A driver that does not return.

use std::time::{Duration, Instant};

use kvlens::gpu::watch::{self, Gpu, Watched, Watching};
use kvlens::health::reading::{Event, Observation};
use serde_json::json;
use tokio::time::timeout;

use crate::fake_nvml::FakeNvml;
use crate::gpu::watched::{
    LIMIT, event, gpu, hanging, healthy, often, opened, polled, until, watch, within,
};

const DEADLINE: Duration = Duration::from_millis(300);

fn watching(fake: &FakeNvml) -> Watching {
    Watching {
        poll: Duration::from_millis(50),
        slow_poll: Duration::from_millis(50),
        deadline: DEADLINE,
        ..often(fake)
    }
}

/// The longest time between two polls of GPU 1, until `is_over` says of GPU 0 that it is.
async fn longest_gap(
    watched: &mut Watched,
    mut is_over: impl FnMut(&Observation) -> bool,
) -> Duration {
    let (mut last, mut longest) = (None, Duration::ZERO);
    loop {
        let seen = timeout(LIMIT, watched.next()).await.expect("something");
        match (seen.gpu, &seen.observation) {
            (0, observation) if is_over(observation) => return longest,
            (1, Observation::Polled(_)) => {
                longest = longest.max(last.map_or(Duration::ZERO, |last| seen.at - last));
                last = Some(seen.at);
            }
            (1, other) => panic!("GPU 1 is well: {other:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_call_that_hangs_is_told_of_and_nothing_else_waits() {
    let fake = healthy(2);
    let mut watched = watch(2, &watching(&fake));
    opened(&mut watched).await;
    fake.tell(&json!({ "gpu": 0, "hang_ms": 2500 }));
    let mut told: Vec<Duration> = Vec::new();
    let longest = longest_gap(&mut watched, |seen| {
        told.extend(hanging(seen));
        told.len() >= 3
    });
    let longest = longest.await;
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    for (number, lasts) in (1u32..).zip(&told) {
        assert!(*lasts >= DEADLINE * number, "{told:?}");
    }
    assert!(told[0] < Duration::from_secs(2), "{told:?}");
    fake.tell(&json!({ "gpu": 0, "unhang": true }));
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn a_call_that_never_returns_is_told_of_without_end() {
    let fake = healthy(2);
    let mut watched = watch(2, &watching(&fake));
    opened(&mut watched).await;
    fake.tell(&json!({ "gpu": 0, "hang": "forever" }));
    let long = |seen: &_| hanging(seen).filter(|lasts| *lasts >= 5 * DEADLINE);
    let longest = longest_gap(&mut watched, |seen| long(seen).is_some()).await;
    assert!(longest < Duration::from_millis(500), "{longest:?}");

    let began = Instant::now();
    fake.xid(1, 31);
    let (told, _) = until(&mut watched, 1, event).await;
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    let (kind, value) = (Event::XID, 31);
    assert_eq!(told, Event { kind, value });

    // The watch ends though its thread cannot.
    let began = Instant::now();
    drop(watched);
    assert!(began.elapsed() < Duration::from_secs(1));
    fake.tell(&json!({ "gpu": 0, "unhang": true }));
}

#[tokio::test]
async fn a_gpu_that_hangs_when_it_is_opened_is_told_of() {
    let fake = FakeNvml::new(&json!({ "gpus": [{ "hang": "forever" }] }));
    let mut watched = watch(1, &watching(&fake));
    let (lasts, _) = until(&mut watched, 0, hanging).await;
    assert!(lasts >= DEADLINE, "{lasts:?}");
    fake.tell(&json!({ "gpu": 0, "unhang": true }));
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn waiting_for_events_is_no_hanging() {
    let fake = healthy(1);
    let mut watched = watch(
        1,
        &Watching {
            poll: 5 * DEADLINE,
            ..watching(&fake)
        },
    );
    for _ in 0..3 {
        let seen = timeout(LIMIT, watched.next()).await.expect("something");
        // A deadline as short as this one may pass on a busy host while the library is loaded.
        if hanging(&seen.observation).is_some() && watched.elapsed() > 5 * DEADLINE {
            panic!("{:?}", seen.observation);
        }
    }
}

#[tokio::test]
async fn threads_end_with_their_watch() {
    let fake = healthy(1);
    let gpu = Gpu {
        index: Some(7_071),
        ..gpu(0)
    };
    let watched = watch::start(vec![gpu], &watching(&fake)).expect("threads");
    let is_there = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        let mut names = tasks.flatten().map(name);
        names.any(|name| name.is_ok_and(|name| name.trim() == "gpu-7071"))
    };
    within(is_there);
    drop(watched);
    within(|| !is_there());
}
