//! What an agent writes into its worker's record.

use tracing::info;

use crate::block::BlockSize;
use crate::discovery::{Completeness, LedgerState, WorkerRecord};
use crate::health::Verdict;
use crate::health::judge::Progress;
use crate::worker::gpus::EngineSeen;
use crate::worker::probe::EngineFacts;
use crate::worker::rank::RankStatus;
use crate::worker::spec::AgentSpec;

/// How an engine stands with its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not answered yet.
    Starting {
        cause: String,
    },
    /// It answers, but its ranks have not shown yet what they hold.
    Proving,
    Well,
    Failed {
        cause: String,
    },
}

/// The verdict on an engine, and why it is not healthy. `misfit` says why it is not the engine that
/// was meant.
pub fn verdict(standing: &Standing, misfit: Option<&str>) -> (Verdict, Option<String>) {
    match (standing, misfit) {
        (Standing::Starting { cause }, _) => (Verdict::Starting, Some(cause.clone())),
        (Standing::Failed { cause }, _) => (Verdict::Failed, Some(cause.clone())),
        (_, Some(misfit)) => (Verdict::Failed, Some(misfit.to_owned())),
        (Standing::Proving, None) => {
            let cause = "it answers, and its kv events are being caught up with";
            (Verdict::Starting, Some(cause.to_owned()))
        }
        (Standing::Well, None) => (Verdict::Healthy, None),
    }
}

/// How the engine is, for those who judge its GPUs.
pub fn engine_seen(
    spec: &AgentSpec,
    standing: &Standing,
    (facts, progress): (&EngineFacts, Option<Progress>),
) -> EngineSeen {
    let is_there = matches!(standing, Standing::Proving | Standing::Well);
    EngineSeen {
        address: spec.address.clone(),
        pid: spec.pid,
        ranks: facts.ranks.unwrap_or(spec.sources.len()) as u32,
        is_starting: matches!(standing, Standing::Starting { .. }),
        model: facts.models.first().filter(|_| is_there).cloned(),
        progress: progress.filter(|_| is_there),
    }
}

/// The record of a worker whose engine has not answered yet.
pub fn first(spec: &AgentSpec) -> WorkerRecord {
    let mut record = WorkerRecord::new(spec.worker.clone(), &spec.address, &spec.model);
    record.aliases.clone_from(&spec.aliases);
    record.engine.kind.clone_from(&spec.kind);
    record.agent.clone_from(&spec.agent);
    record.hash_key = spec.hash_key.map(|key| key.fingerprint());
    record.agent_life = spec.agent_life;
    let digest = spec.files.as_ref().map(|files| files.digest());
    record.model_digest = digest.map(|digest| digest.to_string());
    record.device = spec.device;
    record.labels.clone_from(&spec.labels);
    record.ranks = spec.sources.len().max(1) as u32;
    let media_dir = spec.media_dir.as_ref();
    record.media_dir = media_dir.map(|folder| folder.display().to_string());
    (record.verdict, record.cause) = verdict(&not_asked(), None);
    record
}

/// How an engine stands before it was asked anything.
pub fn not_asked() -> Standing {
    let cause = "it was not asked yet".to_owned();
    Standing::Starting { cause }
}

/// Takes what the engine says of itself.
pub fn learn(record: &mut WorkerRecord, spec: &AgentSpec, facts: &EngineFacts) {
    record.aliases.clone_from(&spec.aliases);
    for served in &facts.models {
        if *served != spec.model && !record.aliases.contains(served) {
            record.aliases.push(served.clone());
        }
    }
    record.adapters.clone_from(&facts.adapters);
    record.engine.version.clone_from(&facts.version);
    record.capacity_blocks = facts.capacity_blocks;
    record.context_tokens_max = facts.context_tokens_max;
    record.max_batched_tokens = facts.max_batched_tokens;
}

/// Why an engine is not the one that was meant; `None` for one that is.
pub fn misfit(spec: &AgentSpec, facts: &EngineFacts) -> Option<String> {
    let serves = |name: &String| *name == spec.model;
    if facts.models.is_empty() || facts.models.iter().any(serves) {
        return None;
    }
    let (found, wanted) = (facts.models.join(", "), &spec.model);
    Some(format!("it serves {found}, and was to serve {wanted}"))
}

