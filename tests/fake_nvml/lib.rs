//! A fake `libnvidia-ml.so.1`, for tests: NVIDIA's management library with GPUs that fall ill as they are
//! told to.
//!
//! It is a stand-in, written after NVML's documentation and NVIDIA's clients. It has never been compared
//! with a real driver, and shows nothing about one: where the two differ, this one is wrong.
//!
//! The types are those of nvml-wrapper-sys, and each symbol's signature is checked against its bindings;
//! NVIDIA's own Python client judges the rest (`tests/nvml`). A symbol that a driver lacks cannot be
//! played: symbols are the same for all who load the file. [`call`] has what there is.
//!
//! # What it is told by
//! A file `scenario.json` beside the library's own file, and then a control socket `control.sock` there,
//! so that each copy of the file is a host of its own. Where there is none: the files that the environment
//! names as `FAKE_NVML_SCENARIO` and `FAKE_NVML_CONTROL` (`{pid}` in the latter is the process' id). Where
//! there is neither: eight healthy H200s that nobody can change.
//!
//! The scenario is an object with fields of the system and `gpus`, a list of objects with fields of a GPU;
//! what is not named is as in the tables. It is read at the first `nvmlInit*` of the process and at the
//! first after the last `nvmlShutdown`; if it is the same as before, what the control socket has set stays.
//! A scenario that is wrong has `nvmlInit*` answer 999, and says why on standard error.
//!
//! # The control socket
//! It is there from the first `nvmlInit*`, even a failed one, to the last `nvmlShutdown`, which returns
//! when the socket and its threads are gone and whoever hangs has been let go. Each line is a JSON object,
//! of at most 64 KiB; each is answered by a line `{"ok":true}` or `{"ok":false,"error":"…"}`, and what it
//! sets is in force then. A command that is refused sets nothing; a restore in it, and events before one
//! that finds no room, have been. Sixteen connections are served at once; others wait.
//!
//! | command | does |
//! |---|---|
//! | `{"gpu":3,"set":{"temperature":91}}` | sets fields of a GPU |
//! | `{"gpu":3,"unset":["error"]}` | sets them to null |
//! | `{"set":{"init_return":18}}` | sets fields of the system; `unset` too |
//! | `{"gpu":3,"hang_ms":2500}` | has each call on the GPU take so long |
//! | `{"gpu":3,"hang":"forever"}` | has no call on it return |
//! | `{"gpu":3,"unhang":true}` | lets all go |
//! | `{"gpu":3,"xid":79}` | tells an XID; `"sets"` in the answer says to how many event sets |
//! | `{"gpu":3,"event":[32768,1]}` | tells any event: type, data, and GPU and compute instance if wanted |
//! | `{"gpu":3,"reset":true}` | has handles and registrations of before answer 15 |
//! | `{"restore":3}`, `{"restore":"all"}` | puts a GPU, or all and the system, back to the scenario |
//! | `{"counters":true}` | `"counters"`: how often each symbol was called; with `gpu`, on that GPU |
//! | `{"get":true}` | `"system"` or, with `gpu`, `"gpu"`: all fields in force |
//!
//! Several words in one command are obeyed in this order: restore, events, set, reset, counters, get.
//!
//! # How it behaves
//! A call on a GPU first hangs, if the GPU does, and no lock is held meanwhile, so that other GPUs do not
//! notice. Then it answers the GPU's `error`; 15, if the handle is from before a reset or the GPU is
//! missing; what `errors` has for the symbol; 3, where a field is null; or the value. Finding a GPU is such
//! a call, counting them is none.
//!
//! Events go to the sets in which the GPU is registered for their type; a set holds 1,024, and each is
//! heard once. A wait hears first what is queued, then answers at once the error of a GPU of its set, as a
//! real one does of a lost GPU, and else waits. It hangs with each GPU of its set, also if it is under way.
//!
//! # Fields of a GPU
//! With null as value a call is answered with 3 (not supported), unless the table says another thing.
//!
//! | field | default | is |
//! |---|---|---|
//! | `uuid` | `GPU-6b766c65-6e73-4000-8000-0000000000` and the index in hex | never null |
//! | `name` | `NVIDIA H200` | |
//! | `minor` | the index | of `/dev/nvidia…` |
//! | `pci_bus_id` | `00000000:10:00.0` for the first, then `…:11:00.0` and on | never null |
//! | `pci_device_id` | `0x233510de` | never null |
//! | `pci_subsystem_id` | `0x18be10de` | never null |
//! | `error` | null | what every call on the GPU answers, event waits too; null and 0: none |
//! | `errors` | null | what some calls answer, by symbol: `{"nvmlDeviceGetPowerUsage": 999}` |
//! | `missing` | null | 1: the host has no such GPU; those behind it move up by one index |
//! | `hang` | null | `forever`: calls do not return |
//! | `hang_ms` | null | how long each call takes |
//! | `ecc` | 1 | mode: 0 off, 1 on |
//! | `ecc_pending` | 1 | mode after the next reset |
//! | `ecc_corrected` | 0 | volatile count, in total and of DRAM; field 3 |
//! | `ecc_uncorrected` | 0 | the same of double-bit errors; field 4 |
//! | `ecc_corrected_lifetime` | 0 | aggregate count; field 5 |
//! | `ecc_uncorrected_lifetime` | 0 | aggregate count; field 6 |
//! | `sram` | eleven zeros | the counts of `nvmlEccSramErrorStatus_t`, in its order |
//! | `sram_threshold_exceeded` | 0 | 0 or 1 |
//! | `remapped_corrected` | 0 | rows; field 142 |
//! | `remapped_uncorrected` | 0 | rows; field 143 |
//! | `remap_pending` | 0 | 0 or 1; field 144 |
//! | `remap_failed` | 0 | 0 or 1; field 145 |
//! | `remap_histogram` | `[3072, 0, 0, 0, 0]` | banks with max, high, partial, low, none left |
//! | `retired_pages_corrected` | null | addresses; the n-th was retired n seconds after 1,700,000,000 |
//! | `retired_pages_uncorrected` | null | addresses |
//! | `retired_pages_pending` | null | 0 or 1 |
//! | `inforom` | 0 | what `nvmlDeviceValidateInforom` answers: 0 or 14 |
//! | `temperature` | 45 | of the GPU |
//! | `memory_temperature` | 50 | field 82 |
//! | `temperature_shutdown` | 92 | threshold 0 |
//! | `temperature_slowdown` | 87 | threshold 1 |
//! | `temperature_memory_max` | 95 | threshold 2 |
//! | `temperature_gpu_max` | 85 | threshold 3 |
//! | `margin` | `computed` | degrees that are left: a number, or `temperature_slowdown` − `temperature` |
//! | `tlimit_shutdown` | -8 | field 193 |
//! | `tlimit_slowdown` | -2 | field 194 |
//! | `tlimit_memory_max` | 0 | field 195 |
//! | `tlimit_gpu_max` | 0 | field 196 |
//! | `throttle_reasons` | 0 | bits, by the old symbol and the new |
//! | `clocks_mhz` | `[1980, 1980, 3201, 1545]` | graphics, SM, memory, video; each may be null |
//! | `max_clocks_mhz` | `[1980, 1980, 3201, 1545]` | the same |
//! | `performance_state` | 0 | P0 to P15 |
//! | `power_milliwatts` | 120000 | |
//! | `power_limit_milliwatts` | 700000 | the enforced one |
//! | `utilization` | 0 | percent; null: both rates are not supported |
//! | `memory_utilization` | 0 | percent |
//! | `memory_total_bytes` | 143771 MiB | free is what is neither used nor reserved |
//! | `memory_reserved_bytes` | 615 MiB | by the driver; never null |
//! | `memory_used_bytes` | 0 | never null; processes do not add to it |
//! | `processes` | `[]` | that compute: `{"pid":1}` and, if wanted, `memory_bytes`, `gpu_instance`, `compute_instance` |
//! | `graphics_processes` | `[]` | the same |
//! | `mps_processes` | `[]` | the same |
//! | `pcie_width` | 16 | |
//! | `pcie_width_max` | 16 | |
//! | `pcie_generation` | 5 | |
//! | `pcie_generation_max` | 5 | |
//! | `pcie_replays` | 0 | field 94 too |
//! | `pcie_fatal_errors` | 0 | field 180 |
//! | `pcie_nonfatal_errors` | 0 | field 179 |
//! | `links` | 18 | how many NVLinks there are; null: none |
//! | `links_inactive` | `[]` | which of them are down |
//! | `link_replays` | `{}` | by link, as `{"4": 2}`; field 161 too |
//! | `link_recoveries` | `{}` | by link; field 162 too |
//! | `link_crc_errors` | `{}` | of flits, by link; field 163 too |
//! | `link_crc_data_errors` | `{}` | by link |
//! | `link_fields` | `{}` | fields 206 to 215, by link: `{"208": {"4": 2}}` |
//! | `fabric_state` | 3 | 0 not supported, 1 not started, 2 in progress, 3 completed |
//! | `fabric_status` | 0 | an `nvmlReturn_t`; never null |
//! | `fabric_health` | 1 | 0 not supported, 1 healthy, 2 unhealthy, 3 limited; never null |
//! | `fabric_health_mask` | 0 | never null |
//! | `fabric_clique` | 1 | never null |
//! | `recovery_action` | 0 | field 230 |
//! | `persistence` | 1 | 0 off, 1 on |
//! | `compute_mode` | 0 | 0 default, 2 prohibited, 3 exclusive to a process |
//! | `mig` | 0 | mode |
//! | `mig_pending` | 0 | mode after the next reset |
//! | `supported_events` | 0xff9f | bits; registering others answers 3 |
//! | `fields` | `{}` | what fields answer instead, by number: `{"191": 7, "230": null}` |
//!
//! Scopes of fields 161 to 163 and 206 to 215 are links, and all ones stand for the sum of them. A field
//! that is not in the table answers 3, by itself.
//!
//! # Fields of the system
//! `errors` is there too, for symbols that are not called on one GPU.
//!
//! | field | default | is |
//! |---|---|---|
//! | `init_return` | 0 | what each `nvmlInit*` answers |
//! | `errors` | null | what some calls answer, by symbol |
//! | `driver_version` | `570.172.08` | |
//! | `nvml_version` | `12.570.172.08` | |
//! | `cuda_version` | 12080 | |
//! | `confidential_environment` | 0 | 0 unavailable, 1 simulated, 2 production; never null |
//! | `confidential_feature` | 0 | 0 off, 1 on |
//! | `confidential_dev_tools` | 0 | 0 off, 1 on; never null |
//! | `confidential_ready` | 0 | whether GPUs take work, which counts only where the feature is on |

#![expect(unsafe_code, reason = "an ABI of C is pointers")]
#![expect(non_upper_case_globals, reason = "the names of constants are NVIDIA's")]

mod call;
mod command;
mod control;
mod event;
mod gpu;
mod library;
mod place;
mod scenario;
mod settings;
