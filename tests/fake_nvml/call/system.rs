//! Symbols of the library and of its host.

use std::ffi::{CStr, c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::*;

use crate::call::{allowed, out, out_text, symbols};
use crate::library::{self, Answer};
use crate::settings::System;

symbols! {
    nvmlInit_v2() { library::init() }
    nvmlInitWithFlags(_flags: c_uint) { library::init() }
    nvmlShutdown() { library::shut_down() }
    nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        text("nvmlSystemGetDriverVersion", |system| &system.driver_version, version, length)
    }
    nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        text("nvmlSystemGetNVMLVersion", |system| &system.nvml_version, version, length)
    }
    nvmlSystemGetCudaDriverVersion(version: *mut c_int) {
        allowed("nvmlSystemGetCudaDriverVersion")?;
        out(version, library::system(|system| system.cuda_version)?)
    }
    nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        allowed("nvmlSystemGetCudaDriverVersion_v2")?;
        out(version, library::system(|system| system.cuda_version)?)
    }
    nvmlSystemGetConfComputeState(state: *mut nvmlConfComputeSystemState_t) {
        allowed("nvmlSystemGetConfComputeState")?;
        let it = library::system(|system| {
            system.confidential_feature.map(|feature| nvmlConfComputeSystemState_t {
                environment: system.confidential_environment,
                ccFeature: feature,
                devToolsMode: system.confidential_dev_tools,
            })
        })?;
        out(state, it)
    }
    nvmlSystemGetConfComputeGpusReadyState(is_ready: *mut c_uint) {
        allowed("nvmlSystemGetConfComputeGpusReadyState")?;
        out(is_ready, library::system(|system| system.confidential_ready)?)
    }
}

fn text(
    symbol: &str,
    of: impl FnOnce(&System) -> &Option<String>,
    to: *mut c_char,
    length: c_uint,
) -> Answer {
    allowed(symbol)?;
    let text = library::system(|system| of(system).clone())?;
    out_text(to, length, text.as_deref())
}

const _: fn(&mut NvmlLib) = |library| library.nvmlErrorString = Ok(nvmlErrorString);

/// Answers always, initialised or not, and counts no calls.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: nvmlReturn_t) -> *const c_char {
    error_text(code).as_ptr()
}

fn error_text(code: nvmlReturn_t) -> &'static CStr {
    match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires restart",
        17 => c"The operating system has blocked the request.",
        18 => c"RM has detected an NVML/RM version mismatch.",
        19 => c"In Use",
        20 => c"Insufficient Memory",
        21 => c"No Data",
        22 => c"The requested vgpu operation is not available because ECC is enabled.",
        23 => c"Insufficient Resources",
        24 => c"Frequency Not Supported",
        25 => c"Argument Version Mismatch",
        26 => c"Deprecated",
        27 => c"Not Ready",
        28 => c"GPU Not Found",
        29 => c"Invalid State",
        30 => c"Reset Type Not Supported",
        _ => c"Unknown Error",
    }
}
