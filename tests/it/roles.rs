//! Engines, agents and frontends as processes of their own: what one of them does to the others.

mod flags;
pub(crate) mod host;

use std::path::Path;

use kvlens::discovery::engine_file::{self, ENGINE_FILE_VERSION, EngineFile, KvEndpoints};
use kvlens::id::WorkerId;
use rustix::process::Signal;
use serde_json::Value;

use crate::bus::server::Server as Nats;
use crate::end_to_end::client::Told;
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{FAST, until};
use crate::roles::host::{Frontend, Host};

const QUESTION: &str = "Look closely at the picture below, count every house, tree and river in \
    it, and say which of them a painter would have left out, and why.";

/// A chat with a picture that follows from `seed`.
fn picture(seed: u8) -> Value {
    chat(&[text(QUESTION), image(&data_uri(&png(96, 64, seed)))])
}

/// The engine had cached exactly what was predicted, and that was all that can be cached.
fn assert_all_cached(told: &Told) {
    assert_eq!(
        told.overlap_blocks,
        (told.prompt_tokens - 1) / 16,
        "{told:?}"
    );
    assert_eq!(told.cached_tokens, told.overlap_blocks * 16, "{told:?}");
}

/// Waits until a frontend knows the whole blocks of what was asked last.
async fn settled(frontend: &Frontend, told: &Told) {
    until("the router has followed", async || {
        let worker = frontend.worker(&told.worker).await;
        worker["indexed_blocks"].as_u64() >= Some(told.prompt_blocks)
    })
    .await;
}

#[tokio::test]
async fn an_image_sent_twice_overlaps_whole_whichever_frontend_it_came_by() {
    let mut host = Host::new();
    let mut agents = Vec::new();
    for worker in ["gpu-0", "gpu-1"] {
        let engine = host.engine(worker, FAST).await;
        let words = engine.agent_words(worker);
        agents.push(host.agent(worker, &words).await);
    }
    let urls: Vec<_> = agents.iter().map(|agent| agent.url.as_str()).collect();
    let first = host.frontend(&urls, "").await;
    let second = host.frontend(&urls, "").await;
    for frontend in [&first, &second] {
        frontend.until_ready(2).await;
    }
    let told = first.ask(&picture(1)).await;
    assert_eq!((told.overlap_blocks, told.cached_tokens), (0, 0));
    settled(&second, &told).await;
    let again = second.ask(&picture(1)).await;
    assert_all_cached(&again);
    assert_eq!(again.worker, told.worker);
    settled(&first, &again).await;
    assert_all_cached(&first.ask(&picture(1)).await);
    // The agent shows its own worker, and no other.
    let page = host
        .client
        .get(&format!("{}/kvlens/v1/workers", agents[0].url))
        .await;
    assert_eq!(page.json()["workers"][0]["worker"], "gpu-0");
    for agent in &mut agents {
        assert_eq!(agent.process.stopped().await, Some(0));
    }
}

#[tokio::test]
async fn an_agent_that_dies_or_stops_cuts_no_stream() {
    let mut host = Host::new();
    let engine = host.engine("gpu-0", "--decode-tokens-per-second 50").await;
    let words = engine.agent_words("gpu-0");
    let mut agent = host.agent("gpu-0", &words).await;
    let frontend = host.frontend(&[&agent.url], "").await;
    frontend.until_ready(1).await;
    let away = async || {
        let worker = frontend.worker("gpu-0").await;
        let cause = worker["cause"].as_str().unwrap_or_default().to_owned();
        cause.starts_with("agent away since")
    };
    let back = async || frontend.worker("gpu-0").await["cause"].is_null();
    agent.process.signal(Signal::STOP);
    until("a hung agent is missed", away).await;
    agent.process.signal(Signal::CONT);
    until("it is back", back).await;
    for signal in [Signal::KILL, Signal::TERM] {
        let mut body = streamed(chat(&[text("Tell me a story.")]));
        body["max_tokens"] = 60.into();
        let mut stream = frontend.stream(&body).await;
        stream.next().await.unwrap();
        agent.process.signal(signal);
        agent.process.ended().await;
        until("the agent is missed", away).await;
        let events = stream.rest().await;
        assert_eq!(events.last().unwrap(), "[DONE]");
        assert_eq!(events.len(), 62, "{events:?}");
        // Without it the next ones are served all the same.
        let seed = signal.as_raw() as u8;
        let told = frontend.ask(&picture(seed)).await;
        assert_eq!(frontend.status("/ready").await, 200);
        let listen = agent.url.trim_start_matches("http://").to_owned();
        agent = host.agent_at("gpu-0", &words, &listen).await;
        until("the agent is back", back).await;
        // What the engine stored meanwhile is replayed to the new agent.
        settled(&frontend, &told).await;
        assert_all_cached(&frontend.ask(&picture(seed)).await);
    }
    assert!(!frontend.process.log().contains("panicked"));
}

