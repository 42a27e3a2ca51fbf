//! The GPUs of one worker: watched, judged, and what is done about a sick one.

pub(crate) mod advance;
mod canary;
mod lifetime;
pub mod restart;
mod shown;
pub mod verdict;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info};

use crate::config::gpu::GpuConfig;
use crate::config::instance::Kind;
use crate::gpu::owner::Owner;
use crate::gpu::watch::{self as gpu_watch, Gpu, Seen, Watched, Watching};
use crate::health::Verdict;
use crate::health::incident::GpuState;
use crate::health::judge::{Context, Judge, Progress};
use crate::health::reading::Observation;
use crate::telemetry::metrics::Metrics;
use crate::worker::gpus::canary::Canary;
use crate::worker::gpus::lifetime::Lifetimes;
use crate::worker::gpus::restart::Restarts;
use crate::worker::gpus::shown::Shown;
use crate::worker::spec::AgentSpec;

/// How often it is looked whether a canary is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the agent sees of its engine, for those who judge its GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSeen {
    /// Where it answers.
    pub address: String,
    /// A process of its control group; `None` where none is known.
    pub pid: Option<u32>,
    /// Whether it loads its model.
    pub is_starting: bool,
    /// The name it serves its model under; `None` while it does not answer.
    pub model: Option<String>,
    /// Data-parallel ranks.
    pub ranks: u32,
    pub progress: Option<Progress>,
}

/// The share of a GPU's memory that vLLM takes unless it is told otherwise.
const VLLM_MEMORY_SHARE: f64 = 0.9;

/// What there is to watch, and around it.
#[derive(Debug)]
struct Watch {
    /// As `CUDA_VISIBLE_DEVICES` names them: `GPU-…` or `MIG-…`.
    gpus: Vec<String>,
    /// The share of a GPU's memory that the engine takes as it starts; `None` where nobody knows.
    memory_needed: Option<f64>,
}

/// The GPUs of one worker under watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct Gpus {
    states: watch::Receiver<Vec<GpuState>>,
    engine: watch::Sender<EngineSeen>,
    _task: JoinSet<()>,
}

impl Gpus {
    /// Begins to watch an engine's GPUs; `None` where there are none, or nobody wants it.
    pub fn start(
        spec: &AgentSpec,
        config: &GpuConfig,
        metrics: &Arc<Metrics>,
    ) -> Option<Arc<Self>> {
        if spec.gpus.is_empty() && spec.kind == Kind::Vllm.name() && config.watch {
            let next = "name them in workers.NAME.gpus, or with --gpu";
            info!(worker = %spec.worker, next, "gpus of the engine are not known, and not watched");
        }
        if spec.gpus.is_empty() || !config.watch {
            return None;
        }
        let (engine, seen) = watch::channel(EngineSeen::default());
        let (told, states) = watch::channel(Vec::new());
        let judges = Judges::new(spec, config, metrics, told);
        let judges = judges
            .inspect_err(|error| error!(worker = %spec.worker, %error, "gpus are not watched"))
            .ok()?;
        let mut task = JoinSet::new();
        task.spawn(judges.run(seen));
        Some(Arc::new(Self {
            states,
            engine,
            _task: task,
        }))
    }

    /// Tells how the engine is.
    pub fn tell(&self, engine: EngineSeen) {
        self.engine.send_if_modified(|seen| {
            let is_other = *seen != engine;
            *seen = engine;
            is_other
        });
    }
}

/// The states of a worker's GPUs as they change; of none, where they are not watched.
#[derive(Debug)]
pub struct States {
    states: Option<watch::Receiver<Vec<GpuState>>>,
    is_over: bool,
}

impl States {
    pub fn of(gpus: Option<&Arc<Gpus>>) -> Self {
        Self {
            states: gpus.map(|gpus| gpus.states.clone()),
            is_over: false,
        }
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        match &mut self.states {
            Some(states) if !self.is_over => {
                self.is_over = states.changed().await.is_err();
                if self.is_over {
                    error!("gpus are not watched any more, by a fault of ours");
                }
            }
            _ => std::future::pending().await,
        }
    }

    /// The states now. Should their judges be no more, nobody knows how the GPUs are.
    pub fn take(&mut self) -> Vec<GpuState> {
        let states = self.states.as_mut();
        let mut states = states.map_or_else(Vec::new, |states| states.borrow_and_update().clone());
        if self.is_over {
            for gpu in &mut states {
                gpu.verdict = gpu.verdict.worse(Verdict::Unknown);
            }
        }
        states
    }
}

/// Who judges the GPUs of a worker.
struct Judges {
    watch: Watch,
    watched: Watched,
    judges: Vec<Judge>,
    shown: Shown,
    canary: Canary,
    lifetimes: Lifetimes,
    restarts: Restarts,
    may_restart: bool,
    /// Whether it is known whose the processes on the GPUs are.
    knows_owner: bool,
    told: watch::Sender<Vec<GpuState>>,
    /// The time at the watch's start since 1970: that of incidents is shown to people.
    began: Duration,
}

