//! Symbols of a GPU's identity, modes, temperature, clocks and power.

use std::ffi::{c_char, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::call::{known, out, out_text, symbols, symbols_of_gpu, version_in, version_of};
use crate::library::Answer;
use crate::scenario::bus_id;
use crate::settings::{Computed, Gpu, Margin};

symbols_of_gpu! {
    nvmlDeviceGetUUID(uuid: *mut c_char, length: c_uint) |gpu| {
        out_text(uuid, length, Some(&gpu.uuid))
    }
    nvmlDeviceGetName(name: *mut c_char, length: c_uint) |gpu| {
        out_text(name, length, gpu.name.as_deref())
    }
    nvmlDeviceGetMinorNumber(minor: *mut c_uint) |gpu| { out(minor, gpu.minor) }
    nvmlDeviceGetPciInfo_v3(pci: *mut nvmlPciInfo_t) |gpu| {
        let ids = (gpu.pci_device_id, gpu.pci_subsystem_id);
        out(pci, pci_info(&gpu.pci_bus_id, ids))
    }
    nvmlDeviceGetTemperature(sensor: nvmlTemperatureSensors_t, celsius: *mut c_uint) |gpu| {
        known(sensor == nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU)?;
        out(celsius, gpu.temperature.map(i32::cast_unsigned))
    }
    nvmlDeviceGetTemperatureV(temperature: *mut nvmlTemperature_t) |gpu| {
        let version = version_in(temperature, &[version_of::<nvmlTemperature_t>(1)])?;
        let celsius = gpu.temperature.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        let asked = crate::call::read(temperature)?;
        known(asked.sensorType == nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU)?;
        out(temperature, nvmlTemperature_t { version, temperature: celsius, ..asked })
    }
    nvmlDeviceGetTemperatureThreshold(
        threshold: nvmlTemperatureThresholds_t, celsius: *mut c_uint
    ) |gpu| {
        let value = match threshold {
            0 => gpu.temperature_shutdown,
            1 => gpu.temperature_slowdown,
            2 => gpu.temperature_memory_max,
            3 => gpu.temperature_gpu_max,
            4.. if threshold < nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_COUNT => {
                None
            }
            _ => return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
        };
        out(celsius, value)
    }
    nvmlDeviceGetMarginTemperature(margin: *mut nvmlMarginTemperature_t) |gpu| {
        let version = version_in(margin, &[version_of::<nvmlMarginTemperature_t>(1)])?;
        let celsius = margin_celsius(gpu);
        out(margin, celsius.map(|celsius| nvmlMarginTemperature_t {
            version,
            marginTemperature: celsius,
        }))
    }
    nvmlDeviceGetCurrentClocksThrottleReasons(reasons: *mut c_ulonglong) |gpu| {
        out(reasons, gpu.throttle_reasons)
    }
    nvmlDeviceGetCurrentClocksEventReasons(reasons: *mut c_ulonglong) |gpu| {
        out(reasons, gpu.throttle_reasons)
    }
    nvmlDeviceGetClockInfo(kind: nvmlClockType_t, mhz: *mut c_uint) |gpu| {
        out(mhz, clock(gpu.clocks_mhz, kind)?)
    }
    nvmlDeviceGetMaxClockInfo(kind: nvmlClockType_t, mhz: *mut c_uint) |gpu| {
        out(mhz, clock(gpu.max_clocks_mhz, kind)?)
    }
    nvmlDeviceGetPerformanceState(state: *mut nvmlPstates_t) |gpu| {
        out(state, gpu.performance_state)
    }
    nvmlDeviceGetPowerUsage(milliwatts: *mut c_uint) |gpu| {
        out(milliwatts, gpu.power_milliwatts)
    }
    nvmlDeviceGetEnforcedPowerLimit(milliwatts: *mut c_uint) |gpu| {
        out(milliwatts, gpu.power_limit_milliwatts)
    }
    nvmlDeviceGetUtilizationRates(rates: *mut nvmlUtilization_t) |gpu| {
        let both = gpu.utilization.zip(gpu.memory_utilization);
        out(rates, both.map(|(gpu, memory)| nvmlUtilization_t { gpu, memory }))
    }
    nvmlDeviceGetPersistenceMode(mode: *mut nvmlEnableState_t) |gpu| { out(mode, gpu.persistence) }
    nvmlDeviceGetComputeMode(mode: *mut nvmlComputeMode_t) |gpu| { out(mode, gpu.compute_mode) }
    nvmlDeviceGetMigMode(current: *mut c_uint, pending: *mut c_uint) |gpu| {
        known(!pending.is_null())?;
        out(current, gpu.mig)?;
        out(pending, gpu.mig_pending)
    }
    nvmlDeviceValidateInforom() |gpu| {
        match gpu.inforom {
            Some(nvmlReturn_enum_NVML_SUCCESS) => Ok(()),
            Some(code) => Err(code),
            None => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        }
    }
}

fn clock(mhz: Option<[Option<u32>; 4]>, kind: nvmlClockType_t) -> Answer<Option<u32>> {
    let mhz = mhz.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    let mhz = mhz.get(kind as usize).copied();
    mhz.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

fn margin_celsius(gpu: &Gpu) -> Option<i32> {
    match gpu.margin? {
        Margin::Celsius(celsius) => Some(celsius),
        Margin::Computed(Computed::Computed) => {
            let slowdown = gpu.temperature_slowdown.unwrap_or(87).cast_signed();
            Some(slowdown - gpu.temperature?)
        }
    }
}

/// What NVML says of an address, which is one.
pub(crate) fn pci_info(address: &str, ids: (u32, u32)) -> nvmlPciInfo_t {
    let (domain, bus, device) = bus_id(address).unwrap_or_default();
    nvmlPciInfo_t {
        busIdLegacy: text(&format!("{:04X}:{bus:02X}:{device:02X}.0", domain & 0xffff)),
        domain,
        bus,
        device,
        pciDeviceId: ids.0,
        pciSubSystemId: ids.1,
        busId: text(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    }
}

/// A text that leaves room for the zero that ends it.
fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (to, byte) in array[..N - 1].iter_mut().zip(text.bytes()) {
        *to = byte.cast_signed();
    }
    array
}
