//! Calls that gave no value: what NVML answered instead, and calls that did not return.

use std::time::Duration;

use crate::health::incident::Severity::{Degraded, Fatal, Unknown};
use crate::health::judge::Look;
use crate::health::judge::finding::Finding;
use crate::health::judge::past::Past;
use crate::health::limits::Limits;
use crate::health::reading::{Call, Code, Failure};
use crate::health::signal::Signal;

/// What the calls of a poll show that failed.
pub(super) fn polled(look: &Look<'_>, past: &mut Past) -> Vec<Finding> {
    // A poll that comes after its own hang is late, and no sign that the hangs are over.
    if past.hanging.take().is_none() {
        past.hangs = 0;
    }
    let failures = &look.reading.failures;
    let is_of_all = |code: Code| {
        let mut others = failures.iter().filter(|f| f.call == Call::Other);
        others.any(|failure| failure.code == code)
    };
    let blocked = failures
        .iter()
        .map(|failure| failure.code)
        .find(|code| is_blocked(*code) && is_of_all(*code));
    let mut found: Vec<_> = os_blocked(blocked, look.limits, past).into_iter().collect();
    for &failure in failures {
        let says = format!("a call answered {}", failure.code);
        match of_the_gpu(failure.code, &says) {
            Some(finding) => found.push(finding),
            None if !is_of_all(failure.code) => found.extend(of_the_call(failure)),
            None => {}
        }
    }
    found
}

/// What it shows that there is no way to the GPU.
pub(super) fn unreachable(
    code: Code,
    text: &str,
    limits: &Limits,
    past: &mut Past,
) -> Option<Finding> {
    if is_blocked(code) {
        let found = os_blocked(Some(code), limits, past)?;
        return Some(Finding {
            text: text.to_owned(),
            ..found
        });
    }
    past.blocked = 0;
    let found = of_the_gpu(code, text).unwrap_or_else(|| match code.0 {
        6 => Finding::new(Signal::GpuMissing, Fatal, text),
        24..=26 => Finding::new(Signal::GpuNotReady, Fatal, text),
        _ => Finding::new(Signal::NoDriver, Unknown, text),
    });
    Some(match found.signal {
        Signal::Inforom => found,
        _ => found.with_code(code.0),
    })
}

/// What it shows that a call has not returned for so long.
pub(super) fn hanging(time: Duration, limits: &Limits, past: &mut Past) -> Finding {
    // One call that hangs on is told of again and again, each time for longer.
    let is_another = past
        .hanging
        .replace(time)
        .is_none_or(|before| time <= before);
    past.hangs = past.hangs.saturating_add(u32::from(is_another));
    let text = format!("a call has not returned for {time:?}");
    match time >= limits.lost_after || past.hangs >= limits.hangs {
        true => Finding::new(Signal::Hang, Fatal, text),
        false => Finding::new(Signal::Hang, Unknown, text),
    }
}

/// Answers that speak of the GPU or its driver, whichever call got them.
fn of_the_gpu(code: Code, says: &str) -> Option<Finding> {
    let (signal, severity) = match code {
        Code::GPU_IS_LOST => (Signal::GpuLost, Fatal),
        Code::RESET_REQUIRED => (Signal::ResetRequired, Fatal),
        Code::IRQ_ISSUE => (Signal::Irq, Fatal),
        Code::LIB_RM_VERSION_MISMATCH => (Signal::DriverMismatch, Fatal),
        Code::DRIVER_NOT_LOADED | Code::LIBRARY_NOT_FOUND => (Signal::NoDriver, Unknown),
        Code::CORRUPTED_INFOROM => return Some(Finding::new(Signal::Inforom, Degraded, says)),
        Code::NOT_READY => (Signal::GpuNotReady, Unknown),
        Code::INVALID_STATE => (Signal::GpuNotReady, Degraded),
        // 24 to 26 say that the call's arguments are none of this driver's.
        Code::GPU_NOT_FOUND | Code(23 | 30) => (Signal::GpuNotReady, Fatal),
        _ => return None,
    };
    Some(Finding::new(signal, severity, says).with_code(code.0))
}

/// Answers that speak of what the one call asked for.
fn of_the_call(failure: Failure) -> Option<Finding> {
    let code = failure.code;
    let is_absent = matches!(code, Code::NOT_SUPPORTED | Code::FUNCTION_NOT_FOUND);
    match failure.call {
        _ if is_absent || matches!(code.0, 24..=26) => None,
        Call::PowerUsage => {
            let text = format!("its power cannot be read: {code}");
            Some(Finding::new(Signal::Power, Degraded, text).with_code(code.0))
        }
        Call::ValidateInforom => {
            let text = format!("its InfoROM is not valid: {code}");
            Some(Finding::new(Signal::Inforom, Degraded, text))
        }
        Call::Other => None,
    }
}

fn is_blocked(code: Code) -> bool {
    matches!(code, Code::OPERATING_SYSTEM | Code::UNKNOWN)
}

/// Counts observations that the operating system refused, one after the other.
fn os_blocked(code: Option<Code>, limits: &Limits, past: &mut Past) -> Option<Finding> {
    past.blocked = match code {
        Some(_) => past.blocked.saturating_add(1),
        None => 0,
    };
    let code = code.filter(|_| past.blocked >= limits.blocked_in_row)?;
    let text = format!("calls answered {code} {} times in a row", past.blocked);
    Some(Finding::new(Signal::OsBlocked, Fatal, text).with_code(code.0))
}
