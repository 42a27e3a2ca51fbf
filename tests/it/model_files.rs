//! Models whose files a frontend fetches from the agents: used when they are the bytes that were
//! meant, and changed when their workers change.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use kvlens::discovery::feed::FEED_PATH;
use kvlens::discovery::model_files::{MODEL_FILES_PATH, asked_digest};
use kvlens::discovery::{Change, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::http::Routes;
use kvlens::http::reply::{Reply, ReplyBody};
use kvlens::model::Model;
use kvlens::model::archive::Archive;
use kvlens::worker::feed::Feed;
use serde_json::Value;

use crate::end_to_end::pictures::{chat, data_uri, image, png, text};
use crate::end_to_end::stack::{FAST, until};
use crate::feed::parties::{Served, name, record};
use crate::roles::host::{Frontend, Host};

/// How an agent answers when it is asked for its files.
#[derive(Clone)]
enum Answering {
    Body(Bytes),
    /// Breaks off half-way.
    Cut(Bytes),
    /// Says nothing.
    Hanging,
    Refusing,
}

/// An agent of which the test decides what it serves.
struct Agent {
    feed: Arc<Feed>,
    served: Served,
    answering: Arc<Mutex<Answering>>,
}

impl Agent {
    async fn start(worker: &str, answering: Answering) -> Self {
        let feed = Feed::new(name(worker));
        let answering = Arc::new(Mutex::new(answering));
        let (followed, answers) = (feed.clone(), answering.clone());
        let routes = Routes::default()
            .get(FEED_PATH, move |_| {
                let feed = followed.clone();
                Box::pin(async move {
                    let status = http::StatusCode::SERVICE_UNAVAILABLE;
                    let lines = feed.follow().await.map(Reply::events);
                    lines.unwrap_or_else(|error| Reply::text(status, error.to_string()))
                })
            })
            .get(MODEL_FILES_PATH, move |call| {
                let query = call.uri.query().unwrap_or_default();
                assert!(asked_digest(query).is_some(), "{query}");
                let answering = answers.lock().expect("no test panics here").clone();
                Box::pin(answering.reply())
            });
        let served = Served::start("127.0.0.1:0", routes).await;
        Self {
            feed,
            served,
            answering,
        }
    }

    fn answers(&self, answering: Answering) {
        *self.answering.lock().expect("no test panics here") = answering;
    }

    /// Ends without a word.
    async fn end(self) {
        self.feed.close();
        self.served.end().await;
    }

    fn up(&self, record: &WorkerRecord) {
        let up = Change::Up(Box::new(record.clone()));
        self.feed.publish(Update::Change(up));
    }
}

impl Answering {
    async fn reply(self) -> Reply {
        let full = |body| Reply::full(http::StatusCode::OK, "application/octet-stream", body);
        match self {
            Self::Body(body) => full(body),
            Self::Cut(body) => {
                let broken = std::io::Error::other("broken");
                let half = body.slice(..body.len() / 2);
                let pieces = stream::iter([Ok(half), Err(broken)]);
                Reply {
                    body: ReplyBody::Stream(Box::pin(pieces)),
                    ..full(Bytes::new())
                }
            }
            Self::Hanging => std::future::pending().await,
            Self::Refusing => Reply::text(http::StatusCode::NOT_FOUND, "others now"),
        }
    }
}

/// The demo model's files, and the same with a word more before each prompt.
fn two_archives() -> [Archive; 2] {
    let (_, first) = Model::demo_packed().expect("it is in the binary");
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in first.files().expect("packed here") {
        let text = match name {
            "chat_template.jinja" => format!("Hello {text}"),
            _ => text.to_owned(),
        };
        std::fs::write(Path::join(folder.path(), name), text).expect("a file");
    }
    let (_, second) = Model::load_packed(folder.path()).expect("files that can be used");
    [first, second]
}

/// A record whose engine nobody asks.
fn of(worker: &str, archive: &Archive) -> WorkerRecord {
    let mut record = record(worker, "http://127.0.0.1:9");
    record.model_digest = Some(archive.digest().to_string());
    record
}

async fn until_caused(frontend: &Frontend, worker: &str, parts: &[&str]) {
    until("the worker is listed with its cause", async || {
        let entry = frontend.worker(worker).await;
        let cause = entry["cause"].as_str().unwrap_or_default();
        entry["verdict"] == "failed" && parts.iter().all(|part| cause.contains(part))
    })
    .await;
}

async fn until_served(frontend: &Frontend, worker: &str) {
    until("the worker takes requests", async || {
        frontend.worker(worker).await["verdict"] == "healthy"
    })
    .await;
}

fn question() -> Value {
    let picture = image(&data_uri(&png(96, 64, 1)));
    chat(&[text("Who lives in this house, and since when?"), picture])
}

#[tokio::test]
async fn a_frontend_without_a_model_serves_its_workers_models() {
    let mut host = Host::new();
    let listen = host.free_address().await;
    let url = format!("http://{listen}");
    let keys = host.file("keys", "frontend:s3cret\n");
    let words = format!("--worker-key-file {}", keys.display());
    let frontend = host.modelless(&[&url], &format!("--port 0 {words}")).await;
    until("it says for whom it waits", async || {
        frontend.get("/ready").await.text().contains(&url)
    })
    .await;
    let refused = frontend.post(&question()).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["code"], "no_model_files");
    assert!(refused.text().contains(&format!("the agent at {url}")));

    let engine = host.engine("gpu-0", FAST).await;
    let words = engine.agent_words("gpu-0");
    let words = format!("{words} --model demo --key-file {}", keys.display());
    let agent = host.agent_at("gpu-0", &words, &listen).await;
    frontend.until_ready(1).await;
    let digest = Model::demo().unwrap().digest().to_string();
    let entry = frontend.worker("gpu-0").await;
    assert_eq!(entry["model_digest"], digest);
    assert_eq!(entry["agent"], url);
    assert!(entry["agent_life"].as_u64() > Some(0), "{entry}");
    let told = frontend.ask(&question()).await;
    until("the router has followed", async || {
        let worker = frontend.worker("gpu-0").await;
        worker["indexed_blocks"].as_u64() >= Some(told.prompt_blocks)
    })
    .await;
    let again = frontend.ask(&question()).await;
    assert!(again.cached_tokens > 0 && again.cached_tokens == again.overlap_blocks * 16);
    // What is asked for in vain is not one that will come.
    let mut other = question();
    other["model"] = "another".into();
    assert_eq!(frontend.post(&other).await.status, 404);

    for path in ["/kvlens/v1/model", "/kvlens/v1/model/files"] {
        let page = host.client.get(&format!("{}{path}", agent.url)).await;
        assert_eq!(page.status, 401, "{path}");
    }
}

