//! Links, slots, heat and power.

use super::*;
use Severity::{Degraded, Fatal, Info, NotReady};
use Signal::*;

pub(super) fn rows_of_links() -> Vec<Row> {
    let links = |found, words, change: Change| {
        let lack: Change = |r| r.links.clear();
        read(found, words, (change, lack))
    };
    let off: Change = |r| r.links[3].is_active = false;
    let replay: Change = |r| r.links[3].replays += 1;
    let fabric = |severity, words, change: Change| {
        let lack: Change = |r| r.fabric = None;
        read((Fabric, 0, severity), words, (change, lack))
    };
    vec![
        links((NvlinkInactive, 3, Info), "NVLink 3", off),
        links((NvlinkInactive, 3, Fatal), "NVLink 3", off).among(peers),
        links((NvlinkErrors, 3, Degraded), "1 more replays", replay),
        links((NvlinkErrors, 3, Fatal), "1 more replays", replay).among(peers),
        links((NvlinkErrors, 3, Degraded), "2 more recoveries", |r| {
            r.links[3].recoveries = 2;
        }),
        links((NvlinkErrors, 3, Degraded), "100 CRC errors", |r| {
            r.links[3].crc_errors = 1000;
        }),
        fabric(NotReady, "not started", |r| state(r, 1, 0, 0)),
        fabric(NotReady, "starts", |r| state(r, 2, 0, 0)),
        fabric(Degraded, "NVML 999", |r| state(r, 3, 999, 1)),
        fabric(Fatal, "NVML 999", |r| state(r, 3, 999, 1)).among(peers),
        fabric(Degraded, "unhealthy", |r| state(r, 3, 0, 2)),
        fabric(Fatal, "unhealthy", |r| state(r, 3, 0, 2)).among(peers),
        fabric(Degraded, "limited", |r| state(r, 3, 0, 3)).among(peers),
    ]
}

fn state(reading: &mut Reading, state: u32, status: u32, health: u32) {
    reading.fabric = Some(crate::health::reading::Fabric {
        state,
        status,
        health,
    });
}

pub(super) fn rows() -> Vec<Row> {
    let lanes = set!(pcie_width = OfMost { now: 8, most: 16 });
    let generation = set!(pcie_generation = OfMost { now: 1, most: 5 });
    let slowed = |secs, found, words, change: Change| {
        let lack: Change = |r| r.throttle_reasons = None;
        read_after(secs, found, words, (change, lack))
    };
    let warm = |secs, severity, words, change: Change| {
        let lack: Change = |r| {
            r.temperature_celsius = None;
            r.margin_celsius = None;
        };
        read_after(secs, (Temperature, 0, severity), words, (change, lack))
    };
    let hot: Change = |r| r.temperature_celsius = Some(87);
    let no_margin: Change = |r| {
        r.slowdown_celsius = None;
        r.margin_celsius = Some(0);
    };
    let unread = |found, words, change: Change| {
        let lack: Change = |r| r.failures.clear();
        read(found, words, (change, lack))
    };
    let no_power: Change = |r| *r = failing(Call::PowerUsage, 999);
    let bad_inforom: Change = |r| *r = failing(Call::ValidateInforom, 14);
    let no_inforom: Change = |r| *r = failing(Call::ValidateInforom, 999);
    vec![
        read((PcieLink, 0, Degraded), "8 of 16 lanes", lanes),
        // The GPU has been at work for two seconds when the change comes.
        read_after(8, (PcieLink, 0, Degraded), "generation 1 of 5", generation),
        read(
            (PcieReplay, 0, Degraded),
            "9 replays",
            set!(pcie_replays = 4009),
        ),
        read(
            (PcieErrors, 0, Degraded),
            "1 more nonfatal",
            set!(pcie_nonfatal_errors = 4),
        ),
        read(
            (PcieErrors, 0, Fatal),
            "1 more fatal",
            set!(pcie_fatal_errors = 4),
        ),
        slowed(5, (HwSlowdown, 0x8, Degraded), "5s (0x8)", |r| {
            r.throttle_reasons = Some(0x8);
        }),
        slowed(5, (HwSlowdown, 0x48, Degraded), "0x48", |r| {
            r.throttle_reasons = Some(0x49);
        }),
        slowed(5, (HwSlowdown, 0x80, Degraded), "0x80", |r| {
            r.throttle_reasons = Some(0x80);
        }),
        slowed(0, (SwSlowdown, 0x4, Info), "capped", |r| {
            r.throttle_reasons = Some(0x4);
        }),
        slowed(30, (SwSlowdown, 0x20, Degraded), "30s", |r| {
            r.throttle_reasons = Some(0x20);
        }),
        warm(0, Degraded, "84 °C, and slows down at 87 °C", |r| {
            r.temperature_celsius = Some(84);
        }),
        warm(60, Fatal, "it has 87 °C", hot),
        warm(0, Degraded, "0 °C are left", no_margin),
        warm(60, Fatal, "0 °C are left", no_margin),
        unread((Power, 999, Degraded), "NVML 999", no_power),
        unread((Inforom, 0, Degraded), "NVML 14", bad_inforom),
        unread((Inforom, 0, Degraded), "NVML 999", no_inforom),
    ]
}
