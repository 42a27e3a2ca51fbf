//! What an agent tells: all it knows, then everything, to few and to none that is too slow.

use std::ops::Range;

use futures_util::StreamExt;
use kvlens::discovery::feed::{Reader, Standing, Told};
use kvlens::discovery::{Change, Update};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::KvEvent;
use kvlens::ledger::change::Changes;
use kvlens::ledger::tier::Tiers;
use kvlens::worker::feed::{Feed, FollowError, Lines};

use crate::feed::parties::{Agent, Follower, event, hashes, name, record};

/// All that a feed has told so far, its end included where it has one.
async fn told(lines: &mut Lines) -> Vec<Told> {
    let mut reader = Reader::default();
    let mut all = Vec::new();
    while let Some(bytes) = lines.next().await {
        reader.push(&bytes.expect("no error"));
        while let Some(told) = reader.read().expect("a feed") {
            all.push(told);
        }
    }
    all
}

fn offloaded(removed: Range<u64>, stored: Range<u64>) -> Tiers<Changes> {
    Tiers {
        host: Changes {
            removed: hashes(removed),
            stored: hashes(stored),
        },
        disk: Changes::default(),
    }
}

#[tokio::test]
async fn routers_know_what_the_agent_knows() {
    let agent = Agent::start("127.0.0.1:0", "w").await;
    let mut known = record("w", "http://127.0.0.1:1");
    known.ranks = 2;
    known.agent_life = agent.feed.life();
    agent.up(&known);
    agent.tell(KvEvent {
        stored: hashes(0..10_000),
        ..event(0, 3)
    });
    agent.tell(KvEvent {
        lower: offloaded(0..0, 0..10_000),
        ..event(1, 8)
    });
    let first = Follower::of(&[agent.served.url()]);
    first.until_blocks(10_000).await;
    // What comes while the second one begins to follow reaches it too, once.
    let second = Follower::of(&[agent.served.url()]);
    for round in 0..200 {
        agent.tell(KvEvent {
            removed: hashes(round * 10..round * 10 + 5),
            stored: hashes(20_000 + round..20_002 + round),
            lower: offloaded(0..0, round..round + 2),
            ..event(0, 4 + round)
        });
        tokio::task::yield_now().await;
    }
    agent.tell(KvEvent {
        removed: hashes(5_000..9_500),
        stored: hashes(1..6),
        cleared: true,
        lower: offloaded(0..0, 1..8),
        ..event(1, 9)
    });
    agent.tell(KvEvent {
        lower: offloaded(1..3, 9..10),
        ..event(1, 10)
    });
    known.ledger.blocks = 77;
    agent.up(&known);
    let standing = |rank, sequence, blocks, host| Standing {
        rank: DpRank(rank),
        incarnation: Incarnation(1),
        sequence,
        blocks,
        lower_blocks: Tiers { host, disk: 0 },
    };
    let wanted = [
        standing(0, 203, 10_000 - 1_000 + 201, 201),
        standing(1, 10, 5, 6),
    ];
    for follower in [&first, &second] {
        let is_told = |w: &kvlens::router::view::WorkerView| w.record.ledger.blocks == 77;
        let worker = follower.until("all is told", is_told).await;
        assert_eq!(worker.record, known);
        assert_eq!(follower.router.standings(&name("w")), wanted);
        assert_eq!(follower.place(20_200).overlap_blocks, 1);
    }
    agent.feed.beat();
    // What comes behind the heartbeat shows that it was taken in.
    known.ledger.blocks = 78;
    agent.up(&known);
    for follower in [&first, &second] {
        let is_told = |w: &kvlens::router::view::WorkerView| w.record.ledger.blocks == 78;
        follower.until("the heartbeat is past", is_told).await;
    }
    assert_eq!(
        agent.asked(),
        2,
        "the heartbeat agrees, so nobody starts again"
    );
}

#[tokio::test]
async fn one_that_is_too_slow_is_cut_and_starts_again() {
    let feed = Feed::new(name("w"));
    feed.publish(Update::Change(Change::Up(Box::new(record("w", "")))));
    let mut slow = feed.follow().await.unwrap();
    for sequence in 0..5_000 {
        let stored = hashes(sequence..sequence + 1);
        feed.publish(Update::Kv(KvEvent {
            stored,
            ..event(0, sequence)
        }));
    }
    // It gets a beginning without a gap, and then an end.
    let cut = told(&mut slow).await;
    assert_eq!(cut.len(), 2 + 4_096);
    let Told::Kv(last) = cut.last().unwrap() else {
        panic!("it is an event");
    };
    assert_eq!(last.sequence, 4_095);
    let mut again = feed.follow().await.unwrap();
    feed.deregister();
    let whole = told(&mut again).await;
    let [
        Told::Record(_),
        Told::Kv(all),
        Told::Heartbeat(ranks),
        Told::Down,
    ] = &whole[..]
    else {
        panic!("{whole:?}");
    };
    assert!(all.cleared && all.stored.len() == 5_000 && all.sequence == 4_999);
    assert_eq!(ranks[0].blocks, 5_000);
    assert_eq!(told(&mut feed.follow().await.unwrap()).await, [Told::Down]);
}

#[tokio::test(start_paused = true)]
async fn not_everybody_can_follow_at_any_time() {
    let feed = Feed::new(name("w"));
    let refused = feed.follow().await.map(drop).unwrap_err();
    assert_eq!(refused, FollowError::NoRecord);
    feed.publish(Update::Change(Change::Up(Box::new(record("w", "")))));
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(feed.follow().await.unwrap());
    }
    let refused = feed.follow().await.map(drop).unwrap_err();
    assert_eq!(refused, FollowError::TooMany);
    all.pop();
    all.push(feed.follow().await.unwrap());
    feed.close();
    for lines in &mut all {
        assert_eq!(
            told(lines).await.len(),
            2,
            "a record and a heartbeat, and no word of an end"
        );
    }
    assert_eq!(
        feed.follow().await.map(drop).unwrap_err(),
        FollowError::Closed
    );
}

#[tokio::test]
async fn an_engine_that_is_gone_holds_nothing_and_stays_in_sight() {
    let feed = Feed::new(name("w"));
    feed.set_public_address(Some("http://10.0.0.5:8100".to_owned()));
    feed.publish(Update::Change(Change::Up(Box::new(record("w", "unix:/a")))));
    feed.publish(Update::Kv(KvEvent {
        stored: hashes(0..3),
        ..event(1, 5)
    }));
    feed.publish(Update::Change(Change::Down(name("w"))));
    let mut lines = feed.follow().await.unwrap();
    feed.close();
    let told = told(&mut lines).await;
    let [
        Told::Record(record),
        Told::Kv(event),
        Told::Heartbeat(ranks),
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!(record.verdict, Verdict::Failed);
    assert_eq!(record.cause.as_deref(), Some("engine is gone"));
    assert_eq!(record.address, "http://10.0.0.5:8100");
    assert!(event.cleared && event.stored.is_empty());
    assert_eq!((ranks[0].sequence, ranks[0].blocks), (5, 0));
}
