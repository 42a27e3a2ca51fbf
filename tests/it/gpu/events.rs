//! What the driver tells by itself.

use std::time::{Duration, Instant};

use kvlens::health::reading::{Code, Event};
use serde_json::json;

use crate::gpu::watched::{
    NEVER, all_calls, calls, event, healthy, often, on_events, opened, polled, unreachable, until,
    watch, within,
};

#[tokio::test]
async fn an_event_comes_at_once_as_its_number_and_a_poll_after_it() {
    let fake = healthy(2);
    let mut watched = watch(2, &on_events(&fake));
    opened(&mut watched).await;
    let xid = Event::XID;
    for (kind, value) in [
        (xid, 79),
        // Ones that the wrapper does not name.
        (xid, 163),
        (xid, 4_000_000_000),
        (Event::MIG_CONFIG_CHANGE, 1),
        (Event::GPU_UNAVAILABLE, 2),
        (Event::RECOVERY_ACTION, 3),
    ] {
        fake.set(1, &json!({ "temperature": value % 100 }));
        let began = Instant::now();
        fake.tell(&json!({ "gpu": 1, "event": [kind, value] }));
        let (told, _) = until(&mut watched, 1, event).await;
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(told, Event { kind, value });
        let (reading, _) = until(&mut watched, 1, polled).await;
        assert_eq!(reading.temperature_celsius, Some((value % 100) as i32));
    }
}

#[tokio::test]
async fn after_a_change_of_instances_all_is_read_anew() {
    let fake = healthy(1);
    let mut watched = watch(1, &on_events(&fake));
    opened(&mut watched).await;
    fake.set(0, &json!({ "mig_pending": 1 }));
    fake.tell(&json!({ "gpu": 0, "event": [Event::MIG_CONFIG_CHANGE, 0] }));
    let (reading, _) = until(&mut watched, 0, polled).await;
    assert!(reading.mig.is_some_and(|mig| mig.will_be_enabled));
}

#[tokio::test]
async fn a_lost_gpu_is_told_and_not_asked_without_rest() {
    let fake = healthy(2);
    let mut watched = watch(2, &on_events(&fake));
    opened(&mut watched).await;
    fake.tell(&json!({ "gpu": 0, "xid": 79, "set": { "error": 15 } }));
    let (told, _) = until(&mut watched, 0, event).await;
    assert_eq!(told.value, 79);
    let ((code, text), at) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::GPU_IS_LOST);
    assert!(text.contains("bus"), "{text}");

    let calls = all_calls(&fake, 0);
    let ((code, _), first) = until(&mut watched, 0, unreachable).await;
    let (_, second) = until(&mut watched, 0, unreachable).await;
    assert_eq!(code, Code::GPU_IS_LOST);
    assert!(first - at >= Duration::from_secs(1), "{:?}", first - at);
    assert!(
        second - first >= Duration::from_secs(2),
        "{:?}",
        second - first
    );
    let more = all_calls(&fake, 0) - calls;
    assert!(more <= 8, "{more} calls for two tries");

    fake.tell(&json!({ "gpu": 0, "unset": ["error"] }));
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn polls_that_nobody_takes_are_dropped_and_events_are_not() {
    let fake = healthy(1);
    let watching = often(&fake);
    let mut watched = watch(1, &watching);
    within(|| watched.dropped_polls(0) > 0);
    // More than the channel has room for.
    for xid in 1000..1100 {
        fake.xid(0, xid);
    }
    for xid in 1000..1100 {
        let (told, _) = until(&mut watched, 0, event).await;
        assert_eq!(told.value, xid);
    }
    until(&mut watched, 0, polled).await;
}

#[tokio::test]
async fn events_in_a_row_do_not_keep_polls_away() {
    let fake = healthy(1);
    let mut watching = on_events(&fake);
    watching.slow_poll = NEVER;
    let mut watched = watch(1, &watching);
    until(&mut watched, 0, polled).await;
    let before = calls(&fake, 0, "nvmlDeviceGetTemperature");
    for xid in 0..200 {
        fake.xid(0, xid);
    }
    let mut told = 0;
    while told < 200 {
        until(&mut watched, 0, event).await;
        told += 1;
    }
    until(&mut watched, 0, polled).await;
    let polls = calls(&fake, 0, "nvmlDeviceGetTemperature") - before;
    assert!((1..=200).contains(&polls), "{polls} polls");
}
