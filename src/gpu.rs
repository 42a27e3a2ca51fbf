//! The GPUs of this host.

mod nvml;
pub mod owner;
mod pulse;
pub mod snapshot;
pub mod watch;

use std::path::Path;

use crate::config::driver::DriverVersion;

/// Names the GPUs that programs may use, for CUDA and so for engines.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Most GPUs that a message names one by one.
const NAMED_MAX: usize = 16;

/// The GPUs that engines may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// Never empty; each by its UUID (`GPU-…`), or a part of one as `CUDA_VISIBLE_DEVICES` names it
    /// (`MIG-…`).
    Some(Vec<String>),
    /// No GPU can be used, and why.
    None { reason: String },
}

/// The driver's library, loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The path by which it was found.
    pub library: String,
    /// `None` where it does not say.
    pub version: Option<String>,
}

/// Why GPUs cannot be had as they are named.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("{key} has {name}, and the driver sees {seen}")]
    Unknown {
        key: String,
        name: String,
        seen: String,
    },
    #[error("{key} has {name}, which does not answer the driver")]
    Silent { key: String, name: String },
    #[error("{key} is {least}, and the NVIDIA driver here is {found}: install that one or a later")]
    DriverTooOld {
        key: String,
        least: DriverVersion,
        found: String,
    },
    #[error("{reason}")]
    NoDriver {
        reason: String,
        /// Not installed, rather than not there yet.
        is_missing: bool,
    },
}

impl GpuError {
    /// Whether it stays until somebody changes the configuration or the host.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::DriverTooOld { .. } => true,
            Self::NoDriver { is_missing, .. } => *is_missing,
            Self::Silent { .. } => false,
        }
    }
}

impl From<nvml::NvmlFault> for GpuError {
    fn from(fault: nvml::NvmlFault) -> Self {
        Self::NoDriver {
            reason: fault.to_string(),
            is_missing: matches!(fault, nvml::NvmlFault::Missing { .. }),
        }
    }
}

/// Finds the NVIDIA driver by `library`, or else where it mostly is; `None` where [`find`] says why
/// there is none.
pub fn driver(library: Option<&Path>) -> Option<Driver> {
    let (library, version) = nvml::driver(library).ok()?;
    Some(Driver { library, version })
}

/// Finds the NVIDIA GPUs of this host; where the user's `CUDA_VISIBLE_DEVICES` is set, those it
/// names. A host without a driver has none; that is an answer, no error.
pub fn find(library: Option<&Path>) -> Gpus {
    let visible = std::env::var_os(VISIBLE);
    let visible = visible.as_ref().map(|list| list.to_string_lossy());
    judge(nvml::devices(library), visible.as_deref())
}

/// The UUIDs of the GPUs that `key` names by their numbers, in the driver's order, or by UUIDs. Those
/// of parts (`MIG-…`) stay as they are.
///
/// # Errors
/// When there is no driver, or it does not see one of them.
pub fn resolve(
    key: &str,
    names: &[String],
    library: Option<&Path>,
) -> Result<Vec<String>, GpuError> {
    let devices = nvml::devices(library)?;
    let found = names.iter().map(|name| resolved(key, name, &devices));
    found.collect()
}

/// Lets a driver pass that is at least as late as `key` says. One that does not say its version passes.
///
/// # Errors
/// When it is older, or there is none.
pub fn check_driver(
    (key, least): (&str, &DriverVersion),
    library: Option<&Path>,
) -> Result<(), GpuError> {
    let found = nvml::driver(library)?;
    let (_, Some(version)) = found else {
        return Ok(());
    };
    suits(key, least, &version)
}

fn suits(key: &str, least: &DriverVersion, found: &str) -> Result<(), GpuError> {
    let is_older = found
        .parse()
        .is_ok_and(|version: DriverVersion| !version.is_at_least(least));
    match is_older {
        true => Err(GpuError::DriverTooOld {
            key: key.to_owned(),
            least: least.clone(),
            found: found.to_owned(),
        }),
        false => Ok(()),
    }
}

/// The driver's GPUs: the UUID of each that answers.
type Devices = [Option<String>];

fn judge(found: Result<Vec<Option<String>>, nvml::NvmlFault>, visible: Option<&str>) -> Gpus {
    let gpus = match (found, visible) {
        (Err(fault), _) => Err(fault.to_string()),
        (Ok(devices), _) if devices.is_empty() => {
            Err("the NVIDIA driver is loaded but sees no GPU".to_owned())
        }
        (Ok(devices), None) => match devices.iter().flatten().cloned().collect::<Vec<_>>() {
            gpus if gpus.is_empty() => Err(format!(
                "none of the {} GPUs that the NVIDIA driver sees answers it",
                devices.len()
            )),
            gpus => Ok(gpus),
        },
        (Ok(devices), Some(list)) => match listed(list, &devices) {
            gpus if gpus.is_empty() => Err(format!("{VISIBLE} is {list:?}, which names none")),
            gpus => Ok(gpus),
        },
    };
    match gpus {
        Ok(gpus) => Gpus::Some(gpus),
        Err(reason) => Gpus::None { reason },
    }
}

/// The entries of a list of GPUs, as far as CUDA reads it: to the first number that is none of the
/// driver's. Names (`GPU-…`, `MIG-…`) pass as they are.
fn listed(list: &str, devices: &Devices) -> Vec<String> {
    let gpu = |entry: &str| match entry.parse::<i64>() {
        Ok(number) => devices.get(usize::try_from(number).ok()?)?.clone(),
        Err(_) => {
            let is_name = entry.starts_with("GPU-") || entry.starts_with("MIG-");
            is_name.then(|| entry.to_owned())
        }
    };
    list.split(',').map(str::trim).map_while(gpu).collect()
}

