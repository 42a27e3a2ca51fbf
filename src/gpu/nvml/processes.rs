//! Who computes on a GPU.

use std::collections::BTreeMap;

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use crate::gpu::nvml::ask::{Asking, Item};
use crate::gpu::owner::Owner;
use crate::health::reading::{Foreign, Processes};

/// Most processes whose control group is looked up, the largest first: the lookup reads a file for each.
const LOOKUPS_MAX: usize = 64;

/// The processes on a GPU; `None` where the driver does not say.
pub(super) fn read(
    device: &Device<'_>,
    asking: &mut Asking<'_>,
    owner: &Owner,
) -> Option<Processes> {
    let compute = asking.ask(Item::ComputeProcesses, || {
        device.running_compute_processes()
    });
    let graphics = asking.ask(Item::GraphicsProcesses, || {
        device.running_graphics_processes()
    });
    let mps = asking.ask(Item::MpsProcesses, || {
        device.mps_running_compute_processes()
    });
    if compute.is_none() && graphics.is_none() && mps.is_none() {
        return None;
    }
    let lists = [compute, graphics, mps];
    let used = lists
        .into_iter()
        .flatten()
        .flatten()
        .map(|process| used_bytes(&process));
    Some(sort(used, |pid| owner.owns(pid)))
}

fn used_bytes(process: &ProcessInfo) -> (u32, u64) {
    let bytes = match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => bytes,
        UsedGpuMemory::Unavailable => 0,
    };
    (process.pid, bytes)
}

/// Sorts processes into own and foreign ones. One process may be in several lists.
fn sort(used: impl Iterator<Item = (u32, u64)>, is_own: impl Fn(u32) -> Option<bool>) -> Processes {
    let mut bytes_of = BTreeMap::new();
    for (pid, bytes) in used {
        let most: &mut u64 = bytes_of.entry(pid).or_default();
        *most = bytes.max(*most);
    }
    let mut largest: Vec<(u32, u64)> = bytes_of.into_iter().collect();
    largest.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let mut processes = Processes::default();
    for (pid, memory_bytes) in largest.into_iter().take(LOOKUPS_MAX) {
        match is_own(pid) {
            Some(true) => processes.own += 1,
            Some(false) if processes.foreign.is_none() => {
                processes.foreign = Some(Foreign { pid, memory_bytes });
            }
            Some(false) | None => {}
        }
    }
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_foreign_process_is_named() {
        let used = [(7, 50), (8, 900), (7, 60), (9, 100), (10, 5_000), (11, 70)];
        let is_own = |pid| match pid {
            8 => Some(true),
            10 => None,
            _ => Some(false),
        };
        let foreign = Foreign {
            pid: 9,
            memory_bytes: 100,
        };
        let sorted = Processes {
            own: 1,
            foreign: Some(foreign),
        };
        assert_eq!(sort(used.into_iter(), is_own), sorted);
        assert_eq!(sort(used.into_iter(), |_| None), Processes::default());
    }
}
