//! `[gpu]`: the GPUs of this host, and when one is sick.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::health::incident::Severity;
use crate::health::limits::Limits;

/// The GPUs of this host, and when one is sick.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GpuConfig {
    /// Whether agents watch their engines' GPUs through NVML, and take a sick one's worker out.
    pub watch: bool,
    /// The driver's library, NVML; unset, `libnvidia-ml.so.1` as the loader finds it, and where NixOS
    /// keeps it.
    pub nvml_library: Option<PathBuf>,
    /// Time between two polls of a GPU, in milliseconds. What it tells by itself, as an XID, is not waited
    /// for.
    #[schemars(range(min = 20, max = 60_000))]
    pub poll_millis: u64,
    /// Time between two readings of what changes seldom (links, modes, processes), in milliseconds.
    #[schemars(range(min = 20, max = 600_000))]
    pub slow_poll_millis: u64,
    /// Time that a call of the driver may take, in milliseconds; then nothing is known of its GPU.
    #[schemars(range(min = 20, max = 60_000))]
    pub deadline_millis: u64,
    /// Time after which a GPU whose driver still has not answered counts as failed, in milliseconds.
    #[schemars(range(min = 20, max = 600_000))]
    pub lost_after_millis: u64,
    /// Polls in a row without a finding after which it is over, once an engine there has generated a
    /// token.
    #[schemars(range(min = 1, max = 1000))]
    pub clean_polls: u32,
    /// Time that the hardware slows a GPU down (heat, power brake) before it is degraded, in seconds.
    #[schemars(range(min = 0, max = 86_400))]
    pub hw_slowdown_secs: f64,
    /// The same where the driver does it for heat, in seconds.
    #[schemars(range(min = 0, max = 86_400))]
    pub sw_slowdown_secs: f64,
    /// Time that a GPU is as hot as where it slows down before it is fatal, in seconds.
    #[schemars(range(min = 0, max = 86_400))]
    pub overheat_secs: f64,
    /// Time that a GPU computes without its engine giving a token before the engine is restarted, in
    /// seconds.
    #[schemars(range(min = 0, max = 86_400))]
    pub stuck_secs: f64,
    /// Memory that a process which is not the engine's may take of a GPU, in MiB.
    #[schemars(range(max = 16_777_216))]
    pub foreign_memory_mib: u64,
    /// Other severities than those of the table, each as `signal=severity`: a signal's name, or an XID
    /// as `xid_109`, or a class of them as `xid_application`; info, degraded, unknown, not_ready or fatal.
    pub severities: Vec<String>,
    /// Whether an agent may have its engine restarted for its GPU's sake: after a contained memory error
    /// that the engine did not survive, and where it computes without end.
    pub restart_engine: bool,
}

impl Default for GpuConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            watch: true,
            nvml_library: None,
            poll_millis: 1_000,
            slow_poll_millis: 10_000,
            deadline_millis: 1_000,
            lost_after_millis: limits.lost_after.as_millis() as u64,
            clean_polls: limits.clean_polls,
            hw_slowdown_secs: limits.hw_slowdown.as_secs_f64(),
            sw_slowdown_secs: limits.sw_thermal.as_secs_f64(),
            overheat_secs: limits.hot.as_secs_f64(),
            stuck_secs: limits.stuck.as_secs_f64(),
            foreign_memory_mib: limits.foreign_memory_bytes >> 20,
            severities: Vec::new(),
            restart_engine: true,
        }
    }
}

impl GpuConfig {
    /// Time between two polls.
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_millis)
    }

    /// Time between two readings of what changes seldom.
    pub fn slow_poll(&self) -> Duration {
        Duration::from_millis(self.slow_poll_millis)
    }

    /// Time that a call of the driver may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_millis)
    }

    /// Where the judge draws its lines.
    pub fn limits(&self) -> Limits {
        let seconds = Duration::from_secs_f64;
        Limits {
            clean_polls: self.clean_polls,
            slow_poll: self.slow_poll(),
            lost_after: Duration::from_millis(self.lost_after_millis),
            hw_slowdown: seconds(self.hw_slowdown_secs),
            sw_thermal: seconds(self.sw_slowdown_secs),
            hot: seconds(self.overheat_secs),
            stuck: seconds(self.stuck_secs),
            foreign_memory_bytes: self.foreign_memory_mib << 20,
            severities: self.severities().flatten().collect(),
            ..Limits::default()
        }
    }

    /// The severities that are set, or why an entry sets none.
    fn severities(&self) -> impl Iterator<Item = Result<(String, Severity), String>> {
        self.severities.iter().map(|entry| set_severity(entry))
    }

    /// What is wrong with the table: the key to look at, and the sentence.
    pub(crate) fn wrong(&self) -> Vec<(String, String)> {
        let faults = self.severities().filter_map(Result::err);
        let faults = faults.map(|fault| format!("gpu.severities: {fault}"));
        let key = "gpu.severities".to_owned();
        faults.map(|fault| (key.clone(), fault)).collect()
    }
}

fn set_severity(entry: &str) -> Result<(String, Severity), String> {
    let (name, severity) = entry
        .split_once('=')
        .map(|(name, severity)| (name.trim(), severity.trim()))
        .ok_or_else(|| format!("{entry:?} is not signal=severity"))?;
    if let Some(fault) = Limits::override_fault(name) {
        return Err(fault);
    }
    let mut all = Severity::ALL.into_iter();
    let found = all.find(|known| known.name() == severity).ok_or_else(|| {
        let names = Severity::ALL.map(Severity::name).join(", ");
        format!("{severity:?} is no severity; there are {names}")
    })?;
    Ok((name.to_owned(), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn severities_are_read_and_faults_named() {
        for (entry, expected) in [
            ("xid_109=info", Ok(("xid_109", Severity::Info))),
            (
                " pcie_replay = fatal ",
                Ok(("pcie_replay", Severity::Fatal)),
            ),
            (
                "xid_application=degraded",
                Ok(("xid_application", Severity::Degraded)),
            ),
            ("xid_109", Err("is not signal=severity")),
            ("xid_many=info", Err("xid_many")),
            ("fans=info", Err("fans")),
            ("power=loud", Err("info, degraded")),
        ] {
            let config = GpuConfig {
                severities: vec![entry.to_owned()],
                ..GpuConfig::default()
            };
            match expected {
                Ok((name, severity)) => {
                    let set = &config.limits().severities;
                    assert_eq!(set.get(name), Some(&severity), "{entry}");
                    assert!(config.wrong().is_empty());
                }
                Err(part) => {
                    let (_, fault) = &config.wrong()[0];
                    assert!(fault.contains(part), "{fault}");
                }
            }
        }
    }

    #[test]
    fn defaults_are_those_of_the_table() {
        assert_eq!(GpuConfig::default().limits(), Limits::default());
    }
}
