//! A KV event on its way from an agent, and from its engine before that, to the index of a router
//! elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use kvlens::block::SequenceHash;
use kvlens::bus::{subjects, wire};
use kvlens::discovery::Update;
use kvlens::discovery::broadcast::Numbered;
use kvlens::discovery::feed::parts;
use kvlens::events::zmq::Source;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use kvlens::ledger::{Ledger, Options};
use kvlens::mock::hash::BlockHash;
use kvlens::mock::pool::{Event, Stored};
use kvlens::mock::publisher::{Plan, Publisher};
use kvlens::mock::wire::{EventForm, HashForm, Wire};
use kvlens::router::Router;
use kvlens::worker::follow::{self, Told};
use kvlens::worker::rank::Rank;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agents::{Agents, follow, runtime};
use crate::figures::{row, table, target};
use crate::fleet::{self, BLOCKS_PER_EVENT, BLOCKS_PER_WORKER, Chance, MODEL};
use crate::pace::Pace;
use crate::samples::Samples;
use crate::servers::{Server, until};

const PACE: Pace = Pace {
    per_second: 1_000,
    warm: Duration::from_secs(1),
    measured: Duration::from_secs(10),
};
const P99_MAX: Duration = Duration::from_millis(5);
const BLOCK_TOKENS: usize = 16;

pub(crate) fn print(nats: &Server) {
    let held = fleet::blocks(0, &[]);
    // The second holds nothing before its engine tells.
    let agents = Agents::start(nats, vec![held.clone(), Vec::new()]);
    let routing = runtime();
    let bus = routing.block_on(nats.bus("router"));
    let router = follow(&routing, &bus, 2, true);
    until("the router knows what the worker holds", || {
        indexed(&router, 0) == BLOCKS_PER_WORKER as u64
    });
    let mut series = Series::new(held);
    let message = encoded(&series.clone().next());
    let floor = floor(nats, &message);
    let from_agent = from_agent(&agents, &router, &mut series);
    let from_engine = from_engine(&agents, &router);

    let rows = [
        row(["microseconds", "p50", "p99"]),
        floor.row("floor: bare NATS, from publish to subscriber"),
        from_agent.row("from the agent's feed to the index"),
        from_engine.row("from the engine's ZeroMQ to the index, ledger included"),
    ];
    let title = format!(
        "kv events: {} a second, {BLOCKS_PER_EVENT} blocks stored and {BLOCKS_PER_EVENT} removed each, \
         {} bytes on the bus",
        PACE.per_second,
        message.len()
    );
    table(&title, &rows);
    let ratio = from_agent.percentile(99).as_secs_f64() / floor.percentile(99).as_secs_f64();
    println!("  p99 from the agent is {ratio:.1} times the floor");
    for (name, samples) in [("agent", &from_agent), ("engine", &from_engine)] {
        let what = format!("p99 from the {name} <= {P99_MAX:?}");
        target(&what, samples.percentile(99) <= P99_MAX);
    }
}

/// Events that each store some blocks and remove those that have been there longest.
#[derive(Clone)]
struct Series {
    chance: Chance,
    held: VecDeque<SequenceHash>,
    sequence: u64,
}

impl Series {
    /// Behind those that stored `held`.
    fn new(held: Vec<SequenceHash>) -> Self {
        Self {
            chance: Chance(u64::from(u32::MAX) << 16),
            sequence: held.len().div_ceil(BLOCKS_PER_EVENT) as u64,
            held: held.into(),
        }
    }

    fn next(&mut self) -> KvEvent {
        let chance = &mut self.chance;
        let stored = std::iter::repeat_with(|| SequenceHash(chance.next()));
        let stored: Vec<_> = stored.take(BLOCKS_PER_EVENT).collect();
        self.held.extend(&stored);
        self.sequence += 1;
        KvEvent {
            worker: fleet::worker(0),
            rank: DpRank(0),
            incarnation: Incarnation(1),
            sequence: self.sequence - 1,
            cleared: false,
            removed: self.held.drain(..BLOCKS_PER_EVENT).collect(),
            stored,
            lower: Tiers::default(),
        }
    }
}

fn encoded(event: &KvEvent) -> Bytes {
    let line = parts(event.clone()).next().expect("an event has a line");
    wire::encode(&Numbered {
        life: u64::MAX,
        number: u64::from(PACE.per_second),
        line,
    })
}

