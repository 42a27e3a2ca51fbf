//! What polls show of the links between GPUs.

use std::time::Duration;

use crate::health::incident::Severity::{Degraded, Fatal, Info, NotReady};
use crate::health::judge::Look;
use crate::health::judge::finding::Finding;
use crate::health::judge::past::Past;
use crate::health::reading::Link;
use crate::health::signal::Signal;

/// What the links show, each for itself.
pub(super) fn found(look: &Look<'_>, past: &mut Past) -> Vec<Finding> {
    let mut found = Vec::new();
    for link in &look.reading.links {
        found.extend(nvlink_inactive(link, look, past));
        found.extend(nvlink_errors(link, look, past));
    }
    found
}

fn nvlink_inactive(link: &Link, look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let known = past.link(link.number)?;
    known.was_active |= link.is_active;
    let severity = match look.has_peers() {
        true => Fatal,
        false => Info,
    };
    let text = format!("NVLink {} was active and is not", link.number);
    let found = Finding::new(Signal::NvlinkInactive, severity, text).with_code(link.number);
    (known.was_active && !link.is_active).then_some(found)
}

fn nvlink_errors(link: &Link, look: &Look<'_>, past: &mut Past) -> Option<Finding> {
    let known = past.link(link.number)?;
    let replays = known.replays.by(Some(link.replays));
    let recoveries = known.recoveries.by(Some(link.recoveries));
    // Slow polls read it, so one of their spans is the shortest that a rate can be told of.
    let span = look.limits.slow_poll.max(Duration::from_secs(1));
    let crc = known.crc.by(Some(link.crc_errors));
    let crc = known.crc_rate.count(crc, span, look.now) / span.as_secs();
    let severity = match look.has_peers() {
        true => Fatal,
        false => Degraded,
    };
    let text = format!(
        "NVLink {} has {replays} more replays, {recoveries} more recoveries and {crc} CRC errors a second",
        link.number
    );
    let is_fault = replays > 0 || recoveries > 0 || crc >= look.limits.link_crc_per_second;
    let found = Finding::new(Signal::NvlinkErrors, severity, text).with_code(link.number);
    is_fault.then_some(found)
}

pub(super) fn fabric(look: &Look<'_>, _: &mut Past) -> Option<Finding> {
    let fabric = look.reading.fabric?;
    let of_links = match look.has_peers() {
        true => Fatal,
        false => Degraded,
    };
    let (severity, text) = match (fabric.state, fabric.status, fabric.health) {
        (1, ..) => (NotReady, "the fabric has not started".to_owned()),
        (2, ..) => (NotReady, "the fabric starts".to_owned()),
        (3, 0, 2) => (of_links, "the fabric is unhealthy".to_owned()),
        (3, 0, 3) => (Degraded, "the fabric is limited".to_owned()),
        (3, status, _) if status != 0 => {
            (of_links, format!("the fabric did not start: NVML {status}"))
        }
        _ => return None,
    };
    Some(Finding::new(Signal::Fabric, severity, text))
}
