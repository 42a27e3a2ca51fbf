//! Where the judge draws its lines.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::health::incident::Severity;
use crate::health::signal::Signal;
use crate::health::xid::Class;

/// Every number of the table of signals, and how incidents open and close.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Polls in a row without it that make an incident quiet.
    pub clean_polls: u32,
    /// Longest time that what slow polls read may be old.
    pub slow_poll: Duration,
    /// After this, a call that has not returned is fatal.
    pub lost_after: Duration,
    /// As many calls in a row that do not return in time are fatal, each on its own though it returns.
    pub hangs: u32,
    /// Observations in a row that the operating system refused, until that is a fault.
    pub blocked_in_row: u32,
    /// Time of slowdown by hardware that is a fault.
    pub hw_slowdown: Duration,
    /// Time of slowdown for heat by software that is a fault.
    pub sw_thermal: Duration,
    /// Degrees below the slowdown temperature from which a GPU is too warm.
    pub warm_celsius: i32,
    /// Time at the slowdown temperature that is fatal.
    pub hot: Duration,
    /// Corrected errors of memory in an hour that are yet normal.
    pub ecc_corrected_per_hour: u64,
    /// Retired pages for uncorrected errors that a GPU may have.
    pub retired_uncorrected_pages: u32,
    /// Retired pages in all that a GPU may have.
    pub retired_pages: u32,
    /// CRC errors of an NVLink in a second that are a fault.
    pub link_crc_per_second: u64,
    /// Replays of PCIe in a minute that are yet normal.
    pub pcie_replays_per_minute: u64,
    /// Applications' XIDs within [`Limits::application_window`] that are no accident any more;
    /// no more than 64 of them are remembered.
    pub application_xids: u32,
    pub application_window: Duration,
    /// Uncorrected errors of memory that were counted no longer than this before or after XID 94 are those
    /// which it calls contained.
    pub contained: Duration,
    /// Memory that a process which is not the engine's may have.
    pub foreign_memory_bytes: u64,
    /// Time at full utilisation without a token that shows an engine to be stuck.
    pub stuck: Duration,
    /// Time from a failed canary to the next; each further one waits twice as long.
    pub canary_first: Duration,
    /// The longest of these times.
    pub canary_most: Duration,
    /// How long an incident that is info alone stays after it was last seen, for operators to see it.
    pub info_kept: Duration,
    /// Other severities than the table's, by a signal's name, `xid_NUMBER` or `xid_CLASS`.
    pub severities: BTreeMap<String, Severity>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clean_polls: 3,
            slow_poll: Duration::from_secs(10),
            lost_after: Duration::from_secs(10),
            hangs: 3,
            blocked_in_row: 3,
            hw_slowdown: Duration::from_secs(5),
            sw_thermal: Duration::from_secs(30),
            warm_celsius: 3,
            hot: Duration::from_secs(60),
            ecc_corrected_per_hour: 10,
            retired_uncorrected_pages: 15,
            retired_pages: 63,
            link_crc_per_second: 100,
            pcie_replays_per_minute: 8,
            application_xids: 3,
            application_window: Duration::from_secs(600),
            contained: Duration::from_secs(60),
            foreign_memory_bytes: 512 << 20,
            stuck: Duration::from_secs(60),
            canary_first: Duration::from_secs(5),
            canary_most: Duration::from_secs(60),
            info_kept: Duration::from_secs(600),
            severities: BTreeMap::new(),
        }
    }
}

impl Limits {
    /// The severity that is configured for what is found, the narrowest name first.
    pub(crate) fn severity(&self, signal: Signal, code: u64) -> Option<Severity> {
        let of_xid = || {
            let class = Class::of(code).name();
            let names = [format!("xid_{code}"), format!("xid_{class}")];
            let found = names.iter().find_map(|name| self.severities.get(name));
            found.copied()
        };
        let narrow = match signal {
            _ if self.severities.is_empty() => return None,
            Signal::Xid => of_xid(),
            Signal::RecoveryEvent if Class::of(code) == Class::Advice => of_xid(),
            _ => None,
        };
        narrow.or_else(|| self.severities.get(signal.name()).copied())
    }

