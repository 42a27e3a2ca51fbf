//! The verdict on a worker: the worse of its engine's and its GPUs'.

use crate::health::Verdict;
use crate::health::incident::GpuState;

/// The verdict on a worker whose GPUs are known too: the worse of both, and what there is to say of both.
pub fn with_gpus(
    (verdict, cause): (Verdict, Option<String>),
    gpus: &[GpuState],
) -> (Verdict, Option<String>) {
    let worst = gpus.iter().map(|gpu| gpu.verdict);
    let worst = worst.fold(Verdict::Healthy, Verdict::worse);
    let sick = gpus.iter().find(|gpu| gpu.verdict == worst);
    let Some(gpu) = sick.filter(|_| worst != Verdict::Healthy) else {
        return (verdict, cause);
    };
    let told = match cause {
        Some(cause) => format!("{}; {cause}", gpu.story()),
        None => gpu.story(),
    };
    (verdict.worse(worst), Some(told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::incident::{Incident, Severity};
    use crate::health::signal::Signal;

    #[test]
    fn a_worker_is_held_for_the_worse_of_its_engine_and_its_gpus() {
        let gpu = |verdict, text: &str| GpuState {
            index: Some(3),
            uuid: "GPU-3".to_owned(),
            name: None,
            verdict,
            incidents: Vec::from_iter((!text.is_empty()).then(|| Incident {
                signal: Signal::Xid,
                code: 79,
                severity: Severity::Fatal,
                text: text.to_owned(),
                action: "reboot the host".to_owned(),
                since_millis: 0,
            })),
        };
        let well = || gpu(Verdict::Healthy, "");
        let sick = || gpu(Verdict::Failed, "XID 79");
        let told = "GPU 3: XID 79; reboot the host";
        let gone = || (Verdict::Failed, Some("engine is gone".to_owned()));
        for (engine, gpus, verdict, cause) in [
            ((Verdict::Healthy, None), vec![], Verdict::Healthy, None),
            (
                (Verdict::Healthy, None),
                vec![well()],
                Verdict::Healthy,
                None,
            ),
            (
                (Verdict::Healthy, None),
                vec![well(), sick()],
                Verdict::Failed,
                Some(told.to_owned()),
            ),
            (
                gone(),
                vec![well()],
                Verdict::Failed,
                Some("engine is gone".to_owned()),
            ),
            (
                gone(),
                vec![sick()],
                Verdict::Failed,
                Some(format!("{told}; engine is gone")),
            ),
            (
                (Verdict::Healthy, None),
                vec![gpu(Verdict::Unknown, "")],
                Verdict::Unknown,
                Some("GPU 3: nothing was read of it yet".to_owned()),
            ),
        ] {
            assert_eq!(with_gpus(engine, &gpus), (verdict, cause));
        }
    }
}