fn resolved(key: &str, name: &str, devices: &Devices) -> Result<String, GpuError> {
    if name.starts_with("MIG-") {
        return Ok(name.to_owned());
    }
    let uuids = || devices.iter().flatten();
    let found = match name.parse::<usize>() {
        Ok(number) => devices.get(number).map(Option::as_ref),
        // As CUDA takes it, the beginning is enough where no other begins so.
        Err(_) => {
            let like = |uuid: &&String| name.starts_with("GPU-") && uuid.starts_with(name);
            let mut all = uuids().filter(like);
            let first = all.next();
            first.filter(|_| all.next().is_none()).map(Some)
        }
    };
    match found {
        Some(Some(uuid)) => Ok(uuid.clone()),
        Some(None) => Err(GpuError::Silent {
            key: key.to_owned(),
            name: name.to_owned(),
        }),
        None => Err(GpuError::Unknown {
            key: key.to_owned(),
            name: name.to_owned(),
            seen: match name.starts_with("GPU-") {
                true => {
                    let named: Vec<_> = uuids().take(NAMED_MAX).map(String::as_str).collect();
                    format!("{}: {}", numbers(devices.len()), named.join(", "))
                }
                false => numbers(devices.len()),
            },
        }),
    }
}

/// The numbers of so many GPUs, in words.
fn numbers(count: usize) -> String {
    match count {
        0 => "no GPU".to_owned(),
        1 => "GPU 0 alone".to_owned(),
        count => format!("GPUs 0 to {}", count - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<Option<String>> {
        ["GPU-a0", "GPU-a1", "", "GPU-b3"]
            .map(|uuid| (!uuid.is_empty()).then(|| uuid.to_owned()))
            .into()
    }

    #[test]
    fn no_driver_and_no_gpu_both_have_a_reason() {
        let absent = nvml::NvmlFault::Library {
            path: "libnvidia-ml.so.1".to_owned(),
            text: "no such file".to_owned(),
        };
        for (found, visible) in [
            (Ok(Vec::new()), Some("0")),
            (Err(absent), Some("0")),
            (Ok(vec![None]), None),
        ] {
            let Gpus::None { reason } = judge(found, visible) else {
                panic!("there must be none");
            };
            assert!(reason.contains("NVIDIA"), "{reason}");
        }
    }

    #[test]
    fn the_users_own_list_wins_over_the_drivers() {
        for (visible, gpus) in [
            (None, &["GPU-a0", "GPU-a1", "GPU-b3"] as &[&str]),
            (Some("1,0"), &["GPU-a1", "GPU-a0"]),
            (
                Some(" 1 , GPU-4f,MIG-a/1/0"),
                &["GPU-a1", "GPU-4f", "MIG-a/1/0"],
            ),
            (Some("1,-1,2"), &["GPU-a1"]),
            (Some("0,4,1"), &["GPU-a0"]),
            (Some("0,2,1"), &["GPU-a0"]),
            (Some("-1"), &[]),
            (Some(""), &[]),
            (Some("NoDevFiles"), &[]),
        ] {
            let found = match judge(Ok(devices()), visible) {
                Gpus::Some(found) => found,
                Gpus::None { reason } => {
                    assert!(reason.contains(VISIBLE), "{reason}");
                    Vec::new()
                }
            };
            assert_eq!(found, gpus, "{visible:?}");
        }
    }

    #[test]
    fn configured_gpus_are_resolved_or_refused_by_name() {
        let key = "workers.gpu-0.gpus";
        for (name, uuid) in [
            ("0", "GPU-a0"),
            ("3", "GPU-b3"),
            ("GPU-a1", "GPU-a1"),
            ("GPU-b", "GPU-b3"),
            ("MIG-x", "MIG-x"),
        ] {
            assert_eq!(resolved(key, name, &devices()).unwrap(), uuid);
        }
        let four = "and the driver sees GPUs 0 to 3";
        let all = format!("{four}: GPU-a0, GPU-a1, GPU-b3");
        for (name, rest) in [
            ("7", four),
            ("-1", four),
            ("two", four),
            ("GPU-c", &all),
            ("GPU-a", &all),
        ] {
            let error = resolved(key, name, &devices()).unwrap_err().to_string();
            assert_eq!(error, format!("workers.gpu-0.gpus has {name}, {rest}"));
        }
        let silent = resolved(key, "2", &devices()).unwrap_err().to_string();
        assert!(
            silent.ends_with("has 2, which does not answer the driver"),
            "{silent}"
        );
        let alone = resolved(key, "1", &devices()[..1]).unwrap_err().to_string();
        assert!(alone.ends_with("the driver sees GPU 0 alone"), "{alone}");
    }

    #[test]
    fn a_driver_that_is_too_old_is_named_with_the_least() {
        let key = "engine.driver_min";
        let least = "580.65".parse().unwrap();
        for found in ["580.65.06", "600", "a version of another form"] {
            suits(key, &least, found).unwrap();
        }
        assert_eq!(
            suits(key, &least, "570.86.15").unwrap_err().to_string(),
            "engine.driver_min is 580.65, and the NVIDIA driver here is 570.86.15: install that one or \
             a later"
        );
    }

    #[test]
    fn finding_never_panics() {
        match find(None) {
            Gpus::Some(gpus) => assert!(!gpus.is_empty()),
            Gpus::None { reason } => assert!(!reason.is_empty()),
        }
        let absent = Path::new("/nonexistent/libnvidia-ml.so.1");
        let error = resolve("--gpus", &["0".to_owned()], Some(absent)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
