//! The NVLinks of a GPU.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::nv_link::ErrorCounter;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS, NVML_FI_DEV_NVLINK_ERROR_DL_CRC,
    NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY, NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY,
};

use crate::gpu::nvml::ask::{Asking, Item, Miss, miss_of};
use crate::gpu::nvml::raw;
use crate::health::reading::Link;

/// Most links that are asked for: twice as many as GPUs of today have.
const LINKS_MAX: u32 = 36;

/// What a link counts, as fields; the last is the second's name with Blackwell.
const FIELDS: [u32; 4] = [
    NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY,
    NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY,
    NVML_FI_DEV_NVLINK_ERROR_DL_CRC,
    NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS,
];

/// The links that a GPU has, once they were asked for.
#[derive(Debug, Default)]
pub(super) struct Links {
    numbers: Option<Vec<u32>>,
}

impl Links {
    /// Reads all links of the GPU.
    pub(super) fn read(&mut self, device: &Device<'_>, asking: &mut Asking<'_>) -> Vec<Link> {
        if asking.absent.has(Item::Links) {
            return Vec::new();
        }
        let asked: Vec<u32> = match &self.numbers {
            Some(numbers) => numbers.clone(),
            None => (0..LINKS_MAX).collect(),
        };
        let mut there = Vec::new();
        let mut links = Vec::new();
        for number in asked {
            let is_active = || device.link_wrapper_for(number).is_active();
            match asking.try_ask(is_active) {
                Some(Ok(is_active)) => {
                    there.push(number);
                    let counts = counts(device, asking, number);
                    links.push(Link {
                        number,
                        is_active,
                        ..counts
                    });
                }
                Some(Err(Miss::Failed(code))) => {
                    there.push(number);
                    asking.fail(code);
                }
                Some(Err(Miss::Absent | Miss::Passing)) => {}
                None => return Vec::new(),
            }
        }
        if self.numbers.is_none() {
            if there.is_empty() {
                asking.absent.add(Item::Links);
            }
            self.numbers = Some(there);
        }
        links
    }
}

/// What the link counted; 0 for what it does not count.
fn counts(device: &Device<'_>, asking: &mut Asking<'_>, number: u32) -> Link {
    let link = device.link_wrapper_for(number);
    let fields = asking.ask(Item::LinkFields, || counts_of_fields(device, number));
    let counts = fields.or_else(|| {
        asking.ask(Item::LinkCounters, || {
            Ok(Link {
                replays: link.error_counter(ErrorCounter::DlReplay)?,
                recoveries: link.error_counter(ErrorCounter::DlRecovery)?,
                crc_errors: link.error_counter(ErrorCounter::DlCrcFlit)?,
                ..Link::default()
            })
        })
    });
    counts.unwrap_or_default()
}

/// # Errors
///
/// "Not supported" where the driver has none of the fields.
fn counts_of_fields(device: &Device<'_>, number: u32) -> Result<Link, NvmlError> {
    let mut counts = [None; FIELDS.len()];
    let answers = raw::link_fields(device, number, FIELDS)?;
    for (count, answer) in counts.iter_mut().zip(answers) {
        match answer {
            Ok(value) => *count = Some(value),
            Err(error) => match miss_of(error) {
                Miss::Absent | Miss::Passing => {}
                Miss::Failed(code) => return Err(NvmlError::from(code.0)),
            },
        }
    }
    if counts.iter().all(Option::is_none) {
        return Err(NvmlError::NotSupported);
    }
    let [replays, recoveries, crc_errors, recovery_events] = counts;
    Ok(Link {
        replays: replays.unwrap_or(0),
        recoveries: recoveries.or(recovery_events).unwrap_or(0),
        crc_errors: crc_errors.unwrap_or(0),
        ..Link::default()
    })
}
