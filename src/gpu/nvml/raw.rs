//! What of NVML the wrapper does not wrap.
#![expect(
    unsafe_code,
    reason = "these functions of NVML's C interface have no safe wrapper"
)]

use std::mem::{self, size_of};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try, nvml_try_count};
use nvml_wrapper::{Device, EventSet, Nvml};
use nvml_wrapper_sys::bindings::{
    NVML_CC_SYSTEM_FEATURE_ENABLED, nvmlConfComputeSystemState_t, nvmlEccSramErrorStatus_t,
    nvmlEventData_t, nvmlFieldValue_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t,
    nvmlMarginTemperature_t, nvmlPageRetirementCause_t, nvmlRowRemapperHistogramValues_t,
};

use crate::health::reading::{Event, Fabric};

/// NVML's own number for a structure's size and version.
const fn version<T>(number: u32) -> u32 {
    size_of::<T>() as u32 | number << 24
}

/// The kinds of events that the GPU can tell of, those without a name too.
fn supported_events(device: &Device<'_>) -> Result<u64, NvmlError> {
    let call = nvml_sym(
        device
            .nvml()
            .lib()
            .nvmlDeviceGetSupportedEventTypes
            .as_ref(),
    )?;
    let mut kinds = 0;
    // SAFETY: the handle is of a `Device`, which its `Nvml` outlives; the number lives on the stack.
    nvml_try(unsafe { call(device.handle(), &mut kinds) })?;
    Ok(kinds)
}

/// The events of one GPU, with the kinds that the wrapper cuts off.
#[derive(Debug)]
pub(super) struct Events<'nvml> {
    nvml: &'nvml Nvml,
    set: EventSet<'nvml>,
}

impl<'nvml> Events<'nvml> {
    /// Has the driver tell of those of `kinds` that the GPU has; `None` where it has none.
    pub(super) fn listen(device: &Device<'nvml>, kinds: u64) -> Result<Option<Self>, NvmlError> {
        let nvml = device.nvml();
        let kinds = supported_events(device)? & kinds;
        // The wrapper would call it when the set is dropped, and panic.
        if kinds == 0 || nvml.lib().nvmlEventSetFree.is_err() {
            return Ok(None);
        }
        let set = nvml.create_event_set()?;
        let set = device.register_events(EventTypes::from_bits_retain(kinds), set);
        let set = set.map_err(|failed| failed.error)?;
        Ok(Some(Self { nvml, set }))
    }

    /// Waits for an event; `Timeout` where there is none so long.
    pub(super) fn wait(&self, most: Duration) -> Result<Event, NvmlError> {
        let call = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
        let millis = u32::try_from(most.as_millis()).unwrap_or(u32::MAX);
        // SAFETY: all bits zero are valid for numbers and pointers, which is all that it has.
        let mut told: nvmlEventData_t = unsafe { mem::zeroed() };
        // SAFETY: this library made the set, which is freed when `self` is dropped.
        nvml_try(unsafe { call(self.set.handle(), &mut told, millis) })?;
        Ok(Event {
            kind: told.eventType,
            value: told.eventData,
        })
    }
}

/// The GPU that a MIG device is a part of.
pub(super) fn parent<'nvml>(device: &Device<'nvml>) -> Result<Device<'nvml>, NvmlError> {
    let nvml = device.nvml();
    let call = nvml_sym(
        nvml.lib()
            .nvmlDeviceGetDeviceHandleFromMigDeviceHandle
            .as_ref(),
    )?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: as for `supported_events`.
    nvml_try(unsafe { call(device.handle(), &mut handle) })?;
    // SAFETY: the library gave the handle.
    Ok(unsafe { Device::new(handle, nvml) })
}

