//! The library's one state: who has initialised it, the host's GPUs and the event sets.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use nvml_wrapper_sys::bindings::*;

use crate::call;
use crate::control::Control;
use crate::event::EventSet;
use crate::gpu::Gpu;
use crate::place;
use crate::scenario::{self, Scenario};
use crate::settings::System;

/// What a call that gives no value answers, and why.
pub(crate) type Answer<T = ()> = Result<T, nvmlReturn_t>;

/// A client that forgets to free sets must not grow the host without end.
const SETS_MAX: usize = 1024;

/// Lives as long as the process: a client that unloads the library after a failed initialisation finds
/// what it has been told since when it tries again.
static HOST: LazyLock<Mutex<Host>> = LazyLock::new(Mutex::default);

/// Held while the library is initialised or shut down, and by nothing that these wait for.
static LIFE: Mutex<()> = Mutex::new(());

static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Host {
    clients: u32,
    told: Option<Told>,
    gpus: Vec<Arc<Gpu>>,
    sets: BTreeMap<usize, Arc<EventSet>>,
    sets_made: usize,
    control: Option<Control>,
}

/// A scenario, and what is in force of the system.
#[derive(Debug)]
struct Told {
    text: String,
    scenario: Scenario,
    system: System,
}

/// What `mutex` guards. A panic elsewhere does not end a client's process.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn init() -> Answer {
    let _life = locked(&LIFE);
    let mut host = locked(&HOST);
    if host.clients == 0 {
        host.begin().map_err(|text| {
            // A client whose standard error is closed learns nothing, and goes on.
            let _ = writeln!(io::stderr(), "fake_nvml: {text}");
            nvmlReturn_enum_NVML_ERROR_UNKNOWN
        })?;
    }
    match host.told.as_ref().and_then(|told| told.system.init_return) {
        Some(code) if code != nvmlReturn_enum_NVML_SUCCESS => Err(code),
        _ => {
            host.clients += 1;
            Ok(())
        }
    }
}

pub(crate) fn shut_down() -> Answer {
    let _life = locked(&LIFE);
    let control = {
        let mut host = locked(&HOST);
        host.is_up()?;
        host.clients -= 1;
        if host.clients > 0 {
            return Ok(());
        }
        for (_, set) in std::mem::take(&mut host.sets) {
            set.free();
        }
        for gpu in &host.gpus {
            gpu.release();
        }
        host.control.take()
    };
    // What it is doing may want the host.
    if let Some(control) = control {
        control.stop();
    }
    Ok(())
}

impl Host {
    /// Reads the scenario, if it is another than before, and listens.
    fn begin(&mut self) -> Result<(), String> {
        let files = place::files();
        let text = match &files.scenario {
            Some(path) => scenario::read(path)?,
            None => "{}".to_owned(),
        };
        if self.told.as_ref().is_none_or(|told| told.text != text) {
            let scenario = Scenario::parse(&text).map_err(|error| match &files.scenario {
                Some(path) => format!("{}: {error}", path.display()),
                None => error,
            })?;
            let gpus = scenario.gpus.iter().cloned().enumerate();
            self.gpus = gpus
                .map(|(index, gpu)| Arc::new(Gpu::new(index, gpu)))
                .collect();
            self.told = Some(Told {
                text,
                system: scenario.system.clone(),
                scenario,
            });
        }
        for gpu in &self.gpus {
            // What hung when it was shut down hangs again.
            gpu.set(gpu.with(Clone::clone));
        }
        if let (None, Some(path)) = (&self.control, files.control) {
            place::keep_loaded()?;
            self.control = Some(Control::listen(path)?);
        }
        Ok(())
    }

    fn is_up(&self) -> Answer {
        match self.clients {
            0 => Err(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED),
            _ => Ok(()),
        }
    }
}

pub(crate) fn is_up() -> Answer {
    locked(&HOST).is_up()
}

/// The GPUs of the host, those that are missing too.
pub(crate) fn gpus() -> Vec<Arc<Gpu>> {
    locked(&HOST).gpus.clone()
}

pub(crate) fn gpu(index: usize) -> Result<Arc<Gpu>, String> {
    let host = locked(&HOST);
    let gpu = host.gpus.get(index).cloned();
    gpu.ok_or_else(|| format!("gpu {index}: there are {}", host.gpus.len()))
}

/// The GPU of a handle, and after how many resets it was given.
pub(crate) fn device(handle: nvmlDevice_t) -> Answer<(Arc<Gpu>, u32)> {
    let host = locked(&HOST);
    host.is_up()?;
    let (index, resets) =
        Gpu::named_by(handle).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
    match host.gpus.get(index) {
        Some(gpu) => Ok((Arc::clone(gpu), resets)),
        None => Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    }
}

pub(crate) fn system<T>(read: impl FnOnce(&System) -> T) -> Answer<T> {
    let host = locked(&HOST);
    host.is_up()?;
    match &host.told {
        Some(told) => Ok(read(&told.system)),
        None => Err(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED),
    }
}

/// Changes what is in force of the system: given that and what the scenario says.
pub(crate) fn change_system(
    change: impl FnOnce(&System, &System) -> Result<System, String>,
) -> Result<(), String> {
    let mut host = locked(&HOST);
    let told = host.told.as_mut().ok_or("not initialised")?;
    told.system = change(&told.system, &told.scenario.system)?;
    Ok(())
}

/// What the scenario says of a GPU.
pub(crate) fn scenario_of(index: usize) -> Result<crate::settings::Gpu, String> {
    let host = locked(&HOST);
    let told = host.told.as_ref().ok_or("not initialised")?;
    let gpu = told.scenario.gpus.get(index).cloned();
    gpu.ok_or_else(|| format!("gpu {index}: there are {}", host.gpus.len()))
}

pub(crate) fn add_set() -> Answer<usize> {
    let mut host = locked(&HOST);
    host.is_up()?;
    if host.sets.len() >= SETS_MAX {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES);
    }
    host.sets_made += 1;
    let number = host.sets_made;
    host.sets.insert(number, Arc::default());
    Ok(number)
}

pub(crate) fn set(number: usize) -> Answer<Arc<EventSet>> {
    let host = locked(&HOST);
    host.is_up()?;
    let set = host.sets.get(&number).cloned();
    set.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

pub(crate) fn remove_set(number: usize) -> Answer {
    let mut host = locked(&HOST);
    host.is_up()?;
    let set = host.sets.remove(&number);
    set.map(|set| set.free())
        .ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

pub(crate) fn sets() -> Vec<Arc<EventSet>> {
    locked(&HOST).sets.values().cloned().collect()
}

pub(crate) fn count(symbol: &'static str) {
    *locked(&CALLS).entry(symbol).or_default() += 1;
}

/// How often each symbol has been called, those that have not too.
pub(crate) fn calls() -> BTreeMap<&'static str, u64> {
    let mut calls: BTreeMap<_, _> = call::all_symbols().map(|symbol| (symbol, 0)).collect();
    calls.extend(locked(&CALLS).iter());
    calls
}
