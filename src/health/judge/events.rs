//! What the driver tells by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::health::incident::Severity::{Degraded, Fatal};
use crate::health::judge::Context;
use crate::health::judge::finding::Finding;
use crate::health::judge::past::Past;
use crate::health::limits::Limits;
use crate::health::reading::Event;
use crate::health::signal::Signal;
use crate::health::xid::{self, Class};

/// What an event shows. Kinds that are not named here are seen by polls too.
pub(super) fn found(
    event: Event,
    context: &Context,
    limits: &Limits,
    past: &mut Past,
    now: Duration,
) -> Vec<Finding> {
    match event.kind {
        Event::XID => xid(event.value, context, limits, past, now),
        Event::GPU_UNAVAILABLE => {
            let text = "the driver says that the GPU is unavailable";
            vec![Finding::new(Signal::RecoveryEvent, Degraded, text).with_code(event.value)]
        }
        Event::RECOVERY_ACTION => {
            let text = "the driver says that it advises another recovery action";
            vec![Finding::new(Signal::RecoveryEvent, Degraded, text).with_code(event.value)]
        }
        _ => Vec::new(),
    }
}

/// Whether it says that an uncorrectable error hit one program alone.
pub(super) fn is_contained(event: Event) -> bool {
    event.kind == Event::XID && Class::of(event.value) == Class::Contained
}

fn xid(
    xid: u64,
    context: &Context,
    limits: &Limits,
    past: &mut Past,
    now: Duration,
) -> Vec<Finding> {
    let class = Class::of(xid);
    let text = match xid::meaning(xid) {
        Some(meaning) => format!("XID {xid}: {meaning}"),
        None => format!("XID {xid}"),
    };
    if class == Class::Contained {
        past.contained_at = Some(now);
    }
    let severity = match class {
        Class::Link if context.gpus_of_worker > 1 => Fatal,
        _ => class.severity(),
    };
    let signal = match class {
        Class::Advice => Signal::RecoveryEvent,
        _ => Signal::Xid,
    };
    let one = Finding::new(signal, severity, text).with_code(xid);
    let mut found = vec![one.with_action(class.action())];
    if class.counts() {
        past.application_xid(xid, limits.application_window, now);
        found.extend(burst(limits, past));
    }
    found
}

/// Each of the applications' XIDs that came lately, once they are too many to be accidents.
fn burst(limits: &Limits, past: &Past) -> Vec<Finding> {
    let (most, window) = (limits.application_xids, limits.application_window);
    if past.application_xids.len() < most as usize {
        return Vec::new();
    }
    let distinct: BTreeSet<u64> = past.application_xids.iter().map(|(_, xid)| *xid).collect();
    let finding = |xid| {
        let text = format!("XID {xid}, one of {most} or more of applications within {window:?}");
        let action =
            "look at the engine's log; if other GPUs do not have them, have this one tested";
        let found = Finding::new(Signal::Xid, Degraded, text).with_code(xid);
        found.with_action(action)
    };
    distinct.into_iter().map(finding).collect()
}
