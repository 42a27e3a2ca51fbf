//! Settings out of JSON, within limits, or a sentence about what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::call;
use crate::settings::{self, Gpu, System};

/// What a host of today has, eight times over.
pub(crate) const GPUS_MAX: usize = 64;
/// All fields of all GPUs take less.
const BYTES_MAX: u64 = 1 << 20;
const GPUS_DEFAULT: usize = 8;
/// Of each kind; what is longer is a mistake of the scenario.
const LIST_MAX: usize = 4096;

/// A host, as a scenario describes it.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) system: System,
    pub(crate) gpus: Vec<Gpu>,
}

/// The text of the scenario at `path`.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let length = fs::metadata(path).map_err(|error| named(&error))?.len();
    if length > BYTES_MAX {
        return Err(named(&format!("{length} bytes, of at most {BYTES_MAX}")));
    }
    fs::read_to_string(path).map_err(|error| named(&error))
}

impl Scenario {
    /// # Errors
    /// A sentence that names what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Value::Object(mut top) = value else {
            return Err("the scenario is no object".to_owned());
        };
        let gpus = match top.remove("gpus") {
            None => vec![Value::Object(Map::new()); GPUS_DEFAULT],
            Some(Value::Array(gpus)) => gpus,
            Some(_) => return Err("gpus: not a list".to_owned()),
        };
        if gpus.len() > GPUS_MAX {
            return Err(format!("gpus: {}, of at most {GPUS_MAX}", gpus.len()));
        }
        let gpus = gpus.into_iter().enumerate().map(|(index, gpu)| {
            let Value::Object(patch) = gpu else {
                return Err(format!("gpus[{index}]: no object"));
            };
            let gpu = patched(settings::h200(index), patch);
            gpu.and_then(checked)
                .map_err(|error| format!("gpus[{index}]: {error}"))
        });
        let scenario = Self {
            system: patch_system(settings::system(), top)?,
            gpus: gpus.collect::<Result<_, _>>()?,
        };
        let uuids: BTreeSet<_> = scenario.gpus.iter().map(|gpu| &gpu.uuid).collect();
        match uuids.len() == scenario.gpus.len() {
            true => Ok(scenario),
            false => Err("gpus: two have one uuid".to_owned()),
        }
    }
}

/// `gpu` with the fields of `patch`.
pub(crate) fn patch_gpu(gpu: &Gpu, patch: Map<String, Value>) -> Result<Gpu, String> {
    patched(map_of(gpu)?, patch).and_then(checked)
}

/// `system`, a map of its fields, with those of `patch`.
pub(crate) fn patch_system(
    system: Map<String, Value>,
    patch: Map<String, Value>,
) -> Result<System, String> {
    let system: System = patched(system, patch)?;
    known(system.errors.as_ref())?;
    Ok(system)
}

/// The fields of `settings` by their names.
pub(crate) fn map_of<T: Serialize>(settings: &T) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("settings are an object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Each field is read by itself first, because an error of the whole does not name it.
fn patched<T: DeserializeOwned>(
    mut whole: Map<String, Value>,
    patch: Map<String, Value>,
) -> Result<T, String> {
    for (name, value) in patch {
        let Some(before) = whole.insert(name.clone(), value) else {
            return Err(format!("no field {name}"));
        };
        drop(before);
        serde_json::from_value::<T>(Value::Object(whole.clone()))
            .map_err(|error| format!("{name}: {error}"))?;
    }
    serde_json::from_value(Value::Object(whole)).map_err(|error| error.to_string())
}

fn checked(gpu: Gpu) -> Result<Gpu, String> {
    known(gpu.errors.as_ref())?;
    if gpu.uuid.is_empty() || gpu.uuid.len() > 79 {
        return Err("uuid: of 1 to 79 bytes".to_owned());
    }
    if bus_id(&gpu.pci_bus_id).is_none() {
        return Err(format!("pci_bus_id: {} is none", gpu.pci_bus_id));
    }
    let processes = [&gpu.processes, &gpu.graphics_processes, &gpu.mps_processes];
    let pages = [&gpu.retired_pages_corrected, &gpu.retired_pages_uncorrected];
    let lengths = processes.map(|list| list.as_ref().map_or(0, Vec::len));
    let pages = pages.map(|list| list.as_ref().map_or(0, Vec::len));
    match lengths.iter().chain(&pages).max() {
        Some(most) if *most > LIST_MAX => Err(format!("a list of {most}, of at most {LIST_MAX}")),
        _ => Ok(gpu),
    }
}

/// Domain, bus and device of a PCI address.
pub(crate) fn bus_id(text: &str) -> Option<(u32, u32, u32)> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let device = rest.strip_suffix(".0")?;
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let (domain, bus, device) = (hex(domain)?, hex(bus)?, hex(device)?);
    (bus <= 0xff && device <= 0x1f).then_some((domain, bus, device))
}

fn known(errors: Option<&BTreeMap<String, u32>>) -> Result<(), String> {
    let mut symbols = errors.into_iter().flatten().map(|(symbol, _)| symbol);
    match symbols.find(|symbol| !call::all_symbols().any(|known| known == symbol.as_str())) {
        Some(symbol) => Err(format!("errors: no symbol {symbol}")),
        None => Ok(()),
    }
}
