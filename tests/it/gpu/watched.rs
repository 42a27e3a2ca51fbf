//! A watch of a fake driver's GPUs, and waiting for what it tells.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use kvlens::gpu::watch::{self, Gpu, Seen, Watched, Watching};
use kvlens::health::reading::{Code, Event, Observation, Reading};
use serde_json::json;
use tokio::time::timeout;

use crate::fake_nvml::FakeNvml;

/// Longest wait for anything that is bound to come.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Longer than any test.
pub(super) const NEVER: Duration = Duration::from_secs(3_600);

/// So many healthy GPUs.
pub(super) fn healthy(gpus: usize) -> FakeNvml {
    FakeNvml::new(&json!({ "gpus": vec![json!({}); gpus] }))
}

/// How often a function was called for a GPU.
pub(super) fn calls(fake: &FakeNvml, gpu: usize, symbol: &str) -> u64 {
    fake.calls(gpu).get(symbol).copied().unwrap_or(0)
}

/// How often any function was called for a GPU.
pub(super) fn all_calls(fake: &FakeNvml, gpu: usize) -> u64 {
    fake.calls(gpu).values().sum()
}

/// Waits until it is so.
pub(super) fn within(mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < until, "it does not come about");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(super) fn uuid(gpu: usize) -> String {
    format!("GPU-6b766c65-6e73-4000-8000-0000000000{gpu:02x}")
}

pub(super) fn gpu(number: usize) -> Gpu {
    Gpu {
        index: None,
        uuid: uuid(number),
        name: None,
    }
}

/// Polls all of a GPU as often as sensible, with a deadline that a busy host keeps.
pub(super) fn often(fake: &FakeNvml) -> Watching {
    Watching {
        library: Some(fake.library()),
        poll: Duration::from_millis(20),
        slow_poll: Duration::from_millis(20),
        deadline: Duration::from_secs(10),
    }
}

/// Polls a GPU when it is opened, and then for an event alone.
pub(super) fn on_events(fake: &FakeNvml) -> Watching {
    Watching {
        poll: NEVER,
        slow_poll: NEVER,
        ..often(fake)
    }
}

pub(super) fn watch(gpus: usize, watching: &Watching) -> Watched {
    watch::start((0..gpus).map(gpu).collect(), watching).expect("threads")
}

/// Waits until each GPU has been polled.
pub(super) async fn opened(watched: &mut Watched) {
    let mut unseen: BTreeSet<usize> = (0..watched.gpus().len()).collect();
    while !unseen.is_empty() {
        let seen = timeout(LIMIT, watched.next()).await;
        let seen = seen.expect("each GPU is polled");
        if polled(&seen.observation).is_some() {
            unseen.remove(&seen.gpu);
        }
    }
}

/// What is seen next of a GPU for which `find` gives something.
pub(super) async fn until<T>(
    watched: &mut Watched,
    gpu: usize,
    mut find: impl FnMut(&Observation) -> Option<T>,
) -> (T, Duration) {
    let mut last = None;
    let found = timeout(LIMIT, async {
        loop {
            let seen: Seen = watched.next().await;
            if seen.gpu != gpu {
                continue;
            }
            if let Some(found) = find(&seen.observation) {
                return (found, seen.at);
            }
            last = Some(seen.observation);
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("GPU {gpu}: not seen; the last was {last:?}"),
    }
}

pub(super) fn polled(observation: &Observation) -> Option<Reading> {
    match observation {
        Observation::Polled(reading) => Some((**reading).clone()),
        _ => None,
    }
}

pub(super) fn event(observation: &Observation) -> Option<Event> {
    match observation {
        Observation::Event(event) => Some(*event),
        _ => None,
    }
}

pub(super) fn unreachable(observation: &Observation) -> Option<(Code, String)> {
    match observation {
        Observation::Unreachable { code, text } => Some((*code, text.clone())),
        _ => None,
    }
}

pub(super) fn hanging(observation: &Observation) -> Option<Duration> {
    match observation {
        Observation::Hanging(lasts) => Some(*lasts),
        _ => None,
    }
}
