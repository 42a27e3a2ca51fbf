//! A router that starts again beside agents that hold a million blocks, until frontends are told of
//! the overlaps that its former life knew.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kvlens::block::SequenceHash;
use kvlens::bus::wire::MESSAGE_HASHES_MAX;
use kvlens::dispatch::EngineClient;
use serde_json::Value;

use crate::asked::{Frontend, PROMPT_BLOCKS};
use crate::figures::{row, table, target};
use crate::fleet::{BLOCKS_PER_WORKER, WORKERS};
use crate::samples::Samples;
use crate::servers::{Routing, Server, UP_MAX};
use crate::whole::transfer;

const STARTS: usize = 5;
const ANSWERED_MAX: Duration = Duration::from_millis(500);

/// Of what the former life knew, so that what happens meanwhile does not count.
const SHARE: f64 = 0.99;

/// Frontends have forgotten a router that is away for so long: its successor has to be found.
const AWAY: Duration = Duration::from_millis(1_200);

#[derive(Default)]
struct Phases {
    listens: Samples,
    all_known: Samples,
    indexed: Samples,
    answered: Samples,
    cpu: Samples,
}

/// Says what starts take; the last one goes on.
pub(crate) fn print(
    (nats, etcd): (&Server, &Server),
    frontend: &Frontend,
    shared: &[SequenceHash],
) -> Routing {
    let mut phases = Phases::default();
    let mut floor = Samples::default();
    let mut last = None;
    for _ in 0..STARTS {
        drop(last.take());
        sleep(AWAY);
        let started = Instant::now();
        let version = Command::new(env!("CARGO_BIN_EXE_kvlens"))
            .arg("--version")
            .output();
        version.expect("it runs");
        let messages = (BLOCKS_PER_WORKER * WORKERS as usize).div_ceil(MESSAGE_HASHES_MAX);
        let exec = started.elapsed();
        floor.push(exec + transfer(nats, messages, MESSAGE_HASHES_MAX * size_of::<u64>()));
        let routing = Routing::start(nats, etcd);
        frontend
            .runtime
            .block_on(phases.watch(&routing, frontend, shared));
        last = Some(routing);
    }
    let cells = |name: &str, samples: &Samples| {
        let millis = |percent| format!("{:.0}", samples.percentile(percent).as_secs_f64() * 1e3);
        row([name, &millis(50), &millis(100)])
    };
    let rows = [
        row(["milliseconds from exec", "median", "worst"]),
        cells(
            "floor: kvlens --version, and as many bytes over bare NATS",
            &floor,
        ),
        cells("its admin listener answers", &phases.listens),
        cells("all workers known", &phases.all_known),
        cells("99 % of the blocks in the index", &phases.indexed),
        cells(
            "99 % of the overlaps answered to a frontend",
            &phases.answered,
        ),
        cells("CPU time till then", &phases.cpu),
    ];
    let title = format!(
        "router restart: {STARTS} starts of `kvlens router`, {WORKERS} workers in etcd, \
         {BLOCKS_PER_WORKER} blocks each"
    );
    table(&title, &rows);
    let answered = phases.answered.percentile(50);
    let ratio = answered.as_secs_f64() / floor.percentile(50).as_secs_f64();
    println!("  the median is {ratio:.1} times the floor");
    let what = format!("median until overlaps are answered <= {ANSWERED_MAX:?}");
    target(&what, answered <= ANSWERED_MAX);
    last.expect("there were starts")
}

impl Phases {
    /// Takes the time of each phase of a start.
    async fn watch(&mut self, routing: &Routing, frontend: &Frontend, shared: &[SequenceHash]) {
        let client = EngineClient::new();
        let latest = routing.started + UP_MAX;
        let (mut listens, mut all_known) = (None, None);
        let all_blocks = f64::from(WORKERS) * BLOCKS_PER_WORKER as f64;
        loop {
            let workers = workers(&client, &routing.admin).await;
            let now = routing.started.elapsed();
            if let Some((workers, blocks)) = workers {
                listens.get_or_insert(now);
                if workers == WORKERS as usize {
                    all_known.get_or_insert(now);
                }
                if blocks as f64 >= all_blocks * SHARE {
                    self.indexed.push(now);
                    break;
                }
            }
            assert!(Instant::now() < latest, "the index is not whole");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.listens.push(listens.unwrap_or_default());
        self.all_known.push(all_known.unwrap_or_default());

        let mut left: Vec<u32> = (0..WORKERS).collect();
        let all_overlaps = f64::from(WORKERS) * PROMPT_BLOCKS as f64;
        let mut answered_blocks = 0;
        while (answered_blocks as f64) < all_overlaps * SHARE {
            assert!(Instant::now() < latest, "overlaps are not answered");
            if frontend.remote.routers().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            let asked = left
                .iter()
                .map(|worker| frontend.overlap_blocks(*worker, shared));
            let answers = join_all(asked).await;
            let whole = |blocks: &u64| *blocks == PROMPT_BLOCKS as u64;
            answered_blocks += answers.iter().copied().filter(whole).sum::<u64>();
            let mut answers = answers.iter();
            left.retain(|_| !answers.next().is_some_and(whole));
        }
        self.answered.push(routing.started.elapsed());
        self.cpu.push(routing.cpu_time());
    }
}

/// How many workers a router knows, and blocks of theirs.
async fn workers(client: &EngineClient, admin: &str) -> Option<(usize, u64)> {
    let asked = client.get(admin, "/kvlens/v1/workers", Duration::from_secs(1));
    let (_, body) = asked.await.ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let workers = body["workers"].as_array()?;
    let blocks = workers
        .iter()
        .filter_map(|worker| worker["indexed_blocks"].as_u64());
    Some((workers.len(), blocks.sum()))
}
