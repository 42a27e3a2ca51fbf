//! Membership through a real etcd: what is registered is followed, through every way that etcd fails.

mod clients;
mod cut;
pub(crate) mod server;
mod trust;

use std::time::{Duration, Instant};

use etcd_client::Client;
use kvlens::config::etcd::EtcdConfig;
use kvlens::discovery::EngineLoad;
use kvlens::health::Verdict;
use kvlens::telemetry::labels::{BadRecord, BadRecordLabels};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::etcd::clients::{Agent, Follower, config, record};
use crate::etcd::cut::Network;
use crate::etcd::server::{Protection, Server};

/// The time after etcd's return within which everybody knows again what is.
const CONVERGED_MAX: Duration = Duration::from_secs(2);

const KEY: &str = "/kvlens/v1/workers/gpu-0";

/// How often a key was put since it was made.
async fn version(client: &mut Client, key: &str) -> i64 {
    let found = client.get(key, None).await.expect("etcd answers");
    found.kvs().first().map_or(0, |kv| kv.version())
}

fn json(worker: &str) -> Vec<u8> {
    let agent = format!("http://{worker}:1");
    serde_json::to_vec(&record(worker, &agent, 1)).expect("a record has a JSON form")
}

#[tokio::test]
async fn what_an_agent_registers_is_followed() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let mut follower = Follower::start(config(&server.url()));
    follower.until(|follower| follower.listings == 1).await;
    assert!(follower.set.is_empty());
    let mut agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    agent.plane.until_up().await;
    follower
        .until(|follower| follower.verdict("gpu-0") == Some(Verdict::Healthy))
        .await;

    let changed = Instant::now();
    agent.change(|record| record.verdict = Verdict::Degraded);
    follower
        .until(|follower| follower.verdict("gpu-0") == Some(Verdict::Degraded))
        .await;
    assert!(
        changed.elapsed() < Duration::from_millis(900),
        "a verdict is put at once"
    );

    // What the engine does from step to step is not of membership; the rest is put, but not each time.
    let before = version(&mut client, KEY).await;
    for reading in 0..40 {
        agent.change(|record| {
            record.engine_readings = reading;
            record.engine_load = vec![EngineLoad::default()];
            record.ledger.sequence = reading;
        });
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(version(&mut client, KEY).await, before);
    for blocks in 0..20 {
        agent.change(|record| record.capacity_blocks = Some(blocks));
        sleep(Duration::from_millis(5)).await;
    }
    follower
        .until(|follower| follower.set["gpu-0"].capacity_blocks == Some(19))
        .await;
    assert!(version(&mut client, KEY).await <= before + 2);
    assert!(follower.set["gpu-0"].engine_load.is_empty());

    let deregistered = Instant::now();
    agent.deregistered.cancel();
    follower.until(|follower| follower.set.is_empty()).await;
    assert!(deregistered.elapsed() < Duration::from_millis(500));
    agent.change(|record| record.verdict = Verdict::Healthy);
    sleep(Duration::from_millis(300)).await;
    assert_eq!(version(&mut client, KEY).await, 0, "it stays out");
    follower.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_is_absent_when_its_lease_ends() {
    let server = Server::start(Protection::Plain).await;
    let mut follower = Follower::start(config(&server.url()));
    let agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    // Longer than its lease, which is kept alive.
    sleep(Duration::from_secs(3)).await;
    let mut client = server.client().await;
    assert_eq!(version(&mut client, KEY).await, 1);
    drop(agent);
    assert_eq!(
        version(&mut client, KEY).await,
        1,
        "it does not take itself out"
    );
    follower.until(|follower| follower.set.is_empty()).await;
    assert_eq!(
        follower.metrics.membership_alarms.get(),
        0,
        "one alone says nothing of etcd"
    );
}

#[tokio::test]
async fn all_converge_after_etcd_returns_with_its_data() {
    let mut server = Server::start(Protection::Plain).await;
    let mut follower = Follower::start(config(&server.url()));
    let mut agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
    server.kill();
    agent.plane.until_down("cannot be reached").await;
    follower.plane.until_down("cannot be reached").await;
    // While etcd is away the worker changes, and the clients come to wait as long as they ever do.
    agent.change(|record| record.verdict = Verdict::Degraded);
    sleep(Duration::from_secs(2)).await;
    server.again().await;
    let returned = Instant::now();
    follower
        .until(|follower| follower.verdict("gpu-0") == Some(Verdict::Degraded))
        .await;
    agent.plane.until_up().await;
    let took = returned.elapsed();
    assert!(took < CONVERGED_MAX, "{took:?}");
    assert_eq!(follower.metrics.membership_alarms.get(), 0);
}

#[tokio::test]
async fn all_converge_after_etcd_returns_without_its_data() {
    let mut server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let (first, second) = (b"/kvlens/v1/workers/old-0", b"/kvlens/v1/workers/old-1");
    client.put(*first, json("old-0"), None).await.unwrap();
    client.put(*second, json("old-1"), None).await.unwrap();
    let mut follower = Follower::start(config(&server.url()));
    let mut agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    let all = ["gpu-0", "old-0", "old-1"];
    follower.until(|follower| follower.names() == all).await;
    server.kill();
    follower.plane.until_down("cannot be reached").await;
    server.lose_data();
    server.again().await;
    let returned = Instant::now();
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
    let took = returned.elapsed();
    assert!(took < CONVERGED_MAX, "{took:?}");
    assert_eq!(
        follower.metrics.membership_alarms.get(),
        1,
        "two of three are gone"
    );
}

#[tokio::test]
async fn a_key_that_was_deleted_is_put_again() {
    let server = Server::start(Protection::Plain).await;
    let mut follower = Follower::start(config(&server.url()));
    let agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    let mut client = server.client().await;
    client.delete(KEY, None).await.unwrap();
    let deleted = Instant::now();
    follower.until(|follower| follower.set.is_empty()).await;
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    assert!(deleted.elapsed() < Duration::from_secs(1));
    drop(agent);
}

#[tokio::test]
async fn a_member_that_is_away_is_passed_over() {
    let server = Server::start(Protection::Plain).await;
    let network = Network::to(server.port()).await;
    let away = format!("http://{}", network.address);
    drop(network);
    let config = EtcdConfig {
        endpoints: vec![away, server.url()],
        ..config(&server.url())
    };
    let mut agent = Agent::start(config.clone(), record("gpu-0", "http://a:1", 1));
    let mut follower = Follower::start(config);
    let started = Instant::now();
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
    assert!(started.elapsed() < CONVERGED_MAX);
}

#[tokio::test]
async fn a_leader_that_dies_is_survived() {
    let mut members = Server::cluster(3).await;
    let mut leader = 0;
    for (number, member) in members.iter().enumerate() {
        if member.leads().await {
            leader = number;
        }
    }
    // Both talk to the leader, who is the first that they know of.
    let mut dying = members.remove(leader);
    let all = [&dying, &members[0], &members[1]];
    let config = EtcdConfig {
        endpoints: all.iter().map(|member| member.url()).collect(),
        ..config("")
    };
    let mut follower = Follower::start(config.clone());
    let mut agent = Agent::start(config, record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
    dying.kill();
    agent.change(|record| record.verdict = Verdict::Degraded);
    members[0].until_it_answers().await;
    let elected = Instant::now();
    follower
        .until(|follower| follower.verdict("gpu-0") == Some(Verdict::Degraded))
        .await;
    agent.plane.until_up().await;
    let took = elected.elapsed();
    assert!(took < CONVERGED_MAX, "{took:?}");
    assert_eq!(follower.metrics.membership_alarms.get(), 0);
}

#[tokio::test]
async fn an_etcd_that_hangs_is_noticed_and_heals() {
    let server = Server::start(Protection::Plain).await;
    let mut follower = Follower::start(config(&server.url()));
    let mut agent = Agent::start(config(&server.url()), record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
    server.signal(Signal::STOP);
    let stopped = Instant::now();
    follower.plane.until_down("etcd at").await;
    agent.plane.until_down("etcd at").await;
    let noticed = stopped.elapsed();
    assert!(noticed < Duration::from_secs(8), "{noticed:?}");
    agent.change(|record| record.verdict = Verdict::Degraded);
    server.signal(Signal::CONT);
    let returned = Instant::now();
    follower
        .until(|follower| follower.verdict("gpu-0") == Some(Verdict::Degraded))
        .await;
    let took = returned.elapsed();
    assert!(took < CONVERGED_MAX, "{took:?}");
}

#[tokio::test]
async fn what_was_compacted_in_the_meantime_is_listed() {
    let server = Server::start(Protection::Plain).await;
    let mut network = Network::to(server.port()).await;
    let mut client = server.client().await;
    let key = |worker: &str| format!("/kvlens/v1/workers/{worker}");
    client.put(key("gpu-0"), json("gpu-0"), None).await.unwrap();
    client.put(key("gpu-1"), json("gpu-1"), None).await.unwrap();
    let url = format!("http://{}", network.address);
    let mut follower = Follower::start(config(&url));
    follower
        .until(|follower| follower.names() == ["gpu-0", "gpu-1"])
        .await;
    network.cut().await;
    follower.plane.until_down("etcd at").await;
    client.delete(key("gpu-0"), None).await.unwrap();
    let mut last = 0;
    for _ in 0..20 {
        let put = client.put(key("gpu-2"), json("gpu-2"), None).await.unwrap();
        last = put.header().unwrap().revision();
    }
    client.compact(last, None).await.unwrap();
    network.mend().await;
    let returned = Instant::now();
    follower
        .until(|follower| follower.names() == ["gpu-1", "gpu-2"])
        .await;
    let took = returned.elapsed();
    assert!(took < CONVERGED_MAX, "{took:?}");
    assert_eq!(follower.listings, 2);
}

#[tokio::test]
async fn bad_records_harm_no_other() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let key = |worker: &str| format!("/kvlens/v1/workers/{worker}");
    // More than one page of a listing.
    for number in 0..40 {
        let worker = format!("good-{number:02}");
        client.put(key(&worker), json(&worker), None).await.unwrap();
    }
    let mut newer = record("bad-version", "http://a:1", 1);
    newer.version = 9;
    let newer = serde_json::to_vec(&newer).unwrap();
    for (worker, value) in [
        ("bad-json", b"{\"version\": 1,".to_vec()),
        ("bad-version", newer),
        ("bad-worker", json("good-00")),
        ("bad-size", vec![b' '; 70 << 10]),
        ("BAD", json("good-00")),
    ] {
        client.put(key(worker), value, None).await.unwrap();
    }
    let mut follower = Follower::start(config(&server.url()));
    follower.until(|follower| follower.set.len() == 40).await;
    // The same by the watch, and what was bad and is good again.
    client.put(key("good-01"), "nonsense", None).await.unwrap();
    client
        .put(key("bad-json"), json("bad-json"), None)
        .await
        .unwrap();
    follower.until(|follower| follower.set.len() == 41).await;
    assert!(follower.set.contains_key("bad-json"));
    assert!(follower.set.contains_key("good-01"), "the former one stays");
    use BadRecord::{Address, Key, NotARecord, OtherWorker, TooLarge, Version};
    for (kind, count) in [
        (Key, 1),
        (TooLarge, 1),
        (NotARecord, 2),
        (Version, 1),
        (OtherWorker, 1),
        (Address, 0),
    ] {
        let labels = BadRecordLabels { kind };
        let counted = follower.metrics.bad_records.get_or_create(&labels).get();
        assert_eq!(counted, count, "{kind:?}");
    }
}

#[tokio::test]
async fn one_worker_id_is_of_one_agent() {
    let server = Server::start(Protection::Plain).await;
    let url = server.url();
    let mut follower = Follower::start(config(&url));
    let mut first = Agent::start(config(&url), record("gpu-0", "http://a:1", 1));
    first.plane.until_up().await;
    let mut second = Agent::start(config(&url), record("gpu-0", "http://b:1", 2));
    second
        .plane
        .until_down("worker id gpu-0 is taken by the agent at http://a:1")
        .await;
    // Two more looks, and the first still has it.
    sleep(Duration::from_millis(2200)).await;
    assert_eq!(second.metrics.taken_worker_ids.get(), 1, "counted once");
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    assert_eq!(follower.set["gpu-0"].agent_life, 1);

    // Another life of the first takes over at once, and the former one does not take it back.
    let replaced = Instant::now();
    let mut third = Agent::start(config(&url), record("gpu-0", "http://a:1", 3));
    third.plane.until_up().await;
    assert!(replaced.elapsed() < Duration::from_secs(1));
    first.plane.until_down("is taken by the agent").await;
    follower
        .until(|follower| follower.set["gpu-0"].agent_life == 3)
        .await;
    // Whoever waits has it when the lease has ended.
    drop((first, third));
    second.plane.until_up().await;
    follower
        .until(|follower| {
            follower
                .set
                .get("gpu-0")
                .is_some_and(|record| record.agent_life == 2)
        })
        .await;
}
