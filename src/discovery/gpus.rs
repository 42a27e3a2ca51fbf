//! The GPUs of workers, as pages show them.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::discovery::WorkerRecord;
use crate::health::incident::{GpuState, Incident};
use crate::id::WorkerId;

/// Where frontends, routers and agents show the GPUs of the workers that they know.
pub const GPUS_PATH: &str = "/kvlens/v1/gpus";

/// A GPU, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerGpu {
    pub worker: WorkerId,
    #[serde(flatten)]
    pub state: GpuState,
}

/// Reads the GPUs of a record. What an agent newer than us says is wrong with them, and we have no word for,
/// is left out: its verdict says what follows.
pub(super) fn known<'de, D: Deserializer<'de>>(record: D) -> Result<Vec<GpuState>, D::Error> {
    let mut gpus: Vec<Value> = Deserialize::deserialize(record)?;
    for gpu in &mut gpus {
        let incidents = gpu.get_mut("incidents").and_then(Value::as_array_mut);
        if let Some(incidents) = incidents {
            incidents.retain(|incident| Incident::deserialize(incident).is_ok());
        }
    }
    let read = |gpu| GpuState::deserialize(gpu).map_err(serde::de::Error::custom);
    gpus.into_iter().map(read).collect()
}

/// The page: `{"gpus": […]}`, in the order of the workers.
pub fn page<'a>(records: impl IntoIterator<Item = &'a WorkerRecord>) -> Value {
    let of = |record: &'a WorkerRecord| {
        record.gpus.iter().map(|state| WorkerGpu {
            worker: record.worker.clone(),
            state: state.clone(),
        })
    };
    let gpus: Vec<_> = records.into_iter().flat_map(of).collect();
    json!({"gpus": gpus})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Verdict;

    #[test]
    fn what_is_not_known_of_a_gpu_takes_no_record_away() {
        let mut worker = WorkerRecord::new(WorkerId::new("gpu-0").unwrap(), "unix:/s", "m");
        let incident = json!({"signal": "xid", "code": 79, "severity": "fatal", "text": "XID 79",
            "action": "reboot the host", "since_millis": 0});
        let strange = json!({"signal": "humming", "code": 1});
        let mut told = serde_json::to_value(&worker).unwrap();
        told["gpus"] = json!([{"index": 0, "uuid": "GPU-1", "name": null, "verdict": "failed",
            "incidents": [strange, incident.clone()]}]);
        let read: WorkerRecord = serde_json::from_value(told).unwrap();
        let gpu = GpuState {
            index: Some(0),
            uuid: "GPU-1".to_owned(),
            name: None,
            verdict: Verdict::Failed,
            incidents: vec![serde_json::from_value(incident).unwrap()],
        };
        worker.gpus = vec![gpu];
        assert_eq!(read, worker);
        for strange in [json!("x"), json!(1), json!(null), json!({"index": 0})] {
            let mut told = serde_json::to_value(&worker).unwrap();
            told["gpus"] = json!([strange]);
            assert!(serde_json::from_value::<WorkerRecord>(told).is_err());
        }
        let listed = page([&read]);
        assert_eq!(listed["gpus"][0]["worker"], "gpu-0");
        assert_eq!(listed["gpus"][0]["incidents"][0]["code"], 79);
    }
}
