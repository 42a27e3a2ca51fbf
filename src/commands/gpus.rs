//! `kvlens gpus`: the GPUs of this host as the driver tells of them now, or those of workers as their
//! agents hold them.

mod table;

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use jiff::Zoned;
use serde::Deserialize;
use tokio::runtime;
use tokio::time::timeout;

use crate::config::Config;
use crate::config::gpu::GpuConfig;
use crate::discovery::gpus::{GPUS_PATH, WorkerGpu};
use crate::dispatch::{DispatchError, EngineClient};
use crate::gpu::owner::Owner;
use crate::gpu::snapshot;
use crate::gpu::watch::{self, Gpu, Seen, Watched, Watching};
use crate::health::incident::GpuState;
use crate::health::judge::{Context, Judge};
use crate::health::reading::{Observation, Reading};
use crate::http::keys::{KeyFileError, first_key};

/// Between two tables of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Longest wait for the driver, which may have to be brought up.
const LOOK_MAX: Duration = Duration::from_secs(15);

/// Longest wait for a page.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Shows the GPUs of this host: how each is, what is wrong with it, and what to do
///
/// What an agent has seen since it began, XIDs and counts that grow, is at --url.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print a JSON array of the GPUs
    #[arg(long)]
    json: bool,
    /// Go on, with what has changed each second, until stopped
    #[arg(long)]
    watch: bool,
    /// Show the GPUs that a frontend, router or agent knows of, as http://127.0.0.1:8001
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// Why no GPU is shown.
#[derive(Debug, thiserror::Error)]
pub enum GpusError {
    #[error("no NVIDIA GPU can be read here: {text}")]
    NoGpu { text: String },
    #[error("{url} cannot be asked")]
    NoAnswer { url: String, source: DispatchError },
    #[error("{url} did not answer within {ANSWER_MAX:?}")]
    Late { url: String },
    #[error("{url} takes no request without a key: name the file of one in discovery.key_file")]
    Key { url: String },
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error("{url} answered {status}: is it an admin listener of kvlens?")]
    Status { url: String, status: StatusCode },
    #[error("{url} answered with what is no list of GPUs")]
    NotGpus {
        url: String,
        source: serde_json::Error,
    },
    #[error("cannot start")]
    Begin(#[source] io::Error),
    #[error("standard output cannot be written")]
    Output(#[source] io::Error),
}

/// A GPU as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    /// Whose it is, where that is known.
    worker: Option<String>,
    pub(crate) state: GpuState,
    /// `None` where the driver was not asked, or did not answer.
    reading: Option<Box<Reading>>,
}

/// Prints the GPUs; again and again with `--watch`, until the process is stopped.
///
/// # Errors
/// When none can be shown.
pub fn run(args: &Args, config: &Config) -> Result<(), GpusError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(GpusError::Begin)?;
    let shown = runtime.block_on(async {
        match (&args.url, args.watch) {
            (Some(url), _) => told_by(url.trim_end_matches('/'), args, config).await,
            (None, true) => watched(args, config).await,
            (None, false) => print(args, &looked_at(&config.gpu, LOOK_MAX)?),
        }
    });
    // A thread that hangs in a driver is not waited for.
    runtime.shutdown_background();
    shown
}

/// The GPUs of this host, each looked at once, for no longer than told.
///
/// # Errors
/// When there is none.
pub(crate) fn looked_at(config: &GpuConfig, wait: Duration) -> Result<Vec<Shown>, GpusError> {
    let library = config.nvml_library.as_deref();
    let looks = snapshot::take(None, library, &Owner::default(), wait);
    let looks = looks.map_err(no_gpu)?;
    if looks.is_empty() {
        let text = "the driver sees none".to_owned();
        return Err(GpusError::NoGpu { text });
    }
    let shown = |(gpu, observation): (Gpu, Observation)| {
        let mut judge = Judge::new(config.limits());
        judge.take(&observation, &around(&observation), Duration::ZERO);
        Shown::new(gpu, &judge, reading(observation))
    };
    Ok(looks.into_iter().map(shown).collect())
}

/// No worker is known here, so that none expects a GPU to be whole.
fn around(observation: &Observation) -> Context {
    let mig = match observation {
        Observation::Polled(reading) => reading.mig,
        _ => None,
    };
    Context {
        expects_mig: mig.is_some_and(|mig| mig.is_enabled),
        ..Context::default()
    }
}

fn no_gpu(observation: Observation) -> GpusError {
    let text = match observation {
        Observation::Unreachable { text, .. } => text,
        Observation::Hanging(time) => format!("the driver has not answered for {time:?}"),
        other => format!("{other:?}"),
    };
    GpusError::NoGpu { text }
}