/// Asks requests for reports under `session` while the ledger is partial, where the engine knows
/// sessions.
pub fn note_reports(record: &mut WorkerRecord, session: &str) {
    let is_partial = record.ledger.completeness == Completeness::Partial;
    let asks = is_partial && knows_sessions(&record.engine.version);
    record.ledger.report_session = asks.then(|| session.to_owned());
}

/// vLLM tells sessions in its events from 0.30.0 on; without them a report would look like one more
/// copy of each block.
fn knows_sessions(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => minor >= 30,
        (Some(Ok(major)), Some(Ok(_))) => major > 0,
        _ => false,
    }
}

/// Takes where the ranks stand.
pub fn note_ledgers(record: &mut WorkerRecord, facts: &EngineFacts, statuses: &[RankStatus]) {
    if let Some(first) = statuses.first() {
        record.incarnation = first.incarnation;
        record.ledger.sequence = first.sequence;
    }
    let sizes = || statuses.iter().find_map(|status| status.block_size);
    record.block_size = sizes().or(facts.block_size).or(record.block_size);
    record.ledger = LedgerState {
        completeness: match statuses.iter().any(|status| status.is_partial)
            || statuses.is_empty()
            || missing_ranks(facts, statuses).is_some()
        {
            true => Completeness::Partial,
            false => Completeness::Complete,
        },
        blocks: statuses.iter().map(|status| status.blocks).sum(),
        is_followed: !statuses.is_empty() && facts.event_sources != Some(0),
        cause: ledger_cause(facts, statuses),
        ..record.ledger.clone()
    };
}

/// What an operator should know of the ledgers: the root of it first.
fn ledger_cause(facts: &EngineFacts, statuses: &[RankStatus]) -> Option<String> {
    if facts.prefix_caching == Some(false) {
        return Some("the engine keeps no blocks: its prefix caching is off".to_owned());
    }
    if statuses.is_empty() {
        return Some("no source of kv events is known".to_owned());
    }
    if facts.event_sources == Some(0) {
        return Some("the engine publishes no kv events".to_owned());
    }
    missing_ranks(facts, statuses)
        .or_else(|| rank_cause(statuses))
        .or_else(|| other_block_size(facts, statuses))
}

fn missing_ranks(facts: &EngineFacts, statuses: &[RankStatus]) -> Option<String> {
    let (ranks, followed) = (facts.ranks?, statuses.len());
    (ranks != followed).then(|| {
        format!(
            "the engine has {ranks} data-parallel ranks, and kv events of {followed} are followed"
        )
    })
}

fn rank_cause(statuses: &[RankStatus]) -> Option<String> {
    let causes = statuses.iter().map(|status| status.cause.as_deref());
    let (rank, cause) = causes
        .enumerate()
        .find_map(|(rank, cause)| Some((rank, cause?)))?;
    Some(match statuses.len() {
        1 => cause.to_owned(),
        _ => format!("rank {rank}: {cause}"),
    })
}

fn other_block_size(facts: &EngineFacts, statuses: &[RankStatus]) -> Option<String> {
    let told = facts.block_size?;
    let mut sizes = statuses.iter().filter_map(|status| status.block_size);
    let found = sizes.find(|size| *size != told)?;
    let (found, told) = (found.tokens(), told.tokens());
    Some(format!(
        "the engine's events have blocks of {found} tokens, and its metrics say {told}"
    ))
}

