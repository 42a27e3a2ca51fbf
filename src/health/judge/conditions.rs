//! What polls show: one condition for each signal that a reading has, in the table's order.

use std::time::Duration;

use crate::health::incident::Severity::{Degraded, Fatal, Info, NotReady};
use crate::health::judge::Look;
use crate::health::judge::finding::Finding;
use crate::health::judge::links;
use crate::health::judge::past::Past;
use crate::health::signal::Signal;

/// Whether one signal shows; `None` too where the GPU does not have what it is read from.
type Condition = fn(&Look<'_>, &mut Past) -> Option<Finding>;

const CONDITIONS: [Condition; 24] = [
    recovery_action,
    ecc_uncorrected,
    ecc_lifetime,
    ecc_corrected_rate,
    sram_threshold,
    remap_pending,
    remap_failed,
    remap_exhausted,
    retired_pages,
    links::fabric,
    pcie_link,
    pcie_replay,
    pcie_errors,
    hw_slowdown,
    power_cap,
    sw_thermal,
    temperature,
    foreign_process,
    memory,
    compute_mode,
    persistence,
    mig,
    stuck,
    confidential_compute,
];

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// Bits of `nvmlClocksEventReasons`.
const HW_SLOWDOWN: u64 = 0x8 | 0x40 | 0x80;
const SW_POWER_CAP: u64 = 0x4;
const SW_THERMAL: u64 = 0x20;

/// All that a reading shows.
pub(super) fn found(look: &Look<'_>, past: &mut Past) -> Vec<Finding> {
    let conditions = CONDITIONS.iter();
    let mut found: Vec<_> = conditions
        .filter_map(|condition| condition(look, past))
        .collect();
    found.extend(links::found(look, past));
    found
}

fn recovery_action(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let action = look.reading.recovery_action.filter(|&action| action > 0)?;
    let (name, advice) = match action {
        1 => (
            "reset the GPU",
            "stop what uses the GPU and reset it: `nvidia-smi -r -i UUID`",
        ),
        2 => ("reboot the node", "reboot the host"),
        3 => (
            "drain peers",
            "stop what uses the GPU together with others, and reset them",
        ),
        4 => (
            "drain and reset",
            "drain the worker, then reset the GPU: `nvidia-smi -r -i UUID`",
        ),
        5 => (
            "recover IMEX",
            "restart IMEX: `systemctl restart nvidia-imex`",
        ),
        6 => ("reset the bus", "reset the GPU's bus, or reboot the host"),
        7 => ("reboot the system", "reboot the host"),
        _ => (
            "one that is new",
            "update kvlens, and ask `nvidia-smi -q` for the recovery action",
        ),
    };
    let severity = match action {
        3 | 5 if !look.has_peers() => Degraded,
        _ => Fatal,
    };
    let text = format!("the driver advises recovery action {action}: {name}");
    let found = Finding::new(Signal::RecoveryAction, severity, text);
    Some(found.with_code(action).with_action(advice))
}

fn ecc_uncorrected(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let count = past.ecc_uncorrected.by(look.reading.ecc_uncorrected);
    let contained = look.limits.contained;
    let is_recent = |at: Duration| look.now.saturating_sub(at) <= contained;
    let severity = match past.contained_at.is_some_and(is_recent) {
        true => Degraded,
        false => Fatal,
    };
    let text = format!("{count} more uncorrected errors of memory");
    (count > 0).then(|| Finding::new(Signal::EccUncorrected, severity, text))
}

fn ecc_lifetime(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let count = look.reading.ecc_uncorrected_lifetime?;
    let first = *past.ecc_lifetime_first.get_or_insert(count);
    let before = look.context.lifetime_before.unwrap_or(first);
    if first > before {
        let text =
            format!("{first} uncorrected errors over the GPU's life, {before} before this start");
        return Some(Finding::new(Signal::EccLifetime, Degraded, text));
    }
    let text = format!("{count} uncorrected errors over the GPU's life");
    (count > 0).then(|| Finding::new(Signal::EccLifetime, Info, text))
}

fn ecc_corrected_rate(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let count = past.ecc_corrected.by(look.reading.ecc_corrected);
    let count = past.ecc_corrected_rate.count(count, HOUR, look.now);
    let is_normal = count <= look.limits.ecc_corrected_per_hour;
    let text = format!("{count} corrected errors of memory within an hour");
    (!is_normal).then(|| Finding::new(Signal::EccCorrectedRate, Degraded, text))
}

fn sram_threshold(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let text = "the errors of its SRAM exceed their threshold";
    let is_exceeded = look.reading.sram_threshold_exceeded?;
    is_exceeded.then(|| Finding::new(Signal::SramThreshold, Fatal, text))
}

fn remap_pending(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let text = "rows of memory wait to be remapped";
    let is_pending = look.reading.remap_pending?;
    is_pending.then(|| Finding::new(Signal::RemapPending, Degraded, text))
}

fn remap_failed(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let text = "rows of memory could not be remapped";
    let has_failed = look.reading.remap_failed?;
    has_failed.then(|| Finding::new(Signal::RemapFailed, Fatal, text))
}

fn remap_exhausted(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let banks = look.reading.exhausted_banks?;
    let text = format!("{banks} banks of memory have no spare rows left");
    (banks > 0).then(|| Finding::new(Signal::RemapExhausted, Degraded, text))
}

fn retired_pages(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let pages = look.reading.retired_pages?;
    let (corrected, uncorrected) = (pages.corrected, pages.uncorrected);
    let is_too_many = uncorrected > look.limits.retired_uncorrected_pages
        || corrected.saturating_add(uncorrected) > look.limits.retired_pages;
    let severity = match is_too_many {
        true => Fatal,
        false => Degraded,
    };
    let pending = match pages.is_pending {
        true => ", and more wait to be",
        false => "",
    };
    let text = format!(
        "{uncorrected} pages of memory are retired for uncorrected errors and {corrected} for \
         corrected ones{pending}"
    );
    let is_fault = is_too_many || pages.is_pending;
    is_fault.then(|| Finding::new(Signal::RetiredPages, severity, text))
}

fn pcie_link(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let reading = look.reading;
    // An idle GPU lowers its generation. Slow polls read that, so it is a fault only once the GPU was at
    // work at the last of them too.
    let is_at_work = reading.utilization_percent.is_some_and(|used| used > 0)
        || reading.performance_state == Some(0);
    let hold = &mut past.holds.at_work;
    let was_at_work = hold.reaches(look.limits.slow_poll, is_at_work, look.now);
    let width = reading.pcie_width.filter(|width| width.now < width.most);
    let generation = reading
        .pcie_generation
        .filter(|generation| generation.now < generation.most);
    let text = match (width, generation) {
        (Some(width), _) => format!("PCIe has {} of {} lanes", width.now, width.most),
        (_, Some(is)) if was_at_work => format!("PCIe is of generation {} of {}", is.now, is.most),
        _ => return None,
    };
    Some(Finding::new(Signal::PcieLink, Degraded, text))
}

fn pcie_replay(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let count = past.pcie_replays.by(look.reading.pcie_replays);
    let count = past.pcie_replay_rate.count(count, MINUTE, look.now);
    let is_normal = count <= look.limits.pcie_replays_per_minute;
    let text = format!("{count} replays of PCIe within a minute");
    (!is_normal).then(|| Finding::new(Signal::PcieReplay, Degraded, text))
}

fn pcie_errors(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let fatal = past.pcie_fatal.by(look.reading.pcie_fatal_errors);
    let nonfatal = past.pcie_nonfatal.by(look.reading.pcie_nonfatal_errors);
    let severity = match fatal {
        0 => Degraded,
        _ => Fatal,
    };
    let text = format!("{fatal} more fatal and {nonfatal} more nonfatal errors of PCIe");
    (fatal > 0 || nonfatal > 0).then(|| Finding::new(Signal::PcieErrors, severity, text))
}

fn hw_slowdown(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let bits = look.reading.throttle_reasons.unwrap_or_default() & HW_SLOWDOWN;
    let limit = look.limits.hw_slowdown;
    let hold = &mut past.holds.hw_slowdown;
    let text = format!("hardware has slowed it down for {limit:?} ({bits:#x})");
    let is_fault = hold.reaches(limit, bits != 0, look.now);
    is_fault.then(|| Finding::new(Signal::HwSlowdown, Degraded, text).with_code(bits))
}

/// The first half of `sw_slowdown`: what every busy GPU does.
fn power_cap(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let bits = look.reading.throttle_reasons? & SW_POWER_CAP;
    let text = "its power is capped, as is normal at work";
    (bits != 0).then(|| Finding::new(Signal::SwSlowdown, Info, text).with_code(bits))
}

/// The other half of `sw_slowdown`.
fn sw_thermal(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let bits = look.reading.throttle_reasons.unwrap_or_default() & SW_THERMAL;
    let limit = look.limits.sw_thermal;
    let hold = &mut past.holds.sw_thermal;
    let text = format!("the driver has slowed it down for heat for {limit:?}");
    let is_fault = hold.reaches(limit, bits != 0, look.now);
    is_fault.then(|| Finding::new(Signal::SwSlowdown, Degraded, text).with_code(bits))
}

fn temperature(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let reading = look.reading;
    let of_threshold = reading.temperature_celsius.zip(reading.slowdown_celsius);
    let left = match of_threshold {
        Some((now, slowdown)) => Some(slowdown.saturating_sub(now)),
        None => reading.margin_celsius,
    };
    let is_hot = left.is_some_and(|left| left <= 0);
    let is_hot_for_long = past.holds.hot.reaches(look.limits.hot, is_hot, look.now);
    let left = left?;
    let text = match of_threshold {
        Some((now, slowdown)) => format!("it has {now} °C, and slows down at {slowdown} °C"),
        None => format!("{left} °C are left until it slows down"),
    };
    let severity = match is_hot_for_long {
        true => Fatal,
        false => Degraded,
    };
    let is_warm = left <= look.limits.warm_celsius;
    is_warm.then(|| Finding::new(Signal::Temperature, severity, text))
}

fn foreign_process(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let foreign = look.processes()?.foreign?;
    let (pid, mebibytes) = (foreign.pid, foreign.memory_bytes >> 20);
    let text =
        format!("process {pid}, which is not the engine's, has {mebibytes} MiB of its memory");
    let is_much = foreign.memory_bytes > look.limits.foreign_memory_bytes;
    // What keeps an engine from starting takes from one that runs.
    let severity = match look.context.is_engine_starting {
        true => NotReady,
        false => Degraded,
    };
    is_much.then(|| Finding::new(Signal::ForeignProcess, severity, text))
}

fn memory(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let (memory, context) = (look.reading.memory, look.context);
    let share = context.memory_needed.filter(|_| context.is_engine_starting);
    let own = look.processes().map(|processes| processes.own);
    let lack = memory.zip(share).and_then(|(memory, share)| {
        let needed = share * memory.total_bytes as f64;
        let is_short = (memory.free_bytes as f64) < needed;
        // Once the engine has memory of its own, less is free because of it.
        (is_short && own == Some(0)).then_some((memory.free_bytes, needed as u64))
    });
    // Slow polls read who has memory, so only the next of them tells whether it is the engine.
    let hold = &mut past.holds.memory;
    let is_fault = hold.reaches(look.limits.slow_poll, lack.is_some(), look.now);
    let (free, needed) = lack.filter(|_| is_fault)?;
    let (free, needed) = (free >> 20, needed >> 20);
    let text = format!("{free} MiB are free, and the engine needs {needed}");
    Some(Finding::new(Signal::Memory, NotReady, text))
}

fn compute_mode(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let reading = look.reading;
    let foreign = look.processes().and_then(|processes| processes.foreign);
    let pid = foreign.map(|foreign| foreign.pid);
    let (severity, text) = match (reading.compute_mode?, pid) {
        (2, _) => (Fatal, "computing is prohibited on it".to_owned()),
        (3, Some(pid)) => {
            let text = format!("it is for one process alone, and process {pid} has it");
            (NotReady, text)
        }
        _ => return None,
    };
    Some(Finding::new(Signal::ComputeMode, severity, text))
}

fn persistence(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let text = "the driver does not keep it initialised";
    let is_persistent = look.reading.is_persistent?;
    (!is_persistent).then(|| Finding::new(Signal::Persistence, Info, text))
}

fn mig(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let mig = look.reading.mig?;
    let mode = |is_enabled: bool| match is_enabled {
        true => "cut into instances",
        false => "whole",
    };
    let (is, expected) = (mode(mig.is_enabled), mode(look.context.expects_mig));
    let after = mode(mig.will_be_enabled);
    let text = format!("the GPU is {is}, is to be {expected}, and after a reset will be {after}");
    let is_fault = is != expected || after != is;
    is_fault.then(|| Finding::new(Signal::Mig, Fatal, text))
}

fn stuck(look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let (reading, progress) = (look.reading, look.context.progress);
    let tokens = progress.map(|progress| progress.generated_tokens);
    let before = std::mem::replace(&mut past.generated_tokens, tokens);
    let is_busy = reading.utilization_percent.is_some_and(|used| used >= 100);
    let has_requests = progress.is_some_and(|progress| progress.running > 0);
    let is_stuck = is_busy && has_requests && tokens == before;
    let limit = look.limits.stuck;
    let text = format!("it is fully used and the engine has requests, but no token for {limit:?}");
    let is_fault = past.holds.stuck.reaches(limit, is_stuck, look.now);
    is_fault.then(|| Finding::new(Signal::Stuck, Fatal, text))
}

fn confidential_compute(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let text = "the host computes confidentially, and its GPUs are not set ready";
    let is_ready = look.reading.is_confidential_ready?;
    (!is_ready).then(|| Finding::new(Signal::ConfidentialCompute, NotReady, text))
}
