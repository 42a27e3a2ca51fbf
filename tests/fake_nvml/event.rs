//! Event sets: who is registered in one, and what waits in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::gpu::Gpu;
use crate::library::{Answer, is_up, locked};

/// A client that never waits must not grow the host without end.
pub(crate) const EVENTS_MAX: usize = 1024;

const WAIT: &str = "nvmlEventSetWait_v2";

/// An event as the driver tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) kind: u64,
    pub(crate) value: u64,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
}

#[derive(Debug, Default)]
pub(crate) struct EventSet {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    registered: BTreeMap<usize, Registration>,
    queue: VecDeque<(Arc<Gpu>, Event)>,
    is_free: bool,
}

/// A GPU whose events of the kinds in `mask` are wanted, by a handle given after so many resets.
#[derive(Debug)]
struct Registration {
    gpu: Arc<Gpu>,
    resets: u32,
    mask: u64,
}

impl EventSet {
    /// Adds `mask` to what is wanted of the GPU.
    pub(crate) fn register(&self, gpu: &Arc<Gpu>, resets: u32, mask: u64) {
        let mut inner = locked(&self.inner);
        let before = inner.registered.get(&gpu.index);
        let before = before.filter(|before| before.resets == resets);
        let registration = Registration {
            gpu: Arc::clone(gpu),
            resets,
            mask: mask | before.map_or(0, |before| before.mask),
        };
        inner.registered.insert(gpu.index, registration);
    }

    /// Whether the set wants an event of the GPU.
    pub(crate) fn wants(&self, gpu: &Gpu, kind: u64) -> bool {
        let inner = locked(&self.inner);
        let registration = inner.registered.get(&gpu.index);
        registration.is_some_and(|registration| {
            registration.mask & kind != 0 && registration.resets == gpu.resets()
        })
    }

    /// Queues an event that is wanted; whether there was room.
    pub(crate) fn push(&self, gpu: &Arc<Gpu>, event: Event) -> bool {
        let mut inner = locked(&self.inner);
        if inner.queue.len() >= EVENTS_MAX {
            return false;
        }
        inner.queue.push_back((Arc::clone(gpu), event));
        self.changed.notify_one();
        true
    }

    /// Has those that wait look again at the GPUs.
    pub(crate) fn wake(&self) {
        let _inner = locked(&self.inner);
        self.changed.notify_all();
    }

    pub(crate) fn free(&self) {
        locked(&self.inner).is_free = true;
        self.changed.notify_all();
    }

    /// The next event, once there is one: those that are queued first, then the error of a registered GPU,
    /// as of one that is lost. Hangs while one of the GPUs does, and holds no lock then.
    pub(crate) fn wait(&self, most: Duration) -> Answer<nvmlEventData_t> {
        let until = Instant::now() + most;
        let mut hung = BTreeMap::new();
        for registration in locked(&self.inner).registered.values() {
            registration.gpu.count(WAIT);
        }
        loop {
            self.hang(&mut hung);
            is_up()?;
            let mut inner = locked(&self.inner);
            if let Some((gpu, event)) = inner.queue.pop_front() {
                return Ok(told(&gpu, event));
            }
            if inner.is_free {
                return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
            }
            for registration in inner.registered.values() {
                registration.gpu.fault(WAIT, registration.resets)?;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(nvmlReturn_enum_NVML_ERROR_TIMEOUT);
            }
            drop(
                self.changed
                    .wait_timeout(inner, left)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    fn hang(&self, hung: &mut BTreeMap<usize, u64>) {
        let registered = {
            let inner = locked(&self.inner);
            let gpus = inner.registered.values();
            gpus.map(|registration| Arc::clone(&registration.gpu))
                .collect::<Vec<_>>()
        };
        for gpu in registered {
            let over = hung.get(&gpu.index).copied();
            hung.insert(gpu.index, gpu.hang(over));
        }
    }
}

fn told(gpu: &Gpu, event: Event) -> nvmlEventData_t {
    nvmlEventData_t {
        device: gpu.handle(),
        eventType: event.kind,
        eventData: event.value,
        gpuInstanceId: event.gpu_instance,
        computeInstanceId: event.compute_instance,
    }
}