/// Says that a worker takes requests now.
pub fn tell_operator(record: &WorkerRecord) {
    info!(
        worker = %record.worker,
        model = %record.model,
        engine = %record.engine.version,
        block_size = record.block_size.map(BlockSize::tokens),
        capacity_blocks = record.capacity_blocks,
        ledger = record.ledger.cause,
        "worker ready"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DpRank, Incarnation, WorkerId};
    use crate::ledger::{Ledger, Options};
    use crate::worker::rank::Rank;

    fn spec() -> AgentSpec {
        AgentSpec::new(WorkerId::new("w").unwrap(), "http://127.0.0.1:1", "m")
    }

    fn status(cause: Option<&str>) -> RankStatus {
        let ledger = Ledger::new("m", Options::default());
        let rank = Rank::new(
            WorkerId::new("w").unwrap(),
            DpRank(0),
            Incarnation(1),
            ledger,
        );
        RankStatus {
            is_partial: cause.is_some(),
            cause: cause.map(Into::into),
            block_size: BlockSize::new(32),
            blocks: 3,
            ..rank.status()
        }
    }

    #[test]
    fn a_verdict_says_why_it_is_not_healthy() {
        let failed = Standing::Failed {
            cause: "it ended".to_owned(),
        };
        for (standing, misfit, wanted) in [
            (not_asked(), None, (Verdict::Starting, Some("not asked"))),
            (
                Standing::Proving,
                None,
                (Verdict::Starting, Some("caught up")),
            ),
            (Standing::Well, None, (Verdict::Healthy, None)),
            (
                Standing::Well,
                Some("it serves x"),
                (Verdict::Failed, Some("serves x")),
            ),
            (
                failed,
                Some("it serves x"),
                (Verdict::Failed, Some("ended")),
            ),
        ] {
            let (verdict, cause) = verdict(&standing, misfit);
            assert_eq!(verdict, wanted.0, "{standing:?}");
            assert_eq!(cause.is_some(), wanted.1.is_some(), "{standing:?}");
            assert!(cause.is_none_or(|cause| cause.contains(wanted.1.unwrap_or_default())));
        }
    }

    #[test]
    fn another_model_is_named_with_the_one_that_was_meant() {
        for (models, wanted) in [
            (&[][..], None), // it does not say
            (&["m"], None),
            (&["x", "m"], None),
            (&["x", "y"], Some("it serves x, y, and was to serve m")),
        ] {
            let facts = EngineFacts {
                models: models.iter().map(|name| (*name).to_owned()).collect(),
                ..EngineFacts::default()
            };
            assert_eq!(misfit(&spec(), &facts).as_deref(), wanted);
        }
    }

    #[test]
    fn reports_are_asked_of_engines_that_can_tell_them_apart() {
        let mut record = first(&spec());
        for (version, completeness, asks) in [
            ("0.32.0", Completeness::Partial, true),
            ("0.30.0+cpu", Completeness::Partial, true),
            ("1.0.0", Completeness::Partial, true),
            ("0.32.0", Completeness::Complete, false),
            ("0.29.1", Completeness::Partial, false),
            ("", Completeness::Partial, false),
            ("dev", Completeness::Partial, false),
        ] {
            version.clone_into(&mut record.engine.version);
            record.ledger.completeness = completeness;
            note_reports(&mut record, "ours");
            assert_eq!(record.ledger.report_session.is_some(), asks, "{version}");
        }
    }

    #[test]
    fn a_ledger_that_is_not_whole_says_why() {
        let whole = || status(None);
        let nothing = EngineFacts::default;
        let rows: [(EngineFacts, Vec<RankStatus>, bool, Option<&str>); 8] = [
            (nothing(), vec![whole()], false, None),
            (nothing(), vec![], true, Some("no source of kv events")),
            (nothing(), vec![status(Some("lost"))], true, Some("lost")),
            (
                nothing(),
                vec![whole(), status(Some("lost"))],
                true,
                Some("rank 1: lost"),
            ),
            (
                EngineFacts {
                    ranks: Some(2),
                    ..nothing()
                },
                vec![whole()],
                true,
                Some("2 data-parallel ranks, and kv events of 1"),
            ),
            (
                EngineFacts {
                    prefix_caching: Some(false),
                    ..nothing()
                },
                vec![whole()],
                false,
                Some("prefix caching is off"),
            ),
            (
                EngineFacts {
                    event_sources: Some(0),
                    ..nothing()
                },
                vec![status(Some("not followed"))],
                true,
                Some("publishes no kv events"),
            ),
            (
                EngineFacts {
                    block_size: BlockSize::new(16),
                    ..nothing()
                },
                vec![whole()],
                false,
                Some("32 tokens, and its metrics say 16"),
            ),
        ];
        for (facts, statuses, is_partial, cause) in rows {
            let mut record = first(&spec());
            note_ledgers(&mut record, &facts, &statuses);
            let is = record.ledger.completeness == Completeness::Partial;
            assert_eq!(is, is_partial, "{facts:?}");
            let found = record.ledger.cause.unwrap_or_default();
            assert!(found.contains(cause.unwrap_or_default()), "{found}");
            assert_eq!(found.is_empty(), cause.is_none(), "{found}");
            assert_eq!(record.ledger.blocks, 3 * statuses.len() as u64);
        }
    }
}
