//! What is read as numbered fields, all of a poll of a kind of poll with one call.

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_ECC_DBE_AGG_TOTAL, NVML_FI_DEV_ECC_DBE_VOL_TOTAL, NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_MEMORY_TEMP,
    NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR, NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR,
    NVML_FI_DEV_PCIE_REPLAY_COUNTER, NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING,
};

use crate::gpu::nvml::ask::{Asking, Item, Miss, miss_of};
use crate::health::reading::Reading;

/// Read with each poll.
const FAST: [u32; 7] = [
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
    NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    NVML_FI_DEV_REMAPPED_PENDING,
    NVML_FI_DEV_REMAPPED_FAILURE,
    NVML_FI_DEV_PCIE_REPLAY_COUNTER,
    NVML_FI_DEV_MEMORY_TEMP,
];
/// Read with each slow poll.
const SLOW: [u32; 3] = [
    NVML_FI_DEV_ECC_DBE_AGG_TOTAL,
    NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR,
    NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR,
];

/// The fields that a GPU is not known to lack.
#[derive(Debug)]
pub(super) struct Fields {
    fast: Vec<FieldId>,
    slow: Vec<FieldId>,
}

impl Fields {
    pub(super) fn new() -> Self {
        Self {
            fast: FAST.map(FieldId).to_vec(),
            slow: SLOW.map(FieldId).to_vec(),
        }
    }

    pub(super) fn read_fast(
        &mut self,
        device: &Device<'_>,
        asking: &mut Asking<'_>,
        reading: &mut Reading,
    ) {
        read(device, asking, reading, &mut self.fast);
    }

    pub(super) fn read_slow(
        &mut self,
        device: &Device<'_>,
        asking: &mut Asking<'_>,
        reading: &mut Reading,
    ) {
        read(device, asking, reading, &mut self.slow);
    }
}

/// Reads fields with one call, and forgets those that are absent.
fn read(
    device: &Device<'_>,
    asking: &mut Asking<'_>,
    reading: &mut Reading,
    fields: &mut Vec<FieldId>,
) {
    if fields.is_empty() {
        return;
    }
    let Some(answers) = asking.ask(Item::Fields, || device.field_values_for(fields)) else {
        return;
    };
    let mut answers = answers.into_iter();
    fields.retain(|field| {
        // A value of a kind that the wrapper cannot read is as good as none.
        let answer = match answers.next() {
            Some(Ok(sample)) => sample.value.map_err(miss_of),
            Some(Err(_)) | None => Err(Miss::Absent),
        };
        match answer {
            Ok(value) => put(reading, field, &value),
            Err(Miss::Absent) => return false,
            Err(Miss::Passing) => {}
            Err(Miss::Failed(code)) => asking.fail(code),
        }
        true
    });
}

fn put(reading: &mut Reading, field: &FieldId, value: &SampleValue) {
    let number = match *value {
        SampleValue::U32(value) => u64::from(value),
        SampleValue::U64(value) => value,
        // Neither counters, flags nor the heat of a memory at work are negative.
        SampleValue::I64(value) => value.max(0) as u64,
        SampleValue::F64(value) => value as u64,
    };
    match field.0 {
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => reading.recovery_action = Some(number),
        NVML_FI_DEV_ECC_SBE_VOL_TOTAL => reading.ecc_corrected = Some(number),
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL => reading.ecc_uncorrected = Some(number),
        NVML_FI_DEV_REMAPPED_PENDING => reading.remap_pending = Some(number != 0),
        NVML_FI_DEV_REMAPPED_FAILURE => reading.remap_failed = Some(number != 0),
        NVML_FI_DEV_PCIE_REPLAY_COUNTER => reading.pcie_replays = Some(number),
        NVML_FI_DEV_MEMORY_TEMP => reading.memory_temperature_celsius = i32::try_from(number).ok(),
        NVML_FI_DEV_ECC_DBE_AGG_TOTAL => reading.ecc_uncorrected_lifetime = Some(number),
        NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR => reading.pcie_fatal_errors = Some(number),
        NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR => reading.pcie_nonfatal_errors = Some(number),
        _ => debug_assert!(false, "field {field:?} is asked for in vain"),
    }
}
