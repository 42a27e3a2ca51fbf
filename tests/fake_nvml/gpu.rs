//! One GPU: its settings, what hangs in it, and which handles are its.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::*;

use crate::library::{Answer, locked};
use crate::settings;

/// A GPU of the host.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) index: usize,
    settings: Mutex<settings::Gpu>,
    /// How often it has been reset: handles from before are dead.
    resets: AtomicU32,
    hang: Mutex<Hang>,
    hang_changed: Condvar,
    calls: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Default)]
struct Hang {
    of: Option<Of>,
    /// Which hang it is, so that a wait that slept through it does not do so again.
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Duration(Duration),
    Forever,
}

impl Gpu {
    pub(crate) fn new(index: usize, settings: settings::Gpu) -> Self {
        let gpu = Self {
            index,
            settings: Mutex::new(settings.clone()),
            resets: AtomicU32::new(0),
            hang: Mutex::new(Hang::default()),
            hang_changed: Condvar::new(),
            calls: Mutex::new(BTreeMap::new()),
        };
        gpu.set(settings);
        gpu
    }

    /// What `read` makes of the settings, which no one changes meanwhile.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&settings::Gpu) -> T) -> T {
        read(&locked(&self.settings))
    }

    pub(crate) fn set(&self, settings: settings::Gpu) {
        let of = match (settings.hang, settings.hang_ms) {
            (Some(_), _) => Some(Of::Forever),
            (None, Some(millis)) if millis > 0 => Some(Of::Duration(Duration::from_millis(millis))),
            _ => None,
        };
        *locked(&self.settings) = settings;
        let mut hang = locked(&self.hang);
        if hang.of != of {
            hang.of = of;
            hang.number += 1;
            self.hang_changed.notify_all();
        }
    }

    /// Lets all go that hang in it, and nothing hang until it is set again.
    pub(crate) fn release(&self) {
        locked(&self.hang).of = None;
        self.hang_changed.notify_all();
    }

    /// Hangs as the GPU does, holding no lock; which hang that was. One that is `over` is not waited for
    /// again.
    pub(crate) fn hang(&self, over: Option<u64>) -> u64 {
        let mut hang = locked(&self.hang);
        let number = hang.number;
        if over == Some(number) {
            return number;
        }
        let began = Instant::now();
        while let Some(of) = hang.of.filter(|_| hang.number == number) {
            let left = match of {
                Of::Forever => None,
                Of::Duration(whole) => Some(whole.saturating_sub(began.elapsed())),
            };
            hang = match left {
                Some(Duration::ZERO) => break,
                // Long enough for ever, and short of what clocks overflow at.
                left => {
                    let most = left.unwrap_or(Duration::from_secs(3600));
                    let waited = self.hang_changed.wait_timeout(hang, most);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        }
        number
    }

    /// What keeps `symbol` from a value, asked by a handle that was given after so many resets.
    pub(crate) fn fault(&self, symbol: &str, resets: u32) -> Answer {
        let (error, own, is_missing) = self.with(|gpu| {
            let own = gpu.errors.as_ref().and_then(|errors| errors.get(symbol));
            (gpu.error, own.copied(), gpu.missing.unwrap_or(0) != 0)
        });
        let is_stale = is_missing || resets != self.resets();
        let lost = is_stale.then_some(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
        let codes = [error, lost, own].into_iter().flatten();
        let mut codes = codes.filter(|code| *code != nvmlReturn_enum_NVML_SUCCESS);
        codes.next().map_or(Ok(()), Err)
    }

    pub(crate) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn resets(&self) -> u32 {
        self.resets.load(Ordering::SeqCst)
    }

    /// What a client holds of the GPU. It is no address: nothing is ever read through it.
    pub(crate) fn handle(&self) -> nvmlDevice_t {
        let resets = usize::try_from(self.resets()).unwrap_or(0);
        ptr::without_provenance_mut((resets << 16 | (self.index + 1)) << 4)
    }

    /// Which GPU a handle is of, and after how many resets it was given.
    pub(crate) fn named_by(handle: nvmlDevice_t) -> Option<(usize, u32)> {
        let number = handle.addr();
        let index = (number >> 4 & 0xffff).checked_sub(1)?;
        let resets = u32::try_from(number >> 20).ok()?;
        (number & 0xf == 0).then_some((index, resets))
    }

    pub(crate) fn count(&self, symbol: &'static str) {
        *locked(&self.calls).entry(symbol).or_default() += 1;
    }

    pub(crate) fn calls(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.calls).clone()
    }
}
