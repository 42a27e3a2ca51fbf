//! `kvlens replay`: what a way of choosing workers would have made of a trace, with the router's own
//! code, simulated engines and a virtual clock.

mod cache;
mod chance;
mod engine;
mod line;
mod oracle;
mod outcome;
mod plot;
mod progress;
mod prompt;
mod report;
mod routed;
mod simulation;
mod synthetic;
mod trace;

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::block::BlockSize;
use crate::commands::replay::engine::{Speed, blocks_at_end};
use crate::commands::replay::outcome::Outcome;
use crate::commands::replay::progress::Progress;
use crate::commands::replay::report::Report;
use crate::commands::replay::routed::{Fleet, Routed};
use crate::commands::replay::simulation::Simulation;
use crate::commands::replay::synthetic::Synthetic;
use crate::commands::replay::trace::{Trace, TraceError};
use crate::config::router::RouterConfig;
use crate::id::InvalidWorkerId;
use crate::router::RouteError;
use crate::select::RouterMode;
use crate::select::queue::QueuePolicy;

/// Most requests unless told: far more than a day's trace has, and memory for them is at hand.
const REQUESTS_MAX: usize = 1_000_000;

/// The overlap weights whose outcomes `--sweep` shows.
const SWEEP: [f64; 8] = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// Replays a trace against simulated engines, and compares ways of choosing workers.
///
/// Each engine computes one prompt after the other and keeps blocks as vLLM does (least recently
/// used, tails first); the router's own index, load and costs decide, at virtual times. Answers are
/// not kept in caches, for traces do not tell what follows them. `oracle` is a bound, not a policy:
/// one cache for all, and no queue.
///
/// TRACE has one JSON object on each line, in either form:
///
///   {"timestamp": 0, "input_length": 700, "output_length": 20, "hash_ids": [0, 7]}
///
/// as Mooncake publishes them (milliseconds; each id names 512 tokens and all before them), or
///
///   {"arrival_ms": 0, "tenant": "a", "output_tokens": 41, "parts": [
///    {"text": "system", "tokens": 120}, {"image": "cat", "tokens": 361}]}
///
/// where parts of one id have the same content, and prompts of two tenants share nothing.
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The trace, a file of JSON lines
    #[arg(required_unless_present = "synthetic")]
    trace: Option<PathBuf>,
    /// Make up a trace instead, with token counts as ServeGen saw them
    #[arg(long, conflicts_with = "trace")]
    synthetic: Option<Synthetic>,
    /// What decides: any --router-mode, and the bound, oracle
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kv,round-robin,least-loaded,oracle",
        value_parser = policy
    )]
    policy: Vec<Policy>,
    /// Engines
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: u16,
    /// Blocks that each engine's cache holds; a replay needs about 100 bytes for each in use
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    capacity_blocks: u32,
    /// Tokens of a block
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=512))]
    block_size: u32,
    /// Prompt tokens that an engine computes in a second
    #[arg(long, default_value_t = 20_000.0, value_parser = rate)]
    prefill_tokens_per_second: f64,
    /// Tokens of each answer that an engine makes in a second
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    decode_tokens_per_second: f64,
    /// How much faster than recorded requests come
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    speed: f64,
    /// Spread requests of one time evenly until the next time; Mooncake's are rounded to 3 seconds
    #[arg(long)]
    spread: bool,
    /// Replay only the first so many requests; 20000 are made up unless told
    #[arg(long)]
    requests_max: Option<usize>,
    /// Decides what is left to chance: what is made up, and which of equal workers is chosen
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How much a block already held counts against a block of load, instead of the configuration's
    #[arg(long, value_parser = weight)]
    router_kv_overlap_score_weight: Option<f64>,
    /// From how many batches of queued tokens on requests wait in the router, instead of the
    /// configuration's; 0 for never
    #[arg(long, value_parser = weight)]
    router_queue_threshold: Option<f64>,
    /// In which order requests go, those that wait and those of one instant, instead of the
    /// configuration's
    #[arg(long)]
    router_queue_policy: Option<QueuePolicy>,
    /// Show the kv mode's outcome for overlap weights from 0 to 16 beside the policies
    #[arg(long)]
    sweep: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Draw the times to the first token into this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// What decides where requests go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    Mode(RouterMode),
    /// The kv mode with an overlap weight of its own.
    Weight(f64),
    Oracle,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(
        "request {number} needs {blocks} blocks at its end, and --capacity-blocks is {capacity}"
    )]
    Capacity {
        number: usize,
        blocks: u64,
        capacity: u64,
    },
    #[error("policy {policy} cannot place a request")]
    Route { policy: String, source: RouteError },
    #[error(transparent)]
    Worker(#[from] InvalidWorkerId),
    #[error("the answer cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("picture {path} cannot be written")]
    Plot { path: PathBuf, source: io::Error },
}

