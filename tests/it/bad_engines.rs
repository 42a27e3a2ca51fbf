//! Engines that are not as they should be: each shows what is wrong with it, is routed by load alone
//! where it takes requests at all, and harms no other.

use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::{Duration, Instant};

use kvlens::block::{self, BlockSize, SequenceHash};
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Completeness, WorkerRecord};
use kvlens::events::zmq::Source;
use kvlens::health::Verdict;
use kvlens::id::WorkerId;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::view::WorkerView;
use kvlens::router::{self, Router, UPDATES_MAX};
use kvlens::telemetry::metrics::Metrics;
use kvlens::worker;
use kvlens::worker::spec::{AgentSpec, ProcessState};
use rmpv::Value;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::fake_engine::{Engine, Pages, spec};
use crate::source::Publisher;

/// A router with agents beside a good engine and a bad one.
struct Host {
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    good: (Engine, Publisher),
    _folder: TempDir,
}

impl Host {
    /// Starts an agent beside a good engine, which holds a block, and one beside what `bad` is.
    async fn start(bad: AgentSpec) -> Self {
        let metrics = Arc::new(Metrics::default());
        let router = Router::new(&RouterConfig::default(), metrics.clone());
        let folder = tempfile::tempdir().expect("a folder");
        let publisher = Publisher::start(folder.path(), true).await;
        publisher.publish(&(0, batch(vec![stored(1, 16)]))).await;
        let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
        let sources = [publisher.source.clone()];
        let good = spec(id("good"), &engine.address, &sources);
        let (updates, received) = mpsc::channel(UPDATES_MAX);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(router::run(router.clone(), received, stop.clone()));
        for spec in [good, bad] {
            let (_, commands) = mpsc::channel(1);
            let (metrics, updates) = (metrics.clone(), updates.clone());
            let (mut commands, stop) = (commands, stop.clone());
            tasks.spawn(async move {
                worker::run(spec, &mut commands, metrics, updates, stop).await;
            });
        }
        let host = Self {
            router,
            metrics,
            tasks,
            good: (engine, publisher),
            _folder: folder,
        };
        let is_well =
            |view: &WorkerView| view.indexed_blocks == 1 && view.record.verdict == Verdict::Healthy;
        host.until("good", is_well).await;
        host
    }