#[tokio::test]
async fn an_agent_serves_the_files_of_one_digest_alone() {
    let mut host = Host::new();
    let engine = host.engine("gpu-0", FAST).await;
    let words = engine.agent_words("gpu-0");
    let agent = host.agent("gpu-0", &format!("{words} --model demo")).await;
    let (_, archive) = Model::demo_packed().unwrap();
    let page = async |path: &str| host.client.get(&format!("{}{path}", agent.url)).await;
    until("the files are served", async || {
        page("/kvlens/v1/model").await.status == 200
    })
    .await;
    let listed = page("/kvlens/v1/model").await.json();
    assert_eq!(listed["digest"], archive.digest().to_string());
    assert_eq!(listed["files"].as_array().map(Vec::len), Some(6));
    assert_eq!(listed["files"][0]["name"], "chat_template.jinja");
    let digest = archive.digest();
    let sent = page(&format!("{MODEL_FILES_PATH}?digest={digest}")).await;
    assert_eq!((sent.status, sent.body), (200, archive.body()));
    for query in ["", "?digest=", &format!("?digest={}", "0".repeat(64))] {
        let refused = page(&format!("{MODEL_FILES_PATH}{query}")).await;
        assert_eq!(refused.status, 404, "{query}");
        assert!(refused.text().contains(&digest.to_string()));
    }
    // One that has none says so.
    let engine = host.engine("gpu-1", FAST).await;
    let agent = host.agent("gpu-1", &engine.agent_words("gpu-1")).await;
    let refused = host
        .client
        .get(&format!("{}/kvlens/v1/model", agent.url))
        .await;
    assert_eq!(refused.status, 404);
    assert!(refused.text().contains("no_model_files"));
}

#[tokio::test]
async fn only_the_bytes_that_were_meant_are_used() {
    let [first, second] = two_archives();
    let (digest, other) = (first.digest().short(), second.digest().short());
    let agent = Agent::start("w1", Answering::Refusing).await;
    agent.up(&of("w1", &first));
    let mut host = Host::new();
    let frontend = host.modelless(&[&agent.served.url()], "--port 0").await;
    until_caused(&frontend, "w1", &[&digest, "404", "others now"]).await;
    agent.answers(Answering::Body(second.body()));
    until_caused(&frontend, "w1", &[&digest, &other, "was wanted"]).await;
    let ready = frontend.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("was wanted"), "{}", ready.text());
    assert_eq!(frontend.post(&question()).await.status, 503);
    agent.answers(Answering::Cut(first.body()));
    until_caused(&frontend, "w1", &["broke off inside its answer"]).await;
    agent.answers(Answering::Body(first.body()));
    until_served(&frontend, "w1").await;
    assert!(frontend.prompt_tokens(&question()).await.is_array());
}

#[tokio::test]
async fn an_agent_that_hangs_holds_up_no_other_model() {
    let [first, second] = two_archives();
    let agents = [
        Agent::start("w1", Answering::Hanging).await,
        Agent::start("w2", Answering::Body(second.body())).await,
    ];
    let mut host = Host::new();
    let urls = agents.each_ref().map(|agent| agent.served.url());
    let urls = urls.each_ref().map(String::as_str);
    let frontend = host.modelless(&urls, "--port 0").await;
    let mut hanging = of("w1", &first);
    // Before the other in any order.
    hanging.model = "a".to_owned();
    agents[0].up(&hanging);
    until_caused(&frontend, "w1", &["not here yet"]).await;
    agents[1].up(&of("w2", &second));
    until_served(&frontend, "w2").await;
    // It has not even been given up.
    let cause = frontend.worker("w1").await["cause"].clone();
    assert_eq!(cause, "its model's files are not here yet");
}

