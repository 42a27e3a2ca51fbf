//! Which engine an agent stands beside: as its flags say, or as `kvlens engine` writes it down.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::block::HashKey;
use crate::config::gpu::GpuConfig;
use crate::discovery::Update;
use crate::discovery::engine_file::{self, EngineFile};
use crate::events::zmq::Source;
use crate::id::WorkerId;
use crate::model::archive::Archive;
use crate::model::named::{DEMO, Named};
use crate::select::Device;
use crate::telemetry::metrics::Metrics;
use crate::vision::Family;
use crate::worker;
use crate::worker::feed::Feed;
use crate::worker::gpus::Gpus;
use crate::worker::gpus::restart::Restart;
use crate::worker::model_files::{Files, Shelf};
use crate::worker::probe::Probe;
use crate::worker::reset::Command;
use crate::worker::spec::AgentSpec;

/// How often the engine's file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks at an engine's file without finding one after which an operator hears of it: 5 seconds.
const LOOKS_UNTOLD: u32 = 20;

/// An engine to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    pub(crate) kind: String,
    pub(crate) address: String,
    /// Where other hosts reach it.
    pub(crate) public_address: Option<String>,
    /// The name it was told to serve its model under.
    pub(crate) name: Option<String>,
    /// Its model's folder or id; `demo` for the demo model.
    pub(crate) model: Option<String>,
    pub(crate) sources: Vec<Source>,
    /// See [`AgentSpec::media_dir`].
    pub(crate) media_dir: Option<PathBuf>,
    /// The GPUs that it computes on, as `CUDA_VISIBLE_DEVICES` names them.
    pub(crate) gpus: Vec<String>,
}

/// The place beside an engine.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) worker: WorkerId,
    /// `None` where the engine's file says it.
    pub(crate) engine: Option<Engine>,
    /// See [`engine_file::folder`].
    pub(crate) run_dir: Option<PathBuf>,
    /// The model's base name, where it was told.
    pub(crate) name: Option<String>,
    /// The model that was told, by folder or id.
    pub(crate) model: Option<String>,
    /// Its files as they were read to check it; the first engine's.
    pub(crate) files: Option<Files>,
    /// Where the listener finds the files.
    pub(crate) shelf: Arc<Shelf>,
    /// See [`AgentSpec::hash_key`].
    pub(crate) hash_key: Option<HashKey>,
    /// See [`AgentSpec::agent`].
    pub(crate) agent: Option<String>,
    /// See [`AgentSpec::agent_life`].
    pub(crate) agent_life: u64,
    /// See [`AgentSpec::state_dir`].
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) device: Device,
    /// See [`AgentSpec::labels`].
    pub(crate) labels: Vec<String>,
    /// See [`AgentSpec::restart`].
    pub(crate) restart: Restart,
    /// See [`AgentSpec::pid`]; where it is not told, the engine's file says it.
    pub(crate) pid: Option<u32>,
    /// How its GPUs are watched.
    pub(crate) gpu: GpuConfig,
}

impl Beside {
    /// The place beside an engine of which all is told, `archive` being the files of its model.
    pub(crate) fn of(spec: AgentSpec, archive: Archive) -> Self {
        Self {
            worker: spec.worker,
            engine: Some(Engine {
                kind: spec.kind,
                address: spec.address,
                public_address: None,
                name: Some(spec.model),
                model: None,
                sources: spec.sources,
                media_dir: spec.media_dir,
                gpus: spec.gpus,
            }),
            run_dir: None,
            name: None,
            model: None,
            files: spec.files.map(|model| Files { model, archive }),
            shelf: Arc::default(),
            hash_key: spec.hash_key,
            agent: spec.agent,
            agent_life: Uuid::new_v4().as_u64_pair().0,
            state_dir: spec.state_dir,
            device: spec.device,
            labels: spec.labels,
            restart: spec.restart,
            pid: spec.pid,
            gpu: GpuConfig::default(),
        }
    }

    /// Follows the engine, and the next one that takes its place, until `stop`.
    pub(crate) async fn follow(
        mut self,
        feed: Arc<Feed>,
        mut commands: mpsc::Receiver<Command>,
        (metrics, updates): (Arc<Metrics>, mpsc::Sender<Update>),
        stop: CancellationToken,
    ) {
        let mut watching = None;
        loop {
            let Some(engine) = stop.run_until_cancelled(self.engine()).await else {
                return;
            };
            let Some(mut spec) = stop.run_until_cancelled(self.spec(&engine)).await else {
                return;
            };
            // Those that are the same go on to be watched: what is wrong with them is not forgotten.
            if watching.as_ref().is_none_or(|(gpus, _)| *gpus != spec.gpus) {
                let gpus = Gpus::start(&spec, &self.gpu, &metrics);
                watching = Some((spec.gpus.clone(), gpus));
            }
            spec.watched = watching.as_ref().and_then(|(_, gpus)| gpus.clone());
            feed.set_public_address(engine.public_address.clone());
            info!(worker = %self.worker, address = engine.address, "engine found");
            let life = stop.child_token();
            let (metrics, updates) = (metrics.clone(), updates.clone());
            let agent = worker::run(spec, &mut commands, metrics, updates, life.clone());
            let mut agent = pin!(agent);
            tokio::select! {
                () = &mut agent => return,
                () = self.changed(&engine) => {}
            }
            info!(worker = %self.worker, "engine has other endpoints now");
            life.cancel();
            agent.await;
        }
    }

