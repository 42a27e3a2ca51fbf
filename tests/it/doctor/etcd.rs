//! etcd as it is examined: its members, its records, and who may read them.

use kvlens::config::Config;
use kvlens::config::dispatch::RequestPlane;

use crate::bus::gated::{NOBODY, Party};
use crate::doctor::host::Agent;
use crate::doctor::{Check, Status, assert_says, examined, fault, free, of, secret};
use crate::etcd::server::{Protection, Server};
use crate::feed::parties::record;

const PREFIX: &str = "/kvlens/v1/workers/";

/// Passwords that no text of ours has in it.
const RIGHT: &str = "7Qz-right-9fKx";
const WRONG: &str = "7Qz-wrong-3vWt";

#[tokio::test]
async fn registered_workers_are_asked_and_bad_records_named() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let agent = Agent::start(None).await;
    let record = serde_json::to_string(&agent.record).unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let leased = etcd_client::PutOptions::new().with_lease(lease);
    client
        .put(format!("{PREFIX}gpu-0"), record, Some(leased))
        .await
        .unwrap();
    let mut config = Config::default();
    config.etcd.endpoints = vec![server.url()];
    let before = client.get("", Some(all())).await.unwrap();

    let findings = examined(&config).await;
    assert!(
        findings.iter().all(|found| found.status != Status::Fail),
        "{findings:#?}"
    );
    assert_says(of(&findings, Check::Etcd)[0], "1 workers under", "");
    assert_says(of(&findings, Check::Etcd)[0], "version 3.", "");
    let worker = of(&findings, Check::Worker)[0];
    assert!(
        worker.seen.contains("lease 5") || worker.seen.contains("lease 60"),
        "{worker:?}"
    );
    assert_says(of(&findings, Check::Clock)[0], "3 hosts agree", "");
    let after = client.get("", Some(all())).await.unwrap();
    let revision = |got: &etcd_client::GetResponse| got.header().unwrap().revision();
    assert_eq!(revision(&before), revision(&after), "nothing was changed");

    client
        .put(format!("{PREFIX}gpu-1"), "{}", None)
        .await
        .unwrap();
    let findings = examined(&config).await;
    let bad = fault(&findings);
    assert_eq!(bad.subject, format!("{PREFIX}gpu-1"));
    assert_says(bad, "bad record", &format!("etcdctl del {PREFIX}gpu-1"));
}

fn all() -> etcd_client::GetOptions {
    etcd_client::GetOptions::new().with_all_keys()
}

#[tokio::test]
async fn a_member_that_is_down_is_named_and_the_other_believed() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let agent = Agent::start(None).await;
    let record = serde_json::to_string(&agent.record).unwrap();
    client
        .put(format!("{PREFIX}gpu-0"), record, None)
        .await
        .unwrap();
    let gone = format!("http://{}", free().await);
    let mut config = Config::default();
    config.etcd.endpoints = vec![gone.clone(), server.url()];
    let findings = examined(&config).await;
    let fault = fault(&findings);
    assert_eq!(fault.subject, gone);
    assert_says(fault, "cannot be reached", "etcd.endpoints");
    let etcd = of(&findings, Check::Etcd);
    assert_eq!(etcd[1].status, Status::Ok, "{etcd:?}");
    assert_eq!(etcd[2].status, Status::Warn, "it has no lease: {etcd:?}");
    assert_eq!(of(&findings, Check::Agent)[0].status, Status::Ok);
}

#[tokio::test]
async fn who_is_reached_over_the_bus_alone_is_well() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    let party = Party::start().await;
    let mut record = record("w", NOBODY);
    record.agent = Some(format!("http://{}", free().await));
    let text = serde_json::to_string(&record).unwrap();
    client.put(format!("{PREFIX}w"), text, None).await.unwrap();
    let mut config = Config::default();
    config.etcd.endpoints = vec![server.url()];
    config.nats = party.server.config();
    config.dispatch.request_plane = RequestPlane::Nats;
    let findings = examined(&config).await;
    assert!(
        findings.iter().all(|found| found.status != Status::Fail),
        "{findings:#?}"
    );
    let agent = of(&findings, Check::Agent)[0];
    assert_eq!(agent.status, Status::Skip, "{agent:?}");
    assert_says(agent, "not reached over HTTP", "");
    let engine = of(&findings, Check::Engine)[0];
    assert_eq!(engine.status, Status::Ok, "{engine:?}");
    assert_says(engine, "engine of w, well", "");

    // Its gate is on the bus no more.
    drop(party.gate_tasks);
    let findings = examined(&config).await;
    assert_eq!(fault(&findings).check, Check::Engine);
    assert_says(fault(&findings), "over NATS", "--nats");
}

#[tokio::test]
async fn a_wrong_password_is_named() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    client.user_add("root", RIGHT, None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("nobody", RIGHT, None).await.unwrap();
    client.auth_enable().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.etcd.endpoints = vec![server.url()];
    for (user, password, seen, next) in [
        (
            None,
            "",
            "does not take our user or password",
            "asks for a user",
        ),
        (
            Some("root"),
            WRONG,
            "does not take our user or password",
            "etcd.password_file (",
        ),
        (
            Some("nobody"),
            RIGHT,
            "permission denied",
            "grant-permission",
        ),
    ] {
        config.etcd.user = user.map(str::to_owned);
        config.etcd.password_file =
            user.map(|_| secret(&folder, "password", &format!("{password}\n")));
        let findings = examined(&config).await;
        assert_says(fault(&findings), seen, next);
        let shown = format!("{findings:?}");
        assert!(password.is_empty() || !shown.contains(password), "{shown}");
    }
}