#[tokio::test]
async fn a_frontend_without_workers_says_so_and_waits() {
    let mut host = Host::new();
    let listen = host.free_address().await;
    let mut frontend = host.frontend(&[&format!("http://{listen}")], "").await;
    for (path, status) in [("/live", 200), ("/ready", 503), ("/v1/models", 200)] {
        assert_eq!(frontend.status(path).await, status, "{path}");
    }
    let answer = frontend.post(&picture(1)).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let engine = host.engine("gpu-0", FAST).await;
    let words = engine.agent_words("gpu-0");
    let mut agent = host.agent_at("gpu-0", &words, &listen).await;
    frontend.until_ready(1).await;
    frontend.ask(&picture(1)).await;
    // Taken out by its agent it is gone at once.
    let url = format!("{}/kvlens/v1/deregister", agent.url);
    assert_eq!(host.client.post(&url, &Value::Null).await.status, 200);
    until("it is gone", async || {
        frontend.worker("gpu-0").await.is_null()
    })
    .await;
    assert_eq!(frontend.status("/ready").await, 503);
    assert_eq!(agent.process.stopped().await, Some(0));
    assert_eq!(frontend.process.stopped().await, Some(0));
}

#[tokio::test]
async fn an_agent_follows_the_engine_that_is_written_down() {
    let mut host = Host::new();
    let keys = host.file("keys", "frontend:s3cret\n");
    let agent = host
        .agent("gpu-0", &format!("--key-file {}", keys.display()))
        .await;
    let feed = format!("{}/kvlens/v1/feed", agent.url);
    assert_eq!(host.client.get(&feed).await.status, 401);
    assert_eq!(
        host.client.get(&format!("{}/live", agent.url)).await.status,
        200
    );
    assert_eq!(
        host.client
            .get(&format!("{}/ready", agent.url))
            .await
            .status,
        503
    );
    let words = format!("--worker-key-file {}", keys.display());
    let frontend = host.frontend(&[&agent.url], &words).await;

    let worker = WorkerId::new("gpu-0").unwrap();
    for (life, name) in ["one", "two"].iter().enumerate() {
        let engine = host.engine(name, FAST).await;
        let file = EngineFile {
            version: ENGINE_FILE_VERSION,
            worker: worker.clone(),
            kind: "mock".to_owned(),
            address: engine.url.clone(),
            public_address: None,
            name: "demo".to_owned(),
            model: None,
            sources: vec![KvEndpoints {
                events: engine.events.clone(),
                bind: false,
                replay: engine.replay.clone(),
            }],
            media_dir: None,
            gpus: Vec::new(),
            pid: None,
        };
        let folder = engine_file::folder(Some(&host.run_dir()), &worker);
        std::fs::create_dir_all(&folder).unwrap();
        file.write(Path::new(&folder)).unwrap();
        until("the engine is followed", async || {
            let worker = frontend.worker("gpu-0").await;
            worker["address"] == engine.url && worker["verdict"] == "healthy"
        })
        .await;
        let told = frontend.ask(&picture(life as u8)).await;
        assert_eq!(told.cached_tokens, 0);
        settled(&frontend, &told).await;
        assert_all_cached(&frontend.ask(&picture(life as u8)).await);
    }
}

#[tokio::test]
async fn an_agent_shows_how_what_connects_it_is() {
    let mut host = Host::new();
    let nats = Nats::start().await;
    let mut words = format!("--nats {}", nats.url());
    if cfg!(feature = "etcd") {
        let nobody = host.free_address().await;
        words = format!("{words} --etcd http://{nobody}");
    }
    let engine = host.engine("gpu-0", FAST).await;
    let words = format!("{} {words}", engine.agent_words("gpu-0"));
    let agent = host.agent("gpu-0", &words).await;
    let shows = async |entry: &str| {
        let page = host.client.get(&format!("{}/metrics", agent.url)).await;
        page.text().lines().any(|line| line == entry)
    };
    until("NATS answers", async || {
        shows("kvlens_plane_up{plane=\"nats\"} 1").await
    })
    .await;
    if cfg!(feature = "etcd") {
        assert!(shows("kvlens_plane_up{plane=\"etcd\"} 0").await);
    }
    nats.kill().await;
    until("NATS is away", async || {
        shows("kvlens_plane_up{plane=\"nats\"} 0").await
    })
    .await;
}
