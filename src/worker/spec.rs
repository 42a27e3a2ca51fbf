//! What an agent is told of its engine.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::block::HashKey;
use crate::events::zmq::Source;
use crate::id::WorkerId;
use crate::model::Model;
use crate::select::Device;
use crate::worker::gpus::Gpus;
use crate::worker::gpus::restart::Restart;

/// What is known of an engine's process by whoever runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProcessState {
    #[default]
    Unknown,
    Running,
    Ended {
        cause: String,
    },
}

/// What an agent is told of its engine.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    pub worker: WorkerId,
    /// Where the engine answers, as `http://127.0.0.1:8100`.
    pub address: String,
    /// The model's base name, as hashed.
    pub model: String,
    /// Other names requests may use; those the engine says are added.
    pub aliases: Vec<String>,
    /// The engine's kind, as `vllm`.
    pub kind: String,
    pub device: Device,
    /// See [`WorkerRecord::labels`](crate::discovery::WorkerRecord::labels).
    pub labels: Vec<String>,
    /// Where each data-parallel rank publishes its events, rank 0 first; empty for an engine that
    /// publishes none.
    pub sources: Vec<Source>,
    /// See [`Options::placeholder`](crate::ledger::Options::placeholder).
    pub placeholder: Option<u32>,
    /// The engine's process as its supervisor knows it; `None` for one that others run.
    pub process: Option<watch::Receiver<ProcessState>>,
    /// A process of the engine's control group; `None` where none is known.
    pub pid: Option<u32>,
    /// The model's files, with which the engine's prompts are held against ours; `None` where they
    /// are not here.
    pub files: Option<Arc<Model>>,
    /// What the names of blocks are sealed with.
    pub hash_key: Option<HashKey>,
    /// See [`WorkerRecord::agent`](crate::discovery::WorkerRecord::agent).
    pub agent: Option<String>,
    /// See [`WorkerRecord::agent_life`](crate::discovery::WorkerRecord::agent_life).
    pub agent_life: u64,
    /// The engine's GPUs, by their UUIDs; none where they are not known.
    pub gpus: Vec<String>,
    /// How the engine is told to restart where its GPUs want it.
    pub restart: Restart,
    /// Its GPUs under watch; `None` where they are not watched.
    pub watched: Option<Arc<Gpus>>,
    /// A folder on the engine's host from which it reads images.
    pub media_dir: Option<PathBuf>,
    /// Folder in which ledgers are kept for the next agent; `None` where there is none to come.
    pub state_dir: Option<PathBuf>,
}

impl AgentSpec {
    /// An agent beside an engine of which nothing else is known.
    pub fn new(worker: WorkerId, address: &str, model: &str) -> Self {
        Self {
            worker,
            address: address.to_owned(),
            model: model.to_owned(),
            aliases: Vec::new(),
            kind: String::new(),
            device: Device::default(),
            labels: Vec::new(),
            sources: Vec::new(),
            placeholder: None,
            process: None,
            pid: None,
            files: None,
            hash_key: None,
            agent: None,
            agent_life: 0,
            gpus: Vec::new(),
            restart: Restart::Foreign,
            watched: None,
            media_dir: None,
            state_dir: None,
        }
    }
}
