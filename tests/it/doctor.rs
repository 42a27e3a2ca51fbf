//! `kvlens doctor` beside real servers and agents: what it says of each, and that it never hangs.

#[cfg(feature = "etcd")]
mod etcd;
mod host;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvlens::commands::doctor::examine;
use kvlens::commands::doctor::finding::{Check, Finding, Status};
use kvlens::config::Config;
use kvlens::config::frontend::RouterPlace;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::bus::server::Server as Nats;
use crate::cli::{kvlens, text};
use crate::doctor::host::{Agent, Hanging};

/// What all waits of the program come to, and some for a loaded machine.
const EXAMINED_MAX: Duration = Duration::from_secs(8);

/// A file of secrets in a folder of the test's own.
fn secret(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner's");
    path
}

fn config(agents: &[&str]) -> Config {
    let mut config = Config::default();
    config.discovery.workers = agents.iter().map(|url| (*url).to_owned()).collect();
    config
}

async fn examined(config: &Config) -> Vec<Finding> {
    let begun = Instant::now();
    let findings = examine(config, Some("demo")).await;
    let took = begun.elapsed();
    assert!(took < EXAMINED_MAX, "{took:?}");
    findings
}

fn of(findings: &[Finding], check: Check) -> Vec<&Finding> {
    findings
        .iter()
        .filter(|found| found.check == check)
        .collect()
}

/// The one finding that fails; all others do not.
fn fault(findings: &[Finding]) -> &Finding {
    let is_failed = |found: &&Finding| found.status == Status::Fail;
    let failed: Vec<_> = findings.iter().filter(is_failed).collect();
    assert_eq!(failed.len(), 1, "{findings:#?}");
    failed[0]
}

fn assert_says(finding: &Finding, seen: &str, next: &str) {
    assert!(finding.seen.contains(seen), "{finding:?}");
    let said = finding.next.as_deref().unwrap_or_default();
    assert!(said.contains(next), "{finding:?}");
}

/// An address where nobody listens.
async fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

#[tokio::test]
async fn a_named_agent_and_its_engine_are_well() {
    let agent = Agent::start(None).await;
    let findings = examined(&config(&[&agent.url()])).await;
    assert!(
        findings.iter().all(|found| found.status != Status::Fail),
        "{findings:#?}"
    );
    for check in [Check::Agent, Check::Engine, Check::Worker, Check::Model] {
        let found = of(&findings, check);
        assert_eq!(found.len(), 1, "{findings:#?}");
        assert_eq!(found[0].status, Status::Ok, "{found:?}");
    }
    let clock = of(&findings, Check::Clock);
    assert_says(clock[0], "2 hosts agree within 5 s", "");
}

#[tokio::test]
async fn an_agent_with_another_key_names_the_key_file() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(Some(&secret(&folder, "its", "router:one\n"))).await;
    let mut config = config(&[&agent.url()]);
    let findings = examined(&config).await;
    assert_says(
        fault(&findings),
        "401",
        "discovery.key_file, which is unset",
    );

    let ours = secret(&folder, "ours", "another\n");
    config.discovery.key_file = Some(ours.clone());
    let findings = examined(&config).await;
    let wanted = format!("discovery.key_file ({})", ours.display());
    assert_says(fault(&findings), "401", &wanted);
    assert_eq!(fault(&findings).check, Check::Agent);

    secret(&folder, "ours", "one\n");
    let findings = examined(&config).await;
    assert!(
        findings.iter().all(|found| found.status != Status::Fail),
        "{findings:#?}"
    );
}

#[tokio::test]
async fn an_agent_of_another_cluster_is_told_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start(None).await;
    let mut config = config(&[&agent.url()]);
    let key = secret(&folder, "seal", &"k".repeat(32));
    config.cluster.hash_key_file = Some(key);
    let findings = examined(&config).await;
    assert_says(
        fault(&findings),
        "are named with no key",
        "cluster.hash_key_file",
    );
    config.cluster.hash_key_file = None;
    config.discovery.networks =
        vec![kvlens::config::network::Network::parse("10.0.0.0/8").unwrap()];
    let findings = examined(&config).await;
    assert_says(fault(&findings), "discovery.networks", "worker.advertise");
    assert_eq!(agent.asked(), 1, "who is outside is shown nothing");
}

#[tokio::test]
async fn who_accepts_and_never_answers_is_a_line_and_no_wait() {
    let hanging = Hanging::start().await;
    let mut config = config(&[&format!("http://{}", hanging.address)]);
    config.etcd.endpoints = match cfg!(feature = "etcd") {
        true => vec![format!("http://{}", hanging.address)],
        false => Vec::new(),
    };
    config.nats.servers = vec![format!("nats://{}", hanging.address)];
    let findings = examined(&config).await;
    assert_says(
        of(&findings, Check::Agent)[0],
        "no answer within 1500 ms",
        "agent's log",
    );
    let nats = of(&findings, Check::Nats);
    assert_eq!(nats[0].status, Status::Fail, "{nats:?}");
    assert_eq!(nats[0].subject, config.nats.servers[0]);
    if cfg!(feature = "etcd") {
        assert_says(
            of(&findings, Check::Etcd)[0],
            "silent for 2s",
            "etcd.endpoints",
        );
    }
}