    /// Waits until what is shown of a worker is so.
    async fn until(&self, worker: &str, is_so: impl Fn(&WorkerView) -> bool) -> WorkerView {
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            let views = self.router.workers();
            let view = views.into_iter().find(|v| v.record.worker == id(worker));
            if let Some(view) = view.clone().filter(|view| is_so(view)) {
                return view;
            }
            assert!(Instant::now() < patience, "never so: {view:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the bad engine's record is so.
    async fn bad(&self, is_so: impl Fn(&WorkerRecord) -> bool) -> WorkerRecord {
        self.until("bad", |view| is_so(&view.record)).await.record
    }

    /// Ends it, after the good worker has been seen to be as it should.
    async fn end(mut self) {
        let good = self.until("good", |view| view.indexed_blocks == 1).await;
        assert_eq!(good.record.verdict, Verdict::Healthy);
        assert_eq!(good.record.ledger.cause, None);
        self.tasks.shutdown().await;
        let (engine, publisher) = self.good;
        engine.kill().await;
        publisher.stop().await;
    }

    /// Who may take a request, and the overlap each has with a prompt of these blocks.
    fn candidates(&self, blocks: &[SequenceHash]) -> Vec<(String, u32)> {
        let size = BlockSize::new(16).expect("16 is not zero");
        let footprint = Footprint {
            hashes: vec![(size, blocks.into())],
            ..Footprint::new("tiny-vl", 16 * blocks.len() as u32 + 1)
        };
        let views = self
            .router
            .explain(&footprint, &Wish::default())
            .into_iter();
        views
            .filter(|view| view.not_eligible.is_none())
            .map(|view| (view.worker.to_string(), view.overlap_blocks))
            .collect()
    }
}

fn id(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a legal id")
}

/// A payload of vLLM's with these events.
fn batch(events: Vec<Value>) -> Vec<u8> {
    let batch = Value::Array(vec![0.0.into(), events.into(), Value::Nil]);
    let mut payload = Vec::new();
    rmpv::encode::write_value(&mut payload, &batch).expect("a vector takes all");
    payload
}

/// A first block of a prompt, its tokens all the same.
fn stored(hash: u64, block_size: u64) -> Value {
    let tokens = vec![Value::from(hash); block_size as usize];
    let fields = [
        ("type", "BlockStored".into()),
        ("block_hashes", Value::Array(vec![hash.into()])),
        ("parent_block_hash", Value::Nil),
        ("token_ids", Value::Array(tokens)),
        ("block_size", block_size.into()),
        ("medium", "GPU".into()),
        ("lora_name", Value::Nil),
        ("extra_keys", Value::Array(vec![Value::Nil])),
    ];
    let fields = fields.map(|(name, value)| (name.into(), value));
    Value::Map(fields.to_vec())
}

/// The name of the block that `stored` makes.
fn name(hash: u32) -> SequenceHash {
    let root = block::root("tiny-vl", "", "");
    block::chain(root, &[hash; 16], [], &mut Vec::new())
}

/// What an operator is shown of why a worker is not well.
fn shown(record: &WorkerRecord) -> &str {
    let cause = record.cause.as_deref().or(record.ledger.cause.as_deref());
    cause.unwrap_or_default()
}

#[tokio::test]
async fn one_that_never_gets_healthy_is_starting_with_the_reason() {
    let pages = Pages {
        health: Arc::new(AtomicU16::new(503)),
        ..Pages::default()
    };
    let sick = Engine::start("127.0.0.1:0", pages).await;
    let dumb = Pages {
        models: "<html>",
        ..Pages::default()
    };
    let dumb = Engine::start("127.0.0.1:0", dumb).await;
    for (address, part) in [
        (&*sick.address, "/health answered 503"),
        (&*dumb.address, "does not describe itself"),
        ("127.0.0.1:1", "refused the connection"),
    ] {
        let host = Host::start(spec(id("bad"), address, &[])).await;
        let record = host.bad(|record| shown(record).contains(part)).await;
        assert_eq!(record.verdict, Verdict::Starting);
        assert_eq!(host.candidates(&[name(1)]), [("good".to_owned(), 1)]);
        host.end().await;
    }
}

#[tokio::test]
async fn one_that_exits_at_once_says_how() {
    let (process, state) = watch::channel(ProcessState::Running);
    let bad = AgentSpec {
        process: Some(state),
        ..spec(id("bad"), "127.0.0.1:1", &[])
    };
    let host = Host::start(bad).await;
    for code in [1, 2] {
        let cause = format!("it ended with exit status: {code}; starting it again in 0.5 s");
        process.send_replace(ProcessState::Ended {
            cause: cause.clone(),
        });
        let record = host.bad(|record| shown(record) == cause).await;
        assert_eq!(record.verdict, Verdict::Failed);
        process.send_replace(ProcessState::Running);
        let record = host.bad(|record| record.verdict == Verdict::Starting).await;
        assert!(shown(&record).contains(&cause), "{}", shown(&record));
        assert_eq!(host.candidates(&[]), [("good".to_owned(), 0)]);
    }
    host.end().await;
}

#[tokio::test]
async fn one_that_speaks_no_events_is_used_by_load_alone() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = |name: &str| format!("ipc://{}", folder.path().join(name).display());
    let source = Source {
        events: endpoint("nobody"),
        bind: false,
        replay: Some(endpoint("either")),
    };
    let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
    let host = Host::start(spec(id("bad"), &engine.address, &[source])).await;
    let record = host.bad(|record| record.verdict == Verdict::Healthy).await;
    assert_eq!(record.ledger.completeness, Completeness::Partial);
    assert!(shown(&record).contains("kv events are not followed"));
    assert!(shown(&record).contains("nobody"), "{}", shown(&record));
    let both = [("bad".to_owned(), 0), ("good".to_owned(), 1)];
    assert_eq!(host.candidates(&[name(1)]), both);
    host.end().await;
}

#[tokio::test]
async fn one_with_another_model_takes_nothing() {
    let pages = Pages {
        models: r#"{"data": [{"id": "other-vl", "parent": null}]}"#,
        ..Pages::default()
    };
    let engine = Engine::start("127.0.0.1:0", pages).await;
    let host = Host::start(spec(id("bad"), &engine.address, &[])).await;
    let record = host.bad(|record| record.verdict == Verdict::Failed).await;
    assert_eq!(
        shown(&record),
        "it serves other-vl, and was to serve tiny-vl"
    );
    assert_eq!(host.candidates(&[]), [("good".to_owned(), 0)]);
    host.end().await;
}

#[tokio::test]
async fn one_whose_block_size_is_another_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = Publisher::start(folder.path(), true).await;
    publisher.publish(&(0, batch(vec![stored(1, 32)]))).await;
    let sources = [publisher.source.clone()];
    let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
    let host = Host::start(spec(id("bad"), &engine.address, &sources)).await;
    // The events win over the metrics, and their blocks count.
    let record = host
        .bad(|record| shown(record).contains("32 tokens, and its metrics say 16"))
        .await;
    assert_eq!(record.block_size, BlockSize::new(32));
    host.until("bad", |view| view.indexed_blocks == 1).await;
    // It is counted when the agent looks at the rank again.
    host.until("bad", |_| alarms(&host, "block_size_changed") > 0.0)
        .await;
    // One that changes in mid-life is not understood any more.
    publisher.publish(&(1, batch(vec![stored(2, 16)]))).await;
    let record = host
        .bad(|record| shown(record).contains("changed their block size"))
        .await;
    assert_eq!(record.ledger.completeness, Completeness::Partial);
    assert_eq!(record.verdict, Verdict::Healthy);
    host.until("bad", |view| view.indexed_blocks == 0).await;
    host.end().await;
    publisher.stop().await;
}