#[tokio::test]
async fn files_change_when_nobody_with_the_former_ones_takes_requests() {
    let [first, second] = two_archives();
    let (digest, other) = (first.digest().short(), second.digest().short());
    let agents = [
        Agent::start("w1", Answering::Body(first.body())).await,
        Agent::start("w2", Answering::Body(second.body())).await,
    ];
    agents[0].up(&of("w1", &first));
    let mut host = Host::new();
    let urls = agents.each_ref().map(|agent| agent.served.url());
    let urls = urls.each_ref().map(String::as_str);
    let frontend = host.modelless(&urls, "--port 0").await;
    until_served(&frontend, "w1").await;
    let before = frontend.prompt_tokens(&question()).await;
    agents[1].up(&of("w2", &second));
    until_caused(&frontend, "w2", &[&digest, &other, "no worker with those"]).await;
    assert_eq!(frontend.worker("w1").await["verdict"], "healthy");

    // The rolling change comes to the first one, too.
    let mut leaving = of("w1", &first);
    leaving.verdict = Verdict::Draining;
    agents[0].up(&leaving);
    until_served(&frontend, "w2").await;
    let after = frontend.prompt_tokens(&question()).await;
    assert!(after.is_array() && after != before, "{after}");
    agents[0].up(&of("w1", &first));
    until_caused(&frontend, "w1", &[&digest, &other]).await;
    agents[0].answers(Answering::Body(second.body()));
    agents[0].up(&of("w1", &second));
    until_served(&frontend, "w1").await;
    assert_eq!(frontend.prompt_tokens(&question()).await, after);
}

#[tokio::test]
async fn files_change_when_the_hosts_that_had_the_former_ones_die() {
    let [first, second] = two_archives();
    let engines = [
        Served::engine("127.0.0.1:0").await,
        Served::engine("127.0.0.1:0").await,
    ];
    let most = [
        Agent::start("w1", Answering::Body(first.body())).await,
        Agent::start("w2", Answering::Body(first.body())).await,
    ];
    let last = Agent::start("w3", Answering::Body(second.body())).await;
    let mut host = Host::new();
    let urls = [&most[0], &most[1], &last].map(|agent| agent.served.url());
    let urls = urls.each_ref().map(String::as_str);
    let frontend = host.modelless(&urls, "--port 0").await;
    for (worker, agent, engine) in [("w1", &most[0], &engines[0]), ("w2", &most[1], &engines[1])] {
        let mut record = of(worker, &first);
        record.address = engine.url();
        agent.up(&record);
        until_served(&frontend, worker).await;
    }
    last.up(&of("w3", &second));
    let (digest, other) = (first.digest().short(), second.digest().short());
    until_caused(&frontend, "w3", &[&digest, &other]).await;

    let [e1, e2] = engines;
    let [a1, a2] = most;
    // Nobody is left to say that they take no requests.
    tokio::join!(a1.end(), a2.end(), e1.end(), e2.end());
    until_served(&frontend, "w3").await;
    assert!(frontend.prompt_tokens(&question()).await.is_array());
}

#[tokio::test]
async fn names_that_a_key_seals_still_overlap_and_another_key_is_said() {
    let mut host = Host::new();
    let key = host.file("hash-key", "0f1e2d3c4b5a69788796a5b4c3d2e1f0\n");
    let config = host.file(
        "kvlens.toml",
        &format!("[cluster]\nhash_key_file = {key:?}\n"),
    );
    let config = format!("--config {}", config.display());
    let engine = host.engine("gpu-0", FAST).await;
    let words = format!("{} --model demo {config}", engine.agent_words("gpu-0"));
    let agent = host.agent("gpu-0", &words).await;
    let sealed = host
        .modelless(&[&agent.url], &format!("--port 0 {config}"))
        .await;
    let open = host.modelless(&[&agent.url], "--port 0").await;
    sealed.until_ready(1).await;
    let told = sealed.ask(&question()).await;
    until("the router has followed", async || {
        let worker = sealed.worker("gpu-0").await;
        worker["indexed_blocks"].as_u64() >= Some(told.prompt_blocks)
    })
    .await;
    let again = sealed.ask(&question()).await;
    assert_eq!(again.overlap_blocks, (again.prompt_tokens - 1) / 16);
    assert_eq!(again.cached_tokens, again.overlap_blocks * 16);
    let entry = sealed.worker("gpu-0").await;
    let fingerprint = entry["hash_key"].as_str().unwrap().to_owned();
    until_caused(
        &open,
        "gpu-0",
        &[&fingerprint, "no key", "cluster.hash_key_file"],
    )
    .await;
    assert_eq!(open.post(&question()).await.status, 503);
}
