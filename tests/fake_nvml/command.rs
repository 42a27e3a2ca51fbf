//! Commands, one JSON object each, and what they do.

use std::sync::Arc;

use nvml_wrapper_sys::bindings::nvmlEventTypeXidCriticalError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::event::{EVENTS_MAX, Event};
use crate::gpu::Gpu;
use crate::library;
use crate::scenario::{map_of, patch_gpu, patch_system};
use crate::settings::Forever;

/// What NVML says where an event has no instance.
const NO_INSTANCE: u32 = u32::MAX;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Command {
    gpu: Option<usize>,
    set: Map<String, Value>,
    unset: Vec<String>,
    hang: Option<Forever>,
    hang_ms: Option<u64>,
    unhang: bool,
    xid: Option<u64>,
    event: Option<Vec<u64>>,
    reset: bool,
    restore: Option<Restored>,
    counters: bool,
    get: bool,
}

/// What goes back to what the scenario says.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Restored {
    Gpu(usize),
    All(All),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum All {
    All,
}

/// The answer to a line.
pub(crate) fn answer(line: &[u8]) -> String {
    let command = serde_json::from_slice(line).map_err(|error| error.to_string());
    match command.and_then(Command::run) {
        Ok(mut said) => {
            said.insert("ok".to_owned(), Value::Bool(true));
            Value::Object(said).to_string()
        }
        Err(error) => refused(&error),
    }
}

pub(crate) fn refused(error: &str) -> String {
    json!({ "ok": false, "error": error }).to_string()
}

impl Command {
    /// Events come first, so that one and the loss that it tells of can be had by one command.
    fn run(mut self) -> Result<Map<String, Value>, String> {
        let mut said = Map::new();
        if let Some(restored) = self.restore {
            restore(restored)?;
        }
        let patch = self.patch()?;
        match self.gpu {
            Some(index) => self.run_on(&library::gpu(index)?, patch, &mut said)?,
            None if self.xid.is_some() || self.event.is_some() || self.reset => {
                return Err("which gpu?".to_owned());
            }
            None => library::change_system(|now, _| patch_system(map_of(now)?, patch))?,
        }
        if self.counters && self.gpu.is_none() {
            said.insert("counters".to_owned(), json!(library::calls()));
        }
        match (self.get, self.gpu) {
            (true, Some(index)) => {
                said.insert("gpu".to_owned(), library::gpu(index)?.with(map_of)?.into());
            }
            (true, None) => {
                let system = library::system(map_of).map_err(|code| format!("NVML {code}"))??;
                said.insert("system".to_owned(), system.into());
            }
            (false, _) => {}
        }
        Ok(said)
    }

    /// All that changes settings, as fields and what they become.
    fn patch(&mut self) -> Result<Map<String, Value>, String> {
        let mut patch = std::mem::take(&mut self.set);
        let unset = std::mem::take(&mut self.unset);
        patch.extend(unset.into_iter().map(|name| (name, Value::Null)));
        if (self.hang.is_some() || self.hang_ms.is_some()) && self.unhang {
            return Err("hang or unhang?".to_owned());
        }
        if self.hang.is_some() || self.hang_ms.is_some() || self.unhang {
            let hang = self.hang.map(|Forever::Forever| "forever");
            patch.insert("hang".to_owned(), hang.into());
            patch.insert("hang_ms".to_owned(), self.hang_ms.into());
        }
        Ok(patch)
    }

    fn run_on(
        &self,
        gpu: &Arc<Gpu>,
        patch: Map<String, Value>,
        said: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let settings = match patch.is_empty() {
            true => None,
            false => Some(gpu.with(|now| patch_gpu(now, patch))?),
        };
        if let Some(settings) = &settings {
            let mut others = library::gpus().into_iter();
            let named = |other: &Arc<Gpu>| {
                other.index != gpu.index && other.with(|it| it.uuid == settings.uuid)
            };
            if others.any(|other| named(&other)) {
                return Err(format!("uuid: another has {}", settings.uuid));
            }
        }
        let events = self.events()?;
        if !events.is_empty() {
            said.insert("sets".to_owned(), tell(gpu, &events)?.into());
        }
        if let Some(settings) = settings {
            gpu.set(settings);
        }
        if self.reset {
            gpu.reset();
        }
        for set in library::sets() {
            set.wake();
        }
        if self.counters {
            said.insert("counters".to_owned(), json!(gpu.calls()));
        }
        Ok(())
    }

    fn events(&self) -> Result<Vec<Event>, String> {
        let xid = self.xid.map(|xid| {
            Ok(Event {
                kind: nvmlEventTypeXidCriticalError.into(),
                value: xid,
                gpu_instance: NO_INSTANCE,
                compute_instance: NO_INSTANCE,
            })
        });
        let event = self.event.as_deref().map(event);
        xid.into_iter().chain(event).collect()
    }
}

/// Of `[type, data]` or `[type, data, gpu_instance, compute_instance]`.
fn event(numbers: &[u64]) -> Result<Event, String> {
    let wrong = || "event: [type, data] or [type, data, gpu_instance, compute_instance]".to_owned();
    let (kind, value, instances) = match *numbers {
        [kind, value] => (kind, value, (NO_INSTANCE, NO_INSTANCE)),
        [kind, value, gpu, compute] => {
            let small = |number: u64| u32::try_from(number).map_err(|_| wrong());
            (kind, value, (small(gpu)?, small(compute)?))
        }
        _ => return Err(wrong()),
    };
    Ok(Event {
        kind,
        value,
        gpu_instance: instances.0,
        compute_instance: instances.1,
    })
}

/// Queues the events in each set that wants them; in how many that was.
fn tell(gpu: &Arc<Gpu>, events: &[Event]) -> Result<usize, String> {
    let mut told = 0;
    for event in events {
        let sets = library::sets();
        for set in sets.iter().filter(|set| set.wants(gpu, event.kind)) {
            if !set.push(gpu, *event) {
                return Err(format!("{EVENTS_MAX} events are queued already"));
            }
            told += 1;
        }
    }
    Ok(told)
}

fn restore(restored: Restored) -> Result<(), String> {
    let gpus = match restored {
        Restored::Gpu(index) => vec![library::gpu(index)?],
        Restored::All(All::All) => {
            library::change_system(|_, scenario| Ok(scenario.clone()))?;
            library::gpus()
        }
    };
    for gpu in gpus {
        gpu.set(library::scenario_of(gpu.index)?);
    }
    for set in library::sets() {
        set.wake();
    }
    Ok(())
}