impl Judges {
    fn new(
        spec: &AgentSpec,
        config: &GpuConfig,
        metrics: &Arc<Metrics>,
        told: watch::Sender<Vec<GpuState>>,
    ) -> io::Result<Self> {
        let named = |name: &String| Gpu {
            index: None,
            uuid: name.clone(),
            name: None,
        };
        let watching = Watching {
            library: config.nvml_library.clone(),
            poll: config.poll(),
            slow_poll: config.slow_poll(),
            deadline: config.deadline(),
        };
        let watched = gpu_watch::start(spec.gpus.iter().map(named).collect(), &watching)?;
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self {
            judges: spec
                .gpus
                .iter()
                .map(|_| Judge::new(config.limits()))
                .collect(),
            canary: Canary::new(metrics.clone()),
            shown: Shown::new(spec.worker.clone(), metrics.clone()),
            lifetimes: Lifetimes::read(spec.state_dir.as_deref(), &spec.worker),
            may_restart: config.restart_engine,
            restarts: Restarts::new(spec.worker.clone(), spec.restart.clone(), metrics.clone()),
            knows_owner: false,
            began: began.unwrap_or_default(),
            watched,
            watch: Watch {
                gpus: spec.gpus.clone(),
                memory_needed: (spec.kind == Kind::Vllm.name()).then_some(VLLM_MEMORY_SHARE),
            },
            told,
        })
    }

    async fn run(mut self, mut engine: watch::Receiver<EngineSeen>) {
        self.publish();
        loop {
            let about = engine.borrow_and_update().clone();
            self.know_owner(about.pid);
            tokio::select! {
                seen = self.watched.next() => self.take(&seen, &about),
                passed = self.canary.outcome(&about) => if let Some(passed) = passed {
                    let now = self.now();
                    self.judges.iter_mut().for_each(|judge| judge.canary(passed, now));
                },
                () = self.restarts.told() => {}
                changed = engine.changed() => if changed.is_err() {
                    return;
                },
                () = sleep(LOOK_EVERY) => {}
            }
            // First, because routers wait for it.
            self.publish();
            self.act(&about);
        }
    }

    /// Finds the engine's control group, once its process is there.
    fn know_owner(&mut self, pid: Option<u32>) {
        if let (false, Some(pid)) = (self.knows_owner, pid) {
            let owner = Owner::of_process(pid);
            self.knows_owner = owner.cgroup.is_some();
            self.watched.belongs_to(owner);
        }
    }

    fn now(&self) -> Duration {
        self.began + self.watched.elapsed()
    }

    fn take(&mut self, seen: &Seen, engine: &EngineSeen) {
        let gpu = &self.watched.gpus()[seen.gpu];
        let context = Context {
            // One that is away cannot prove anything, and would hold back its own start.
            has_engine: engine.model.is_some(),
            is_engine_starting: engine.is_starting,
            gpus_of_worker: self.judges.len(),
            // What the engine has itself is not told from the rest otherwise.
            memory_needed: self.watch.memory_needed.filter(|_| self.knows_owner),
            expects_mig: self.watch.gpus[seen.gpu].starts_with("MIG-"),
            progress: engine.progress,
            lifetime_before: self.lifetimes.before(&gpu.uuid),
        };
        let at = self.began + seen.at;
        self.judges[seen.gpu].take(&seen.observation, &context, at);
        self.shown.read(gpu, &seen.observation);
        match &seen.observation {
            Observation::Polled(reading) => {
                let counted = reading.ecc_uncorrected_lifetime;
                self.lifetimes.note(&gpu.uuid, counted);
            }
            Observation::Event(_) => self.canary.doubt(),
            Observation::Unreachable { .. } | Observation::Hanging(_) => {}
        }
    }

    /// Asks the engine for a token or to restart, where a judge wants it.
    fn act(&mut self, engine: &EngineSeen) {
        for judge in &mut self.judges {
            if judge.take_restart() {
                self.restarts.want(self.may_restart);
            }
        }
        self.restarts.look(engine.model.is_some());
        let now = self.now();
        let wants_canary = self.judges.iter().any(|judge| judge.wants_canary(now));
        if let (true, Some(model)) = (wants_canary, &engine.model) {
            self.canary.start(engine, model);
        }
    }

    /// Tells the states where they are others than before.
    fn publish(&self) {
        let gpus = self.watched.gpus().into_iter().zip(&self.judges);
        let states: Vec<_> = gpus.map(|(gpu, judge)| state(gpu, judge)).collect();
        self.told.send_if_modified(|told| {
            let is_other = *told != states;
            if is_other {
                self.shown.changed(told, &states);
                *told = states;
            }
            is_other
        });
    }
}

fn state(gpu: Gpu, judge: &Judge) -> GpuState {
    let judgement = judge.state();
    GpuState {
        index: gpu.index,
        uuid: gpu.uuid,
        name: gpu.name,
        verdict: judgement.verdict,
        incidents: judgement.incidents,
    }
}
