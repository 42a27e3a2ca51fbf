//! The symbol that reads fields by their numbers.

use std::ffi::c_int;
use std::slice;
use std::time::{SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings::field_id::*;
use nvml_wrapper_sys::bindings::*;

use crate::call::links::of_link;
use crate::call::{known, symbols, symbols_of_gpu};
use crate::library::Answer;
use crate::settings::{ByLink, Gpu};

/// More than there are fields.
const FIELDS_MAX: usize = 4096;

symbols_of_gpu! {
    nvmlDeviceGetFieldValues(count: c_int, values: *mut nvmlFieldValue_t) |gpu| {
        let count = usize::try_from(count).unwrap_or(0);
        known(!values.is_null() && (1..=FIELDS_MAX).contains(&count))?;
        // SAFETY: NVML's contract is that `values` are as many as `count`.
        let values = unsafe { slice::from_raw_parts_mut(values, count) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for value in values {
            value.timestamp = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
            value.latencyUsec = 0;
            match field(gpu, value.fieldId, value.scopeId) {
                Ok(found) => {
                    value.nvmlReturn = nvmlReturn_enum_NVML_SUCCESS;
                    (value.valueType, value.value) = found.raw();
                }
                Err(code) => value.nvmlReturn = code,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Found {
    Int(i32),
    Uint(u32),
    Long(u64),
}

impl Found {
    /// The type's number, and the value where a reader of that type finds it; the rest is zero.
    fn raw(self) -> (nvmlValueType_t, nvmlValue_t) {
        let mut value = nvmlValue_t { ullVal: 0 };
        let kind = match self {
            Self::Int(int) => {
                value.siVal = int;
                nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT
            }
            Self::Uint(uint) => {
                value.uiVal = uint;
                nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT
            }
            Self::Long(long) => {
                value.ullVal = long;
                nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
            }
        };
        (kind, value)
    }

    /// `number` as a value of the same type.
    fn with(self, number: i64) -> Self {
        let like = match self {
            Self::Int(_) => i32::try_from(number).ok().map(Self::Int),
            Self::Uint(_) => u32::try_from(number).ok().map(Self::Uint),
            Self::Long(_) => None,
        };
        like.unwrap_or(Self::Long(number.cast_unsigned()))
    }
}

fn field(gpu: &Gpu, id: u32, scope: u32) -> Answer<Found> {
    let none = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
    let own = gpu.fields.as_ref().and_then(|fields| fields.get(&id));
    let known = of_gpu(gpu, id).or_else(|| of_links(gpu, id, scope));
    match own {
        Some(Some(number)) => Ok(known.unwrap_or(Found::Long(0)).with(*number)),
        Some(None) => Err(none),
        None => known.ok_or(none),
    }
}

fn of_gpu(gpu: &Gpu, id: u32) -> Option<Found> {
    match id {
        NVML_FI_DEV_ECC_SBE_VOL_TOTAL => gpu.ecc_corrected.map(Found::Long),
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL => gpu.ecc_uncorrected.map(Found::Long),
        NVML_FI_DEV_ECC_SBE_AGG_TOTAL => gpu.ecc_corrected_lifetime.map(Found::Long),
        NVML_FI_DEV_ECC_DBE_AGG_TOTAL => gpu.ecc_uncorrected_lifetime.map(Found::Long),
        NVML_FI_DEV_MEMORY_TEMP => gpu.memory_temperature.map(Found::Uint),
        NVML_FI_DEV_PCIE_REPLAY_COUNTER => gpu.pcie_replays.map(Found::Uint),
        NVML_FI_DEV_REMAPPED_COR => gpu.remapped_corrected.map(Found::Uint),
        NVML_FI_DEV_REMAPPED_UNC => gpu.remapped_uncorrected.map(Found::Uint),
        NVML_FI_DEV_REMAPPED_PENDING => gpu.remap_pending.map(Found::Uint),
        NVML_FI_DEV_REMAPPED_FAILURE => gpu.remap_failed.map(Found::Uint),
        NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR => gpu.pcie_nonfatal_errors.map(Found::Uint),
        NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR => gpu.pcie_fatal_errors.map(Found::Uint),
        NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT => gpu.tlimit_shutdown.map(Found::Int),
        NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT => gpu.tlimit_slowdown.map(Found::Int),
        NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT => gpu.tlimit_memory_max.map(Found::Int),
        NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT => gpu.tlimit_gpu_max.map(Found::Int),
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => gpu.recovery_action.map(Found::Uint),
        _ => None,
    }
}

/// Fields whose scope is a link, or all of them.
fn of_links(gpu: &Gpu, id: u32, scope: u32) -> Option<Found> {
    let links = gpu.links?;
    let none = ByLink::new();
    let counts = match id {
        NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY => gpu.link_replays.as_ref()?,
        NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY => gpu.link_recoveries.as_ref()?,
        NVML_FI_DEV_NVLINK_ERROR_DL_CRC => gpu.link_crc_errors.as_ref()?,
        NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS
            ..=NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS => {
            gpu.link_fields.as_ref()?.get(&id).unwrap_or(&none)
        }
        _ => return None,
    };
    match scope {
        u32::MAX => Some(Found::Long(counts.values().sum())),
        link if link < links => Some(Found::Long(of_link(counts, link))),
        _ => None,
    }
}
