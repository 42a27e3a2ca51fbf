//! One GPU, opened: what it is asked, and what it tells by itself.

use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::{
    PerformanceState, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use tracing::debug;

use crate::gpu::nvml::ask::{Absent, Asking, Item, Miss, is_gone};
use crate::gpu::nvml::fields::Fields;
use crate::gpu::nvml::links::Links;
use crate::gpu::nvml::raw::Events;
use crate::gpu::nvml::{Library, NvmlFault, processes, raw};
use crate::gpu::owner::Owner;
use crate::gpu::pulse::Pulse;
use crate::health::reading::{
    Call, Code, Event, Failure, Memory, Mig, OfMost, Reading, RetiredPages,
};

/// The events to be told of, as far as the GPU has them.
const EVENTS: u64 =
    Event::XID | Event::MIG_CONFIG_CHANGE | Event::GPU_UNAVAILABLE | Event::RECOVERY_ACTION;

/// `nvmlPageRetirementCause_t`.
const CORRECTED: u32 = 0;
const UNCORRECTED: u32 = 1;

/// A GPU that can be asked.
///
/// It borrows a [`Library`] of its own: NVML counts how often it was initialised, so that one which is
/// given back, because its GPU is lost, leaves those of other GPUs' threads as they are.
#[derive(Debug)]
pub(crate) struct Session<'nvml> {
    nvml: &'nvml Nvml,
    device: Device<'nvml>,
    pulse: &'nvml Pulse,
    /// `None` where it tells none.
    events: Option<Events<'nvml>>,
    absent: Absent,
    fields: Fields,
    links: Links,
    /// What cannot change while the GPU is open; `None` before the first poll.
    fixed: Option<Fixed>,
    /// What the last slow poll read.
    slow: Reading,
    /// A wait for events that failed since the last poll.
    wait_failed: Option<Code>,
}

#[derive(Debug, Default)]
struct Fixed {
    pcie_width_most: Option<u32>,
    pcie_generation_most: Option<u32>,
    slowdown_celsius: Option<i32>,
    inforom: Option<Failure>,
}

/// What one poll saw.
#[derive(Debug)]
pub(crate) struct Polled {
    pub(crate) reading: Reading,
    /// Whether the GPU must be opened anew: it waits for a reset, which needs it closed, or gave no value.
    pub(crate) is_over: bool,
}

/// Why a GPU cannot be opened, or asked any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Unreachable {
    pub(crate) code: Code,
    pub(crate) text: String,
}

impl Unreachable {
    /// For where a thread panics or cannot be started, which no GPU is to blame for.
    pub(crate) fn own_fault() -> Self {
        Self {
            code: Code::UNKNOWN,
            text: "the GPU is not read, by a fault of kvlens's own".to_owned(),
        }
    }
}

impl From<NvmlFault> for Unreachable {
    fn from(fault: NvmlFault) -> Self {
        let text = match &fault {
            NvmlFault::Driver(NvmlError::LibRmVersionMismatch) => {
                "the NVIDIA driver that runs has another version than its library".to_owned()
            }
            fault => fault.to_string(),
        };
        let code = fault.code();
        Self { code, text }
    }
}

impl<'nvml> Session<'nvml> {
    /// Opens the GPU of that UUID, or the one that a MIG device of that name is a part of.
    pub(crate) fn open(
        library: &'nvml Library,
        uuid: &str,
        pulse: &'nvml Pulse,
    ) -> Result<Self, Unreachable> {
        let Library(nvml) = library;
        let device = {
            let _call = pulse.call();
            find(nvml, uuid)
        };
        let device = device.map_err(|error| not_opened(uuid, error))?;
        let events = {
            let _call = pulse.call();
            Events::listen(&device, EVENTS)
        };
        let events = match events {
            Ok(events) => events,
            Err(error) => {
                debug!(gpu = uuid, error = %error, "the gpu tells no events");
                None
            }
        };
        Ok(Self {
            nvml,
            device,
            pulse,
            events,
            absent: Absent::default(),
            fields: Fields::new(),
            links: Links::default(),
            fixed: None,
            slow: Reading::default(),
            wait_failed: None,
        })
    }

    /// The driver's number of the GPU.
    pub(crate) fn index(&self) -> Option<u32> {
        let _call = self.pulse.call();
        self.device.index().ok()
    }

