//! The workers that are registered or named: their agents and engines are asked, all at once.

use std::sync::Arc;

use serde_json::Value;
use tokio::task::JoinSet;

use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::doctor::page::{NoPage, Page, look, page};
use crate::commands::doctor::{AGENT_MAX, ENGINE_MAX};
use crate::config::Config;
use crate::discovery::WorkerRecord;
use crate::discovery::address::agents;
use crate::discovery::membership::{self, key_of};
use crate::discovery::workers_file;
use crate::dispatch::EngineClient;
use crate::id::WorkerId;
use crate::router::rules::Rules;
use crate::telemetry::causes::told;

/// Most workers that are asked: two connections each, all at once.
const ASKED_MAX: usize = 512;

/// A worker to ask about.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Its agent's listener; `None` where its record names none.
    pub(super) agent: Option<String>,
    /// Its record in etcd, and how long that stays, for a person.
    pub(super) registered: Option<(WorkerRecord, String)>,
}

/// What was heard of a worker.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) candidate: Candidate,
    pub(super) agent: Answer<WorkerRecord>,
    pub(super) engine: Answer<()>,
}

/// What one of the two answered.
#[derive(Clone, Debug)]
pub(super) enum Answer<T> {
    /// With the page it came from.
    Came(T, Page),
    /// The page came, and is not what is wanted.
    Useless(String),
    None(NoPage),
    /// It was not asked: nobody knows where it is.
    Unknown,
    /// It was not asked: it would be shown our key, and is in none of `discovery.networks`.
    Outside,
}

/// How agents and engines are asked.
#[derive(Debug)]
pub(super) struct Ways {
    pub(super) agents: EngineClient,
    /// Over what carries requests; `None` where that is the bus, and there is none.
    pub(super) engines: Option<EngineClient>,
    /// Who may be shown our key.
    pub(super) rules: Rules,
}

impl Candidate {
    #[cfg(any(test, feature = "etcd"))]
    pub(super) fn registered(record: WorkerRecord, lease: String) -> Self {
        Self {
            agent: record.agent.clone(),
            registered: Some((record, lease)),
        }
    }

    fn named(agent: String) -> Self {
        Self {
            agent: Some(agent),
            registered: None,
        }
    }
}

impl Asked {
    /// The worker's record, by its agent if that answered.
    pub(super) fn record(&self) -> Option<&WorkerRecord> {
        match &self.agent {
            Answer::Came(record, _) => Some(record),
            _ => self.candidate.registered.as_ref().map(|(record, _)| record),
        }
    }
}

/// The agents that the configuration names, itself or in a file, and what is wrong with either.
pub(super) fn named(config: &Config) -> (Vec<Candidate>, Vec<Finding>) {
    let mut findings = Vec::new();
    let discovery = &config.discovery;
    let listed = agents(discovery.workers.iter().map(String::as_str));
    let mut urls = listed.unwrap_or_else(|error| {
        let next = "correct --worker-url or discovery.workers";
        let subject = "discovery.workers";
        findings.push(Finding::fail(
            Check::Configuration,
            subject,
            error.to_string(),
            next,
        ));
        Vec::new()
    });
    if let Some(path) = &discovery.workers_file {
        let subject = "discovery.workers_file";
        match workers_file::read(path) {
            Ok(more) => {
                let seen = format!("{}: {} agents", path.display(), more.len());
                findings.push(Finding::ok(Check::Worker, subject, seen));
                urls.extend(more);
            }
            Err(error) => {
                let next = format!("correct {}: one http://HOST:PORT a line", path.display());
                findings.push(Finding::fail(Check::Worker, subject, told(&error), next));
            }
        }
    }
    (urls.into_iter().map(Candidate::named).collect(), findings)
}

