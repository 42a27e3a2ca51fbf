//! The thread of one GPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::gpu::nvml::Library;
use crate::gpu::nvml::session::{Session, Unreachable};
use crate::gpu::owner::Owner;
use crate::gpu::watch::stop::Stop;
use crate::gpu::watch::{Seen, Shared, WAITING_MAX, Watching};
use crate::health::reading::{Event, Observation};

/// Time until a GPU that was not reached is tried again; doubled after each try.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Longest time that loading the library may take: without nvidia-persistenced a driver attaches every GPU
/// anew, each in seconds.
const OPENING_MAX: Duration = Duration::from_secs(30);

/// Longest wait for an event, after which the watch's end is noticed.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Time between two polls at the least, however many events ask for one.
const SPACING: Duration = Duration::from_millis(50);

/// Most events that are told before a poll that is due, so that a storm of them does not keep it from
/// being made.
const EVENTS_AHEAD_MAX: u32 = 32;

/// Time that a wait for events which returned early, without one, is made up by; so that a driver that
/// always does so is not asked without rest.
const EARLY: Duration = Duration::from_millis(10);

/// The room of the channel that polls leave to events.
const EVENTS_ROOM: usize = WAITING_MAX / 2;

pub(super) struct Watcher {
    /// The GPU's place among those watched.
    pub(super) place: usize,
    pub(super) uuid: String,
    pub(super) watching: Watching,
    pub(super) origin: Instant,
    pub(super) stop: Arc<Stop>,
    pub(super) owner: Arc<Mutex<Owner>>,
    pub(super) shared: Arc<Shared>,
    pub(super) sender: Sender<Seen>,
}

impl Watcher {
    /// Watches until the watch's end.
    pub(super) fn run(self) {
        let mut retry = RETRY_FIRST;
        while !self.stop.is_set() {
            let mut was_sound = false;
            if let Err(unreachable) = caught(|| self.watch(&mut was_sound)) {
                self.tell_unreachable(unreachable);
            }
            if was_sound {
                retry = RETRY_FIRST;
            }
            if self.stop.wait(retry) {
                return;
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Watches the GPU until the watch's end, or until it must be opened anew. `was_sound` is set once a
    /// poll has nothing against it.
    fn watch(&self, was_sound: &mut bool) -> Result<(), Unreachable> {
        let library = {
            let _call = self.shared.pulse.call_for(OPENING_MAX);
            Library::open(self.watching.library.as_deref())
        };
        let library = library?;
        if let Err(unreachable) = self.watch_opened(&library, was_sound) {
            self.tell_unreachable(unreachable);
        }
        let _call = self.shared.pulse.call_for(OPENING_MAX);
        drop(library);
        Ok(())
    }

    fn watch_opened(&self, library: &Library, was_sound: &mut bool) -> Result<(), Unreachable> {
        let mut session = Session::open(library, &self.uuid, &self.shared.pulse)?;
        let (index, name) = (session.index(), session.name());
        {
            let gpu = &self.shared.gpu;
            let mut gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            gpu.index = index.or(gpu.index);
            gpu.name = name.or(gpu.name.take());
        }
        // Told before it is closed, in which a lost GPU may hang.
        if let Err(unreachable) = self.follow(&mut session, was_sound) {
            self.tell_unreachable(unreachable);
        }
        let _call = self.shared.pulse.call();
        drop(session);
        Ok(())
    }

    fn follow(&self, session: &mut Session<'_>, was_sound: &mut bool) -> Result<(), Unreachable> {
        let mut slow_due = Instant::now();
        loop {
            let began = Instant::now();
            let is_slow = began >= slow_due;
            if is_slow {
                slow_due = began + self.watching.slow_poll;
            }
            let owner = self.owner();
            let polled = session.poll(&owner, is_slow)?;
            *was_sound |= !polled.is_over;
            self.tell(Observation::Polled(Box::new(polled.reading)));
            if polled.is_over {
                return Ok(());
            }
            if self.listen(session, began)? {
                slow_due = Instant::now();
            }
            if self.stop.is_set() {
                return Ok(());
            }
        }
    }

    /// A copy, as the lock is for all threads, and a call may hang.
    fn owner(&self) -> Owner {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        owner.clone()
    }

    /// Tells what the driver tells, until the poll after that which `began` then is due. Whether the next
    /// poll has to read everything.
    fn listen(&self, session: &mut Session<'_>, began: Instant) -> Result<bool, Unreachable> {
        let mut due = began + self.watching.poll;
        let (mut told, mut is_changed) = (0, false);
        while !self.stop.is_set() {
            let now = Instant::now();
            let left = due.saturating_duration_since(now);
            if left.is_zero() && told >= EVENTS_AHEAD_MAX {
                break;
            }
            let most = left.min(WAIT_MAX);
            match session.wait(most) {
                Ok(Some(event)) => {
                    self.tell(Observation::Event(event));
                    told += 1;
                    // What it did to the GPU is seen by polling it.
                    due = due.min(began + SPACING);
                    is_changed |= event.kind == Event::MIG_CONFIG_CHANGE;
                }
                Ok(None) if left.is_zero() => break,
                Ok(None) => {
                    let early = most.saturating_sub(now.elapsed());
                    self.stop.wait(early.min(EARLY));
                }
                Err(Some(unreachable)) => return Err(unreachable),
                Err(None) => {
                    self.stop.wait(left);
                    break;
                }
            }
        }
        Ok(is_changed)
    }

    fn tell_unreachable(&self, Unreachable { code, text }: Unreachable) {
        self.tell(Observation::Unreachable { code, text });
    }

    /// Tells what was seen. A poll that finds little room is dropped, as the next one says the same; all
    /// else waits for room, which keeps it in the driver's own queue at the worst.
    fn tell(&self, observation: Observation) {
        let is_poll = matches!(observation, Observation::Polled(_));
        let seen = Seen {
            gpu: self.place,
            at: self.origin.elapsed(),
            observation,
        };
        if is_poll && self.sender.capacity() <= EVENTS_ROOM {
            self.shared.dropped_polls.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Err(TrySendError::Full(seen)) = self.sender.try_send(seen) {
            // Fails where nobody listens any more, and then the watch ends.
            let _ = self.sender.blocking_send(seen);
        }
    }
}

/// Does something that may panic, which then is told as all else that keeps a GPU from being read.
fn caught(watch: impl FnOnce() -> Result<(), Unreachable>) -> Result<(), Unreachable> {
    catch_unwind(AssertUnwindSafe(watch)).unwrap_or_else(|_| Err(Unreachable::own_fault()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::reading::Code;

    #[test]
    fn a_panic_is_told() {
        assert_eq!(caught(|| Ok(())), Ok(()));
        let unreachable = caught(|| panic!("on purpose")).unwrap_err();
        assert_eq!(unreachable.code, Code::UNKNOWN);
    }
}
