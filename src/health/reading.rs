//! What was seen of one GPU, as plain values.

use std::fmt;
use std::time::Duration;

/// What NVML answers a call with: `nvmlReturn_t`, of which newer drivers have values that libraries of
/// today do not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u32);

impl Code {
    pub const UNINITIALIZED: Self = Self(1);
    pub const INVALID_ARGUMENT: Self = Self(2);
    pub const NOT_SUPPORTED: Self = Self(3);
    pub const NO_PERMISSION: Self = Self(4);
    pub const NOT_FOUND: Self = Self(6);
    pub const DRIVER_NOT_LOADED: Self = Self(9);
    pub const TIMEOUT: Self = Self(10);
    pub const IRQ_ISSUE: Self = Self(11);
    pub const LIBRARY_NOT_FOUND: Self = Self(12);
    pub const FUNCTION_NOT_FOUND: Self = Self(13);
    pub const CORRUPTED_INFOROM: Self = Self(14);
    pub const GPU_IS_LOST: Self = Self(15);
    pub const RESET_REQUIRED: Self = Self(16);
    pub const OPERATING_SYSTEM: Self = Self(17);
    pub const LIB_RM_VERSION_MISMATCH: Self = Self(18);
    pub const NOT_READY: Self = Self(27);
    pub const GPU_NOT_FOUND: Self = Self(28);
    pub const INVALID_STATE: Self = Self(29);
    pub const UNKNOWN: Self = Self(999);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVML {}", self.0)
    }
}

/// Which call failed, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    PowerUsage,
    ValidateInforom,
    Other,
}

/// A call that gave no value, and not because the GPU or the driver lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failure {
    pub call: Call,
    pub code: Code,
}

/// What is seen of one GPU at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// Its driver was asked; what the slower polls read last stands in it too.
    Polled(Box<Reading>),
    /// The driver told something by itself.
    Event(Event),
    /// There is no way to the GPU: no library, no driver, another driver than the library's, or no GPU of
    /// that name. `text` says it to a person.
    Unreachable { code: Code, text: String },
    /// A call has not returned for so long.
    Hanging(Duration),
}

/// An event of the driver: `nvmlEventData_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One bit, of which newer drivers have more than libraries of today name.
    pub kind: u64,
    /// The XID, where the kind is [`Event::XID`].
    pub value: u64,
}

impl Event {
    pub const XID: u64 = 0x8;
    pub const MIG_CONFIG_CHANGE: u64 = 0x100;
    pub const GPU_UNAVAILABLE: u64 = 0x4000;
    pub const RECOVERY_ACTION: u64 = 0x8000;
}

/// What polls read. `None` where the GPU or its driver does not have it, which is never a fault, or where
/// the call failed, which is in `failures`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Calls of this very poll that failed; and, in each, that which validated the InfoROM when the GPU was
    /// opened.
    pub failures: Vec<Failure>,

    // With each poll.
    /// Field 230: `nvmlDeviceGpuRecoveryAction_t`.
    pub recovery_action: Option<u64>,
    /// Bits of `nvmlClocksEventReasons`.
    pub throttle_reasons: Option<u64>,
    pub temperature_celsius: Option<i32>,
    pub memory_temperature_celsius: Option<i32>,
    pub utilization_percent: Option<u32>,
    pub power_milliwatts: Option<u32>,
    /// 0 is the fastest (P0).
    pub performance_state: Option<u32>,
    pub memory: Option<Memory>,
    /// Since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    pub remap_pending: Option<bool>,
    pub remap_failed: Option<bool>,
    pub pcie_replays: Option<u64>,

    // With each slow poll.
    /// Over the GPU's life.
    pub ecc_uncorrected_lifetime: Option<u64>,
    pub sram_threshold_exceeded: Option<bool>,
    /// Banks of memory that have no spare rows left.
    pub exhausted_banks: Option<u32>,
    pub retired_pages: Option<RetiredPages>,
    /// Of the GPU itself, with what each link counted.
    pub links: Vec<Link>,
    pub fabric: Option<Fabric>,
    pub pcie_width: Option<OfMost>,
    pub pcie_generation: Option<OfMost>,
    /// Field 180.
    pub pcie_fatal_errors: Option<u64>,
    /// Field 179.
    pub pcie_nonfatal_errors: Option<u64>,
    /// Degrees at which the driver slows the GPU down.
    pub slowdown_celsius: Option<i32>,
    /// Degrees that are left until then, for GPUs that have no such threshold.
    pub margin_celsius: Option<i32>,
    pub processes: Option<Processes>,
    /// `nvmlComputeMode_t`: 0 default, 2 prohibited, 3 exclusive to one process.
    pub compute_mode: Option<u32>,
    pub is_persistent: Option<bool>,
    pub mig: Option<Mig>,
    /// Whether a host in confidential-computing mode lets work on its GPUs; `None` where it is not in that
    /// mode.
    pub is_confidential_ready: Option<bool>,
}

/// Bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// Pages of memory that GPUs before Ampere retired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetiredPages {
    /// For corrected errors.
    pub corrected: u32,
    /// For uncorrected ones.
    pub uncorrected: u32,
    pub is_pending: bool,
}

/// One NVLink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub number: u32,
    pub is_active: bool,
    pub replays: u64,
    pub recoveries: u64,
    pub crc_errors: u64,
}

/// `nvmlGpuFabricInfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u32,
    /// An `nvmlReturn_t`, once completed.
    pub status: u32,
    /// 0 not supported, 1 healthy, 2 unhealthy, 3 limited.
    pub health: u32,
}

/// A figure and the most it can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfMost {
    pub now: u32,
    pub most: u32,
}

/// Who computes on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Processes of the worker's engine.
    pub own: u32,
    /// The largest of the others, where it is known whose they are.
    pub foreign: Option<Foreign>,
}

/// A process that is not the engine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    pub pid: u32,
    pub memory_bytes: u64,
}

/// Whether a GPU is cut into instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mig {
    pub is_enabled: bool,
    /// After the next reset.
    pub will_be_enabled: bool,
}