/// Values of fields that are of a link.
pub(super) fn link_fields<const COUNT: usize>(
    device: &Device<'_>,
    link: u32,
    fields: [u32; COUNT],
) -> Result<[Result<u64, NvmlError>; COUNT], NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values = fields.map(|field| {
        // SAFETY: as for `Events::wait`; the union holds numbers alone.
        let mut value: nvmlFieldValue_t = unsafe { mem::zeroed() };
        value.fieldId = field;
        value.scopeId = link;
        value
    });
    // SAFETY: as for `supported_events`; there are as many values as is said.
    nvml_try(unsafe { call(device.handle(), COUNT as i32, values.as_mut_ptr()) })?;
    Ok(values.map(|value| {
        nvml_try(value.nvmlReturn)?;
        // SAFETY: the union was zeroed, and whatever number the library wrote is within these bytes,
        // the lowest first. Counters are not negative.
        Ok(unsafe { value.value.ullVal })
    }))
}

/// How many pages were retired for a cause.
pub(super) fn retired_pages(
    device: &Device<'_>,
    cause: nvmlPageRetirementCause_t,
) -> Result<u32, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetRetiredPages_v2.as_ref())?;
    let (mut count, none, never) = (0, std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: as for `supported_events`; with a length of 0 the library writes that alone.
    nvml_try_count(unsafe { call(device.handle(), cause, &mut count, none, never) })?;
    Ok(count)
}

/// How many banks of memory have no spare rows left.
pub(super) fn exhausted_banks(device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(
        device
            .nvml()
            .lib()
            .nvmlDeviceGetRowRemapperHistogram
            .as_ref(),
    )?;
    // SAFETY: as for `Events::wait`.
    let mut banks: nvmlRowRemapperHistogramValues_t = unsafe { mem::zeroed() };
    // SAFETY: as for `supported_events`.
    nvml_try(unsafe { call(device.handle(), &mut banks) })?;
    Ok(banks.none)
}

/// Whether the static memory had more errors than NVIDIA's threshold.
pub(super) fn is_sram_threshold_exceeded(device: &Device<'_>) -> Result<bool, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetSramEccErrorStatus.as_ref())?;
    // SAFETY: as for `Events::wait`.
    let mut status: nvmlEccSramErrorStatus_t = unsafe { mem::zeroed() };
    status.version = version::<nvmlEccSramErrorStatus_t>(1);
    // SAFETY: as for `supported_events`.
    nvml_try(unsafe { call(device.handle(), &mut status) })?;
    Ok(status.bThresholdExceeded != 0)
}

/// The GPU's place in its NVLink fabric.
pub(super) fn fabric(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    // SAFETY: as for `Events::wait`.
    let mut told: nvmlGpuFabricInfoV_t = unsafe { mem::zeroed() };
    told.version = version::<nvmlGpuFabricInfoV_t>(3);
    // SAFETY: as for `supported_events`.
    let mut answer = nvml_try(unsafe { call(device.handle(), &mut told) });
    if let Err(NvmlError::InvalidArg | NvmlError::UnexpectedVariant(_)) = answer {
        // Drivers before 570 know the second version, the same but for the summary at its end.
        told.version = version::<nvmlGpuFabricInfo_v2_t>(2);
        // SAFETY: as above; the library writes no more than the smaller structure.
        answer = nvml_try(unsafe { call(device.handle(), &mut told) });
    }
    answer?;
    Ok(Fabric {
        state: u32::from(told.state),
        status: told.status,
        health: u32::from(told.healthSummary),
    })
}

/// Degrees that are left until the driver slows the GPU down.
pub(super) fn margin_celsius(device: &Device<'_>) -> Result<i32, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMarginTemperature.as_ref())?;
    let mut margin = nvmlMarginTemperature_t {
        version: version::<nvmlMarginTemperature_t>(1),
        marginTemperature: 0,
    };
    // SAFETY: as for `supported_events`.
    nvml_try(unsafe { call(device.handle(), &mut margin) })?;
    Ok(margin.marginTemperature)
}

/// Whether the host is in confidential-computing mode.
pub(super) fn is_confidential(nvml: &Nvml) -> Result<bool, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlSystemGetConfComputeState.as_ref())?;
    // SAFETY: as for `Events::wait`.
    let mut state: nvmlConfComputeSystemState_t = unsafe { mem::zeroed() };
    // SAFETY: the structure lives on the stack.
    nvml_try(unsafe { call(&mut state) })?;
    Ok(state.ccFeature == NVML_CC_SYSTEM_FEATURE_ENABLED)
}
