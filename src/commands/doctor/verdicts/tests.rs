//! Workers as they answer or do not, row by row.

use std::time::Duration;

use super::*;
use crate::commands::doctor::finding::Status;
use crate::commands::doctor::page::Page;
use crate::commands::doctor::workers::Candidate;
use crate::discovery::ParityScope;
use crate::id::WorkerId;

const OURS: &str = "aa";
const OTHER: &str = "bb";

type Change = fn(&mut WorkerRecord);

fn page() -> Page {
    Page {
        body: bytes::Bytes::new(),
        took: Duration::from_millis(2),
        skew: None,
    }
}

fn record() -> WorkerRecord {
    let worker = WorkerId::new("gpu-0").unwrap();
    let mut record = WorkerRecord::new(worker, "http://10.0.0.1:8100", "m");
    record.verdict = Verdict::Healthy;
    record.ledger.completeness = Completeness::Complete;
    record.model_digest = Some(OURS.repeat(32));
    record.hash_key = Some("k1".to_owned());
    record
}

fn asked(record: WorkerRecord) -> Asked {
    let mut candidate = Candidate::registered(record.clone(), "lease 9 s left".to_owned());
    candidate.agent = Some("http://10.0.0.1:8200".to_owned());
    Asked {
        candidate,
        agent: Answer::Came(record, page()),
        engine: Answer::Came((), page()),
    }
}

fn ours() -> Ours {
    Ours {
        model: Some(OurModel {
            name: "m".to_owned(),
            digest: ModelDigest::from_hex(&OURS.repeat(32)).unwrap(),
        }),
        hash_key: Some("k1".to_owned()),
        key_file: "discovery.key_file (/k)".to_owned(),
        asks_over_bus: false,
    }
}

#[test]
fn a_worker_that_is_well_has_three_lines() {
    let found = judge(&asked(record()), &ours());
    let checks: Vec<_> = found
        .iter()
        .map(|found| (found.check, found.status))
        .collect();
    let ok = Status::Ok;
    assert_eq!(
        checks,
        [(Check::Agent, ok), (Check::Engine, ok), (Check::Worker, ok)]
    );
    assert!(
        found[2].seen.contains("Healthy; model m (aaaaaaaaaaaa)"),
        "{found:?}"
    );
    assert!(found[2].seen.contains("lease 9 s left"), "{found:?}");
}