fn reading(observation: Observation) -> Option<Box<Reading>> {
    match observation {
        Observation::Polled(reading) => Some(reading),
        _ => None,
    }
}

/// Watches the GPUs of this host, as an agent does but for its engine.
async fn watched(args: &Args, config: &Config) -> Result<(), GpusError> {
    let watching = Watching {
        library: config.gpu.nvml_library.clone(),
        poll: config.gpu.poll(),
        slow_poll: config.gpu.slow_poll(),
        deadline: config.gpu.deadline(),
    };
    let gpus: Vec<_> = looked_at(&config.gpu, LOOK_MAX)?;
    let gpus: Vec<_> = gpus
        .into_iter()
        .map(|shown| Gpu {
            index: shown.state.index,
            uuid: shown.state.uuid,
            name: shown.state.name,
        })
        .collect();
    let mut judges: Vec<_> = gpus
        .iter()
        .map(|_| Judge::new(config.gpu.limits()))
        .collect();
    let mut readings = vec![None; gpus.len()];
    let mut watched = watch::start(gpus, &watching).map_err(GpusError::Begin)?;
    loop {
        let end = tokio::time::Instant::now() + EVERY;
        while let Ok(Seen {
            gpu,
            at,
            observation,
        }) = tokio::time::timeout_at(end, watched.next()).await
        {
            judges[gpu].take(&observation, &around(&observation), at);
            readings[gpu] = reading(observation).or(readings[gpu].take());
        }
        print(args, &now(&watched, &judges, &readings))?;
    }
}

fn now(watched: &Watched, judges: &[Judge], readings: &[Option<Box<Reading>>]) -> Vec<Shown> {
    let gpus = watched.gpus().into_iter().zip(judges).zip(readings);
    gpus.map(|((gpu, judge), reading)| Shown::new(gpu, judge, reading.clone()))
        .collect()
}

/// The GPUs that somebody else knows of.
async fn told_by(url: &str, args: &Args, config: &Config) -> Result<(), GpusError> {
    let key = config.discovery.key_file.as_deref();
    let key = key.map(first_key).transpose()?;
    let client = EngineClient::with_key(key.as_deref());
    loop {
        let url = url.to_owned();
        let asked = timeout(ANSWER_MAX, ask(&client, &url)).await;
        print(args, &asked.unwrap_or(Err(GpusError::Late { url }))?)?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Deserialize)]
struct Page {
    gpus: Vec<WorkerGpu>,
}

async fn ask(client: &EngineClient, url: &str) -> Result<Vec<Shown>, GpusError> {
    let url = url.to_owned();
    let no_answer = |source| GpusError::NoAnswer {
        url: url.clone(),
        source,
    };
    let request = Request::new(Bytes::new());
    let answer = client.forward(&url, GPUS_PATH, request).await;
    let answer = answer.map_err(no_answer)?;
    let status = answer.status;
    if status == StatusCode::UNAUTHORIZED {
        return Err(GpusError::Key { url });
    }
    if status != StatusCode::OK {
        return Err(GpusError::Status { url, status });
    }
    let body = answer.whole().await.map_err(no_answer)?;
    let page: Page =
        serde_json::from_slice(&body).map_err(|source| GpusError::NotGpus { url, source })?;
    let shown = |gpu: WorkerGpu| Shown {
        worker: Some(gpu.worker.to_string()),
        state: gpu.state,
        reading: None,
    };
    Ok(page.gpus.into_iter().map(shown).collect())
}

fn print(args: &Args, gpus: &[Shown]) -> Result<(), GpusError> {
    let mut out = io::stdout().lock();
    let text = match (args.json, args.watch) {
        (true, true) => format!("{}\n", json(gpus)),
        (true, false) => format!("{:#}\n", json(gpus)),
        (false, true) => format!(
            "{}\n{}\n",
            Zoned::now().strftime("%H:%M:%S"),
            table::table(gpus)
        ),
        (false, false) => table::table(gpus),
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(GpusError::Output)
}

fn json(gpus: &[Shown]) -> serde_json::Value {
    let one = |gpu: &Shown| {
        let mut value = serde_json::json!(gpu.state);
        if let Some(worker) = &gpu.worker {
            value["worker"] = serde_json::json!(worker);
        }
        value
    };
    gpus.iter().map(one).collect()
}

impl Shown {
    fn new(gpu: Gpu, judge: &Judge, reading: Option<Box<Reading>>) -> Self {
        let judgement = judge.state();
        Self {
            worker: None,
            state: GpuState {
                index: gpu.index,
                uuid: gpu.uuid,
                name: gpu.name,
                verdict: judgement.verdict,
                incidents: judgement.incidents,
            },
            reading,
        }
    }
}