fn alarms(host: &Host, alarm: &str) -> f64 {
    let text = host.metrics.encode();
    let mark = format!("kvlens_ledger_alarms_total{{alarm=\"{alarm}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&mark));
    value.expect("an alarm").parse().expect("a number")
}

#[tokio::test]
async fn garbage_instead_of_events_costs_its_own_ledger_only() {
    let good = batch(vec![stored(1, 16)]);
    let wrong = batch(vec![Value::Map(vec![
        ("type".into(), "BlockStored".into()),
        ("block_hashes".into(), "no list".into()),
    ])]);
    // [0.0, [[[[…
    let mut deep = b"\x92\xcb\0\0\0\0\0\0\0\0".to_vec();
    deep.extend([0x91; 1_000_000]);
    deep.push(0xc0);
    for (garbage, part) in [
        (good[..good.len() - 3].to_vec(), "ends at byte"),
        (Vec::new(), "ends at byte 0"),
        (wrong, "block_hashes is not an array"),
        (deep, "event type is not a text"),
        (b"{\"json\": true}".to_vec(), "batch is not an array"),
        (vec![0; 100 << 20], "104857600 bytes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let publisher = Publisher::start(folder.path(), true).await;
        publisher.publish(&(0, good.clone())).await;
        let engine = Engine::start("127.0.0.1:0", Pages::default()).await;
        let sources = [publisher.source.clone()];
        let host = Host::start(spec(id("bad"), &engine.address, &sources)).await;
        host.until("bad", |view| view.indexed_blocks == 1).await;
        publisher.publish(&(1, garbage)).await;
        let record = host.bad(|record| shown(record).contains(part)).await;
        assert_eq!(record.verdict, Verdict::Healthy, "{part}");
        host.until("bad", |view| view.indexed_blocks == 0).await;
        assert_eq!(alarms(&host, "unreadable"), 1.0);
        // A good batch is taken in, and hides nothing.
        publisher.publish(&(2, batch(vec![stored(2, 16)]))).await;
        let view = host.until("bad", |view| view.indexed_blocks == 1).await;
        assert_eq!(view.record.ledger.completeness, Completeness::Partial);
        assert!(shown(&view.record).contains(part));
        let both = [("bad".to_owned(), 0), ("good".to_owned(), 1)];
        assert_eq!(host.candidates(&[name(1)]), both, "{part}");
        host.end().await;
        engine.kill().await;
        publisher.stop().await;
    }
}
