//! Which workers a frontend gives requests: who may not is listed, and the cause says what to do.

use std::time::Duration;

use kvlens::block::HashKey;
use kvlens::config::network::Network;
use kvlens::discovery::WorkerRecord;
use kvlens::health::Verdict;
use kvlens::model::Model;
use kvlens::router::rules::Rules;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::end_to_end::stack::until;
use crate::feed::parties::{Agent, Follower, Served, record};

const LONG: Duration = Duration::from_secs(3_600);

/// Whether a worker gets requests under rules, and its cause.
async fn judged(rules: Rules, record: &WorkerRecord) -> (bool, String) {
    let agent = Agent::start("127.0.0.1:0", "w").await;
    agent.up(record);
    let follower = Follower::ruled(&[agent.served.url()], LONG, rules);
    let worker = follower.until("it is listed", |_| true).await;
    let cause = worker.record.cause.unwrap_or_default();
    (worker.record.verdict == Verdict::Healthy, cause)
}

#[tokio::test]
async fn a_worker_outside_the_networks_is_listed_with_its_address() {
    let networks = ["127.0.0.0/8", "fd00::/8"].map(|text| Network::parse(text).unwrap());
    for (address, is_inside) in [
        ("http://127.0.0.1:1", true),
        ("http://[fd00::7]:8000", true),
        ("unix:/run/http.sock", true),
        ("http://10.0.0.1:8000", false),
        ("http://[fe80::1]:8000", false),
        ("http://localhost:8000", false),
        ("http://127.0.0.1.example.com:80", false),
        ("http://127.0.0.1@10.0.0.1:80", false),
        ("127.0.0.1", true),
        ("", false),
    ] {
        let rules = Rules::of_model("demo", None).within(&networks);
        let (is_served, cause) = judged(rules, &record("w", address)).await;
        assert_eq!(is_served, is_inside, "{address}: {cause}");
        let names = [address, "discovery.networks"];
        let says = names.iter().all(|name| cause.contains(name));
        assert!(is_inside || says, "{cause}");
    }
}

#[tokio::test]
async fn a_worker_with_other_files_or_another_key_is_listed_with_both() {
    let ours = Model::demo().unwrap().digest();
    let other = "ab".repeat(32);
    let keys = ["first secret of a cluster", "second secret of a cluster"].map(HashKey::new);
    let told = |digest: Option<String>, key: Option<HashKey>| {
        let mut told = record("w", "http://127.0.0.1:1");
        told.model_digest = digest;
        told.hash_key = key.map(|key| key.fingerprint());
        told
    };
    let [a, b] = keys.map(|key| key.fingerprint());
    for (record, key, says) in [
        (told(None, None), None, None),
        (told(Some(ours.to_string()), None), None, None),
        (
            told(Some(other), None),
            None,
            Some([ours.short(), "abababababab".to_owned()]),
        ),
        (
            told(Some("no hex".to_owned()), None),
            None,
            Some(["no hex".to_owned(), "no digest".to_owned()]),
        ),
        (told(None, Some(keys[0])), Some(keys[0]), None),
        (
            told(None, Some(keys[0])),
            Some(keys[1]),
            Some([a.clone(), b]),
        ),
        (
            told(None, None),
            Some(keys[0]),
            Some([a.clone(), "no key".to_owned()]),
        ),
        (
            told(None, Some(keys[0])),
            None,
            Some([a, "no key".to_owned()]),
        ),
    ] {
        let rules = Rules::of_model("demo", Some(ours)).sealed_by(key.as_ref());
        let (is_served, cause) = judged(rules, &record).await;
        assert_eq!(is_served, says.is_none(), "{cause}");
        for part in says.iter().flatten() {
            assert!(cause.contains(part), "{cause}");
        }
    }
}

#[tokio::test]
async fn a_refused_worker_whose_agent_goes_away_stays_refused() {
    let engine = Served::engine("127.0.0.1:0").await;
    let agent = Agent::start("127.0.0.1:0", "w").await;
    let mut told = record("w", &engine.url());
    told.model = "other".to_owned();
    agent.up(&told);
    let rules = Rules::of_model("demo", None);
    let follower = Follower::ruled(&[agent.served.url()], LONG, rules);
    follower.until("it is listed", |_| true).await;
    agent.end().await;
    let is_away = |cause: &str| cause.starts_with("agent away since");
    let worker = follower
        .until("its agent is away", |worker| {
            worker.record.cause.as_deref().is_some_and(is_away)
        })
        .await;
    assert_eq!(worker.record.verdict, Verdict::Failed);
}

#[tokio::test]
async fn a_registered_worker_is_not_taken_from_anothers_feed() {
    let agent = Agent::start("127.0.0.1:0", "other").await;
    agent.up(&record("other", "http://127.0.0.1:1"));
    let mut registered = record("w", "http://127.0.0.1:1");
    registered.agent = Some(agent.served.url());
    let mut follower = Follower::of(&[]);
    let _registered = follower.follow_registered(&registered);
    until("it is asked again", async || agent.asked() > 1).await;
    let workers = follower.router.workers();
    let names: Vec<_> = workers.iter().map(|w| w.record.worker.as_str()).collect();
    assert_eq!(names, ["w"]);
}

#[tokio::test]
async fn a_registered_agent_outside_the_networks_is_not_even_dialled() {
    for (network, is_inside) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut registered = record("w", "unix:/nowhere/http.sock");
        registered.agent = Some(format!("http://{}", listener.local_addr().unwrap()));
        let networks = [Network::parse(network).unwrap()];
        let rules = Rules::of_model("demo", None).within(&networks);
        let mut follower = Follower::ruled(&[], LONG, rules);
        let _registered = follower.follow_registered(&registered);
        // Some attempts long.
        let dialled = timeout(Duration::from_millis(700), listener.accept()).await;
        assert_eq!(dialled.is_ok(), is_inside, "{network}");
        // It is listed all the same.
        if !is_inside {
            follower.until("it is listed", |_| true).await;
        }
    }
}
