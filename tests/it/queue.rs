//! Requests that wait for room: when they must, whose turn it is, and what becomes of them.

mod laws;
mod rows;
mod storm;
mod turns;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use kvlens::block::BlockSize;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::{Change, Completeness, Update, WorkerRecord};
use kvlens::health::Verdict;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::{Placement, RouteError, Router};
use kvlens::select::queue::QueuePolicy;
use kvlens::telemetry::metrics::Metrics;

/// What an engine of these tests computes in a step: with the threshold of [`config`], a rank with
/// more tokens than this is busy.
const BATCH_TOKENS: u32 = 100;

/// A request, asked by hand.
type Asked = Pin<Box<dyn Future<Output = Result<Placement, RouteError>>>>;

/// A router, and what it counts.
struct World {
    router: Arc<Router>,
    metrics: Arc<Metrics>,
}

fn config() -> RouterConfig {
    RouterConfig {
        queue_threshold: 1.0,
        queue_policy: QueuePolicy::Fcfs,
        ..RouterConfig::default()
    }
}

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("a legal name")
}

fn record(name: &str) -> WorkerRecord {
    let mut record = WorkerRecord::new(worker(name), &format!("http://{name}"), "base");
    record.incarnation = Incarnation(1);
    record.block_size = BlockSize::new(16);
    record.max_batched_tokens = Some(u64::from(BATCH_TOKENS));
    record.verdict = Verdict::Healthy;
    record.ledger.completeness = Completeness::Complete;
    record
}

/// A prompt of so many tokens, none of which is cached anywhere. Its first token shows, so that no
/// prefill is taken to be over by its time.
fn prompt(tokens: u32) -> Footprint {
    Footprint {
        stream: true,
        ..Footprint::new("base", tokens)
    }
}

fn of(tenant: &str, tokens: u32) -> Footprint {
    Footprint {
        tenant: tenant.into(),
        ..prompt(tokens)
    }
}

/// On this worker alone.
fn pinned(name: &str) -> Wish {
    Wish {
        worker: Some(worker(name)),
        rank: Some(DpRank(0)),
        ..Wish::default()
    }
}

/// What a request was told by now; `None` while it waits.
fn told(asked: &mut Asked) -> Option<Result<Placement, RouteError>> {
    // The first time it comes, and lets all come that are ready to.
    asked.now_or_never().or_else(|| asked.now_or_never())
}

/// The placement that a request has got by now.
fn placed(asked: &mut Asked) -> Placement {
    told(asked).expect("an answer").expect("a placement")
}

fn waits(asked: &mut Asked) -> bool {
    let told = told(asked);
    assert!(!matches!(told, Some(Err(_))), "{told:?}");
    told.is_none()
}

impl World {
    fn new(config: &RouterConfig, names: &[&str]) -> Self {
        let metrics = Arc::new(Metrics::default());
        let router = Router::new(config, metrics.clone());
        let world = Self { router, metrics };
        names.iter().for_each(|name| world.up(record(name)));
        world
    }

    fn up(&self, record: WorkerRecord) {
        let change = Change::Up(Box::new(record));
        self.router.apply(Update::Change(change));
    }

    fn down(&self, name: &str) {
        let change = Change::Down(worker(name));
        self.router.apply(Update::Change(change));
    }

    fn ask(&self, footprint: Footprint, wish: Wish) -> Asked {
        let router = self.router.clone();
        Box::pin(async move { router.admit(&footprint, &wish).await })
    }

    /// Asks and is placed at once.
    fn place(&self, tokens: u32, wish: Wish) -> Placement {
        placed(&mut self.ask(prompt(tokens), wish))
    }

    /// Asks and has to wait.
    fn wait(&self, footprint: Footprint, wish: Wish) -> Asked {
        let mut asked = self.ask(footprint, wish);
        assert!(waits(&mut asked));
        asked
    }

    /// A metric of the page, by its name and labels.
    fn metric(&self, name: &str) -> f64 {
        let page = self.metrics.encode();
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        let value = line.expect("a metric").trim();
        value.parse().expect("a number")
    }

    /// The requests and tokens that wait.
    fn depth(&self) -> (f64, f64) {
        let depth = self.metric("kvlens_queue_depth ");
        (depth, self.metric("kvlens_queue_tokens "))
    }

    fn refusals(&self, reason: &str) -> f64 {
        self.metric(&format!(
            "kvlens_queue_refusals_total{{reason=\"{reason}\"}} "
        ))
    }

    /// The sum of everything that is booked anywhere.
    fn load(&self) -> u64 {
        let views = self.router.workers();
        let loads = views.iter().flat_map(|view| &view.load);
        loads
            .map(|load| load.prefill_tokens + load.decode_blocks + u64::from(load.requests))
            .sum()
    }
}
