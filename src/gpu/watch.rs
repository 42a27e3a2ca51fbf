//! Watches GPUs: one thread each, so that a driver that hangs on one leaves the others as they are.

mod lookout;
mod stop;
mod watcher;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{future, thread};

use tokio::sync::mpsc::{self, Receiver};
use tokio::time::sleep;

use crate::gpu::owner::Owner;
use crate::gpu::pulse::Pulse;
use crate::gpu::watch::lookout::Lookout;
use crate::gpu::watch::stop::Stop;
use crate::gpu::watch::watcher::Watcher;
use crate::health::reading::Observation;

/// Observations of one GPU that may wait for whoever judges them: half a minute of polls at one a second,
/// and as many events.
const WAITING_MAX: usize = 64;

/// A GPU by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number; `None` where it is not known.
    pub index: Option<u32>,
    /// `GPU-…`, or the `MIG-…` of a part of it, of which the whole is watched. Empty for a GPU that does
    /// not tell it.
    pub uuid: String,
    /// Its product name; `None` where it is not known.
    pub name: Option<String>,
}

/// How GPUs are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watching {
    /// The driver's library; `None` has it looked for.
    pub library: Option<PathBuf>,
    pub poll: Duration,
    pub slow_poll: Duration,
    /// Time that a call of the driver may take.
    pub deadline: Duration,
}

/// What was seen of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its place among those watched.
    pub gpu: usize,
    /// When, from the watch's start.
    pub at: Duration,
    pub observation: Observation,
}

/// GPUs that are watched, until this is dropped.
#[derive(Debug)]
pub struct Watched {
    origin: Instant,
    stop: Arc<Stop>,
    owner: Arc<Mutex<Owner>>,
    lookouts: Vec<Lookout>,
    receivers: Vec<Receiver<Seen>>,
    shared: Vec<Arc<Shared>>,
    /// The GPU that is heard first, so that none is heard always before others.
    turn: usize,
}

/// What a GPU's thread shows.
#[derive(Debug)]
struct Shared {
    pulse: Pulse,
    gpu: Mutex<Gpu>,
    dropped_polls: AtomicU64,
}

/// Begins to watch GPUs. The threads go on by themselves: one that hangs in the driver can be neither
/// ended nor waited for, and must not keep a process from its end.
///
/// # Errors
///
/// Where a thread cannot be started.
pub fn start(gpus: Vec<Gpu>, watching: &Watching) -> io::Result<Watched> {
    let origin = Instant::now();
    let mut watched = Watched {
        origin,
        stop: Arc::default(),
        owner: Arc::default(),
        lookouts: Vec::new(),
        receivers: Vec::new(),
        shared: Vec::new(),
        turn: 0,
    };
    for (place, gpu) in gpus.into_iter().enumerate() {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let number = gpu.index.unwrap_or(place as u32);
        let uuid = gpu.uuid.clone();
        let shared = Arc::new(Shared {
            pulse: Pulse::new(origin),
            gpu: Mutex::new(gpu),
            dropped_polls: AtomicU64::new(0),
        });
        let watcher = Watcher {
            place,
            uuid,
            watching: watching.clone(),
            origin,
            stop: Arc::clone(&watched.stop),
            owner: Arc::clone(&watched.owner),
            shared: Arc::clone(&shared),
            sender,
        };
        let named = thread::Builder::new().name(format!("gpu-{number}"));
        named.spawn(move || watcher.run())?;
        watched.lookouts.push(Lookout::new(watching.deadline));
        watched.receivers.push(receiver);
        watched.shared.push(shared);
    }
    Ok(watched)
}

impl Watched {
    /// The GPUs, with what the driver told of their names.
    pub fn gpus(&self) -> Vec<Gpu> {
        let gpu = |shared: &Arc<Shared>| {
            let gpu = shared.gpu.lock().unwrap_or_else(PoisonError::into_inner);
            gpu.clone()
        };
        self.shared.iter().map(gpu).collect()
    }

    /// Says whose processes are the engine's, from the next slow poll on.
    pub fn belongs_to(&self, owner: Owner) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    /// Polls of a GPU that nobody took in time. Events are never dropped.
    pub fn dropped_polls(&self, gpu: usize) -> u64 {
        let shared = self.shared.get(gpu);
        shared.map_or(0, |shared| shared.dropped_polls.load(Ordering::Relaxed))
    }

    /// Time from the watch's start.
    pub fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Waits for what is seen next. Loses nothing where it is dropped before it is ready.
    pub async fn next(&mut self) -> Seen {
        loop {
            let now = self.elapsed();
            if let Some(seen) = self.overdue(now) {
                return seen;
            }
            let due = self.next_due(now);
            tokio::select! {
                biased;
                seen = future::poll_fn(|context| self.poll_seen(context)) => return seen,
                () = sleep(due) => {}
            }
        }
    }

    fn poll_seen(&mut self, context: &mut Context<'_>) -> Poll<Seen> {
        let count = self.receivers.len();
        for step in 0..count {
            let place = (self.turn + step) % count;
            // A thread that is no more, as none is before the watch's end, is heard no more.
            if let Poll::Ready(Some(seen)) = self.receivers[place].poll_recv(context) {
                self.turn = (place + 1) % count;
                return Poll::Ready(seen);
            }
        }
        Poll::Pending
    }

    /// A call that has lasted for a deadline, or for one more.
    fn overdue(&mut self, now: Duration) -> Option<Seen> {
        let watches = self.lookouts.iter_mut().zip(&self.shared).enumerate();
        watches.into_iter().find_map(|(gpu, (lookout, shared))| {
            let lasts = lookout.look(shared.pulse.began(), now)?;
            Some(Seen {
                gpu,
                at: now,
                observation: Observation::Hanging(lasts),
            })
        })
    }

    /// Time until a call may be overdue that is not now.
    fn next_due(&self, now: Duration) -> Duration {
        let watches = self.lookouts.iter().zip(&self.shared);
        let due = watches.map(|(lookout, shared)| lookout.next(shared.pulse.began(), now));
        due.min().unwrap_or(Duration::MAX)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.set();
    }
}