    /// The engine, once it is known.
    async fn engine(&self) -> Engine {
        if let Some(engine) = &self.engine {
            return engine.clone();
        }
        let folder = self.folder();
        for look in 0_u32.. {
            match read(&folder, &self.worker) {
                Ok(engine) => return engine,
                Err(reason) if look == LOOKS_UNTOLD => {
                    warn!(worker = %self.worker, reason, "waiting for `kvlens engine`");
                }
                Err(reason) => debug!(worker = %self.worker, reason, "no engine yet"),
            }
            sleep(LOOK_EVERY).await;
        }
        std::future::pending().await
    }

    /// Waits until the engine's file says something else; one that is gone says nothing.
    async fn changed(&self, engine: &Engine) {
        if self.engine.is_some() {
            return std::future::pending().await;
        }
        let folder = self.folder();
        while read(&folder, &self.worker).map_or(true, |found| found == *engine) {
            sleep(LOOK_EVERY).await;
        }
    }

    /// The process of `kvlens engine`. It is no part of [`Engine`]: another one has the same control group.
    fn written_pid(&self) -> Option<u32> {
        let is_written = self.engine.is_none();
        let file = is_written.then(|| EngineFile::read(&self.folder()).ok());
        file.flatten()?.pid
    }

    fn folder(&self) -> PathBuf {
        engine_file::folder(self.run_dir.as_deref(), &self.worker)
    }

    /// What the agent is told of the engine.
    async fn spec(&mut self, engine: &Engine) -> AgentSpec {
        let model = match self.name.as_ref().or(engine.name.as_ref()) {
            Some(name) => name.clone(),
            None => first_name(&engine.address).await,
        };
        let named = self.model.as_ref().or(engine.model.as_ref());
        let files = match (self.files.take(), named) {
            (Some(files), _) => Some(files),
            // Another engine may have been started because its files are others now.
            (None, Some(model)) => files(model.clone()).await,
            (None, None) => None,
        };
        let (files, archive) = files.map(|files| (files.model, files.archive)).unzip();
        // Before any record names their digest.
        self.shelf.put(archive);
        let family = files.as_ref().and_then(|files| files.family());
        AgentSpec {
            kind: engine.kind.clone(),
            sources: engine.sources.clone(),
            placeholder: family.map(Family::placeholder),
            files,
            state_dir: self.state_dir.clone(),
            media_dir: engine.media_dir.clone(),
            pid: self.pid.or_else(|| self.written_pid()),
            gpus: engine.gpus.clone(),
            device: self.device,
            labels: self.labels.clone(),
            hash_key: self.hash_key,
            agent: self.agent.clone(),
            agent_life: self.agent_life,
            restart: self.restart.clone(),
            ..AgentSpec::new(self.worker.clone(), &engine.address, &model)
        }
    }
}

/// The engine as its file says it, or why there is none.
fn read(folder: &Path, worker: &WorkerId) -> Result<Engine, String> {
    let shown = folder.display();
    let file = EngineFile::read(folder).map_err(|error| format!("{shown}: {error}"))?;
    if file.worker != *worker {
        return Err(format!("{shown}: it is the engine of {}", file.worker));
    }
    Ok(Engine {
        kind: file.kind,
        address: file.address,
        public_address: file.public_address,
        name: Some(file.name),
        model: Some(file.model.unwrap_or_else(|| DEMO.to_owned())),
        sources: file.sources.into_iter().map(Source::from).collect(),
        media_dir: file.media_dir,
        gpus: file.gpus,
    })
}

/// The first name that the engine says it serves a base model under.
async fn first_name(address: &str) -> String {
    let probe = Probe::new(address);
    loop {
        match probe
            .facts()
            .await
            .map(|facts| facts.models.into_iter().next())
        {
            Ok(Some(name)) => return name,
            Ok(None) => debug!(address, "engine lists no model yet"),
            Err(error) => debug!(address, %error, "engine does not list its models yet"),
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The files of a model. Without them prompts are not compared, only events of engines that send
/// offsets can be read, and frontends need files of their own.
async fn files(model: String) -> Option<Files> {
    let text = model.clone();
    let read = spawn_blocking(move || Named::read_or_demo(&text)).await;
    match read {
        Ok(Ok(named)) => Some(named.into()),
        Ok(Err(error)) => {
            warn!(model, %error, "model cannot be read, its prompts are not compared");
            None
        }
        Err(error) => {
            warn!(model, %error, "model cannot be read");
            None
        }
    }
}
