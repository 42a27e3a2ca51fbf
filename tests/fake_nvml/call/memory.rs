//! Symbols of a GPU's memory: how much, whose, and what is wrong with it.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::call::{known, out, out_list, symbols, symbols_of_gpu, version_in, version_of};
use crate::library::Answer;
use crate::settings::{Gpu, Process};

/// When pages were retired, in seconds since 1970: one after another.
const RETIRED_SECONDS: u64 = 1_700_000_000;

symbols_of_gpu! {
    nvmlDeviceGetMemoryInfo(memory: *mut nvmlMemory_t) |gpu| {
        let reserved = gpu.memory_reserved_bytes;
        out(memory, gpu.memory_total_bytes.map(|total| nvmlMemory_t {
            total,
            free: free_bytes(gpu, total),
            used: gpu.memory_used_bytes.saturating_add(reserved),
        }))
    }
    nvmlDeviceGetMemoryInfo_v2(memory: *mut nvmlMemory_v2_t) |gpu| {
        let version = version_in(memory, &[version_of::<nvmlMemory_v2_t>(2)])?;
        out(memory, gpu.memory_total_bytes.map(|total| nvmlMemory_v2_t {
            version,
            total,
            reserved: gpu.memory_reserved_bytes,
            free: free_bytes(gpu, total),
            used: gpu.memory_used_bytes,
        }))
    }
    nvmlDeviceGetComputeRunningProcesses_v3(
        count: *mut c_uint, infos: *mut nvmlProcessInfo_t
    ) |gpu| { processes(gpu.processes.as_deref(), count, infos) }
    nvmlDeviceGetGraphicsRunningProcesses_v3(
        count: *mut c_uint, infos: *mut nvmlProcessInfo_t
    ) |gpu| { processes(gpu.graphics_processes.as_deref(), count, infos) }
    nvmlDeviceGetMPSComputeRunningProcesses_v3(
        count: *mut c_uint, infos: *mut nvmlProcessInfo_t
    ) |gpu| { processes(gpu.mps_processes.as_deref(), count, infos) }
    nvmlDeviceGetEccMode(current: *mut nvmlEnableState_t, pending: *mut nvmlEnableState_t) |gpu| {
        known(!pending.is_null())?;
        out(current, gpu.ecc)?;
        out(pending, gpu.ecc_pending)
    }
    nvmlDeviceGetTotalEccErrors(
        kind: nvmlMemoryErrorType_t, span: nvmlEccCounterType_t, count: *mut c_ulonglong
    ) |gpu| { out(count, ecc(gpu, kind, span)?) }
    nvmlDeviceGetMemoryErrorCounter(
        kind: nvmlMemoryErrorType_t, span: nvmlEccCounterType_t, place: nvmlMemoryLocation_t,
        count: *mut c_ulonglong
    ) |gpu| {
        let all = ecc(gpu, kind, span)?;
        known(place < nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_COUNT)?;
        out(count, match place {
            nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DRAM => all,
            nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_SRAM => sram(gpu, kind, span),
            _ => None,
        })
    }
    nvmlDeviceGetSramEccErrorStatus(status: *mut nvmlEccSramErrorStatus_t) |gpu| {
        let version = version_in(status, &[version_of::<nvmlEccSramErrorStatus_t>(1)])?;
        let both = gpu.sram.zip(gpu.sram_threshold_exceeded);
        out(status, both.map(|(counts, exceeded)| nvmlEccSramErrorStatus_t {
            version,
            aggregateUncParity: counts[0],
            aggregateUncSecDed: counts[1],
            aggregateCor: counts[2],
            volatileUncParity: counts[3],
            volatileUncSecDed: counts[4],
            volatileCor: counts[5],
            aggregateUncBucketL2: counts[6],
            aggregateUncBucketSm: counts[7],
            aggregateUncBucketPcie: counts[8],
            aggregateUncBucketMcu: counts[9],
            aggregateUncBucketOther: counts[10],
            bThresholdExceeded: exceeded,
        }))
    }
    nvmlDeviceGetRemappedRows(
        corrected: *mut c_uint, uncorrected: *mut c_uint, is_pending: *mut c_uint,
        has_failed: *mut c_uint
    ) |gpu| {
        known([corrected, uncorrected, is_pending, has_failed].iter().all(|to| !to.is_null()))?;
        out(corrected, gpu.remapped_corrected)?;
        out(uncorrected, gpu.remapped_uncorrected)?;
        out(is_pending, gpu.remap_pending)?;
        out(has_failed, gpu.remap_failed)
    }
    nvmlDeviceGetRowRemapperHistogram(values: *mut nvmlRowRemapperHistogramValues_t) |gpu| {
        out(values, gpu.remap_histogram.map(|[max, high, partial, low, none]| {
            nvmlRowRemapperHistogramValues_t { max, high, partial, low, none }
        }))
    }
    nvmlDeviceGetRetiredPages(
        cause: nvmlPageRetirementCause_t, count: *mut c_uint, addresses: *mut c_ulonglong
    ) |gpu| { out_list(count, addresses, retired(gpu, cause)?) }
    nvmlDeviceGetRetiredPages_v2(
        cause: nvmlPageRetirementCause_t, count: *mut c_uint, addresses: *mut c_ulonglong,
        seconds: *mut c_ulonglong
    ) |gpu| {
        let pages = retired(gpu, cause)?;
        out_list(count, addresses, pages)?;
        let times: Vec<c_ulonglong> = (RETIRED_SECONDS..).take(pages.len()).collect();
        out_list(count, seconds, &times)
    }
    nvmlDeviceGetRetiredPagesPendingStatus(is_pending: *mut nvmlEnableState_t) |gpu| {
        out(is_pending, gpu.retired_pages_pending)
    }
}

