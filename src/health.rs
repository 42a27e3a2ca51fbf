//! Whether a worker may be used, as a verdict, and what its GPUs' health has to do with it.
//!
#![doc = include_str!("health/signals.md")]

pub mod incident;
pub mod judge;
pub mod limits;
pub mod reading;
pub mod signal;
pub mod xid;

use serde::{Deserialize, Serialize};

/// What is held true of a worker's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing has been read yet.
    #[default]
    Unknown,
    /// The engine loads its model.
    Starting,
    Healthy,
    /// Kept, but others are preferred.
    Degraded,
    /// Finishes what it has, takes nothing new.
    Draining,
    Failed,
}

impl Verdict {
    /// Every verdict there is.
    pub const ALL: [Self; 6] = [
        Self::Unknown,
        Self::Starting,
        Self::Healthy,
        Self::Degraded,
        Self::Draining,
        Self::Failed,
    ];

    /// The one of the two that promises less.
    pub fn worse(self, other: Self) -> Self {
        match self.rank() < other.rank() {
            true => other,
            false => self,
        }
    }

    /// From what promises most to what promises least.
    fn rank(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Degraded => 1,
            Self::Unknown => 2,
            Self::Starting => 3,
            Self::Draining => 4,
            Self::Failed => 5,
        }
    }

    /// Whether new requests may be placed there.
    pub fn takes_requests(self) -> bool {
        matches!(self, Self::Unknown | Self::Healthy | Self::Degraded)
    }

    /// Whether requests in flight there may still be answered.
    pub fn keeps_requests(self) -> bool {
        !matches!(self, Self::Starting | Self::Failed)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::Verdict;
    use super::signal::Signal;
    use super::xid::Class;

    #[test]
    fn the_worse_of_two_verdicts_promises_less() {
        use Verdict::{Degraded, Draining, Failed, Healthy, Starting, Unknown};
        let order = [Healthy, Degraded, Unknown, Starting, Draining, Failed];
        for (a, better) in order.into_iter().enumerate() {
            for worse in &order[a..] {
                assert_eq!(better.worse(*worse), *worse);
                assert_eq!(worse.worse(better), *worse);
            }
        }
    }

    #[test]
    fn each_signal_has_its_row_under_its_own_name() {
        for (at, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, at, "{signal:?} is out of order");
            let name = serde_json::to_value(signal).unwrap();
            assert_eq!(name, signal.name());
            assert!(signal.row().severities.is_sorted(), "{signal:?}");
        }
    }

    /// The signals and the classes of XIDs, as they stand in this module's documentation.
    fn tables() -> String {
        let mut text = "# Signals\n\nThe numbers are defaults.\n\n".to_owned();
        text += "| | signal | is read by | is a fault when | severity | what to do |\n";
        text += "|---|---|---|---|---|---|\n";
        for (at, signal) in Signal::ALL.into_iter().enumerate() {
            let row = signal.row();
            let severities: Vec<_> = row.severities.iter().map(|s| s.name()).collect();
            let (number, severities) = (at + 1, severities.join(", "));
            let (name, reads, condition) = (row.name, row.reads, row.condition);
            let action = row.action;
            writeln!(
                text,
                "| {number} | `{name}` | {reads} | {condition} | {severities} | {action} |"
            )
            .unwrap();
        }
        text += "\n# XIDs\n\n| class | XIDs | severity | what to do |\n|---|---|---|---|\n";
        for class in Class::ALL {
            let (name, severity, action) = (class.name(), class.severity().name(), class.action());
            let xids = match class {
                Class::Unknown => "all else".to_owned(),
                _ => xids(class),
            };
            writeln!(text, "| `xid_{name}` | {xids} | {severity} | {action} |").unwrap();
        }
        text
    }

    /// The XIDs of a class, runs of three or more as `from–to`.
    fn xids(class: Class) -> String {
        let of_class = (0..1000).filter(|&xid| Class::of(xid) == class);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for xid in of_class {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == xid => *last = xid,
                _ => runs.push((xid, xid)),
            }
        }
        let run = |&(first, last): &(u64, u64)| match last - first {
            0 => format!("{first}"),
            1 => format!("{first}, {last}"),
            _ => format!("{first}–{last}"),
        };
        runs.iter().map(run).collect::<Vec<_>>().join(", ")
    }

    /// `KVLENS_WRITE=1 cargo test --lib health` writes the tables anew.
    #[test]
    fn the_documentation_has_the_tables_as_they_are() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/health/signals.md");
        if std::env::var_os("KVLENS_WRITE").is_some() {
            std::fs::write(path, tables()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), tables());
    }
}
