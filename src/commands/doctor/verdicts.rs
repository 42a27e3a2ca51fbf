//! What is wrong with a worker, by what its agent, its engine and its record say.

use std::collections::BTreeMap;

use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::doctor::millis;
use crate::commands::doctor::model::OurModel;
use crate::commands::doctor::page::NoPage;
use crate::commands::doctor::workers::{Answer, Asked};
use crate::discovery::{Completeness, Parity, WorkerRecord};
use crate::health::Verdict;
use crate::model::archive::ModelDigest;

/// What workers are compared with.
#[derive(Clone, Debug, Default)]
pub(super) struct Ours {
    pub(super) model: Option<OurModel>,
    /// Fingerprint of the cluster's key; `None` where there is none.
    pub(super) hash_key: Option<String>,
    /// The file of the key that agents are shown, for a person.
    pub(super) key_file: String,
    /// Whether engines are reached over NATS.
    pub(super) asks_over_bus: bool,
}

/// All findings of one worker: its agent, its engine, itself, and each thing that does not fit.
pub(super) fn judge(asked: &Asked, ours: &Ours) -> Vec<Finding> {
    let mut findings = vec![agent(asked, ours)];
    findings.extend(engine(asked, ours));
    if let Some(record) = asked.record() {
        findings.push(verdict(asked, record));
        findings.extend(misfits(record, ours));
    }
    findings
}

fn agent(asked: &Asked, ours: &Ours) -> Finding {
    let named = asked.candidate.agent.as_deref();
    let subject = named.or(name(asked)).unwrap_or("agent");
    let fail = |seen: &str, next: &str| Finding::fail(Check::Agent, subject, seen, next);
    match &asked.agent {
        Answer::Came(record, page) => {
            let seen = format!(
                "agent of {}, answered in {}",
                record.worker,
                millis(page.took)
            );
            Finding::ok(Check::Agent, subject, seen)
        }
        Answer::Unknown => Finding::skip(Check::Agent, subject, "its record names no listener"),
        Answer::Useless(cause) => fail(
            cause,
            "start `kvlens engine` or name --engine-url for an agent without an engine; else correct \
             the address",
        ),
        Answer::Outside => fail(
            "it is in none of discovery.networks, so it is not asked and not shown our key",
            "add its network to discovery.networks, or correct worker.advertise on its host",
        ),
        Answer::None(NoPage::Key) => fail(
            &NoPage::Key.seen(),
            &format!(
                "put a key of the agent's worker.key_file on the first line of {}",
                ours.key_file
            ),
        ),
        // A registered one tells its feed on the bus.
        Answer::None(NoPage::Silent(_) | NoPage::Unreachable(_))
            if ours.asks_over_bus && asked.candidate.registered.is_some() =>
        {
            let seen = "it is not reached over HTTP; feed and requests go over NATS, and only \
                        frontends without --model ask it, for its model's files";
            Finding::skip(Check::Agent, subject, seen)
        }
        Answer::None(none) => fail(
            &none.seen(),
            "see the agent's log on its host: does it run, and is worker.listen reachable from here?",
        ),
    }
}

/// `None` where nobody knows of an engine.
fn engine(asked: &Asked, ours: &Ours) -> Option<Finding> {
    let record = asked.record()?;
    let subject = record.address.as_str();
    let worker = &record.worker;
    let fail = |seen: String, next: String| Finding::fail(Check::Engine, subject, seen, next);
    Some(match &asked.engine {
        Answer::Came((), page) => {
            let seen = format!("engine of {worker}, well, answered in {}", millis(page.took));
            Finding::ok(Check::Engine, subject, seen)
        }
        Answer::Unknown => return None,
        Answer::Useless(cause) => fail(cause.clone(), "see the engine's log".to_owned()),
        Answer::Outside => fail(
            format!(
                "engine of {worker}: it is in none of discovery.networks, where a host is named by \
                 number, so no request goes there"
            ),
            "add its network to discovery.networks, or correct the engine's public address".to_owned(),
        ),
        Answer::None(NoPage::Key) => fail(
            format!("engine of {worker}: {}", NoPage::Key.seen()),
            format!(
                "put a key of the gate's --key-file on its host on the first line of {}",
                ours.key_file
            ),
        ),
        Answer::None(none) if ours.asks_over_bus => fail(
            format!("engine of {worker}, over NATS: {}", none.seen()),
            "see the lines of nats and the engine's log: does `kvlens engine` run on its host, with \
             --nats?"
                .to_owned(),
        ),
        Answer::None(none) => fail(
            format!("engine of {worker}: {}", none.seen()),
            "see the engine's log on its host: does it run, and is its address reachable from here?"
                .to_owned(),
        ),
    })
}

fn name(asked: &Asked) -> Option<&str> {
    asked.record().map(|record| record.worker.as_str())
}

