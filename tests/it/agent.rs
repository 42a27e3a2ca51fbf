//! The agent beside an engine: there from its start, its events in order, its verdict what is seen.

mod seen;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use kvlens::block::BlockSize;
use kvlens::discovery::Completeness;
use kvlens::health::Verdict;
use kvlens::id::DpRank;
use kvlens::worker::reset::Command;
use kvlens::worker::spec::{AgentSpec, ProcessState};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::agent::seen::{Seen, following, worker};
use crate::codec::frames;
use crate::fake_engine::{Engine, Pages, spec};
use crate::source::Publisher;

#[tokio::test]
async fn an_engine_is_followed_through_its_lives() {
    let messages = frames("recording/run1");
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
    let address = engine.address.clone();
    for message in &messages[..200] {
        publisher.publish(message).await;
    }
    let sources = [publisher.source.clone()];
    let mut followed = following(spec(worker(), &address, &sources));
    let seen = &mut followed.seen;

    seen.until(|seen| seen.record.is_some()).await;
    assert_eq!(seen.verdict(), Some(Verdict::Starting));
    seen.until_verdict(Verdict::Healthy).await;
    let record = seen.record();
    assert_eq!(record.block_size, BlockSize::new(16));
    assert_eq!(record.capacity_blocks, Some(5000));
    assert_eq!(record.context_tokens_max, Some(8192));
    assert_eq!(record.aliases, ["demo", "gpt-4o"]);
    assert_eq!(record.adapters, ["tinylora"]);
    assert_eq!(record.engine.version, "0.32.0");
    let first_life = record.incarnation;
    assert!(
        seen.healthy_with[0] > 500,
        "it takes requests once caught up"
    );

    // The record follows the ledger, and the index holds what the ledger published.
    for message in &messages[200..] {
        publisher.publish(message).await;
    }
    seen.until(|seen| seen.record().ledger.sequence == 471)
        .await;
    let record = seen.record();
    assert_eq!(record.ledger.completeness, Completeness::Complete);
    assert_eq!(record.ledger.cause, None);
    assert!(record.ledger.blocks > 2000, "{:?}", record.ledger);
    assert_eq!(record.ledger.blocks, seen.index.worker_blocks(&worker()));

    // Another engine behind the same socket, while its HTTP side never seemed gone.
    publisher.stop().await;
    seen.until(|seen| seen.index.total_blocks() == 0).await;
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&messages[0]).await;
    seen.until(|seen| seen.index.total_blocks() > 0).await;
    seen.until(|seen| seen.record().incarnation != first_life)
        .await;
    assert_eq!(seen.healthy_with.len(), 1);

    // A refused connection is the engine's end: the worker stays, with the reason.
    engine.kill().await;
    publisher.stop().await;
    seen.until_verdict(Verdict::Failed).await;
    assert!(seen.cause().contains("refused"), "{}", seen.cause());
    seen.until(|seen| seen.index.total_blocks() == 0).await;
    // Back with an empty cache, it takes no request on blocks of its former life.
    let publisher = Publisher::start(folder.path(), true).await;
    let engine = Engine::start(&address, Pages::default()).await;
    seen.until_verdict(Verdict::Healthy).await;
    assert_eq!(seen.healthy_with[1..], [0]);
    publisher.publish(&messages[0]).await;
    seen.until(|seen| seen.index.total_blocks() > 0).await;

    followed.stop.cancel();
    seen.until(|seen| seen.is_down).await;
    let ended = timeout(Duration::from_secs(5), followed.agent.join_next()).await;
    ended.unwrap().unwrap().unwrap();
    engine.kill().await;
}

#[tokio::test]
async fn an_engine_that_only_stays_silent_keeps_its_blocks() {
    let messages = frames("recording/run1");
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&messages[0]).await;
    let pages = Pages::default();
    let engine = Engine::start("127.0.0.1:0", pages.clone()).await;
    let mut followed = following(spec(
        worker(),
        &engine.address,
        std::slice::from_ref(&publisher.source),
    ));
    let seen = &mut followed.seen;
    seen.until_verdict(Verdict::Healthy).await;
    let (blocks, clearings) = (seen.index.total_blocks(), seen.clearings);
    assert!(blocks > 0);
    pages.health.store(503, Ordering::Relaxed);
    seen.until_verdict(Verdict::Failed).await;
    assert!(seen.cause().contains("503"), "{}", seen.cause());
    pages.health.store(200, Ordering::Relaxed);
    seen.until_verdict(Verdict::Healthy).await;
    assert_eq!(seen.healthy_with, [blocks, blocks]);
    assert_eq!(seen.clearings, clearings);

    // When only its HTTP side comes and goes, its events prove that it is the same.
    engine.kill().await;
    seen.until_verdict(Verdict::Failed).await;
    seen.until(|seen| seen.clearings > clearings).await;
    seen.until(|seen| seen.index.total_blocks() == blocks).await;
}

