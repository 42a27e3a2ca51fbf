//! What can be set of a GPU and of the system, and what a healthy H200 has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Counts of links, by link number.
pub(crate) type ByLink = BTreeMap<u32, u64>;

/// `forever`, as a word of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Forever {
    Forever,
}

/// Degrees that are left before the GPU is slowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Margin {
    Celsius(i32),
    Computed(Computed),
}

/// `computed`, as a word of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Computed {
    Computed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) memory_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) gpu_instance: Option<u32>,
    #[serde(default)]
    pub(crate) compute_instance: Option<u32>,
}

/// One GPU. Every field stands in the table of the crate's documentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    pub(crate) uuid: String,
    pub(crate) name: Option<String>,
    pub(crate) minor: Option<u32>,
    pub(crate) pci_bus_id: String,
    pub(crate) pci_device_id: u32,
    pub(crate) pci_subsystem_id: u32,

    pub(crate) error: Option<u32>,
    pub(crate) errors: Option<BTreeMap<String, u32>>,
    pub(crate) missing: Option<u32>,
    pub(crate) hang: Option<Forever>,
    pub(crate) hang_ms: Option<u64>,

    pub(crate) ecc: Option<u32>,
    pub(crate) ecc_pending: Option<u32>,
    pub(crate) ecc_corrected: Option<u64>,
    pub(crate) ecc_uncorrected: Option<u64>,
    pub(crate) ecc_corrected_lifetime: Option<u64>,
    pub(crate) ecc_uncorrected_lifetime: Option<u64>,
    pub(crate) sram: Option<[u64; 11]>,
    pub(crate) sram_threshold_exceeded: Option<u32>,
    pub(crate) remapped_corrected: Option<u32>,
    pub(crate) remapped_uncorrected: Option<u32>,
    pub(crate) remap_pending: Option<u32>,
    pub(crate) remap_failed: Option<u32>,
    pub(crate) remap_histogram: Option<[u32; 5]>,
    pub(crate) retired_pages_corrected: Option<Vec<u64>>,
    pub(crate) retired_pages_uncorrected: Option<Vec<u64>>,
    pub(crate) retired_pages_pending: Option<u32>,
    pub(crate) inforom: Option<u32>,

    pub(crate) temperature: Option<i32>,
    pub(crate) memory_temperature: Option<u32>,
    pub(crate) temperature_shutdown: Option<u32>,
    pub(crate) temperature_slowdown: Option<u32>,
    pub(crate) temperature_memory_max: Option<u32>,
    pub(crate) temperature_gpu_max: Option<u32>,
    pub(crate) margin: Option<Margin>,
    pub(crate) tlimit_shutdown: Option<i32>,
    pub(crate) tlimit_slowdown: Option<i32>,
    pub(crate) tlimit_memory_max: Option<i32>,
    pub(crate) tlimit_gpu_max: Option<i32>,
    pub(crate) throttle_reasons: Option<u64>,
    pub(crate) clocks_mhz: Option<[Option<u32>; 4]>,
    pub(crate) max_clocks_mhz: Option<[Option<u32>; 4]>,
    pub(crate) performance_state: Option<u32>,
    pub(crate) power_milliwatts: Option<u32>,
    pub(crate) power_limit_milliwatts: Option<u32>,
    pub(crate) utilization: Option<u32>,
    pub(crate) memory_utilization: Option<u32>,

    pub(crate) memory_total_bytes: Option<u64>,
    pub(crate) memory_reserved_bytes: u64,
    pub(crate) memory_used_bytes: u64,
    pub(crate) processes: Option<Vec<Process>>,
    pub(crate) graphics_processes: Option<Vec<Process>>,
    pub(crate) mps_processes: Option<Vec<Process>>,

    pub(crate) pcie_width: Option<u32>,
    pub(crate) pcie_width_max: Option<u32>,
    pub(crate) pcie_generation: Option<u32>,
    pub(crate) pcie_generation_max: Option<u32>,
    pub(crate) pcie_replays: Option<u32>,
    pub(crate) pcie_fatal_errors: Option<u32>,
    pub(crate) pcie_nonfatal_errors: Option<u32>,
    pub(crate) links: Option<u32>,
    pub(crate) links_inactive: Option<Vec<u32>>,
    pub(crate) link_replays: Option<ByLink>,
    pub(crate) link_recoveries: Option<ByLink>,
    pub(crate) link_crc_errors: Option<ByLink>,
    pub(crate) link_crc_data_errors: Option<ByLink>,
    pub(crate) link_fields: Option<BTreeMap<u32, ByLink>>,
    pub(crate) fabric_state: Option<u8>,
    pub(crate) fabric_status: u32,
    pub(crate) fabric_health: u8,
    pub(crate) fabric_health_mask: u32,
    pub(crate) fabric_clique: u32,

    pub(crate) recovery_action: Option<u32>,
    pub(crate) persistence: Option<u32>,
    pub(crate) compute_mode: Option<u32>,
    pub(crate) mig: Option<u32>,
    pub(crate) mig_pending: Option<u32>,
    pub(crate) supported_events: Option<u64>,
    pub(crate) fields: Option<BTreeMap<u32, Option<i64>>>,
}

