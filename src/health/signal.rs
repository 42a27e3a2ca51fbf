//! The table of signals: what is read of a GPU, when it is a fault, how much that matters, and what to do.

use serde::{Deserialize, Serialize};

use crate::health::incident::Severity;

/// What can be wrong with a GPU; [`Signal::row`] says all about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    GpuLost,
    GpuMissing,
    GpuNotReady,
    ResetRequired,
    RecoveryAction,
    RecoveryEvent,
    Xid,
    EccUncorrected,
    EccLifetime,
    EccCorrectedRate,
    SramThreshold,
    RemapPending,
    RemapFailed,
    RemapExhausted,
    RetiredPages,
    Inforom,
    NvlinkInactive,
    NvlinkErrors,
    Fabric,
    PcieLink,
    PcieReplay,
    PcieErrors,
    HwSlowdown,
    SwSlowdown,
    Temperature,
    ForeignProcess,
    Memory,
    ComputeMode,
    Persistence,
    Mig,
    DriverMismatch,
    NoDriver,
    OsBlocked,
    Irq,
    Hang,
    Stuck,
    Power,
    ConfidentialCompute,
}

/// What is true of one signal. The numbers are the defaults of [`crate::health::limits::Limits`].
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub signal: Signal,
    /// As configuration, records and metrics name it.
    pub name: &'static str,
    /// The call of NVML or its field that shows it.
    pub reads: &'static str,
    /// When it is a fault.
    pub condition: &'static str,
    /// What it can be, the mildest first.
    pub severities: &'static [Severity],
    /// What the operator should do.
    pub action: &'static str,
}