/// How the worker is by its own word.
fn verdict(asked: &Asked, record: &WorkerRecord) -> Finding {
    let worker = record.worker.as_str();
    let cause = record.cause.as_deref().unwrap_or_default();
    let cause = if cause.is_empty() {
        ""
    } else {
        &format!(": {cause}")
    };
    let digest = record.model_digest.as_deref();
    let digest = digest.and_then(ModelDigest::from_hex);
    let digest = digest.map_or_else(String::new, |digest| format!(" ({})", digest.short()));
    let registered = asked.candidate.registered.as_ref();
    let lease = registered.map_or_else(String::new, |(_, lease)| format!("; {lease}"));
    let seen = format!(
        "{:?}{cause}; model {}{digest}, record version {}{lease}",
        record.verdict, record.model, record.version
    );
    let next = "see the agent's and the engine's log on its host";
    match record.verdict {
        Verdict::Healthy => Finding::ok(Check::Worker, worker, seen),
        Verdict::Failed => Finding::fail(Check::Worker, worker, seen, next),
        Verdict::Unknown | Verdict::Starting => Finding::warn(
            Check::Worker,
            worker,
            seen,
            "wait until its engine has loaded the model; if it does not, see the engine's log",
        ),
        Verdict::Draining => Finding::warn(
            Check::Worker,
            worker,
            seen,
            "nothing if it was told to; else start its engine again",
        ),
        Verdict::Degraded => Finding::warn(Check::Worker, worker, seen, next),
    }
}

/// What keeps requests, or good choices, from a worker that is well.
fn misfits(record: &WorkerRecord, ours: &Ours) -> Vec<Finding> {
    let mut findings = Vec::new();
    let worker = record.worker.as_str();
    findings.extend(other_key(record, ours));
    findings.extend(
        ours.model
            .as_ref()
            .and_then(|model| other_files(record, model)),
    );
    let cause = record
        .ledger
        .cause
        .as_deref()
        .unwrap_or("its agent does not say why");
    if !record.ledger.is_followed || record.ledger.completeness == Completeness::Partial {
        findings.push(Finding::warn(
            Check::Worker,
            worker,
            format!("its agent does not know all its blocks: {cause}"),
            "requests are served, some of them elsewhere than best; see the agent's log",
        ));
    }
    if let Parity::Failed { reason, .. } = &record.parity {
        findings.push(Finding::warn(
            Check::Worker,
            worker,
            format!("its engine makes other prompts than ours: {reason}"),
            "give the engine, its agent and the frontends the same files of the model",
        ));
    }
    findings
}

fn other_key(record: &WorkerRecord, ours: &Ours) -> Option<Finding> {
    let (its, here) = (record.hash_key.as_deref(), ours.hash_key.as_deref());
    let shown = |key: Option<&str>| key.map_or("no key".to_owned(), |key| format!("key {key:.16}"));
    (its != here).then(|| {
        Finding::fail(
            Check::Worker,
            record.worker.as_str(),
            format!(
                "its blocks are named with {}, and those here with {}",
                shown(its),
                shown(here)
            ),
            "give both hosts the same cluster.hash_key_file",
        )
    })
}

fn other_files(record: &WorkerRecord, model: &OurModel) -> Option<Finding> {
    let worker = record.worker.as_str();
    let its = ModelDigest::from_hex(record.model_digest.as_deref()?)?;
    let (is_same, is_named_so) = (its == model.digest, record.model == model.name);
    match (is_same, is_named_so) {
        (false, true) => Some(Finding::fail(
            Check::Worker,
            worker,
            format!(
                "its model's files have digest {}, and those here {}: no request goes there",
                its.short(),
                model.digest.short()
            ),
            "give both the same files, or the frontend no --model",
        )),
        (true, false) => Some(Finding::warn(
            Check::Worker,
            worker,
            format!(
                "it serves our model's files as {:?}, and ours are {:?}",
                record.model, model.name
            ),
            format!("frontends with --model need --name {}", record.model),
        )),
        _ => None,
    }
}

/// What workers do not agree about among themselves.
pub(super) fn compare(all: &[Asked]) -> Vec<Finding> {
    let mut by_model: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for record in all.iter().filter_map(Asked::record) {
        if let Some(digest) = record.model_digest.as_deref() {
            let digests = by_model.entry(&record.model).or_default();
            digests.entry(digest).or_insert(record.worker.as_str());
        }
    }
    let differ = by_model
        .into_iter()
        .filter(|(_, digests)| digests.len() > 1);
    differ
        .map(|(model, digests)| {
            let each = digests.iter();
            let each: Vec<_> = each.map(|(digest, of)| format!("{digest:.12} ({of})")).collect();
            Finding::warn(
                Check::Model,
                model,
                format!("workers have different files of it: {}", each.join(", ")),
                "give all its engines and agents the same files; nothing where they are being changed",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