/// What is not one GPU's. Every field stands in the table of the crate's documentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct System {
    pub(crate) init_return: Option<u32>,
    pub(crate) errors: Option<BTreeMap<String, u32>>,
    pub(crate) driver_version: Option<String>,
    pub(crate) nvml_version: Option<String>,
    pub(crate) cuda_version: Option<i32>,
    pub(crate) confidential_environment: u32,
    pub(crate) confidential_feature: Option<u32>,
    pub(crate) confidential_dev_tools: u32,
    pub(crate) confidential_ready: Option<u32>,
}

/// A healthy H200 with nothing to do, as the `index`th of a host.
pub(crate) fn h200(index: usize) -> Map<String, Value> {
    let parts = [
        identity(index),
        memory_health(),
        physics(),
        memory(),
        links(),
        modes(),
    ];
    parts.into_iter().flatten().collect()
}

fn identity(index: usize) -> Map<String, Value> {
    map(serde_json::json!({
        "uuid": format!("GPU-6b766c65-6e73-4000-8000-0000000000{index:02x}"),
        "name": "NVIDIA H200",
        "minor": index,
        "pci_bus_id": format!("00000000:{:02X}:00.0", 0x10 + index),
        "pci_device_id": 0x2335_10de,
        "pci_subsystem_id": 0x18be_10de,
        "error": null,
        "errors": null,
        "missing": null,
        "hang": null,
        "hang_ms": null,
    }))
}

fn memory_health() -> Map<String, Value> {
    map(serde_json::json!({
        "ecc": 1,
        "ecc_pending": 1,
        "ecc_corrected": 0,
        "ecc_uncorrected": 0,
        "ecc_corrected_lifetime": 0,
        "ecc_uncorrected_lifetime": 0,
        "sram": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "sram_threshold_exceeded": 0,
        "remapped_corrected": 0,
        "remapped_uncorrected": 0,
        "remap_pending": 0,
        "remap_failed": 0,
        "remap_histogram": [3072, 0, 0, 0, 0],
        "retired_pages_corrected": null,
        "retired_pages_uncorrected": null,
        "retired_pages_pending": null,
        "inforom": 0,
    }))
}

fn physics() -> Map<String, Value> {
    map(serde_json::json!({
        "temperature": 45,
        "memory_temperature": 50,
        "temperature_shutdown": 92,
        "temperature_slowdown": 87,
        "temperature_memory_max": 95,
        "temperature_gpu_max": 85,
        "margin": "computed",
        "tlimit_shutdown": -8,
        "tlimit_slowdown": -2,
        "tlimit_memory_max": 0,
        "tlimit_gpu_max": 0,
        "throttle_reasons": 0,
        "clocks_mhz": [1980, 1980, 3201, 1545],
        "max_clocks_mhz": [1980, 1980, 3201, 1545],
        "performance_state": 0,
        "power_milliwatts": 120_000,
        "power_limit_milliwatts": 700_000,
        "utilization": 0,
        "memory_utilization": 0,
    }))
}

fn memory() -> Map<String, Value> {
    map(serde_json::json!({
        "memory_total_bytes": 143_771_u64 << 20,
        "memory_reserved_bytes": 615_u64 << 20,
        "memory_used_bytes": 0,
        "processes": [],
        "graphics_processes": [],
        "mps_processes": [],
    }))
}

fn links() -> Map<String, Value> {
    map(serde_json::json!({
        "pcie_width": 16,
        "pcie_width_max": 16,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_replays": 0,
        "pcie_fatal_errors": 0,
        "pcie_nonfatal_errors": 0,
        "links": 18,
        "links_inactive": [],
        "link_replays": {},
        "link_recoveries": {},
        "link_crc_errors": {},
        "link_crc_data_errors": {},
        "link_fields": {},
        "fabric_state": 3,
        "fabric_status": 0,
        "fabric_health": 1,
        "fabric_health_mask": 0,
        "fabric_clique": 1,
    }))
}

fn modes() -> Map<String, Value> {
    map(serde_json::json!({
        "recovery_action": 0,
        "persistence": 1,
        "compute_mode": 0,
        "mig": 0,
        "mig_pending": 0,
        "supported_events": nvml_wrapper_sys::bindings::nvmlEventTypeAll,
        "fields": {},
    }))
}

/// A host that runs well.
pub(crate) fn system() -> Map<String, Value> {
    map(serde_json::json!({
        "init_return": 0,
        "errors": null,
        "driver_version": "570.172.08",
        "nvml_version": "12.570.172.08",
        "cuda_version": 12_080,
        "confidential_environment": 0,
        "confidential_feature": 0,
        "confidential_dev_tools": 0,
        "confidential_ready": 0,
    }))
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