impl Signal {
    /// Every signal there is, in the table's order.
    pub const ALL: [Self; 38] = {
        let mut all = [Self::GpuLost; 38];
        let mut at = 0;
        while at < all.len() {
            all[at] = TABLE[at].signal;
            at += 1;
        }
        all
    };

    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// As configuration, records and metrics name it.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

/// One row for each signal, in their order.
const TABLE: [Row; 38] = [
    Row {
        signal: Signal::GpuLost,
        name: "gpu_lost",
        reads: "every call",
        condition: "it answers 15 (GPU is lost)",
        severities: &[Severity::Fatal],
        action: "reboot the host; have the GPU replaced if it comes again within 7 days",
    },
    Row {
        signal: Signal::GpuMissing,
        name: "gpu_missing",
        reads: "`nvmlDeviceGetHandleByUUID`",
        condition: "it answers 6: the GPU that the worker names is not there",
        severities: &[Severity::Fatal],
        action: "check the UUID; reseat the GPU, then reboot the host",
    },
    Row {
        signal: Signal::GpuNotReady,
        name: "gpu_not_ready",
        reads: "every call",
        condition: "it answers 27 (not ready): unknown; 29 (invalid state): degraded; 28 (GPU not found) or 23 to 30 else: fatal; 24 to 26 of one call alone speak of that call",
        severities: &[Severity::Degraded, Severity::Unknown, Severity::Fatal],
        action: "wait where it is not ready; else reboot the host, and have the GPU replaced if it comes again",
    },
    Row {
        signal: Signal::ResetRequired,
        name: "reset_required",
        reads: "every call",
        condition: "it answers 16 (reset required)",
        severities: &[Severity::Fatal],
        action: "stop what uses the GPU and reset it: `nvidia-smi -r -i UUID`",
    },
    Row {
        signal: Signal::RecoveryAction,
        name: "recovery_action",
        reads: "`nvmlDeviceGetFieldValues` 230",
        condition: "above 0; 3 (drain peers) or 5 (recover IMEX): degraded, fatal with several GPUs; any other: fatal",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "the action that the driver names",
    },
    Row {
        signal: Signal::RecoveryEvent,
        name: "recovery_event",
        reads: "`nvmlEventSetWait_v2` 0x4000, 0x8000, XID 154",
        condition: "received, until a poll has read field 230",
        severities: &[Severity::Degraded],
        action: "nothing yet: recovery_action follows if there is something to do",
    },
    Row {
        signal: Signal::Xid,
        name: "xid",
        reads: "`nvmlEventSetWait_v2` 0x8",
        condition: "by class (below); 3 of applications in 10 min: degraded; of a link with several GPUs: fatal",
        severities: &[Severity::Info, Severity::Degraded, Severity::Fatal],
        action: "by class (below)",
    },
    Row {
        signal: Signal::EccUncorrected,
        name: "ecc_uncorrected",
        reads: "`nvmlDeviceGetTotalEccErrors`, uncorrected, volatile",
        condition: "it has grown; degraded if XID 94 calls it contained within 60 s",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "stop what uses the GPU and reset it, so that its rows are remapped: `nvidia-smi -r -i UUID`",
    },
    Row {
        signal: Signal::EccLifetime,
        name: "ecc_lifetime",
        reads: "`nvmlDeviceGetTotalEccErrors`, uncorrected, aggregate",
        condition: "above 0: info; more at the start than at the end of the time before: degraded",
        severities: &[Severity::Info, Severity::Degraded],
        action: "run NVIDIA's field diagnostics when the GPU can be spared; it is over once the agent \
                 is restarted",
    },
    Row {
        signal: Signal::EccCorrectedRate,
        name: "ecc_corrected_rate",
        reads: "`nvmlDeviceGetTotalEccErrors`, corrected, volatile",
        condition: "more than 10 within an hour",
        severities: &[Severity::Degraded],
        action: "watch it; run `dcgmi diag -r 3` when the GPU can be spared",
    },
    Row {
        signal: Signal::SramThreshold,
        name: "sram_threshold",
        reads: "`nvmlDeviceGetSramEccErrorStatus`",
        condition: "its threshold is exceeded",
        severities: &[Severity::Fatal],
        action: "have the GPU replaced",
    },
    Row {
        signal: Signal::RemapPending,
        name: "remap_pending",
        reads: "`nvmlDeviceGetRemappedRows`, pending",
        condition: "rows wait to be remapped",
        severities: &[Severity::Degraded],
        action: "drain the worker when convenient and reset the GPU: `nvidia-smi -r -i UUID`",
    },
    Row {
        signal: Signal::RemapFailed,
        name: "remap_failed",
        reads: "`nvmlDeviceGetRemappedRows`, failed",
        condition: "rows could not be remapped",
        severities: &[Severity::Fatal],
        action: "have the GPU replaced",
    },
    Row {
        signal: Signal::RemapExhausted,
        name: "remap_exhausted",
        reads: "`nvmlDeviceGetRowRemapperHistogram`",
        condition: "banks have no spare rows left",
        severities: &[Severity::Degraded],
        action: "plan to have the GPU replaced",
    },
    Row {
        signal: Signal::RetiredPages,
        name: "retired_pages",
        reads: "`nvmlDeviceGetRetiredPages_v2`, `nvmlDeviceGetRetiredPagesPendingStatus`",
        condition: "pages wait to be retired: degraded; more than 15 for uncorrected errors, or 63 in all: fatal",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "reboot the host where pages wait; have the GPU replaced where too many are retired",
    },
    Row {
        signal: Signal::Inforom,
        name: "inforom",
        reads: "`nvmlDeviceValidateInforom`",
        condition: "it fails, or a call answers 14 (corrupted InfoROM)",
        severities: &[Severity::Degraded],
        action: "ask NVIDIA's support for a new InfoROM",
    },
    Row {
        signal: Signal::NvlinkInactive,
        name: "nvlink_inactive",
        reads: "`nvmlDeviceGetNvLinkState`",
        condition: "a link that was active is not: info, fatal with several GPUs",
        severities: &[Severity::Info, Severity::Fatal],
        action: "reset the GPU, then restart the fabric manager",
    },
    Row {
        signal: Signal::NvlinkErrors,
        name: "nvlink_errors",
        reads: "`nvmlDeviceGetNvLinkErrorCounter`",
        condition: "replays or recoveries have grown, or 100 CRC errors a second: degraded, fatal with several GPUs",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "reset the GPU; if it comes again, have the link repaired",
    },
    Row {
        signal: Signal::Fabric,
        name: "fabric",
        reads: "`nvmlDeviceGetGpuFabricInfoV`",
        condition: "not started or in progress: not ready; completed with a fault, or unhealthy: degraded, fatal with several GPUs; limited: degraded",
        severities: &[Severity::Degraded, Severity::NotReady, Severity::Fatal],
        action: "restart the fabric manager: `systemctl restart nvidia-fabricmanager`; if that does not help, reset the GPUs",
    },
    Row {
        signal: Signal::PcieLink,
        name: "pcie_link",
        reads: "`nvmlDeviceGetCurrPcieLinkWidth`, `…Generation`",
        condition: "fewer lanes than it can; or, at work for 10 s (utilisation above 0, or P0), a lower generation",
        severities: &[Severity::Degraded],
        action: "reseat the GPU, then reboot the host",
    },
    Row {
        signal: Signal::PcieReplay,
        name: "pcie_replay",
        reads: "`nvmlDeviceGetPcieReplayCounter`",
        condition: "more than 8 within a minute",
        severities: &[Severity::Degraded],
        action: "reseat the GPU",
    },
    Row {
        signal: Signal::PcieErrors,
        name: "pcie_errors",
        reads: "`nvmlDeviceGetFieldValues` 179, 180",
        condition: "nonfatal errors have grown: degraded; fatal ones: fatal",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "reboot the host; reseat the GPU if it comes again",
    },
    Row {
        signal: Signal::HwSlowdown,
        name: "hw_slowdown",
        reads: "`nvmlDeviceGetCurrentClocksEventReasons` 0x8, 0x40, 0x80",
        condition: "for 5 s",
        severities: &[Severity::Degraded],
        action: "check cooling and power supply",
    },
    Row {
        signal: Signal::SwSlowdown,
        name: "sw_slowdown",
        reads: "`nvmlDeviceGetCurrentClocksEventReasons` 0x4, 0x20",
        condition: "power cap (0x4), which is normal at work: info; heat (0x20) for 30 s: degraded",
        severities: &[Severity::Info, Severity::Degraded],
        action: "nothing for the power cap; check the airflow for heat",
    },
    Row {
        signal: Signal::Temperature,
        name: "temperature",
        reads: "`nvmlDeviceGetTemperature` and its threshold, or `nvmlDeviceGetMarginTemperature`",
        condition: "3 °C below slowdown or above: degraded; at slowdown for 60 s: fatal",
        severities: &[Severity::Degraded, Severity::Fatal],
        action: "check the cooling",
    },
    Row {
        signal: Signal::ForeignProcess,
        name: "foreign_process",
        reads: "`nvmlDeviceGetComputeRunningProcesses_v3`",
        condition: "a process that is not the engine's has more than 512 MiB: degraded, not ready while the engine starts",
        severities: &[Severity::Degraded, Severity::NotReady],
        action: "end that process, or give it another GPU",
    },
    Row {
        signal: Signal::Memory,
        name: "memory",
        reads: "`nvmlDeviceGetMemoryInfo_v2`",
        condition: "for 10 s less is free than the starting engine needs, and the engine has none of it yet",
        severities: &[Severity::NotReady],
        action: "wait, or end what holds the memory; lower the engine's gpu_memory_utilization",
    },
    Row {
        signal: Signal::ComputeMode,
        name: "compute_mode",
        reads: "`nvmlDeviceGetComputeMode`",
        condition: "prohibited: fatal; exclusive while another's process is there: not ready",
        severities: &[Severity::NotReady, Severity::Fatal],
        action: "allow it: `nvidia-smi -c 0 -i UUID`",
    },
    Row {
        signal: Signal::Persistence,
        name: "persistence",
        reads: "`nvmlDeviceGetPersistenceMode`",
        condition: "off",
        severities: &[Severity::Info],
        action: "enable nvidia-persistenced, so that engines start faster",
    },
    Row {
        signal: Signal::Mig,
        name: "mig",
        reads: "`nvmlDeviceGetMigMode`",
        condition: "another mode than the worker expects, or another after the next reset",
        severities: &[Severity::Fatal],
        action: "set the mode that the worker expects with `nvidia-smi -mig`, and reset the GPU",
    },
    Row {
        signal: Signal::DriverMismatch,
        name: "driver_mismatch",
        reads: "every call, `nvmlInit_v2` too",
        condition: "it answers 18: the library is of another version than the driver",
        severities: &[Severity::Fatal],
        action: "reboot the host or reload the driver: it was updated while it ran",
    },
    Row {
        signal: Signal::NoDriver,
        name: "no_driver",
        reads: "`dlopen`, `nvmlInit_v2`",
        condition: "no library, no driver (9, 12), no permission (4), or another error",
        severities: &[Severity::Unknown],
        action: "install or load the NVIDIA driver, or set gpu.nvml_library; it is looked for again and again",
    },
    Row {
        signal: Signal::OsBlocked,
        name: "os_blocked",
        reads: "every call",
        condition: "it answers 17 or 999, 3 observations in a row",
        severities: &[Severity::Fatal],
        action: "restart the agent's unit if the driver was loaded after it began; else check its \
                 DeviceAllow=: the operating system refuses the GPU's devices",
    },
    Row {
        signal: Signal::Irq,
        name: "irq",
        reads: "every call",
        condition: "it answers 11 (interrupts do not come)",
        severities: &[Severity::Fatal],
        action: "reboot the host",
    },
    Row {
        signal: Signal::Hang,
        name: "hang",
        reads: "every call",
        condition: "it does not return in time: unknown; 3 in a row, or one for 10 s: fatal",
        severities: &[Severity::Unknown, Severity::Fatal],
        action: "reboot the host if it lasts: the driver does not answer",
    },
    Row {
        signal: Signal::Stuck,
        name: "stuck",
        reads: "`nvmlDeviceGetUtilizationRates`, and the engine's requests and tokens",
        condition: "100 % and requests, but no token for 60 s",
        severities: &[Severity::Fatal],
        action: "the engine is restarted, unless gpu.restart_engine is false or kvlens does not run it: \
                 then do it; look at its log if it comes again",
    },
    Row {
        signal: Signal::Power,
        name: "power",
        reads: "`nvmlDeviceGetPowerUsage`",
        condition: "it fails",
        severities: &[Severity::Degraded],
        action: "check the power cables; reboot the host when convenient",
    },
    Row {
        signal: Signal::ConfidentialCompute,
        name: "confidential_compute",
        reads: "`nvmlSystemGetConfComputeGpusReadyState`",
        condition: "the host computes confidentially, and its GPUs are not ready",
        severities: &[Severity::NotReady],
        action: "verify the GPUs and set them ready: `nvidia-smi conf-compute -srs 1`",
    },
];