/// The same bytes at the same pace through the same server, and nothing done with them.
fn floor(nats: &Server, message: &Bytes) -> Samples {
    let (sending, hearing) = (runtime(), runtime());
    let subject = subjects::kv(&fleet::worker(99));
    let sender = sending.block_on(nats.bare());
    let mut heard = hearing.block_on(async {
        let client = nats.bare().await;
        let heard = client.subscribe(subject.clone()).await.expect("it is up");
        client.flush().await.expect("it is up");
        heard
    });
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    hearing.spawn(async move {
        while heard.next().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let send = |_| {
        let sent = sender.publish(subject.clone(), message.clone());
        sending.block_on(sent).expect("it is up");
    };
    PACE.journeys(send, || count.load(Ordering::Relaxed))
}

fn from_agent(agents: &Agents, router: &Router, series: &mut Series) -> Samples {
    let before = series.sequence;
    let feed = agents.feeds[0].clone();
    PACE.journeys(
        |_| feed.publish(Update::Kv(series.next())),
        || sequences(router, 0).saturating_sub(before),
    )
}

/// From a socket such as vLLM's, which the agent follows as it does every engine's.
fn from_engine(agents: &Agents, router: &Router) -> Samples {
    let engine = runtime();
    let mut publisher = engine.block_on(engine_events(&engine, agents));
    let mut batches = Batches::default();
    let mut before = 0;
    // What it says before the agent has found it is replayed.
    until("the agent follows the engine's events", || {
        engine.block_on(publisher.publish(&batches.next()));
        before += 1;
        sleep(Duration::from_millis(10));
        sequences(router, 1) == before
    });
    PACE.journeys(
        |_| engine.block_on(publisher.publish(&batches.next())),
        || sequences(router, 1).saturating_sub(before),
    )
}

async fn engine_events(engine: &Runtime, agents: &Agents) -> Publisher {
    let plan = Plan {
        endpoint: "tcp://127.0.0.1:0".to_owned(),
        replay: Some("tcp://127.0.0.1:0".to_owned()),
        topic: String::new(),
        buffered_batches_max: 10_000,
    };
    let wire = Wire {
        events: EventForm::Maps,
        hashes: HashForm::Int,
        block_size: BLOCK_TOKENS,
        rank: 0,
    };
    let bound = Publisher::bind(&plan, wire).await.expect("a free port");
    let replayer = bound.replayer.expect("it was asked for");
    let source = Source {
        events: bound.publisher.endpoint().to_owned(),
        bind: false,
        replay: Some(replayer.endpoint().to_owned()),
    };
    engine.spawn(replayer.run(CancellationToken::new()));
    let ledger = Ledger::new(MODEL, Options::default());
    let rank = Rank::new(
        fleet::worker(1),
        DpRank(0),
        follow::new_incarnation(),
        ledger,
    );
    agents.see(1, |updates| async move {
        let (status, _status) = watch::channel(rank.status());
        let (_orders, orders) = mpsc::channel(1);
        let told = Told {
            updates,
            status,
            state_file: None,
        };
        follow::follow(rank, source, orders, told).await;
    });
    bound.publisher
}

/// What an engine's steps do to its cache.
struct Batches {
    chance: Chance,
    held: VecDeque<BlockHash>,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            chance: Chance(u64::from(u32::MAX) << 8),
            held: VecDeque::new(),
        }
    }
}

impl Batches {
    fn next(&mut self) -> Vec<Event> {
        let chance = &mut self.chance;
        let hash = || {
            let mut hash = BlockHash([0; 32]);
            hash.0[24..].copy_from_slice(&chance.next().to_be_bytes());
            hash
        };
        let hashes: Vec<_> = std::iter::repeat_with(hash)
            .take(BLOCKS_PER_EVENT)
            .collect();
        self.held.extend(&hashes);
        let over = self.held.len().saturating_sub(BLOCKS_PER_WORKER);
        let token = || chance.next() as u32 >> 16;
        let tokens = std::iter::repeat_with(token);
        let stored = Stored {
            hashes,
            parent: None,
            tokens: tokens.take(BLOCKS_PER_EVENT * BLOCK_TOKENS).collect(),
            extra_keys: vec![Vec::new(); BLOCKS_PER_EVENT],
            lora: None,
            session: None,
        };
        let removed = self.held.drain(..over).map(Event::Removed);
        removed.chain([Event::Stored(stored)]).collect()
    }
}

/// How many of a worker's events the index has, counted by the number of the last.
fn sequences(router: &Router, worker: u32) -> u64 {
    let standings = router.standings(&fleet::worker(worker));
    standings
        .first()
        .map_or(0, |rank| rank.sequence.wrapping_add(1))
}

fn indexed(router: &Router, worker: u32) -> u64 {
    let standings = router.standings(&fleet::worker(worker));
    standings.first().map_or(0, |rank| rank.blocks)
}
