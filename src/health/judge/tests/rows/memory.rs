//! Errors of memory.

use super::*;
use Severity::{Degraded, Fatal, Info};
use Signal::*;

pub(super) fn rows() -> Vec<Row> {
    let retired = |severity, words, change: Change| {
        let lack: Change = |r| r.retired_pages = None;
        read((RetiredPages, 0, severity), words, (change, lack))
    };
    let rate = set!(ecc_corrected = 1_000_011);
    let lifetime = set!(ecc_uncorrected_lifetime = 5);
    vec![
        read(
            (EccUncorrected, 0, Fatal),
            "1 more",
            set!(ecc_uncorrected = 3),
        ),
        read((EccLifetime, 0, Info), "5 uncorrected", lifetime),
        read((EccCorrectedRate, 0, Degraded), "11 corrected", rate),
        read(
            (SramThreshold, 0, Fatal),
            "exceed",
            set!(sram_threshold_exceeded = true),
        ),
        read(
            (RemapPending, 0, Degraded),
            "wait",
            set!(remap_pending = true),
        ),
        read(
            (RemapFailed, 0, Fatal),
            "could not",
            set!(remap_failed = true),
        ),
        read(
            (RemapExhausted, 0, Degraded),
            "2 banks",
            set!(exhausted_banks = 2),
        ),
        retired(Degraded, "and more wait", |r| pages(r, 0, 0, true)),
        retired(Fatal, "16 pages", |r| pages(r, 0, 16, false)),
        retired(Fatal, "49 for corrected", |r| pages(r, 49, 15, false)),
    ]
}

fn pages(reading: &mut Reading, corrected: u32, uncorrected: u32, is_pending: bool) {
    reading.retired_pages = Some(crate::health::reading::RetiredPages {
        corrected,
        uncorrected,
        is_pending,
    });
}
