use std::sync::Arc;

use kvlens::bus::{subjects, wire};
use kvlens::discovery::broadcast::Numbered;
use kvlens::discovery::feed::Line;
use kvlens::index::KvEvent;
use kvlens::router::Router;
use kvlens::router::view::WorkerView;
use tokio::task::JoinSet;

use crate::bus::server::{Server, Told, follow};
use crate::end_to_end::stack::until;
use crate::feed::parties::{event, hashes, name, record};

fn worker(router: &Arc<Router>) -> Option<WorkerView> {
    router.workers().pop()
}

async fn until_blocks(router: &Arc<Router>, blocks: u64) {
    let has = async || worker(router).is_some_and(|w| w.indexed_blocks == blocks);
    until(&format!("{blocks} blocks"), has).await;
}

#[tokio::test]
async fn routers_know_what_agents_tell_on_the_bus() {
    let server = Server::start().await;
    let told = Told::start(&server, "w").await;
    told.agent.up(&record("w", "http://127.0.0.1:1"));
    told.agent.tell(KvEvent {
        stored: hashes(0..10_000),
        ..event(0, 1)
    });
    let mut tasks = JoinSet::new();
    let bus = server.bus("router").await;
    let router = follow(&bus, &["w"], &mut tasks);
    until_blocks(&router, 10_000).await;
    for round in 0..200 {
        told.agent.tell(KvEvent {
            removed: hashes(round * 10..round * 10 + 5),
            stored: hashes(20_000 + round..20_001 + round),
            ..event(0, 2 + round)
        });
    }
    until_blocks(&router, 10_000 - 1_000 + 200).await;
    let standings = router.standings(&name("w"));
    assert_eq!((standings[0].sequence, standings[0].blocks), (201, 9_200));

    // Nobody followed meanwhile, and what was told then is known all the same.
    let port = server.kill().await;
    until("the bus is away", async || !bus.is_up()).await;
    told.agent.tell(KvEvent {
        removed: hashes(5_000..6_000),
        ..event(0, 300)
    });
    let is_away = async || worker(&router).is_some_and(|w| w.record.cause.is_some());
    until("the agent is away", is_away).await;
    assert_eq!(worker(&router).map(|w| w.indexed_blocks), Some(9_200));
    let _server = Server::again(port).await;
    until_blocks(&router, 8_200).await;
    assert_eq!(worker(&router).and_then(|w| w.record.cause), None);
}

#[tokio::test]
async fn lines_that_are_lost_or_foreign_do_no_harm() {
    let server = Server::start().await;
    let told = Told::start(&server, "w").await;
    told.agent.up(&record("w", "http://127.0.0.1:1"));
    told.agent.tell(KvEvent {
        stored: hashes(0..100),
        ..event(0, 1)
    });
    let mut tasks = JoinSet::new();
    let router = follow(&server.bus("router").await, &["w"], &mut tasks);
    until_blocks(&router, 100).await;

    let intruder = server.bus("intruder").await;
    let life = told.agent.feed.life();
    let subject = || subjects::kv(&name("w"));
    let gap = Numbered {
        life,
        number: 1_000_000,
        line: Line::Heartbeat(Vec::new()),
    };
    let twin = Numbered {
        life: life + 1,
        number: 1,
        line: Line::Down,
    };
    for payload in [
        wire::encode(&gap),
        wire::encode(&twin),
        wire::encode(&"nothing of ours"),
        bytes::Bytes::from_static(b"\x07garbage"),
        bytes::Bytes::new(),
    ] {
        intruder
            .send(subject(), None, payload)
            .await
            .expect("it is up");
    }
    intruder.flush().await.expect("it is up");
    told.agent.tell(KvEvent {
        stored: hashes(200..205),
        ..event(0, 2)
    });
    until_blocks(&router, 105).await;
    let cause = worker(&router).and_then(|w| w.record.cause);
    assert_eq!(cause, None, "the worker was never away");
}

#[tokio::test]
async fn an_agent_that_begins_again_is_followed() {
    let server = Server::start().await;
    let told = Told::start(&server, "w").await;
    told.agent.up(&record("w", "http://127.0.0.1:1"));
    told.agent.tell(KvEvent {
        stored: hashes(0..100),
        ..event(0, 1)
    });
    let mut tasks = JoinSet::new();
    let router = follow(&server.bus("router").await, &["w"], &mut tasks);
    until_blocks(&router, 100).await;
    drop(told);
    let told = Told::start(&server, "w").await;
    told.agent.up(&record("w", "http://127.0.0.1:1"));
    told.agent.tell(KvEvent {
        stored: hashes(0..7),
        ..event(0, 1)
    });
    until_blocks(&router, 7).await;
    told.agent.feed.deregister();
    until("the worker is gone", async || router.workers().is_empty()).await;
}
