//! Symbols of event sets.

use std::ffi::{c_uint, c_ulonglong};
use std::ptr;
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use crate::call::{allowed, asked, known, out, symbols};
use crate::library;

symbols! {
    nvmlEventSetCreate(set: *mut nvmlEventSet_t) {
        allowed("nvmlEventSetCreate")?;
        known(!set.is_null())?;
        let number = library::add_set()?;
        // No address: nothing is ever read through it.
        out(set, ptr::without_provenance_mut(number << 4))
    }
    nvmlEventSetFree(set: nvmlEventSet_t) {
        allowed("nvmlEventSetFree")?;
        library::remove_set(set.addr() >> 4)
    }
    nvmlDeviceRegisterEvents(device: nvmlDevice_t, kinds: c_ulonglong, set: nvmlEventSet_t) {
        let symbol = "nvmlDeviceRegisterEvents";
        let set = library::set(set.addr() >> 4)?;
        asked(symbol, device, |gpu| match gpu.supported_events {
            Some(supported) if kinds & !supported == 0 => Ok(()),
            _ => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        })?;
        let (gpu, resets) = library::device(device)?;
        set.register(&gpu, resets, kinds);
        Ok(())
    }
    nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, kinds: *mut c_ulonglong) {
        asked("nvmlDeviceGetSupportedEventTypes", device, |gpu| out(kinds, gpu.supported_events))
    }
    nvmlEventSetWait_v2(set: nvmlEventSet_t, event: *mut nvmlEventData_t, millis: c_uint) {
        allowed("nvmlEventSetWait_v2")?;
        known(!event.is_null())?;
        let set = library::set(set.addr() >> 4)?;
        out(event, set.wait(Duration::from_millis(millis.into()))?)
    }
}
