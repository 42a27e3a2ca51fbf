//! An agent that goes away takes nothing with it; what is found out without it is said.

use std::time::Duration;

use kvlens::discovery::{Completeness, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::http::Routes;
use kvlens::http::reply::Reply;
use kvlens::id::Incarnation;
use kvlens::index::KvEvent;
use kvlens::router::view::WorkerView;

use crate::end_to_end::stack::until;
use crate::feed::parties::{Agent, Follower, Served, event, hashes, name, record};

fn is_away(worker: &WorkerView) -> bool {
    let cause = worker.record.cause.as_deref().unwrap_or_default();
    cause.starts_with("agent away since 20")
}

/// An agent of `w` whose engine holds the blocks 0 to 2.
async fn agent_of(engine: &str) -> Agent {
    let agent = Agent::start("127.0.0.1:0", "w").await;
    agent.up(&record("w", engine));
    agent.tell(KvEvent {
        stored: hashes(0..3),
        ..event(0, 9)
    });
    agent
}

#[tokio::test]
async fn a_worker_stays_while_its_agent_is_upgraded() {
    let engine = Served::engine("127.0.0.1:0").await;
    let agent = agent_of(&engine.url()).await;
    let follower = Follower::of(&[agent.served.url()]);
    follower.until_blocks(3).await;
    let placement = follower.place(1);
    let address = agent.end().await;
    let worker = follower.until("it is away", is_away).await;
    assert_eq!(
        (worker.record.verdict, worker.indexed_blocks),
        (Verdict::Healthy, 3)
    );
    assert_eq!(worker.record.ledger.completeness, Completeness::Partial);
    assert_eq!(worker.record.ledger.cause, worker.record.cause);
    assert_eq!(follower.place(2).overlap_blocks, 1);

    // The new agent has not asked its engine yet, and would have it that nothing can be served.
    let agent = Agent::start(&address, "w").await;
    let starting = WorkerRecord {
        verdict: Verdict::Starting,
        ..record("w", &engine.url())
    };
    agent.up(&starting);
    until("it was asked twice", async || agent.asked() >= 2).await;
    assert!(is_away(&follower.worker().unwrap()));
    // Its numbers begin anew: older ones of the same life replace what was known all the same.
    agent.up(&record("w", &engine.url()));
    agent.tell(KvEvent {
        stored: hashes(10..12),
        ..event(0, 2)
    });
    let back = |worker: &WorkerView| worker.record.cause.is_none();
    let worker = follower.until("it is back", back).await;
    let told = WorkerRecord {
        agent_life: agent.feed.life(),
        ..record("w", &engine.url())
    };
    assert_eq!(worker.record, told);
    follower.until_blocks(2).await;
    assert_eq!(follower.place(2).overlap_blocks, 0);
    assert_eq!(follower.place(11).overlap_blocks, 1);
    assert!(!placement.gone.is_cancelled());
    assert_eq!(worker.load[0].requests, 1, "what was booked is booked");
}

#[tokio::test]
async fn without_its_agent_the_engine_is_asked_itself() {
    let engine = Served::engine("127.0.0.1:0").await;
    let agent = agent_of(&engine.url()).await;
    let follower = Follower::of(&[agent.served.url()]);
    follower.until_blocks(3).await;
    let placement = follower.place(1);
    agent.end().await;
    follower.until("it is away", is_away).await;
    let address = engine.end().await;
    let failed = |worker: &WorkerView| worker.record.verdict == Verdict::Failed;
    let worker = follower.until("it failed", failed).await;
    let cause = worker.record.cause.unwrap();
    assert!(cause.contains("refused the connection"), "{cause}");
    assert_eq!(worker.indexed_blocks, 0, "its cache died with it");
    assert!(placement.gone.is_cancelled());
    let _engine = Served::engine(&address).await;
    let healthy = |worker: &WorkerView| worker.record.verdict == Verdict::Healthy;
    let worker = follower.until("it answers again", healthy).await;
    assert!(is_away(&worker) && worker.indexed_blocks == 0);
}

#[tokio::test]
async fn blocks_that_no_agent_tells_of_are_not_believed_in_for_ever() {
    let engine = Served::engine("127.0.0.1:0").await;
    let agent = agent_of(&engine.url()).await;
    let follower = Follower::patient(&[agent.served.url()], Duration::ZERO);
    follower.until_blocks(3).await;
    agent.end().await;
    follower.until_blocks(0).await;
    let worker = follower.worker().unwrap();
    assert_eq!(
        worker.record.verdict,
        Verdict::Healthy,
        "by load it still serves"
    );
    engine.end().await;
    until("it is removed", async || follower.worker().is_none()).await;
}

#[tokio::test]
async fn what_the_index_missed_is_noticed_by_the_heartbeat() {
    let agent = agent_of("http://127.0.0.1:1").await;
    let follower = Follower::of(&[agent.served.url()]);
    follower.until_blocks(3).await;
    for (sequence, stray) in [
        (10, hashes(40..41)), // more than there is
        (10, Vec::new()),     // a number that the agent does not have
    ] {
        let asked = agent.asked();
        let stray = KvEvent {
            stored: stray,
            ..event(0, sequence)
        };
        follower.router.apply(kvlens::discovery::Update::Kv(stray));
        agent.feed.beat();
        until("it asks for a snapshot", async || agent.asked() > asked).await;
        let healed = |worker: &WorkerView| worker.applied_sequences[0] == Some(9);
        let worker = follower.until("it is healed", healed).await;
        assert_eq!(worker.indexed_blocks, 3);
    }
}

#[tokio::test]
async fn a_deregistered_worker_finishes_what_it_has_and_leaves() {
    let agent = agent_of("http://127.0.0.1:1").await;
    let follower = Follower::of(&[agent.served.url()]);
    follower.until_blocks(3).await;
    let placement = follower.place(1);
    agent.feed.deregister();
    let draining = |worker: &WorkerView| worker.record.verdict == Verdict::Draining;
    follower.until("it drains", draining).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(follower.worker().is_some() && !placement.gone.is_cancelled());
    drop(placement);
    until("it is gone", async || follower.worker().is_none()).await;
    until("it is asked again", async || agent.asked() >= 2).await;
    assert!(follower.worker().is_none());
}

#[tokio::test]
async fn a_worker_of_another_model_is_listed_and_not_served() {
    let agent = Agent::start("127.0.0.1:0", "w").await;
    let mut other = record("w", "http://127.0.0.1:1");
    other.model = "other".to_owned();
    other.aliases = vec!["demo".to_owned()];
    agent.up(&other);
    let follower = Follower::of(&[agent.served.url()]);
    let failed = |worker: &WorkerView| worker.record.verdict == Verdict::Failed;
    let worker = follower.until("it is listed", failed).await;
    let cause = "serves model \"other\", and this frontend \"demo\"";
    assert_eq!(worker.record.cause.as_deref(), Some(cause));
    assert!(
        follower.router.model("demo").is_none(),
        "it stands in nobody's way"
    );
    agent.up(&record("w", "http://127.0.0.1:1"));
    let healthy = |worker: &WorkerView| worker.record.verdict == Verdict::Healthy;
    follower.until("it serves ours", healthy).await;
}

#[tokio::test]
async fn two_agents_of_one_name_do_not_take_turns() {
    let first = agent_of("http://127.0.0.1:1").await;
    let second = agent_of("http://127.0.0.1:2").await;
    let mut follower = Follower::of(&[first.served.url()]);
    follower.until_blocks(3).await;
    follower.follow(&second.served.url());
    until("it was asked twice", async || second.asked() >= 2).await;
    assert_eq!(
        follower.worker().unwrap().record.address,
        "http://127.0.0.1:1"
    );
    assert_eq!(first.asked(), 1);
    // An address that another agent has taken is no longer that of the first worker.
    let address = first.end().await;
    let other = Agent::start(&address, "v").await;
    other.up(&record("v", "http://127.0.0.1:3"));
    until("both are there", async || {
        follower.router.workers().len() == 2
    })
    .await;
    let addresses = follower
        .router
        .workers()
        .into_iter()
        .map(|w| w.record.address);
    let wanted = ["http://127.0.0.1:3", "http://127.0.0.1:2"];
    assert_eq!(addresses.collect::<Vec<_>>(), wanted);
}

#[tokio::test]
async fn garbage_after_a_good_beginning_keeps_the_worker() {
    let agent = agent_of("http://127.0.0.1:1").await;
    let follower = Follower::of(&[agent.served.url()]);
    follower.until_blocks(3).await;
    let address = agent.end().await;
    let garbage = Routes::default().get(kvlens::discovery::feed::FEED_PATH, |_| {
        Box::pin(async { Reply::text(::http::StatusCode::OK, "<html>\n") })
    });
    let server = Served::start(&address, garbage).await;
    follower.until("it is away", is_away).await;
    assert_eq!(follower.worker().unwrap().indexed_blocks, 3);
    let address = server.end().await;
    let agent = Agent::start(&address, "w").await;
    agent.up(&record("w", "http://127.0.0.1:1"));
    agent.tell(KvEvent {
        incarnation: Incarnation(2),
        ..event(0, 0)
    });
    follower.until_blocks(0).await;
    assert_eq!(
        follower.router.standings(&name("w"))[0].incarnation,
        Incarnation(2)
    );
}

#[tokio::test]
async fn who_is_named_no_more_leaves_by_that_cause() {
    let engine = Served::engine("127.0.0.1:0").await;
    let agent = agent_of(&engine.url()).await;
    let mut follower = Follower::of(&[]);
    let named = follower.follow(&agent.served.url());
    follower.until_blocks(3).await;
    let placement = follower.place(1);
    named.cancel();
    let leaving = follower
        .until("it leaves", |worker| {
            worker.record.verdict == Verdict::Draining
        })
        .await;
    let cause = leaving.record.cause.unwrap_or_default();
    assert!(cause.contains("named no more"), "{cause}");
    drop(placement);
    until("it is gone", async || follower.worker().is_none()).await;
}
