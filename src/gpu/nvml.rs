//! NVML, the library of NVIDIA's driver, loaded when asked for.

mod ask;
mod fields;
mod links;
mod processes;
mod raw;
pub(crate) mod session;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::health::reading::Code;

/// Where the library is: by the loader's own search, then where NixOS keeps the driver.
const PATHS: [&str; 2] = [
    "libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// Longest wait for an answer as a process begins: a driver that nothing has used yet attaches each GPU,
/// which takes seconds.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why NVML did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmlFault {
    #[error("the NVIDIA driver's library {path} is not installed")]
    Missing { path: String },
    #[error("the NVIDIA driver's library {path} cannot be loaded: {text}")]
    Library { path: String, text: String },
    #[error("the NVIDIA driver does not answer: {0}")]
    Driver(NvmlError),
    #[error("the NVIDIA driver has not answered within {waited:?}")]
    Silent { waited: Duration },
}

impl NvmlFault {
    /// What NVML would have said, where it was NVML that could not be asked.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Missing { .. } | Self::Library { .. } => Code::LIBRARY_NOT_FOUND,
            Self::Driver(NvmlError::FailedToLoadSymbol(_)) => Code::FUNCTION_NOT_FOUND,
            Self::Driver(error) => Code(error.into()),
            Self::Silent { .. } => Code::TIMEOUT,
        }
    }
}

/// The library, loaded, and the driver told of it, until this is dropped.
#[derive(Debug)]
pub(crate) struct Library(Nvml);

impl Library {
    /// Loads the library, looked for anew.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, NvmlFault> {
        let (nvml, path) = load(&places(path))?;
        if nvml.lib().nvmlShutdown.is_err() {
            // The wrapper would call it when dropped, and panic.
            std::mem::forget(nvml);
            let text = "it lacks nvmlShutdown".to_owned();
            return Err(NvmlFault::Library { path, text });
        }
        Ok(Self(nvml))
    }

    /// The GPUs that the driver sees, in its order.
    pub(crate) fn gpus(&self) -> Result<Vec<Listed>, NvmlFault> {
        let count = self.0.device_count().map_err(NvmlFault::Driver)?;
        let listed = |index| {
            let device = self.0.device_by_index(index);
            let uuid = device.and_then(|device| device.uuid());
            (index, uuid.map_err(NvmlFault::Driver))
        };
        Ok((0..count).map(listed).collect())
    }
}

/// A GPU's number, and its UUID where it answers.
pub(crate) type Listed = (u32, Result<String, NvmlFault>);

/// The UUIDs of the GPUs that the driver sees, in its order; `None` for one that does not answer.
pub(crate) fn devices(library: Option<&Path>) -> Result<Vec<Option<String>>, NvmlFault> {
    let library = library.map(Path::to_owned);
    in_time(move || {
        let listed = Library::open(library.as_deref())?.gpus()?;
        Ok(listed.into_iter().map(|(_, uuid)| uuid.ok()).collect())
    })
}

/// Where the driver's library was found, and the driver's version where it says it.
pub(crate) fn driver(library: Option<&Path>) -> Result<(String, Option<String>), NvmlFault> {
    let library = library.map(Path::to_owned);
    in_time(move || {
        let (nvml, path) = load(&places(library.as_deref()))?;
        Ok((path, nvml.sys_driver_version().ok()))
    })
}

/// Asks the driver from a thread of its own, which is left behind where it hangs.
fn in_time<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, NvmlFault> + Send + 'static,
) -> Result<T, NvmlFault> {
    let (sender, answer) = sync_channel(1);
    let asking = thread::Builder::new().name("nvml".to_owned());
    // Where no thread can be started the sender is dropped, and nobody waits. Where nobody waits any more
    // the answer is of no use.
    let _ = asking.spawn(move || {
        let _ = sender.send(ask());
    });
    let waited = ANSWER_MAX;
    let answer = answer.recv_timeout(waited);
    answer.unwrap_or(Err(NvmlFault::Silent { waited }))
}

/// Where to look for the library.
fn places(library: Option<&Path>) -> Vec<&Path> {
    match library {
        Some(path) => vec![path],
        None => PATHS.iter().map(Path::new).collect(),
    }
}

fn load(paths: &[&Path]) -> Result<(Nvml, String), NvmlFault> {
    let mut first = None;
    for path in paths {
        let path = path.display().to_string();
        match Nvml::builder().lib_path(OsStr::new(&path)).init() {
            Ok(nvml) => return Ok((nvml, path)),
            Err(NvmlError::LibloadingError(error)) => {
                let text = error.to_string();
                // The loader says so for a file that is not there, and for one that lacks its own
                // libraries; the latter names another file.
                let missing = text.starts_with(&format!("{path}: cannot open shared object file"));
                first.get_or_insert(match missing {
                    true => NvmlFault::Missing { path },
                    false => NvmlFault::Library { path, text },
                });
            }
            Err(error) => return Err(NvmlFault::Driver(error)),
        }
    }
    Err(first.unwrap_or(NvmlFault::Driver(NvmlError::Uninitialized)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named() {
        let fault = load(&[Path::new("/nonexistent/libnvidia-ml.so.1")]).unwrap_err();
        assert!(
            fault.to_string().contains("/nonexistent/libnvidia-ml.so.1"),
            "{fault}"
        );
    }
}
