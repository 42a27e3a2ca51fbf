//! The table of GPUs: a line for each, and below it a line for each thing wrong with it.

use crate::commands::gpus::Shown;
use crate::health::reading::Memory;

const HEAD: [&str; 8] = [
    "GPU", "worker", "name", "verdict", "temp", "power", "busy", "memory",
];

/// Stands for what is not known.
const NONE: &str = "-";

/// The table as text.
pub(super) fn table(gpus: &[Shown]) -> String {
    let rows: Vec<_> = gpus.iter().map(row).collect();
    let has_worker = gpus.iter().any(|gpu| gpu.worker.is_some());
    let head = HEAD.map(str::to_owned);
    let lines = || std::iter::once(&head).chain(&rows);
    let widths: Vec<_> = (0..HEAD.len())
        .map(|column| {
            let widths = lines().map(|line| line[column].chars().count());
            widths.max().unwrap_or(0)
        })
        .collect();
    let shown = |line: &[String; 8]| {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.filter(|(column, _)| has_worker || HEAD[*column] != "worker");
        let cells = cells.map(|(_, (cell, width))| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let mut text = shown(&head);
    for (gpu, row) in gpus.iter().zip(&rows) {
        text += &shown(row);
        for incident in &gpu.state.incidents {
            let (signal, severity) = (incident.signal.name(), incident.severity.name());
            text += &format!(
                "    {severity} {signal} {}: {}; {}\n",
                incident.code, incident.text, incident.action
            );
        }
    }
    text
}

fn row(gpu: &Shown) -> [String; 8] {
    let (state, reading) = (&gpu.state, gpu.reading.as_deref());
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let called = match state.index {
        Some(index) => format!("{index} {}", state.uuid),
        None => state.uuid.clone(),
    };
    let celsius = reading.and_then(|reading| reading.temperature_celsius);
    let milliwatts = reading.and_then(|reading| reading.power_milliwatts);
    let percent = reading.and_then(|reading| reading.utilization_percent);
    let memory = reading.and_then(|reading| reading.memory);
    [
        called,
        or_none(gpu.worker.clone()),
        or_none(state.name.clone()),
        format!("{:?}", state.verdict).to_lowercase(),
        or_none(celsius.map(|celsius| format!("{celsius} °C"))),
        or_none(milliwatts.map(|power| format!("{} W", power / 1_000))),
        or_none(percent.map(|percent| format!("{percent} %"))),
        or_none(memory.map(in_gib)),
    ]
}

fn in_gib(memory: Memory) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let used = memory.total_bytes.saturating_sub(memory.free_bytes);
    format!("{:.0} of {:.0} GiB", gib(used), gib(memory.total_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Verdict;
    use crate::health::incident::{GpuState, Incident, Severity};
    use crate::health::reading::Reading;
    use crate::health::signal::Signal;

    fn gpu(verdict: Verdict, incidents: Vec<Incident>) -> Shown {
        Shown {
            worker: None,
            state: GpuState {
                index: Some(3),
                uuid: "GPU-4f".to_owned(),
                name: Some("NVIDIA H200".to_owned()),
                verdict,
                incidents,
            },
            reading: None,
        }
    }

    #[test]
    fn a_person_sees_what_is_wrong_and_what_to_do() {
        let mut well = gpu(Verdict::Healthy, Vec::new());
        well.reading = Some(Box::new(Reading {
            temperature_celsius: Some(41),
            power_milliwatts: Some(118_400),
            utilization_percent: Some(0),
            memory: Some(Memory {
                total_bytes: 141 << 30,
                free_bytes: 140 << 30,
            }),
            ..Reading::default()
        }));
        let sick = gpu(
            Verdict::Failed,
            vec![Incident {
                signal: Signal::Xid,
                code: 79,
                severity: Severity::Fatal,
                text: "XID 79".to_owned(),
                action: "reboot the host".to_owned(),
                since_millis: 0,
            }],
        );
        let text = table(&[well, sick]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "GPU       name         verdict  temp   power  busy  memory",
                "3 GPU-4f  NVIDIA H200  healthy  41 °C  118 W  0 %   1 of 141 GiB",
                "3 GPU-4f  NVIDIA H200  failed   -      -      -     -",
                "    fatal xid 79: XID 79; reboot the host",
            ]
        );
        let mut others = gpu(Verdict::Healthy, Vec::new());
        others.worker = Some("gpu-3".to_owned());
        assert!(table(&[others]).contains("gpu-3"));
    }
}