/// Asks the workers that are registered, and those of the named ones that are not.
pub(super) async fn ask(
    mut registered: Vec<Candidate>,
    named: Vec<Candidate>,
    ways: Arc<Ways>,
) -> (Vec<Asked>, Option<Finding>) {
    for candidate in named {
        let is_known = registered
            .iter()
            .any(|known| known.agent == candidate.agent);
        if !is_known {
            registered.push(candidate);
        }
    }
    let left_out = registered.len().saturating_sub(ASKED_MAX);
    let left_out = (left_out > 0).then(|| {
        let seen = format!("{left_out} more were not asked, beyond {ASKED_MAX}");
        Finding::skip(Check::Worker, "workers", seen)
    });
    let mut asking = JoinSet::new();
    for (number, candidate) in registered.into_iter().take(ASKED_MAX).enumerate() {
        let ways = ways.clone();
        asking.spawn(async move { (number, ways.ask(candidate).await) });
    }
    let mut asked = asking.join_all().await;
    asked.sort_by_key(|(number, _)| *number);
    (
        asked.into_iter().map(|(_, asked)| asked).collect(),
        left_out,
    )
}

impl Ways {
    async fn ask(&self, candidate: Candidate) -> Asked {
        let known = candidate.registered.as_ref();
        let known = known.map(|(record, _)| record.clone());
        let (agent, engine) = match known {
            Some(record) => tokio::join!(
                self.ask_agent(candidate.agent.as_deref()),
                self.ask_engine(&record)
            ),
            None => {
                let agent = self.ask_agent(candidate.agent.as_deref()).await;
                let engine = match &agent {
                    Answer::Came(record, _) => self.ask_engine(record).await,
                    _ => Answer::Unknown,
                };
                (agent, engine)
            }
        };
        Asked {
            candidate,
            agent,
            engine,
        }
    }

    async fn ask_agent(&self, agent: Option<&str>) -> Answer<WorkerRecord> {
        let Some(address) = agent else {
            return Answer::Unknown;
        };
        if !self.rules.reaches(address) {
            return Answer::Outside;
        }
        match page(&self.agents, address, "/kvlens/v1/workers", AGENT_MAX).await {
            Ok(page) => match record_of(&page.body) {
                Ok(record) => Answer::Came(record, page),
                Err(cause) => Answer::Useless(cause),
            },
            Err(none) => Answer::None(none),
        }
    }

    async fn ask_engine(&self, record: &WorkerRecord) -> Answer<()> {
        let WorkerRecord {
            worker, address, ..
        } = record;
        if !self.rules.reaches(address) {
            return Answer::Outside;
        }
        let answer = match &self.engines {
            Some(client) if client.is_over_bus() => {
                look(client, (worker, address), "/health", ENGINE_MAX).await
            }
            Some(client) => page(client, address, "/health", ENGINE_MAX).await,
            None => Err(NoPage::Unreachable("NATS cannot be used".to_owned())),
        };
        match answer {
            Ok(page) => Answer::Came((), page),
            Err(none) => Answer::None(none),
        }
    }
}

/// The one record of an agent's page, read as one in etcd is.
fn record_of(body: &[u8]) -> Result<WorkerRecord, String> {
    let page: Value = serde_json::from_slice(body)
        .map_err(|_| "it answered no JSON: it is no agent of kvlens".to_owned())?;
    let Some(listed) = page["workers"].as_array() else {
        return Err("it answered without a list of workers: it is no agent of kvlens".to_owned());
    };
    let Some(record) = listed.first() else {
        return Err("the agent is there and knows no engine yet".to_owned());
    };
    let name = record["worker"].as_str().unwrap_or_default();
    let worker = WorkerId::new(name).map_err(|error| told(&error))?;
    let text = record.to_string();
    membership::read(key_of(&worker).as_bytes(), text.as_bytes())
        .map_err(|error| format!("bad record: {}", told(&error)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agents_page_has_one_record_or_says_why_not() {
        let worker = WorkerId::new("gpu-0").unwrap();
        let record = WorkerRecord::new(worker, "http://10.0.0.1:8100", "m");
        let good = json!({"workers": [record]});
        assert_eq!(record_of(good.to_string().as_bytes()), Ok(record));
        let mut newer = good.clone();
        newer["workers"][0]["version"] = json!(9);
        for (body, part) in [
            (json!({"workers": []}).to_string(), "knows no engine yet"),
            (json!({"data": []}).to_string(), "no agent of kvlens"),
            ("<html>".to_owned(), "no agent of kvlens"),
            (
                newer.to_string(),
                "version 9, and this program reads up to 1",
            ),
            (json!({"workers": [{"worker": "A B"}]}).to_string(), "A B"),
        ] {
            let error = record_of(body.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
