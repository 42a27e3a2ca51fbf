//! GPUs, looked at once.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::gpu::nvml::Library;
use crate::gpu::nvml::session::{Session, Unreachable};
use crate::gpu::owner::Owner;
use crate::gpu::pulse::Pulse;
use crate::gpu::watch::Gpu;
use crate::health::reading::Observation;

/// The answer of one thread.
type Answer<T> = Result<T, Unreachable>;

/// A GPU, and what was seen of it.
type Look = (Gpu, Observation);

/// Looks at `gpus`, or at all that the driver sees, each from a thread of its own. What has not answered
/// by the deadline is told as hanging, and its thread left behind.
///
/// # Errors
///
/// What was seen of the driver, where it does not say which GPUs there are.
pub fn take(
    gpus: Option<Vec<Gpu>>,
    library: Option<&Path>,
    owner: &Owner,
    deadline: Duration,
) -> Result<Vec<Look>, Observation> {
    let until = Instant::now() + deadline;
    let library = library.map(Path::to_owned);
    let mut unlisted = Vec::new();
    let gpus = match gpus {
        Some(gpus) => gpus,
        None => {
            let library = library.clone();
            let listing = ask("gpus".to_owned(), move || list(library.as_deref()));
            let (listed, silent) = answer(&listing, until, deadline)?;
            unlisted = silent;
            listed
        }
    };
    let asked: Vec<(Gpu, Receiver<Answer<Look>>)> = gpus
        .into_iter()
        .map(|gpu| {
            let number = gpu.index.map_or(String::new(), |index| index.to_string());
            let (library, owner, asked) = (library.clone(), owner.clone(), gpu.clone());
            let look = move || look(asked, library.as_deref(), &owner);
            (gpu, ask(format!("gpu-{number}"), look))
        })
        .collect();
    let seen = asked.into_iter().map(|(gpu, asked)| {
        let seen = answer(&asked, until, deadline);
        seen.unwrap_or_else(|observation| (gpu, observation))
    });
    let mut seen: Vec<Look> = seen.collect();
    if !unlisted.is_empty() {
        seen.append(&mut unlisted);
        seen.sort_by_key(|(gpu, _)| gpu.index);
    }
    Ok(seen)
}

/// The GPUs that the driver sees, and those of them that do not even say who they are.
fn list(library: Option<&Path>) -> Answer<(Vec<Gpu>, Vec<Look>)> {
    let (mut listed, mut silent) = (Vec::new(), Vec::new());
    for (index, uuid) in Library::open(library)?.gpus()? {
        let mut gpu = Gpu {
            index: Some(index),
            uuid: String::new(),
            name: None,
        };
        match uuid {
            Ok(uuid) => {
                gpu.uuid = uuid;
                listed.push(gpu);
            }
            Err(fault) => silent.push((gpu, unreachable(fault.into()))),
        }
    }
    Ok((listed, silent))
}

fn look(gpu: Gpu, library: Option<&Path>, owner: &Owner) -> Answer<Look> {
    let library = Library::open(library)?;
    let pulse = Pulse::new(Instant::now());
    let mut session = Session::open(&library, &gpu.uuid, &pulse)?;
    let gpu = Gpu {
        index: session.index().or(gpu.index),
        name: session.name(),
        ..gpu
    };
    let polled = session.poll(owner, true)?;
    Ok((gpu, Observation::Polled(Box::new(polled.reading))))
}

/// Has a thread do something that may hang in the driver.
fn ask<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Receiver<Answer<T>> {
    let (sender, receiver) = sync_channel(1);
    let named = thread::Builder::new().name(name);
    // Where no thread can be started, or it panics, the sender is dropped, which the receiver sees. Where
    // nobody waits any more, its answer is of no use.
    let _ = named.spawn(move || {
        let _ = sender.send(work());
    });
    receiver
}

fn answer<T>(
    asked: &Receiver<Answer<T>>,
    until: Instant,
    deadline: Duration,
) -> Result<T, Observation> {
    let left = until.saturating_duration_since(Instant::now());
    match asked.recv_timeout(left) {
        Ok(answer) => answer.map_err(unreachable),
        Err(RecvTimeoutError::Timeout) => Err(Observation::Hanging(deadline)),
        Err(RecvTimeoutError::Disconnected) => Err(unreachable(Unreachable::own_fault())),
    }
}

fn unreachable(Unreachable { code, text }: Unreachable) -> Observation {
    Observation::Unreachable { code, text }
}
