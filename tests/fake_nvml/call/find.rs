//! Symbols that find GPUs.

use std::ffi::{CStr, c_char, c_uint};
use std::sync::Arc;

use nvml_wrapper_sys::bindings::*;

use crate::call::{allowed, known, out, symbols};
use crate::gpu::Gpu;
use crate::library::{self, Answer};
use crate::scenario::bus_id;

symbols! {
    nvmlDeviceGetCount_v2(count: *mut c_uint) {
        allowed("nvmlDeviceGetCount_v2")?;
        let present = c_uint::try_from(present().len());
        out(count, present.map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?)
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) {
        let symbol = "nvmlDeviceGetHandleByIndex_v2";
        allowed(symbol)?;
        let gpu = present().into_iter().nth(index as usize);
        hand_out(symbol, &gpu.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?, device)
    }
    nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) {
        let symbol = "nvmlDeviceGetHandleByUUID";
        allowed(symbol)?;
        let uuid = text(uuid)?;
        let gpu = find(|gpu| gpu.with(|gpu| gpu.uuid == uuid))?;
        hand_out(symbol, &gpu, device)
    }
    nvmlDeviceGetHandleByPciBusId_v2(bus: *const c_char, device: *mut nvmlDevice_t) {
        let symbol = "nvmlDeviceGetHandleByPciBusId_v2";
        allowed(symbol)?;
        let bus = bus_id(&text(bus)?).ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)?;
        let gpu = find(|gpu| gpu.with(|gpu| bus_id(&gpu.pci_bus_id) == Some(bus)))?;
        hand_out(symbol, &gpu, device)
    }
    nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) {
        let symbol = "nvmlDeviceGetIndex";
        let (gpu, resets) = library::device(device)?;
        gpu.count(symbol);
        gpu.hang(None);
        library::is_up()?;
        gpu.fault(symbol, resets)?;
        let at = present().iter().position(|present| present.index == gpu.index);
        let at = at.and_then(|at| c_uint::try_from(at).ok());
        out(index, at.ok_or(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST)?)
    }
}

/// Those that the host has at the moment, in the order of their indices.
fn present() -> Vec<Arc<Gpu>> {
    let is_present = |gpu: &Arc<Gpu>| gpu.with(|gpu| gpu.missing.unwrap_or(0) == 0);
    library::gpus().into_iter().filter(is_present).collect()
}

fn find(is_it: impl Fn(&Gpu) -> bool) -> Answer<Arc<Gpu>> {
    let gpu = present().into_iter().find(|gpu| is_it(gpu));
    gpu.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_FOUND)
}

/// Gives out a handle that is good until the next reset.
fn hand_out(symbol: &'static str, gpu: &Arc<Gpu>, device: *mut nvmlDevice_t) -> Answer {
    gpu.count(symbol);
    gpu.hang(None);
    library::is_up()?;
    gpu.fault(symbol, gpu.resets())?;
    out(device, gpu.handle())
}

fn text(from: *const c_char) -> Answer<String> {
    known(!from.is_null())?;
    // SAFETY: NVML's contract is that names end with a zero.
    let text = unsafe { CStr::from_ptr(from) };
    Ok(text.to_string_lossy().into_owned())
}