    /// Its product name.
    pub(crate) fn name(&self) -> Option<String> {
        let _call = self.pulse.call();
        self.device.name().ok()
    }

    /// Waits for an event; `None` where there is none so long.
    ///
    /// # Errors
    ///
    /// Where waiting failed: [`Unreachable`] where the GPU is gone. Otherwise the next poll says why, and
    /// until then there is no sense in waiting.
    pub(crate) fn wait(&mut self, most: Duration) -> Result<Option<Event>, Option<Unreachable>> {
        let Some(events) = &self.events else {
            return Err(None);
        };
        let event = {
            let _call = self.pulse.call_for(most);
            events.wait(most)
        };
        match event {
            Ok(event) => Ok(Some(event)),
            Err(NvmlError::Timeout) => Ok(None),
            Err(error) => {
                let text = format!("the driver tells no events any more: {error}");
                let code = Code(error.into());
                self.wait_failed = Some(code);
                Err(is_gone(code).then_some(Unreachable { code, text }))
            }
        }
    }

    /// Reads what is read with each poll, and, where `is_slow` or for the first time, all the rest.
    ///
    /// # Errors
    ///
    /// Where the GPU is gone, or answers nothing.
    pub(crate) fn poll(&mut self, owner: &Owner, is_slow: bool) -> Result<Polled, Unreachable> {
        let mut asking = Asking::new(self.pulse, self.absent);
        if let Some(code) = self.wait_failed.take() {
            asking.fail(code);
        }
        if self.fixed.is_none() {
            self.fixed = Some(self.read_fixed(&mut asking));
            self.read_slow(&mut asking, owner);
        } else if is_slow {
            self.read_slow(&mut asking, owner);
        }
        let mut reading = self.slow.clone();
        self.read_fast(&mut asking, &mut reading);
        self.absent = asking.absent;

        let (failures, is_answered) = asking.end().map_err(gone)?;
        if failures.is_empty() && !is_answered {
            let code = Code::INVALID_ARGUMENT;
            let text = "the driver knows the GPU no more".to_owned();
            return Err(Unreachable { code, text });
        }
        let waits_for_reset = failures
            .iter()
            .any(|failure| failure.code == Code::RESET_REQUIRED);
        reading.failures = failures;
        let inforom = self.fixed.as_ref().and_then(|fixed| fixed.inforom);
        reading.failures.extend(inforom);
        Ok(Polled {
            reading,
            is_over: waits_for_reset || !is_answered,
        })
    }

    fn read_fixed(&self, asking: &mut Asking<'_>) -> Fixed {
        let device = &self.device;
        let slowdown = || device.temperature_threshold(TemperatureThreshold::Slowdown);
        let inforom = match asking.try_ask(|| device.validate_info_rom()) {
            // Whoever may not validate it knows nothing of it.
            Some(Err(Miss::Failed(code))) if code != Code::NO_PERMISSION => Some(Failure {
                call: Call::ValidateInforom,
                code,
            }),
            _ => None,
        };
        Fixed {
            pcie_width_most: asking.ask(Item::PcieWidth, || device.max_pcie_link_width()),
            pcie_generation_most: asking.ask(Item::PcieGeneration, || device.max_pcie_link_gen()),
            slowdown_celsius: asking.ask(Item::Slowdown, slowdown).map(degrees),
            inforom,
        }
    }

    fn read_fast(&mut self, asking: &mut Asking<'_>, reading: &mut Reading) {
        let device = &self.device;
        self.fields.read_fast(device, asking, reading);
        let throttle = asking.ask(Item::Throttle, || device.current_throttle_reasons());
        reading.throttle_reasons = throttle.map(|reasons| reasons.bits());
        let celsius = asking.ask(Item::Temperature, || {
            device.temperature(TemperatureSensor::Gpu)
        });
        reading.temperature_celsius = celsius.map(degrees);
        let utilization = asking.ask(Item::Utilization, || device.utilization_rates());
        reading.utilization_percent = utilization.map(|rates| rates.gpu);
        reading.power_milliwatts = asking.ask(Item::Power, || device.power_usage());
        let state = asking.ask(Item::PerformanceState, || device.performance_state());
        let state = state.filter(|state| *state != PerformanceState::Unknown);
        reading.performance_state = state.map(|state| state.as_c());
        let memory = asking.ask(Item::Memory, || device.memory_info());
        reading.memory = memory.map(|memory| Memory {
            total_bytes: memory.total,
            free_bytes: memory.free,
        });
    }