fn free_bytes(gpu: &Gpu, total: u64) -> u64 {
    let left = total.saturating_sub(gpu.memory_reserved_bytes);
    left.saturating_sub(gpu.memory_used_bytes)
}

fn processes(list: Option<&[Process]>, count: *mut c_uint, to: *mut nvmlProcessInfo_t) -> Answer {
    let list = list.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    let infos = list.iter().map(|process| nvmlProcessInfo_t {
        pid: process.pid,
        // All ones are NVML's word for what it does not know.
        usedGpuMemory: process.memory_bytes.unwrap_or(u64::MAX),
        gpuInstanceId: process.gpu_instance.unwrap_or(u32::MAX),
        computeInstanceId: process.compute_instance.unwrap_or(u32::MAX),
    });
    out_list(count, to, &infos.collect::<Vec<_>>())
}

fn ecc(gpu: &Gpu, kind: nvmlMemoryErrorType_t, span: nvmlEccCounterType_t) -> Answer<Option<u64>> {
    match (kind, span) {
        (0, 0) => Ok(gpu.ecc_corrected),
        (1, 0) => Ok(gpu.ecc_uncorrected),
        (0, 1) => Ok(gpu.ecc_corrected_lifetime),
        (1, 1) => Ok(gpu.ecc_uncorrected_lifetime),
        _ => Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    }
}

fn sram(gpu: &Gpu, kind: nvmlMemoryErrorType_t, span: nvmlEccCounterType_t) -> Option<u64> {
    let counts = gpu.sram?;
    let [parity, secded, corrected] = match span {
        0 => [counts[3], counts[4], counts[5]],
        _ => [counts[0], counts[1], counts[2]],
    };
    Some(match kind {
        0 => corrected,
        _ => parity.saturating_add(secded),
    })
}

fn retired(gpu: &Gpu, cause: nvmlPageRetirementCause_t) -> Answer<&[u64]> {
    let pages = match cause {
        0 => &gpu.retired_pages_corrected,
        1 => &gpu.retired_pages_uncorrected,
        _ => return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    };
    pages
        .as_deref()
        .ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)
}
