//! What a source of membership tells, and workers' records as they stand in it: read, and refused one
//! by one.

use std::collections::HashMap;

use crate::discovery::address::is_address;
use crate::discovery::{RECORD_VERSION, WorkerRecord, is_readable};
use crate::id::WorkerId;
use crate::telemetry::labels::BadRecord;

/// Below it each worker has a key of its name.
pub const WORKERS_PREFIX: &str = "/kvlens/v1/workers/";

/// Largest record that is read; ours are a thirtieth of it.
pub const RECORD_BYTES_MAX: usize = 64 << 10;

/// Most workers that are known at once, bad records included: what keys beyond would cost is memory.
pub const WORKERS_MAX: usize = 4_096;

/// What a source of membership tells, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// The whole set: every other worker is absent, which is a suspicion.
    Listed(Vec<WorkerRecord>),
    /// A worker is there, or its record has changed.
    Is(Box<WorkerRecord>),
    /// A worker is absent, which is a suspicion and not its end.
    Absent(WorkerId),
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("key {key:?} names no worker")]
    Key { key: String },
    #[error("it is over {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("it is no record")]
    NotARecord { source: serde_json::Error },
    #[error("it has version {found}, and this program reads up to {RECORD_VERSION}")]
    Version { found: u32 },
    #[error("it is of worker {found}")]
    OtherWorker { found: WorkerId },
    #[error("address {address:?} is neither http://host:port nor unix:/path")]
    Address { address: String },
}

impl RecordError {
    /// Its kind, to count it under.
    pub fn kind(&self) -> BadRecord {
        match self {
            Self::Key { .. } => BadRecord::Key,
            Self::TooLarge { .. } => BadRecord::TooLarge,
            Self::NotARecord { .. } => BadRecord::NotARecord,
            Self::Version { .. } => BadRecord::Version,
            Self::OtherWorker { .. } => BadRecord::OtherWorker,
            Self::Address { .. } => BadRecord::Address,
        }
    }
}

/// The key of a worker's record.
pub fn key_of(worker: &WorkerId) -> String {
    format!("{WORKERS_PREFIX}{worker}")
}

/// The worker that a key names.
///
/// # Errors
/// When it names none.
pub fn worker_of(key: &[u8]) -> Result<WorkerId, RecordError> {
    let text = String::from_utf8_lossy(key);
    let name = text.strip_prefix(WORKERS_PREFIX).unwrap_or_default();
    WorkerId::new(name).map_err(|_| RecordError::Key {
        key: text.chars().take(128).collect(),
    })
}

/// Reads the record that stands under `key`.
///
/// # Errors
/// When it is none that we can read, or not of the worker that the key names.
pub fn read(key: &[u8], bytes: &[u8]) -> Result<WorkerRecord, RecordError> {
    let worker = worker_of(key)?;
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(RecordError::TooLarge {
            bytes_max: RECORD_BYTES_MAX,
        });
    }
    // First the version alone: what else a later one has, nobody knows here.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let not_a_record = |source| RecordError::NotARecord { source };
    let Versioned { version } = serde_json::from_slice(bytes).map_err(not_a_record)?;
    if !is_readable(version, RECORD_VERSION) {
        return Err(RecordError::Version { found: version });
    }
    let record: WorkerRecord = serde_json::from_slice(bytes).map_err(not_a_record)?;
    if record.worker != worker {
        return Err(RecordError::OtherWorker {
            found: record.worker,
        });
    }
    let mut addresses = record.agent.iter().chain(Some(&record.address));
    if let Some(address) = addresses.find(|address| !is_address(address)) {
        let address = address.chars().take(128).collect();
        return Err(RecordError::Address { address });
    }
    Ok(record)
}

/// The keys whose records were bad when last seen, so that each is told of once.
#[derive(Debug, Default)]
pub struct Offenders {
    kinds: HashMap<Vec<u8>, BadRecord>,
}