/// What to print: a table, or JSON.
///
/// # Errors
/// When the trace cannot be used, or the picture cannot be written.
pub fn run(args: &Args, config: &RouterConfig) -> Result<String, ReplayError> {
    let trace = args.trace()?;
    let fleet = args.fleet();
    check(&trace, fleet)?;
    let mut policies = Vec::new();
    for policy in args.policies() {
        let mut progress = Progress::new(policy.name(), trace.requests.len());
        policies.push(args.replay(&trace, policy, config, &mut progress)?);
    }
    let report = Report {
        trace: trace.name,
        seed: args.seed,
        policies,
    };
    if let Some(path) = &args.plot {
        let picture = plot::svg(&args.title(&report.trace), &report.policies);
        fs::write(path, picture).map_err(|source| {
            let path = path.clone();
            ReplayError::Plot { path, source }
        })?;
    }
    match args.json {
        true => Ok(report.json()?),
        false => Ok(report.table()),
    }
}

/// An engine could never begin a request that does not fit its whole cache.
fn check(trace: &Trace, fleet: Fleet) -> Result<(), ReplayError> {
    let capacity = fleet.capacity_blocks;
    for (at, request) in trace.requests.iter().enumerate() {
        let prompt_tokens = request.prompt.tokens();
        let blocks = blocks_at_end(prompt_tokens, request.output_tokens, fleet.block_size);
        if blocks > capacity {
            return Err(ReplayError::Capacity {
                number: at + 1,
                blocks,
                capacity,
            });
        }
    }
    Ok(())
}

impl Args {
    fn trace(&self) -> Result<Trace, TraceError> {
        let trace = match (&self.trace, self.synthetic) {
            (Some(path), _) => Trace::read(path, self.requests_max.unwrap_or(REQUESTS_MAX))?,
            (None, kind) => {
                let requests = self.requests_max.unwrap_or(synthetic::REQUESTS);
                let kind = kind.unwrap_or(Synthetic::Image);
                kind.trace(requests.min(REQUESTS_MAX), self.seed)
            }
        };
        let trace = if self.spread { trace.spread() } else { trace };
        Ok(trace.sped_up(self.speed))
    }

    fn fleet(&self) -> Fleet {
        Fleet {
            workers: usize::from(self.workers),
            capacity_blocks: u64::from(self.capacity_blocks),
            block_size: BlockSize::new(self.block_size).unwrap_or(BlockSize::ONE),
        }
    }

    fn policies(&self) -> Vec<Policy> {
        let mut policies = self.policy.clone();
        if self.sweep {
            policies.extend(SWEEP.map(Policy::Weight));
        }
        policies
    }

    fn replay(
        &self,
        trace: &Trace,
        policy: Policy,
        config: &RouterConfig,
        progress: &mut Progress,
    ) -> Result<Outcome, ReplayError> {
        let fleet = self.fleet();
        let speed = Speed {
            prefill_tokens_per_second: self.prefill_tokens_per_second,
            decode_tokens_per_second: self.decode_tokens_per_second,
        };
        let mut config = config.clone();
        config.seed = self.seed;
        if let Some(weight) = self.router_kv_overlap_score_weight {
            config.overlap_score_weight = weight;
        }
        config.queue_threshold = self
            .router_queue_threshold
            .unwrap_or(config.queue_threshold);
        config.queue_policy = self.router_queue_policy.unwrap_or(config.queue_policy);
        match policy {
            Policy::Mode(mode) => config.mode = mode,
            Policy::Weight(weight) => {
                config.mode = RouterMode::Kv;
                config.overlap_score_weight = weight;
            }
            Policy::Oracle => {
                let tally = oracle::replay(trace, fleet, speed, progress);
                return Ok(tally.outcome(policy.name()));
            }
        }
        let router = Routed::new(&config, fleet)?;
        let simulation = Simulation::new(trace, router, fleet, speed);
        let tally = simulation.run(progress).map_err(|source| {
            let policy = policy.name();
            ReplayError::Route { policy, source }
        })?;
        Ok(tally.outcome(policy.name()))
    }

    fn title(&self, trace: &str) -> String {
        let Self { workers, speed, .. } = self;
        format!("{trace}, {workers} workers, speed {speed}")
    }
}

impl Policy {
    fn name(self) -> String {
        match self {
            Self::Mode(mode) => mode_name(mode),
            Self::Weight(weight) => format!("{}:{weight}", mode_name(RouterMode::Kv)),
            Self::Oracle => oracle::NAME.to_owned(),
        }
    }
}

fn mode_name(mode: RouterMode) -> String {
    let value = mode.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn policy(text: &str) -> Result<Policy, String> {
    if text == oracle::NAME {
        return Ok(Policy::Oracle);
    }
    // Requests of a trace name no worker.
    let modes = RouterMode::value_variants().iter().copied();
    let mut modes = modes.filter(|mode| *mode != RouterMode::Direct);
    let names = modes.clone().map(mode_name);
    let names: Vec<_> = names.chain([oracle::NAME.to_owned()]).collect();
    let known = modes.find(|mode| mode_name(*mode) == text);
    known
        .map(Policy::Mode)
        .ok_or_else(|| format!("must be one of {}", names.join(", ")))
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 1e-6..=1e12)
}

fn weight(text: &str) -> Result<f64, String> {
    number(text, 0.0..=1e12)
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if range.contains(&number) {
        Ok(number)
    } else {
        let (least, most) = (range.start(), range.end());
        Err(format!("must be between {least:e} and {most:e}"))
    }
}
