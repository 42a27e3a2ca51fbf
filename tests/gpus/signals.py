"""What each signal is shown by, and what it must be held for: written after NVIDIA's documentation and
the operators' table, not after the code."""

INFO, DEGRADED, UNKNOWN, NOT_READY, FATAL = "info", "degraded", "unknown", "not_ready", "fatal"
HEALTHY, DRAINING, FAILED = "healthy", "draining", "failed"


def fields(**values):
    return lambda fake, gpu: fake.set(gpu, **values)


def xid(number):
    return lambda fake, gpu: fake.xid(gpu, number)


def recovery_event(fake, gpu):
    fake.event(gpu, 0x8000, 1)


# Signal, how it is shown, severity, verdict. `stuck` and `confidential_compute` are in case_signals.py.
# `memory` and `foreign_process` want an engine that takes a GPU's memory and control groups: the judge and
# the reader are tried on them in Rust.
SIGNALS = [
    ("gpu_lost", fields(error=15), FATAL, FAILED),
    ("gpu_missing", fields(missing=1), FATAL, FAILED),
    ("gpu_not_ready", fields(error=28), FATAL, FAILED),
    ("reset_required", fields(error=16), FATAL, DRAINING),
    ("recovery_action", fields(recovery_action=1), FATAL, DRAINING),
    ("recovery_event", recovery_event, DEGRADED, DEGRADED),
    ("xid", xid(95), FATAL, DRAINING),
    ("ecc_uncorrected", fields(ecc_uncorrected=1), FATAL, DRAINING),
    ("ecc_lifetime", fields(ecc_uncorrected_lifetime=3), INFO, HEALTHY),
    ("sram_threshold", fields(sram_threshold_exceeded=1), FATAL, DRAINING),
    ("remap_pending", fields(remap_pending=1), DEGRADED, DEGRADED),
    ("remap_failed", fields(remap_failed=1), FATAL, DRAINING),
    ("remap_exhausted", fields(remap_histogram=[3071, 0, 0, 0, 1]), DEGRADED, DEGRADED),
    ("retired_pages", fields(retired_pages_pending=1), DEGRADED, DEGRADED),
    ("inforom", fields(errors={"nvmlDeviceGetTemperature": 14}), DEGRADED, DEGRADED),
    ("nvlink_inactive", fields(links_inactive=[3]), INFO, HEALTHY),
    ("nvlink_errors", fields(link_replays={"4": 2}), DEGRADED, DEGRADED),
    ("fabric", fields(fabric_state=1), NOT_READY, DRAINING),
    ("pcie_link", fields(pcie_width=8), DEGRADED, DEGRADED),
    ("pcie_errors", fields(pcie_fatal_errors=1), FATAL, DRAINING),
    ("hw_slowdown", fields(throttle_reasons=0x40), DEGRADED, DEGRADED),
    ("sw_slowdown", fields(throttle_reasons=0x20), DEGRADED, DEGRADED),
    ("temperature", fields(temperature=85), DEGRADED, DEGRADED),
    ("compute_mode", fields(compute_mode=2), FATAL, DRAINING),
    ("persistence", fields(persistence=0), INFO, HEALTHY),
    ("mig", fields(mig=1, mig_pending=1), FATAL, DRAINING),
    ("driver_mismatch", fields(error=18), FATAL, DRAINING),
    ("no_driver", fields(error=9), UNKNOWN, UNKNOWN),
    ("os_blocked", fields(error=999), FATAL, DRAINING),
    ("irq", fields(error=11), FATAL, DRAINING),
    ("hang", fields(hang_ms=700), UNKNOWN, UNKNOWN),
    ("power", fields(errors={"nvmlDeviceGetPowerUsage": 999}), DEGRADED, DEGRADED),
]
# What is counted within an hour or a minute, and so is not over in the time of a proof.
COUNTED = [
    ("ecc_corrected_rate", fields(ecc_corrected=50), DEGRADED, DEGRADED),
    ("pcie_replay", fields(pcie_replays=100), DEGRADED, DEGRADED),
]