#[tokio::test]
async fn the_end_of_a_process_shows_at_once_and_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
    let (process, state) = watch::channel(ProcessState::Running);
    let mut followed = following(AgentSpec {
        process: Some(state),
        ..spec(
            worker(),
            &engine.address,
            std::slice::from_ref(&publisher.source),
        )
    });
    let seen = &mut followed.seen;
    seen.until_verdict(Verdict::Healthy).await;
    let since = Instant::now();
    let cause = "it ended with signal: 9 (SIGKILL); starting it again in 0.5 s".to_owned();
    process.send_replace(ProcessState::Ended {
        cause: cause.clone(),
    });
    seen.until_verdict(Verdict::Failed).await;
    assert_eq!(seen.cause(), cause);
    // Of the second that a probe may take, hardly anything has passed.
    assert!(
        since.elapsed() < Duration::from_millis(500),
        "{:?}",
        since.elapsed()
    );
    process.send_replace(ProcessState::Running);
    seen.until_verdict(Verdict::Healthy).await;
    // One that starts again and does not answer yet says both.
    let address = engine.address.clone();
    engine.kill().await;
    process.send_replace(ProcessState::Ended {
        cause: cause.clone(),
    });
    process.send_replace(ProcessState::Running);
    seen.until(|seen| seen.verdict() != Some(Verdict::Healthy))
        .await;
    let engine = Engine::start(&address, Pages::default()).await;
    seen.until_verdict(Verdict::Healthy).await;
    engine.kill().await;
}

#[tokio::test]
async fn a_ledger_is_complete_only_while_its_source_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let source = publisher.source.clone();
    publisher.stop().await;
    let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
    let mut followed = following(spec(
        worker(),
        &engine.address,
        std::slice::from_ref(&source),
    ));
    let seen = &mut followed.seen;
    let standing = |seen: &Seen| seen.record().ledger.completeness;

    // It takes requests without its events, after a while.
    seen.until_verdict(Verdict::Healthy).await;
    assert_eq!(standing(seen), Completeness::Partial);
    let cause = seen.record().ledger.cause.clone().unwrap_or_default();
    assert!(
        cause.contains("not followed") && cause.contains(&source.events),
        "{cause}"
    );
    assert_eq!(seen.index.total_blocks(), 0);

    let publisher = Publisher::start(folder.path(), true).await;
    seen.until(|seen| standing(seen) == Completeness::Complete)
        .await;
    assert_eq!(seen.record().ledger.blocks, 0);
    publisher.stop().await;
    seen.until(|seen| standing(seen) == Completeness::Partial)
        .await;
    assert_eq!(seen.verdict(), Some(Verdict::Healthy));
    engine.kill().await;
}

#[tokio::test]
async fn each_rank_has_a_ledger_and_a_source() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let messages = frames("recording/run1");
    let mut publishers = Vec::new();
    for folder in &folders {
        publishers.push(Publisher::start(folder.path(), true).await);
    }
    let sources: Vec<_> = publishers.iter().map(|p| p.source.clone()).collect();
    let line = |rank: usize| {
        format!(
            "vllm:cache_config_info{{block_size=\"16\",engine=\"{rank}\",num_gpu_blocks=\"5000\"}} 1\n"
        )
    };
    let pages = Pages {
        metrics: line(0) + &line(1),
        ..Pages::default()
    };
    let engine = Engine::start("127.0.0.1:0", pages).await;
    let mut followed = following(spec(worker(), &engine.address, &sources));
    let seen = &mut followed.seen;
    seen.until_verdict(Verdict::Healthy).await;
    assert_eq!(
        (seen.record().ranks, &seen.record().ledger.cause),
        (2, &None)
    );
    for publisher in &publishers {
        publisher.publish(&messages[0]).await;
    }
    let slots = |seen: &Seen| {
        let slot = |rank| seen.index.slot(&worker(), DpRank(rank));
        [0, 1].map(|rank| slot(rank).map_or(0, |slot| seen.index.blocks(slot)))
    };
    seen.until(|seen| slots(seen).iter().all(|blocks| *blocks > 0))
        .await;
    // One rank's source breaks: its blocks go, the other's stay.
    let second = publishers.pop().unwrap();
    second.stop().await;
    seen.until(|seen| slots(seen)[1] == 0).await;
    assert!(slots(seen)[0] > 0);
    let cause = |seen: &Seen| seen.record().ledger.cause.clone().unwrap_or_default();
    seen.until(|seen| cause(seen).starts_with("rank 1: kv events are not followed"))
        .await;
    engine.kill().await;
}

#[tokio::test]
async fn a_reset_through_the_agent_shows_at_once() {
    let messages = frames("recording/run1");
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&messages[0]).await;
    for (reset, part) in [
        (Some((StatusCode::OK, r#"{"success": true}"#)), None),
        (
            Some((StatusCode::OK, r#"{"success": false}"#)),
            Some("hold blocks"),
        ),
        (Some((StatusCode::FORBIDDEN, "")), Some("403")),
        (None, Some("VLLM_SERVER_DEV_MODE=1")),
    ] {
        let pages = Pages {
            reset,
            ..Pages::default()
        };
        let engine = Engine::start("127.0.0.1:0", pages).await;
        let mut followed = following(spec(
            worker(),
            &engine.address,
            std::slice::from_ref(&publisher.source),
        ));
        let seen = &mut followed.seen;
        seen.until_verdict(Verdict::Healthy).await;
        assert!(seen.index.total_blocks() > 0);
        let (reply, answer) = oneshot::channel();
        followed
            .commands
            .send(Command::Reset { reply })
            .await
            .unwrap();
        let error = answer.await.unwrap().err().map(|error| error.to_string());
        assert_eq!(error.is_some(), part.is_some(), "{error:?}");
        assert!(error.unwrap_or_default().contains(part.unwrap_or_default()));
        if part.is_none() {
            seen.until(|seen| seen.index.total_blocks() == 0).await;
        }
        followed.stop.cancel();
        seen.until(|seen| seen.is_down).await;
        engine.kill().await;
    }
}
