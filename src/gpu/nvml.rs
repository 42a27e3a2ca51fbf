//! NVML, the library of NVIDIA's driver, loaded when asked for.

use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

/// Where the library is: by the loader's own search, then where NixOS keeps the driver.
const PATHS: [&str; 2] = [
    "libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// Why NVML did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmlFault {
    #[error("the NVIDIA driver's library {path} is not installed")]
    Missing { path: &'static str },
    #[error("the NVIDIA driver's library {path} cannot be loaded: {text}")]
    Library { path: &'static str, text: String },
    #[error("the NVIDIA driver does not answer: {0}")]
    Driver(NvmlError),
}

/// Counts the GPUs that the driver sees.
pub(crate) fn device_count() -> Result<u32, NvmlFault> {
    let (nvml, _) = load(&PATHS)?;
    nvml.device_count().map_err(NvmlFault::Driver)
}

/// Where the driver's library was found, and the driver's version where it says it.
pub(crate) fn driver() -> Result<(&'static str, Option<String>), NvmlFault> {
    let (nvml, path) = load(&PATHS)?;
    Ok((path, nvml.sys_driver_version().ok()))
}

fn load(paths: &[&'static str]) -> Result<(Nvml, &'static str), NvmlFault> {
    let mut first = None;
    for path in paths {
        match Nvml::builder().lib_path(OsStr::new(path)).init() {
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
        let fault = load(&["/nonexistent/libnvidia-ml.so.1"]).unwrap_err();
        assert!(
            fault.to_string().contains("/nonexistent/libnvidia-ml.so.1"),
            "{fault}"
        );
    }
}
