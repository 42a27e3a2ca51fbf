use std::sync::Arc;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::id::RouterId;
use kvlens::index::KvEvent;
use kvlens::router::Router;
use kvlens::router::answers::Answers;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::remote::{Chooser, Remote};
use kvlens::router::sharing::{self, Sharing};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bus::server::{Server, Told, follow};
use crate::end_to_end::stack::until;
use crate::feed::parties::{event, hashes, record};

fn id(name: &str) -> RouterId {
    RouterId::new(name).expect("a legal name")
}

fn footprint(hash: u64) -> Footprint {
    let size = BlockSize::new(16).expect("16 is not zero");
    Footprint {
        hashes: vec![(size, [SequenceHash(hash)].into())],
        ..Footprint::new("demo", 17)
    }
}

fn in_flight(router: &Router) -> Vec<u32> {
    let workers = router.workers();
    workers
        .iter()
        .map(|worker| worker.load[0].requests)
        .collect()
}

/// A router that answers, until its tasks are dropped.
async fn answering(server: &Server, name: &str) -> (Arc<Router>, JoinSet<()>) {
    let bus = server.bus(name).await;
    let mut tasks = JoinSet::new();
    let router = follow(&bus, &["w", "x"], &mut tasks);
    let stop = CancellationToken::new();
    let others = sharing::hear(router.clone(), bus.clone(), id(name), stop.clone());
    tasks.spawn(others);
    let answers = Answers::new(router.clone(), bus, id(name));
    tasks.spawn(answers.run(RouterConfig::default().queue_requests_max, stop));
    (router, tasks)
}

/// Two workers, each with ten blocks.
async fn two_agents(server: &Server) -> Vec<Told> {
    let mut told = Vec::new();
    for (worker, stored) in [("w", 0..10), ("x", 10..20)] {
        let agent = Told::start(server, worker).await;
        agent.agent.up(&record(worker, "http://127.0.0.1:1"));
        agent.agent.tell(KvEvent {
            worker: crate::feed::parties::name(worker),
            stored: hashes(stored),
            ..event(0, 1)
        });
        told.push(agent);
    }
    told
}

#[tokio::test]
async fn a_frontend_asks_one_router_then_the_other_then_none() {
    let server = Server::start().await;
    let _told = two_agents(&server).await;
    let (first, first_tasks) = answering(&server, "a").await;
    let (second, second_tasks) = answering(&server, "b").await;

    let bus = server.bus("frontend").await;
    let mut tasks = JoinSet::new();
    let local = follow(&bus, &["w", "x"], &mut tasks);
    let sharing = Sharing::new(local.clone(), bus.clone(), id("frontend-1"));
    let remote = Remote::new(local.clone(), bus, (id("frontend-1"), sharing.life()));
    let stop = CancellationToken::new();
    tasks.spawn(sharing.tell(stop.clone()));
    tasks.spawn(remote.clone().follow(stop));
    for router in [&first, &second, &local] {
        let knows = async || router.workers().iter().all(|w| w.indexed_blocks == 10);
        until("both workers are known", async || {
            router.workers().len() == 2 && knows().await
        })
        .await;
    }
    until("both routers are known", async || {
        remote.routers().len() == 2
    })
    .await;

    let wish = Wish::default();
    let mut placed = Vec::new();
    for (hash, worker) in [(3, "w"), (13, "x"), (4, "w")] {
        let placement = remote
            .admit(&footprint(hash), &wish)
            .await
            .expect("a worker");
        assert_eq!(placement.chooser, Chooser::Remote(id("a")));
        assert_eq!(placement.worker.as_str(), worker);
        assert_eq!((placement.overlap_blocks, placement.prompt_blocks), (1, 1));
        placed.push(placement);
    }
    for router in [&first, &second, &local] {
        until("all know of them", async || in_flight(router) == [2, 1]).await;
    }
    drop(placed);
    for router in [&first, &second, &local] {
        until("all know that they are over", async || {
            in_flight(router) == [0, 0]
        })
        .await;
    }

    drop(first_tasks);
    let placement = remote.admit(&footprint(3), &wish).await.expect("a worker");
    assert_eq!(placement.chooser, Chooser::Remote(id("b")));
    drop(second_tasks);
    let mut turns = Vec::new();
    for _ in 0..4 {
        let placement = remote.admit(&footprint(3), &wish).await.expect("a worker");
        assert!(
            matches!(placement.chooser, Chooser::Fallback { .. }),
            "{:?}",
            placement.chooser
        );
        turns.push(placement.worker.as_str().to_owned());
    }
    assert!(
        turns == ["w", "x", "w", "x"] || turns == ["x", "w", "x", "w"],
        "{turns:?}"
    );
}

#[tokio::test]
async fn routers_inside_frontends_know_each_others_bookings() {
    let server = Server::start().await;
    let told = Told::start(&server, "w").await;
    told.agent.up(&record("w", "http://127.0.0.1:1"));
    let mut tasks = JoinSet::new();
    let stop = CancellationToken::new();
    let mut routers = Vec::new();
    for name in ["one", "two"] {
        let bus = server.bus(name).await;
        let router = follow(&bus, &["w"], &mut tasks);
        let sharing = Sharing::new(router.clone(), bus.clone(), id(name));
        tasks.spawn(sharing.tell(stop.clone()));
        tasks.spawn(sharing::hear(router.clone(), bus, id(name), stop.clone()));
        until("the worker is known", async || router.workers().len() == 1).await;
        routers.push(router);
    }
    let placement = routers[0]
        .place(&footprint(77), &Wish::default())
        .expect("a worker");
    until("the other knows", async || in_flight(&routers[1]) == [1]).await;
    // Whoever computes the same prompt now is taken to hold it already.
    let again = routers[1]
        .place(&footprint(77), &Wish::default())
        .expect("a worker");
    assert_eq!((placement.overlap_blocks, again.overlap_blocks), (0, 1));
    placement.booking.first_token();
    let computes = async || routers[1].workers()[0].load[0].prefill_tokens < 17;
    until("the other knows of the first token", computes).await;
    drop(placement);
    drop(again);
    for router in &routers {
        until("nothing is in flight", async || in_flight(router) == [0]).await;
    }
}
