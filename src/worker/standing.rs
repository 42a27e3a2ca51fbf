//! How an agent's worker stands: what metrics and systemd are told of it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::discovery::{Completeness, WorkerRecord};
use crate::health::Verdict;
use crate::id::WorkerId;
use crate::lifecycle::notify;
use crate::telemetry::labels::VerdictLabels;
use crate::telemetry::metrics::Metrics;

/// Shows the worker's state to operators whenever it changes, until nobody tells of it any more.
pub(crate) async fn show(
    worker: WorkerId,
    mut record: watch::Receiver<Option<Box<WorkerRecord>>>,
    metrics: Arc<Metrics>,
) {
    let told = record.clone();
    let telling = notify::follow(|| line(&worker, told.borrow().as_deref()));
    let counting = async {
        while record.changed().await.is_ok() {
            if let Some(record) = record.borrow_and_update().as_deref() {
                count(record, &metrics);
            }
        }
    };
    tokio::select! {
        () = counting => {}
        never = telling => match never {},
    }
}

fn count(record: &WorkerRecord, metrics: &Metrics) {
    for verdict in Verdict::ALL {
        let labels = VerdictLabels { verdict };
        let count = i64::from(verdict == record.verdict);
        metrics.workers.get_or_create(&labels).set(count);
    }
    let is_partial = record.ledger.completeness == Completeness::Partial;
    metrics.partial_ledgers.set(i64::from(is_partial));
}

/// As `gpu-0: healthy, 1,234 of 4,096 blocks`.
fn line(worker: &WorkerId, record: Option<&WorkerRecord>) -> String {
    let Some(record) = record else {
        return format!("{worker}: engine not heard of yet");
    };
    let verdict = format!("{:?}", record.verdict).to_lowercase();
    let blocks = grouped(record.ledger.blocks);
    let held = match (record.capacity_blocks, record.ledger.completeness) {
        (Some(capacity), Completeness::Complete) => {
            format!("{blocks} of {} blocks", grouped(capacity))
        }
        (Some(capacity), _) => format!("{blocks} of {} blocks known", grouped(capacity)),
        (None, _) => format!("{blocks} blocks known"),
    };
    match &record.cause {
        Some(cause) => format!("{worker}: {verdict}, {held}: {cause}"),
        None => format!("{worker}: {verdict}, {held}"),
    }
}

/// A number with a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_what_is_known() {
        let worker = WorkerId::new("gpu-0").unwrap();
        assert_eq!(line(&worker, None), "gpu-0: engine not heard of yet");
        let mut record = WorkerRecord::new(worker.clone(), "http://127.0.0.1:1", "demo");
        record.verdict = Verdict::Healthy;
        record.ledger.blocks = 1_234;
        record.ledger.completeness = Completeness::Complete;
        record.capacity_blocks = Some(4_096);
        let text = line(&worker, Some(&record));
        assert_eq!(text, "gpu-0: healthy, 1,234 of 4,096 blocks");
        record.verdict = Verdict::Failed;
        record.cause = Some("engine is gone".to_owned());
        record.capacity_blocks = None;
        let text = line(&worker, Some(&record));
        assert_eq!(text, "gpu-0: failed, 1,234 blocks known: engine is gone");
    }

    #[test]
    fn numbers_are_easy_to_read() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_234, "1,234"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
