//! What operators see of a worker's GPUs: the journal and the metrics.

use std::sync::Arc;

use tracing::{error, info, warn};

use crate::gpu::watch::Gpu;
use crate::health::Verdict;
use crate::health::incident::{GpuState, Incident, Severity};
use crate::health::reading::{Event, Observation, Reading};
use crate::id::WorkerId;
use crate::telemetry::gpu_labels::GpuLabels;
use crate::telemetry::metrics::Metrics;

/// Shows the GPUs of one worker.
#[derive(Debug)]
pub(super) struct Shown {
    worker: WorkerId,
    metrics: Arc<Metrics>,
}

impl Shown {
    pub(super) fn new(worker: WorkerId, metrics: Arc<Metrics>) -> Self {
        Self { worker, metrics }
    }

    /// Takes in what was read of a GPU.
    pub(super) fn read(&self, gpu: &Gpu, observation: &Observation) {
        let labels = GpuLabels::new(gpu.index, &gpu.uuid);
        match observation {
            Observation::Polled(reading) => self.measure(&labels, reading),
            Observation::Event(event) if event.kind == Event::XID => {
                self.metrics.gpu_xids.get_or_create(&labels).inc();
            }
            Observation::Event(_) => {}
            // What was measured last is not so any more.
            Observation::Unreachable { .. } | Observation::Hanging(_) => self.unmeasured(&labels),
        }
    }

    fn measure(&self, labels: &GpuLabels, reading: &Reading) {
        let metrics = &self.metrics;
        if let Some(celsius) = reading.temperature_celsius {
            metrics
                .gpu_temperature
                .get_or_create(labels)
                .set(i64::from(celsius));
        }
        if let Some(celsius) = reading.memory_temperature_celsius {
            let temperature = metrics.gpu_memory_temperature.get_or_create(labels);
            temperature.set(i64::from(celsius));
        }
        if let Some(milliwatts) = reading.power_milliwatts {
            let watts = f64::from(milliwatts) / 1_000.0;
            metrics.gpu_power.get_or_create(labels).set(watts);
        }
        if let Some(percent) = reading.utilization_percent {
            let share = f64::from(percent) / 100.0;
            metrics.gpu_utilization.get_or_create(labels).set(share);
        }
        if let Some(memory) = reading.memory {
            let used_bytes = memory.total_bytes.saturating_sub(memory.free_bytes);
            metrics
                .gpu_memory_used
                .get_or_create(labels)
                .set(used_bytes as i64);
        }
    }

    fn unmeasured(&self, labels: &GpuLabels) {
        let metrics = &self.metrics;
        metrics.gpu_temperature.remove(labels);
        metrics.gpu_memory_temperature.remove(labels);
        metrics.gpu_power.remove(labels);
        metrics.gpu_utilization.remove(labels);
        metrics.gpu_memory_used.remove(labels);
    }

    /// Says what changed between two looks. Before the first there is nothing.
    pub(super) fn changed(&self, before: &[GpuState], now: &[GpuState]) {
        for (place, gpu) in now.iter().enumerate() {
            let fresh = GpuState {
                verdict: Verdict::Unknown,
                incidents: Vec::new(),
                ..gpu.clone()
            };
            self.changed_one(before.get(place).unwrap_or(&fresh), gpu);
        }
    }

    fn changed_one(&self, before: &GpuState, now: &GpuState) {
        let labels = &GpuLabels::new(now.index, &now.uuid);
        for incident in &now.incidents {
            let was = same(before, incident).map(|one| one.severity);
            if was != Some(incident.severity) {
                self.tell(now, incident);
            }
            if was.is_none() {
                let labels = labels.with_signal(incident.signal);
                let opened = &self.metrics.gpu_incidents_opened;
                opened.get_or_create(&labels).inc();
            }
        }
        for incident in before
            .incidents
            .iter()
            .filter(|one| same(now, one).is_none())
        {
            info!(
                worker = %self.worker, gpu = now.index, uuid = now.uuid,
                signal = incident.signal.name(), code = incident.code,
                "gpu incident over"
            );
        }
        if before.verdict != now.verdict {
            info!(
                worker = %self.worker, gpu = now.index, uuid = now.uuid,
                before = ?before.verdict, verdict = ?now.verdict,
                "gpu verdict changed"
            );
        }
        if before.index != now.index {
            self.forget(&GpuLabels::new(before.index, &before.uuid));
        }
        self.count(labels, now);
    }

    fn tell(&self, gpu: &GpuState, incident: &Incident) {
        macro_rules! said {
            ($level:ident) => {
                $level!(
                    worker = %self.worker, gpu = gpu.index, uuid = gpu.uuid,
                    signal = incident.signal.name(), code = incident.code,
                    severity = ?incident.severity, seen = incident.text, action = incident.action,
                    "gpu incident"
                )
            };
        }
        match incident.severity {
            Severity::Info => said!(info),
            Severity::Degraded | Severity::Unknown => said!(warn),
            Severity::NotReady | Severity::Fatal => said!(error),
        }
    }

    /// Before the driver has told a GPU's number its labels are others.
    fn forget(&self, labels: &GpuLabels) {
        for verdict in Verdict::ALL {
            self.metrics
                .gpu_verdict
                .remove(&labels.with_verdict(verdict));
        }
        for severity in Severity::ALL {
            self.metrics
                .gpu_incidents
                .remove(&labels.with_severity(severity));
        }
    }

    fn count(&self, labels: &GpuLabels, gpu: &GpuState) {
        for verdict in Verdict::ALL {
            let of = labels.with_verdict(verdict);
            let count = i64::from(verdict == gpu.verdict);
            self.metrics.gpu_verdict.get_or_create(&of).set(count);
        }
        for severity in Severity::ALL {
            let of = labels.with_severity(severity);
            let open = gpu.incidents.iter().filter(|one| one.severity == severity);
            let open = open.count() as i64;
            self.metrics.gpu_incidents.get_or_create(&of).set(open);
        }
    }
}

/// The incident of a GPU that is the same, whatever its severity.
fn same<'a>(gpu: &'a GpuState, incident: &Incident) -> Option<&'a Incident> {
    let is_it = |one: &&Incident| (one.signal, one.code) == (incident.signal, incident.code);
    gpu.incidents.iter().find(is_it)
}