    /// Says why `key` names nothing whose severity could be set; `None` where it does.
    pub fn override_fault(key: &str) -> Option<String> {
        let is_signal = Signal::ALL.iter().any(|signal| signal.name() == key);
        match key.strip_prefix("xid_") {
            _ if is_signal => None,
            Some(xid) if xid.starts_with(|c: char| c.is_ascii_digit()) => {
                let number: Option<u64> = xid.parse().ok();
                let is_plain = number.is_some_and(|number| number.to_string() == xid);
                (!is_plain).then(|| format!("{key} has no XID: {xid:?} is no plain whole number"))
            }
            Some(class) if Class::ALL.iter().any(|known| known.name() == class) => None,
            Some(_) => {
                let classes: Vec<_> = Class::ALL.iter().map(|class| class.name()).collect();
                let classes = classes.join(", xid_");
                Some(format!("{key} is no class of XIDs; they are xid_{classes}"))
            }
            None => Some(format!(
                "{key} is no signal of a GPU's health, nor xid_NUMBER or xid_CLASS"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(signal: Signal, words: &str) {
        let condition = signal.row().condition;
        assert!(condition.contains(words), "{condition:?} lacks {words:?}");
    }

    #[test]
    fn the_table_says_the_defaults() {
        let is = Limits::default();
        let (few, all) = (is.retired_uncorrected_pages, is.retired_pages);
        let mebibytes = is.foreign_memory_bytes >> 20;
        for (signal, before, number, after) in [
            (
                Signal::EccCorrectedRate,
                "more than",
                is.ecc_corrected_per_hour,
                "within an hour",
            ),
            (
                Signal::RetiredPages,
                "more than",
                few.into(),
                "for uncorrected errors",
            ),
            (Signal::RetiredPages, "or", all.into(), "in all"),
            (
                Signal::NvlinkErrors,
                "or",
                is.link_crc_per_second,
                "CRC errors a second",
            ),
            (
                Signal::PcieReplay,
                "more than",
                is.pcie_replays_per_minute,
                "within a minute",
            ),
            (Signal::ForeignProcess, "more than", mebibytes, "MiB"),
            (
                Signal::OsBlocked,
                "999,",
                is.blocked_in_row.into(),
                "observations in a row",
            ),
            (Signal::Hang, "unknown;", is.hangs.into(), "in a row"),
            (
                Signal::Xid,
                "(below);",
                is.application_xids.into(),
                "of applications in 10 min",
            ),
        ] {
            check(signal, &format!("{before} {number} {after}"));
        }
        check(
            Signal::Temperature,
            &format!("{} °C below slowdown", is.warm_celsius),
        );
        assert_eq!(is.application_window, Duration::from_secs(10 * 60));
    }

    #[test]
    fn the_table_says_the_default_times() {
        let is = Limits::default();
        for (signal, before, time) in [
            (Signal::EccUncorrected, "within", is.contained),
            (Signal::PcieLink, "at work for", is.slow_poll),
            (Signal::HwSlowdown, "for", is.hw_slowdown),
            (Signal::SwSlowdown, "heat (0x20) for", is.sw_thermal),
            (Signal::Temperature, "at slowdown for", is.hot),
            (Signal::Memory, "for", is.slow_poll),
            (Signal::Hang, "one for", is.lost_after),
            (Signal::Stuck, "no token for", is.stuck),
        ] {
            check(signal, &format!("{before} {} s", time.as_secs()));
        }
    }

    #[test]
    fn a_severity_is_set_for_what_there_is_and_nothing_else() {
        let of_class = Class::ALL.map(|class| format!("xid_{}", class.name()));
        let of_signal = Signal::ALL.map(|signal| signal.name().to_owned());
        let of_xid = ["xid_109".to_owned(), "xid_0".to_owned()];
        for key in of_class.iter().chain(&of_signal).chain(&of_xid) {
            assert_eq!(Limits::override_fault(key), None, "{key}");
        }
        for (key, words) in [
            ("gpu_melted", "gpu_melted is no signal"),
            ("", " is no signal"),
            ("xid_109a", "xid_109a has no XID"),
            ("xid_0109", "xid_0109 has no XID"),
            ("xid_99999999999999999999", "has no XID"),
            (
                "xid_",
                "xid_ is no class of XIDs; they are xid_application, ",
            ),
            ("xid_Reset", "xid_Reset is no class of XIDs"),
        ] {
            let fault = Limits::override_fault(key).expect(key);
            assert!(fault.contains(words), "{fault}");
        }
    }

    #[test]
    fn the_narrowest_severity_counts() {
        use Severity::{Degraded, Info, NotReady, Unknown};
        let keys = [
            ("xid", Info),
            ("xid_reset", Degraded),
            ("xid_109", Unknown),
            ("xid_advice", NotReady),
            ("pcie_replay", Info),
        ];
        let severities = keys.map(|(key, severity)| (key.to_owned(), severity));
        let limits = Limits {
            severities: severities.into(),
            ..Limits::default()
        };
        for (signal, code, expected) in [
            (Signal::Xid, 13, Some(Info)),
            (Signal::Xid, 95, Some(Degraded)),
            (Signal::Xid, 109, Some(Unknown)),
            (Signal::RecoveryEvent, 154, Some(NotReady)),
            (Signal::RecoveryEvent, 1, None),
            (Signal::PcieReplay, 0, Some(Info)),
            (Signal::GpuLost, 15, None),
        ] {
            let found = limits.severity(signal, code);
            assert_eq!(found, expected, "{signal:?} {code}");
        }
    }
}
