//! What is wrong with a GPU, as it is kept, told and shown.

use serde::{Deserialize, Serialize};

use crate::health::Verdict;
use crate::health::reading::Code;
use crate::health::signal::Signal;
use crate::health::xid::Class;

/// How much something matters, from least to most.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// To be known of; nothing follows.
    Info,
    /// It computes, but others are preferred.
    Degraded,
    /// Nobody can say whether it computes; weighed as degraded.
    Unknown,
    /// No engine should start there yet; nothing new is placed there.
    NotReady,
    /// Nothing new is placed there until it is mended.
    Fatal,
}

impl Severity {
    /// Every severity there is.
    pub const ALL: [Self; 5] = [
        Self::Info,
        Self::Degraded,
        Self::Unknown,
        Self::NotReady,
        Self::Fatal,
    ];

    /// The name that configuration and records have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::NotReady => "not_ready",
            Self::Fatal => "fatal",
        }
    }
}

/// Something wrong with a GPU, from when it is first seen until it is shown to be over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub signal: Signal,
    /// What tells incidents of one signal apart: an XID, NVML's return code, a recovery action, a link's
    /// number, throttle bits; 0 where there is nothing to tell apart.
    pub code: u64,
    pub severity: Severity,
    /// What was seen when the incident came to its severity, with the values: a sentence.
    pub text: String,
    /// What the operator should do about it.
    pub action: String,
    /// When it was first seen, by the clock that the judge was given.
    pub since_millis: u64,
}

impl Incident {
    /// What a GPU with this incident alone is held for.
    pub fn verdict(&self) -> Verdict {
        match self.severity {
            Severity::Info => Verdict::Healthy,
            Severity::Degraded => Verdict::Degraded,
            Severity::Unknown => Verdict::Unknown,
            Severity::NotReady => Verdict::Draining,
            Severity::Fatal if self.ends_computing() => Verdict::Failed,
            Severity::Fatal => Verdict::Draining,
        }
    }

    /// Whether, if fatal, it leaves nothing that could finish what is in flight.
    fn ends_computing(&self) -> bool {
        match self.signal {
            Signal::GpuLost | Signal::GpuMissing | Signal::Hang => true,
            Signal::GpuNotReady => self.code == u64::from(Code::GPU_NOT_FOUND.0),
            Signal::Xid => Class::of(self.code) == Class::Reboot,
            _ => false,
        }
    }
}

/// The health of one GPU, as records carry it and commands print it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuState {
    /// The driver's number for it; `None` where the driver does not know the GPU.
    pub index: Option<u32>,
    pub uuid: String,
    /// `None` where the driver does not know the GPU.
    pub name: Option<String>,
    pub verdict: Verdict,
    pub incidents: Vec<Incident>,
}

impl GpuState {
    /// As `GPU 3`, or by its UUID where nobody knows its number.
    pub fn called(&self) -> String {
        match self.index {
            Some(index) => format!("GPU {index}"),
            None => format!("GPU {}", self.uuid),
        }
    }

    /// What is worst about it and what to do, in a line.
    pub fn story(&self) -> String {
        let worst = self
            .incidents
            .iter()
            .max_by_key(|incident| incident.severity);
        match worst {
            Some(incident) => {
                let Incident { text, action, .. } = incident;
                format!("{}: {text}; {action}", self.called())
            }
            None => format!("{}: nothing was read of it yet", self.called()),
        }
    }
}
