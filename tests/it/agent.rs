//! The agent beside an engine: up when it answers, its events in order, down when it is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use kvlens::block::BlockSize;
use kvlens::discovery::{Change, Completeness, Update, WorkerRecord};
use kvlens::events::zmq::Source;
use kvlens::health::Verdict;
use kvlens::id::WorkerId;
use kvlens::index::Index;
use kvlens::worker::{AgentSpec, run};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::codec::frames;
use crate::source::Publisher;

const METRICS: &str = "# TYPE vllm:cache_config_info gauge\n\
    vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"5000\"} 1.0\n";
const MODELS: &str = r#"{"data": [
    {"id": "tiny-vl", "parent": null, "max_model_len": 8192}, {"id": "gpt-4o", "parent": null},
    {"id": "tinylora", "parent": "tiny-vl"}]}"#;

/// An engine's HTTP side on a free port.
struct Engine {
    address: String,
    tasks: JoinSet<()>,
}

impl Engine {
    async fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let routes = Router::new()
            .route("/health", get(|| async { "" }))
            .route("/version", get(|| async { r#"{"version": "0.32.0"}"# }))
            .route("/v1/models", get(|| async { MODELS }))
            .route("/metrics", get(|| async { METRICS }));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, routes).await.expect("serve");
        });
        Self { address, tasks }
    }

    /// Kills the process: its listener and its connections close at once.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What a router would do with the updates, as far as this test needs it.
struct Seen {
    updates: mpsc::Receiver<Update>,
    index: Index,
    records: HashMap<WorkerId, WorkerRecord>,
    downs: u32,
}

impl Seen {
    /// Takes updates until `done`; panics when that takes too long.
    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let update = timeout(Duration::from_secs(20), self.updates.recv()).await;
            match update.expect("in time").expect("an agent") {
                Update::Kv(event) => {
                    assert_eq!(event.worker, worker());
                    self.index.apply(&event);
                }
                Update::Change(Change::Up(record)) => {
                    self.records.insert(record.worker.clone(), *record);
                }
                Update::Change(Change::Down(worker)) => {
                    self.downs += 1;
                    self.records.remove(&worker);
                    self.index.remove(&worker);
                }
            }
        }
    }
}

fn worker() -> WorkerId {
    WorkerId::new("gpu-0").expect("a legal id")
}

/// An agent beside an engine, and what it tells.
fn following(address: &str, source: &Source) -> (Seen, CancellationToken, JoinSet<()>) {
    let spec = AgentSpec {
        worker: worker(),
        address: format!("http://{address}"),
        model: "tiny-vl".to_owned(),
        aliases: vec!["demo".to_owned()],
        kind: "vllm".to_owned(),
        sources: vec![source.clone()],
        media_dir: None,
        placeholder: None,
    };
    let (sender, updates) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let mut agent = JoinSet::new();
    agent.spawn(run(spec, Arc::default(), sender, stop.clone()));
    let seen = Seen {
        updates,
        index: Index::new(),
        records: HashMap::new(),
        downs: 0,
    };
    (seen, stop, agent)
}

#[tokio::test]
async fn an_engine_is_followed_through_its_lives() {
    let messages = frames("recording/run1");
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let engine = Engine::start("127.0.0.1:0").await;
    let address = engine.address.clone();
    for message in &messages[..200] {
        publisher.publish(message).await;
    }
    let (mut seen, stop, mut agent) = following(&address, &publisher.source);

    seen.until(|seen| seen.records.contains_key(&worker()))
        .await;
    let record = &seen.records[&worker()];
    assert_eq!(record.verdict, Verdict::Healthy);
    assert_eq!(record.block_size, BlockSize::new(16));
    assert_eq!(record.capacity_blocks, Some(5000));
    assert_eq!(record.context_tokens_max, Some(8192));
    assert_eq!(record.aliases, ["demo", "gpt-4o"]);
    assert_eq!(record.adapters, ["tinylora"]);
    assert_eq!(record.engine.version, "0.32.0");
    let first_life = record.incarnation;

    // The record follows the ledger, and the index holds what the ledger published.
    for message in &messages[200..] {
        publisher.publish(message).await;
    }
    seen.until(|seen| seen.records[&worker()].ledger.sequence == 471)
        .await;
    let record = &seen.records[&worker()];
    assert_eq!(record.ledger.completeness, Completeness::Complete);
    assert!(record.ledger.blocks > 2000, "{:?}", record.ledger);
    assert_eq!(record.ledger.blocks, seen.index.worker_blocks(&worker()));

    // Another engine behind the same socket, while its HTTP side never seemed gone.
    publisher.stop().await;
    let publisher = Publisher::start(folder.path(), true).await;
    seen.until(|seen| seen.index.total_blocks() == 0).await;
    publisher.publish(&messages[0]).await;
    seen.until(|seen| seen.index.total_blocks() > 0).await;
    seen.until(|seen| seen.records[&worker()].incarnation != first_life)
        .await;
    assert_eq!(seen.downs, 0);

    // A refused connection is the engine's end; when it answers again it is up again.
    engine.kill().await;
    seen.until(|seen| seen.downs == 1).await;
    assert_eq!(seen.index.total_blocks(), 0);
    let engine = Engine::start(&address).await;
    seen.until(|seen| seen.index.total_blocks() > 0).await;
    assert!(seen.records.contains_key(&worker()));

    stop.cancel();
    seen.until(|seen| seen.downs == 2).await;
    timeout(Duration::from_secs(5), agent.join_next())
        .await
        .unwrap();
    engine.kill().await;
}

#[tokio::test]
async fn a_ledger_is_complete_only_while_its_source_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    let source = publisher.source.clone();
    publisher.stop().await;
    let engine = Engine::start("127.0.0.1:0").await;
    let (mut seen, _stop, _agent) = following(&engine.address, &source);
    let standing = |seen: &Seen| seen.records.get(&worker()).map(|r| r.ledger.completeness);

    seen.until(|seen| standing(seen) == Some(Completeness::Partial))
        .await;
    // Ticks pass, and the record stays as it is.
    let more = timeout(Duration::from_millis(1500), seen.updates.recv()).await;
    assert!(more.is_err(), "{more:?}");

    let publisher = Publisher::start(folder.path(), true).await;
    seen.until(|seen| standing(seen) == Some(Completeness::Complete))
        .await;
    assert_eq!(seen.records[&worker()].ledger.blocks, 0);
    publisher.stop().await;
    seen.until(|seen| standing(seen) == Some(Completeness::Partial))
        .await;
    assert_eq!(seen.downs, 0);
    engine.kill().await;
}