    fn read_slow(&mut self, asking: &mut Asking<'_>, owner: &Owner) {
        let device = &self.device;
        let mut slow = Reading::default();
        self.fields.read_slow(device, asking, &mut slow);
        slow.sram_threshold_exceeded =
            asking.ask(Item::Sram, || raw::is_sram_threshold_exceeded(device));
        slow.exhausted_banks = asking.ask(Item::Banks, || raw::exhausted_banks(device));
        slow.retired_pages = asking.ask(Item::RetiredPages, || {
            Ok(RetiredPages {
                corrected: raw::retired_pages(device, CORRECTED)?,
                uncorrected: raw::retired_pages(device, UNCORRECTED)?,
                is_pending: device.are_pages_pending_retired()?,
            })
        });
        slow.links = self.links.read(device, asking);
        slow.fabric = asking.ask(Item::Fabric, || raw::fabric(device));
        slow.margin_celsius = asking.ask(Item::Margin, || raw::margin_celsius(device));
        slow.processes = processes::read(device, asking, owner);
        let mode = asking.ask(Item::ComputeMode, || device.compute_mode());
        slow.compute_mode = mode.map(|mode| mode.as_c());
        slow.is_persistent = asking.ask(Item::Persistence, || device.is_in_persistent_mode());
        let mig = asking.ask(Item::Mig, || device.mig_mode());
        slow.mig = mig.map(|mode| Mig {
            is_enabled: mode.current != 0,
            will_be_enabled: mode.pending != 0,
        });
        slow.is_confidential_ready = asking.ask(Item::ConfidentialCompute, || {
            match raw::is_confidential(self.nvml)? {
                true => device.get_confidential_compute_state(),
                // The mode is the host's, from its start on.
                false => Err(NvmlError::NotSupported),
            }
        });
        if let Some(fixed) = &self.fixed {
            let width = asking.ask(Item::PcieWidth, || device.current_pcie_link_width());
            slow.pcie_width = of_most(width, fixed.pcie_width_most);
            let generation = asking.ask(Item::PcieGeneration, || device.current_pcie_link_gen());
            slow.pcie_generation = of_most(generation, fixed.pcie_generation_most);
            slow.slowdown_celsius = fixed.slowdown_celsius;
        }
        self.slow = slow;
    }
}

fn find<'nvml>(nvml: &'nvml Nvml, uuid: &str) -> Result<Device<'nvml>, NvmlError> {
    // Drivers before 470 name a MIG device MIG-GPU-<uuid>/<instance>/<instance>.
    let of_gpu = uuid
        .strip_prefix("MIG-")
        .filter(|of| of.starts_with("GPU-"));
    match of_gpu.and_then(|of| of.split('/').next()) {
        Some(gpu) => nvml.device_by_uuid(gpu),
        None if uuid.starts_with("MIG-") => raw::parent(&nvml.device_by_uuid(uuid)?),
        None => nvml.device_by_uuid(uuid),
    }
}

fn not_opened(uuid: &str, error: NvmlError) -> Unreachable {
    let text = match &error {
        NvmlError::NotFound => format!("the driver sees no GPU {uuid}"),
        NvmlError::GpuLost => format!("GPU {uuid} has fallen off the bus"),
        NvmlError::UnexpectedVariant(code) => {
            format!("GPU {uuid} cannot be opened: {}", Code(*code))
        }
        error => format!("GPU {uuid} cannot be opened: {error}"),
    };
    let code = Code(error.into());
    Unreachable { code, text }
}

fn gone(code: Code) -> Unreachable {
    let text = match code {
        Code::GPU_IS_LOST => "the GPU has fallen off the bus, or was reset".to_owned(),
        Code::UNINITIALIZED => "the driver was shut down".to_owned(),
        code => format!("the driver lost the GPU: {code}"),
    };
    Unreachable { code, text }
}

fn of_most(now: Option<u32>, most: Option<u32>) -> Option<OfMost> {
    Some(OfMost {
        now: now?,
        most: most?,
    })
}

/// NVML gives degrees as a number without a sign.
fn degrees(celsius: u32) -> i32 {
    celsius as i32
}
