//! Symbols of PCIe, of NVLink and of the fabric.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::*;

use crate::call::gpus::pci_info;
use crate::call::{fill, known, out, symbols, symbols_of_gpu, version_in, version_of};
use crate::library::Answer;
use crate::settings::{ByLink, Gpu};

/// An NVSwitch of a host with H200s.
const SWITCH_IDS: (u32, u32) = (0x22a3_10de, 0x1796_10de);

/// Of no meaning, and each byte another.
const CLUSTER: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

symbols_of_gpu! {
    nvmlDeviceGetCurrPcieLinkWidth(width: *mut c_uint) |gpu| { out(width, gpu.pcie_width) }
    nvmlDeviceGetMaxPcieLinkWidth(width: *mut c_uint) |gpu| { out(width, gpu.pcie_width_max) }
    nvmlDeviceGetCurrPcieLinkGeneration(generation: *mut c_uint) |gpu| {
        out(generation, gpu.pcie_generation)
    }
    nvmlDeviceGetMaxPcieLinkGeneration(generation: *mut c_uint) |gpu| {
        out(generation, gpu.pcie_generation_max)
    }
    nvmlDeviceGetPcieReplayCounter(count: *mut c_uint) |gpu| { out(count, gpu.pcie_replays) }
    nvmlDeviceGetNvLinkState(link: c_uint, is_active: *mut nvmlEnableState_t) |gpu| {
        has_link(gpu, link)?;
        out(is_active, u32::from(is_up(gpu, link)))
    }
    nvmlDeviceGetNvLinkErrorCounter(
        link: c_uint, counter: nvmlNvLinkErrorCounter_t, count: *mut c_ulonglong
    ) |gpu| {
        has_link(gpu, link)?;
        let counts = match counter {
            0 => &gpu.link_replays,
            1 => &gpu.link_recoveries,
            2 => &gpu.link_crc_errors,
            3 => &gpu.link_crc_data_errors,
            4 => return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
            _ => return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
        };
        out(count, counts.as_ref().map(|counts| of_link(counts, link)))
    }
    nvmlDeviceGetNvLinkRemotePciInfo_v2(link: c_uint, pci: *mut nvmlPciInfo_t) |gpu| {
        has_link(gpu, link)?;
        match is_up(gpu, link) {
            true => out(pci, pci_info(&format!("00000000:{:02X}:00.0", 4 + link % 4), SWITCH_IDS)),
            false => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
        }
    }
    nvmlDeviceGetGpuFabricInfo(fabric: *mut nvmlGpuFabricInfo_t) |gpu| {
        let state = gpu.fabric_state.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        fill(fabric, |fabric| {
            fabric.clusterUuid = CLUSTER;
            fabric.status = gpu.fabric_status;
            fabric.cliqueId = gpu.fabric_clique;
            fabric.state = state;
        })
    }
    nvmlDeviceGetGpuFabricInfoV(fabric: *mut nvmlGpuFabricInfoV_t) |gpu| {
        let second = version_of::<nvmlGpuFabricInfo_v2_t>(2);
        let third = version_of::<nvmlGpuFabricInfo_v3_t>(3);
        let version = version_in(fabric, &[second, third])?;
        let state = gpu.fabric_state.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
        fill(fabric.cast(), |fabric: &mut nvmlGpuFabricInfo_v2_t| {
            fabric.clusterUuid = CLUSTER;
            fabric.status = gpu.fabric_status;
            fabric.cliqueId = gpu.fabric_clique;
            fabric.state = state;
            fabric.healthMask = gpu.fabric_health_mask;
        })?;
        if version == second {
            return Ok(());
        }
        // The third is the second with one field more.
        fill(fabric, |fabric| fabric.healthSummary = gpu.fabric_health)
    }
}

/// What is counted of one link.
pub(crate) fn of_link(counts: &ByLink, link: u32) -> u64 {
    counts.get(&link).copied().unwrap_or(0)
}

fn has_link(gpu: &Gpu, link: u32) -> Answer {
    let links = gpu.links.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    known(link < NVML_NVLINK_MAX_LINKS)?;
    match link < links {
        true => Ok(()),
        false => Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED),
    }
}

fn is_up(gpu: &Gpu, link: u32) -> bool {
    let inactive = gpu.links_inactive.as_ref();
    !inactive.is_some_and(|inactive| inactive.contains(&link))
}