impl Offenders {
    /// Notes what became of reading a key; true where that is news of a fault.
    pub fn is_news(&mut self, key: &[u8], fault: Option<BadRecord>) -> bool {
        match fault {
            None => {
                self.kinds.remove(key);
                false
            }
            Some(kind) if self.kinds.len() < WORKERS_MAX || self.kinds.contains_key(key) => {
                self.kinds.insert(key.to_vec(), kind) != Some(kind)
            }
            Some(_) => false,
        }
    }

    /// Forgets the keys that are not among `present`.
    pub fn retain<'a>(&mut self, present: impl Fn(&[u8]) -> bool + 'a) {
        self.kinds.retain(|key, _| present(key));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(change: impl Fn(&mut Value)) -> Vec<u8> {
        let worker = WorkerId::new("gpu-0").unwrap();
        let record = WorkerRecord::new(worker, "http://10.0.0.1:8100", "m");
        let mut value = serde_json::to_value(record).unwrap();
        change(&mut value);
        value.to_string().into_bytes()
    }

    #[test]
    fn a_record_is_read_or_its_fault_named() {
        let own = "/kvlens/v1/workers/gpu-0";
        let large = format!("\"{}\"", "x".repeat(RECORD_BYTES_MAX));
        for (key, bytes, fault) in [
            (own, record(|_| ()), None),
            (own, record(|r| r["version"] = json!(0)), None),
            (own, record(|r| r["new_in_a_later_one"] = json!(true)), None),
            (own, record(|r| r["address"] = json!("unix:/run/e")), None),
            (own, record(|r| r["agent"] = json!("http://a:1")), None),
            ("/kvlens/v1/workers/", record(|_| ()), Some(BadRecord::Key)),
            (
                "/kvlens/v1/workers/GPU",
                record(|_| ()),
                Some(BadRecord::Key),
            ),
            (
                "/kvlens/v1/workers/a/b",
                record(|_| ()),
                Some(BadRecord::Key),
            ),
            ("gpu-0", record(|_| ()), Some(BadRecord::Key)),
            (own, large.into_bytes(), Some(BadRecord::TooLarge)),
            (own, b"{".to_vec(), Some(BadRecord::NotARecord)),
            (own, b"[]".to_vec(), Some(BadRecord::NotARecord)),
            (own, b"\xff\xfe".to_vec(), Some(BadRecord::NotARecord)),
            (
                own,
                record(|r| r["ranks"] = json!(-1)),
                Some(BadRecord::NotARecord),
            ),
            (
                own,
                record(|r| r["version"] = json!(2)),
                Some(BadRecord::Version),
            ),
            (
                own,
                record(|r| *r = json!({"version": 9, "other": 1})),
                Some(BadRecord::Version),
            ),
            (
                own,
                record(|r| r["worker"] = json!("gpu-1")),
                Some(BadRecord::OtherWorker),
            ),
            (
                own,
                record(|r| r["address"] = json!("10.0.0.1:80")),
                Some(BadRecord::Address),
            ),
            (
                own,
                record(|r| r["agent"] = json!("file:///etc/passwd")),
                Some(BadRecord::Address),
            ),
        ] {
            let outcome = read(key.as_bytes(), &bytes);
            let found = outcome.as_ref().err().map(RecordError::kind);
            assert_eq!(found, fault, "{key} {outcome:?}");
        }
    }

    #[test]
    fn an_offender_is_news_until_it_changes() {
        let mut offenders = Offenders::default();
        for (key, fault, news) in [
            ("a", None, false),
            ("a", Some(BadRecord::Version), true),
            ("a", Some(BadRecord::Version), false),
            ("b", Some(BadRecord::Version), true),
            ("a", Some(BadRecord::Address), true),
            ("a", None, false),
            ("a", Some(BadRecord::Address), true),
        ] {
            assert_eq!(
                offenders.is_news(key.as_bytes(), fault),
                news,
                "{key} {fault:?}"
            );
        }
        offenders.retain(|key| key == b"a");
        assert!(offenders.is_news(b"b", Some(BadRecord::Version)));
    }

    #[test]
    fn a_key_names_its_worker() {
        let worker = WorkerId::new("gpu-0").unwrap();
        assert_eq!(worker_of(key_of(&worker).as_bytes()).unwrap(), worker);
    }
}