#[tokio::test]
async fn nats_is_asked_for_what_it_is() {
    let nats = Nats::start().await;
    let mut config = Config::default();
    config.nats = nats.config();
    let findings = examined(&config).await;
    let found = of(&findings, Check::Nats);
    assert_eq!(found[0].status, Status::Ok, "{found:?}");
    assert_says(found[0], "takes 1048576 bytes, a message to us took", "");
    assert_eq!(found[1].status, Status::Skip, "{found:?}");

    config.frontend.router = RouterPlace::Remote;
    let findings = examined(&config).await;
    assert_says(fault(&findings), "no router was heard", "kvlens router");
    let bus = nats.bus("r1").await;
    let alive = async {
        loop {
            let subject = kvlens::bus::subjects::alive("r1");
            bus.publish(subject, &()).await.expect("the bus is up");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let findings = tokio::select! {
        () = alive => unreachable!("it goes on"),
        findings = examined(&config) => findings,
    };
    assert_says(of(&findings, Check::Nats)[1], "routers heard: r1", "");

    drop(bus);
    nats.kill().await;
    let findings = examined(&config).await;
    assert_says(fault(&findings), "refused", "start nats-server");
}

#[tokio::test]
async fn what_nats_refuses_is_named() {
    let settings = "max_payload: 65536\nauthorization { users = [ \
         { user: whole, password: secret }, \
         { user: half, password: secret, permissions: { subscribe: \"_INBOX.>\" } }, \
         { user: mute, password: secret, permissions: { publish: \"kvlens.>\" } } ] }";
    let nats = Nats::configured(settings).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.frontend.router = RouterPlace::Remote;
    config.nats = nats.config();
    for (user, password, status, seen, next) in [
        (
            None,
            "",
            Status::Fail,
            "authorization violation",
            "nats.user and nats.password_file",
        ),
        (
            Some("whole"),
            "wrong",
            Status::Fail,
            "authorization violation",
            "nats.user (whole)",
        ),
        (
            Some("whole"),
            "secret",
            Status::Warn,
            "messages of 65536 bytes",
            "max_payload",
        ),
        (
            Some("half"),
            "secret",
            Status::Fail,
            "kvlens.router.*.alive",
            "user subscribe kvlens.router.*.alive",
        ),
        (Some("mute"), "secret", Status::Skip, "our user may not", ""),
    ] {
        config.nats.user = user.map(str::to_owned);
        config.nats.password_file = user.map(|_| secret(&folder, "password", password));
        let findings = examined(&config).await;
        let nats = of(&findings, Check::Nats);
        let named = nats.iter().find(|found| found.seen.contains(seen));
        let named = named.unwrap_or_else(|| panic!("{seen}: {nats:#?}"));
        assert_eq!(named.status, status, "{named:?}");
        assert_says(named, seen, next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_prints_a_line_each_or_json_and_says_by_its_code() {
    let agent = Agent::start(None).await;
    let url = agent.url();
    let gone = format!("http://{}", free().await);
    let run = |words: Vec<String>, environment: Vec<(&'static str, &'static str)>| async move {
        let run = move || {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            kvlens(&words, &environment)
        };
        tokio::task::spawn_blocking(run).await.expect("it ran")
    };
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };

    let output = run(
        words(&format!("doctor --model demo --worker-url {url}")),
        vec![],
    )
    .await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("ok    configuration  no file: "), "{said}");
    assert!(
        said.contains(&format!("ok    agent          {url}: agent of gpu-0")),
        "{said}"
    );
    assert!(
        said.ends_with("skip\n") && said.contains(", 0 fail, "),
        "{said}"
    );

    let output = run(words(&format!("doctor --json --worker-url {gone}")), vec![]).await;
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found.as_array().unwrap();
    let agent = found
        .iter()
        .find(|found| found["check"] == "agent")
        .unwrap();
    assert_eq!(agent["subject"], gone);
    assert_eq!(agent["status"], "fail");
    assert!(agent["next"].as_str().unwrap().contains("agent's log"));
    assert_eq!(
        text(&output.stderr),
        "kvlens: doctor: 1 of the checks failed\n"
    );

    // No server is there to tell of a router; that one is asked for is the configuration's.
    let nats = format!("nats://{}", free().await);
    let flags = format!("doctor --json --router remote --request-plane nats --nats {nats}");
    let output = run(words(&flags), vec![]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let output = run(words("doctor --json --router remote"), vec![]).await;
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stdout));

    let bad = vec![("KVLENS_ROUTER_MOD", "kv")];
    let output = run(words("doctor --json"), bad).await;
    assert_eq!(output.status.code(), Some(78));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0]["check"], "configuration");
    assert!(
        found[0]["seen"]
            .as_str()
            .unwrap()
            .contains("KVLENS_ROUTER_MOD")
    );
    let output = run(words("doctor --worker-url nonsense"), vec![]).await;
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stdout));
}