/// The one finding that is not ok.
fn off(change: impl Fn(&mut WorkerRecord)) -> Finding {
    let mut record = record();
    change(&mut record);
    let mut found = judge(&asked(record), &ours());
    found.retain(|found| found.status != Status::Ok);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_verdict_is_told_with_what_to_do() {
    for (verdict, status, seen, next) in [
        (Verdict::Failed, Status::Fail, "Failed", "log"),
        (Verdict::Starting, Status::Warn, "Starting", "loaded"),
        (Verdict::Unknown, Status::Warn, "Unknown", "loaded"),
        (Verdict::Draining, Status::Warn, "Draining", "told to"),
        (Verdict::Degraded, Status::Warn, "Degraded: slow", "log"),
    ] {
        let found = off(|record| {
            record.verdict = verdict;
            record.cause = Some("slow".to_owned());
        });
        assert_eq!(found.status, status);
        assert!(found.seen.contains(seen), "{found:?}");
        assert!(found.next.unwrap().contains(next));
    }
}

#[test]
fn what_does_not_fit_is_told_with_its_remedy() {
    let differs = |r: &mut WorkerRecord| {
        r.parity = Parity::Failed {
            scope: ParityScope::Text,
            reason: "token 3".to_owned(),
        };
    };
    let rows: [(Change, Status, &str, &str); 5] = [
        (
            |r| r.hash_key = None,
            Status::Fail,
            "no key, and",
            "cluster.hash_key_file",
        ),
        (
            |r| r.model_digest = Some(OTHER.repeat(32)),
            Status::Fail,
            "digest bbbbbbbbbbbb, and those here aaaaaaaaaaaa",
            "--model",
        ),
        (
            |r| r.model = "n".to_owned(),
            Status::Warn,
            "as \"n\"",
            "--name n",
        ),
        (
            |r| r.ledger.is_followed = false,
            Status::Warn,
            "all its blocks",
            "agent's log",
        ),
        (
            differs,
            Status::Warn,
            "other prompts than ours: token 3",
            "same files",
        ),
    ];
    for (change, status, seen, next) in rows {
        let found = off(change);
        assert_eq!(found.status, status);
        assert!(found.seen.contains(seen), "{found:?}");
        assert!(found.next.unwrap().contains(next));
    }
}

#[test]
fn another_model_of_another_name_is_nobodys_fault() {
    let mut other = record();
    other.model = "n".to_owned();
    other.model_digest = Some(OTHER.repeat(32));
    let found = judge(&asked(other), &ours());
    assert!(
        found.iter().all(|found| found.status == Status::Ok),
        "{found:?}"
    );
}

#[test]
fn who_does_not_answer_fails_with_the_next_step() {
    let silent = NoPage::Silent(Duration::from_millis(1_500));
    let refused = NoPage::Unreachable("refused the connection".to_owned());
    let rows: [(Answer<WorkerRecord>, &str, &str); 5] = [
        (Answer::None(NoPage::Key), "401", "discovery.key_file (/k)"),
        (Answer::None(silent), "within 1500 ms", "worker.listen"),
        (
            Answer::None(refused),
            "refused the connection",
            "does it run",
        ),
        (Answer::Outside, "discovery.networks", "worker.advertise"),
        (
            Answer::Useless("no engine yet".to_owned()),
            "no engine yet",
            "kvlens engine",
        ),
    ];
    for (agent, seen, next) in rows {
        let mut asked = asked(record());
        asked.agent = agent;
        let found = judge(&asked, &ours());
        assert_eq!(found[0].status, Status::Fail);
        assert!(found[0].seen.contains(seen), "{found:?}");
        assert!(found[0].next.as_ref().unwrap().contains(next), "{found:?}");
        // Its record in etcd tells of the rest.
        assert_eq!(found.len(), 3, "{found:?}");
    }
    let mut asked = asked(record());
    asked.engine = Answer::None(NoPage::Key);
    let found = judge(&asked, &ours());
    assert_eq!(
        (found[1].check, found[1].status),
        (Check::Engine, Status::Fail)
    );
    assert!(
        found[1]
            .next
            .as_ref()
            .unwrap()
            .contains("gate's --key-file")
    );
}

#[test]
fn an_agent_that_is_reached_over_the_bus_alone_is_no_fault() {
    let ours = Ours {
        asks_over_bus: true,
        ..ours()
    };
    let refused = || Answer::None(NoPage::Unreachable("refused the connection".to_owned()));
    let mut registered = asked(record());
    registered.agent = refused();
    let found = judge(&registered, &ours);
    assert_eq!(found[0].status, Status::Skip, "{found:?}");
    assert!(found[0].seen.contains("not reached over HTTP"), "{found:?}");
    assert_eq!(found[1].status, Status::Ok, "{found:?}");

    registered.agent = Answer::None(NoPage::Key);
    assert_eq!(judge(&registered, &ours)[0].status, Status::Fail);
    // The feed of one that is named alone is read over HTTP.
    let mut named = asked(record());
    named.agent = refused();
    named.candidate.registered = None;
    assert_eq!(judge(&named, &ours)[0].status, Status::Fail);

    let mut silent = asked(record());
    silent.engine = Answer::None(NoPage::Silent(Duration::from_millis(1_500)));
    let found = judge(&silent, &ours);
    assert_eq!(found[1].status, Status::Fail);
    assert!(
        found[1].next.as_ref().unwrap().contains("--nats"),
        "{found:?}"
    );
}

#[test]
fn workers_with_different_files_of_one_model_are_told_of() {
    let mut second = record();
    second.worker = WorkerId::new("gpu-1").unwrap();
    assert!(compare(&[asked(record()), asked(second.clone())]).is_empty());
    second.model_digest = Some(OTHER.repeat(32));
    let found = compare(&[asked(record()), asked(second)]);
    assert_eq!(found.len(), 1);
    let wanted = "aaaaaaaaaaaa (gpu-0), bbbbbbbbbbbb (gpu-1)";
    assert!(found[0].seen.contains(wanted), "{found:?}");
}
