//! What the metrics of GPUs are told apart by.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::health::Verdict;
use crate::health::incident::Severity;
use crate::health::signal::Signal;

/// A GPU of this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuLabels {
    /// The driver's number for it; empty where the driver does not know it.
    pub gpu: String,
    pub uuid: String,
}

impl GpuLabels {
    /// The labels of a GPU.
    pub fn new(index: Option<u32>, uuid: &str) -> Self {
        Self {
            gpu: index.map(|index| index.to_string()).unwrap_or_default(),
            uuid: uuid.to_owned(),
        }
    }
}

/// A verdict on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuVerdictLabels {
    pub gpu: String,
    pub uuid: String,
    pub verdict: Verdict,
}

/// How much something matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuSeverityLabels {
    pub gpu: String,
    pub uuid: String,
    pub severity: Severity,
}

/// What can be wrong with a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuSignalLabels {
    pub gpu: String,
    pub uuid: String,
    pub signal: Signal,
}

impl GpuLabels {
    pub fn with_verdict(&self, verdict: Verdict) -> GpuVerdictLabels {
        let Self { gpu, uuid } = self.clone();
        GpuVerdictLabels { gpu, uuid, verdict }
    }

    pub fn with_severity(&self, severity: Severity) -> GpuSeverityLabels {
        let Self { gpu, uuid } = self.clone();
        GpuSeverityLabels {
            gpu,
            uuid,
            severity,
        }
    }

    pub fn with_signal(&self, signal: Signal) -> GpuSignalLabels {
        let Self { gpu, uuid } = self.clone();
        GpuSignalLabels { gpu, uuid, signal }
    }
}

impl EncodeLabelValue for Severity {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        self.name().encode(encoder)
    }
}

impl EncodeLabelValue for Signal {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        self.name().encode(encoder)
    }
}
