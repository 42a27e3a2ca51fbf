//! The flags of `kvlens engine`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueHint;

use crate::config::dispatch::RequestPlane;
use crate::config::driver::DriverVersion;
use crate::config::instance::{Kind, UnknownInstance};
use crate::config::{Config, Values};
use crate::id::WorkerId;

/// What an instance says, so that flags do not.
const INSTEAD: [&str; 10] = [
    "worker",
    "kind",
    "model",
    "name",
    "ranks",
    "gpus",
    "media_dir",
    "listen",
    "key_file",
    "args",
];

/// Runs one engine and starts it again when it ends; other hosts reach it through its gate
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the worker: 1 to 63 of a-z, 0-9 and -
    #[arg(long, value_parser = WorkerId::new, required_unless_present = "instance")]
    pub(crate) worker: Option<WorkerId>,
    /// Worker of this host, as [workers.NAME] of the configuration has it, instead of all these flags
    #[arg(long, value_name = "NAME", conflicts_with_all = INSTEAD)]
    instance: Option<String>,
    /// The image that podman runs an instance's engine from.
    #[arg(skip)]
    pub(crate) image: Option<String>,
    /// The oldest driver it is started with, where the instance says it
    #[arg(skip)]
    driver_min: Option<DriverVersion>,
    /// Which engine to run
    #[arg(long, value_enum, default_value = "vllm")]
    pub(crate) kind: Kind,
    /// Folder or name of the model to serve
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) model: Option<String>,
    /// Name to serve the model under; its folder's or its own where not given
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Data-parallel ranks of the engine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) ranks: u16,
    /// Tokens of a KV-cache block; the engine's own choice where not given
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,
    /// GPUs that the engine may see, by their numbers in the driver's order or their UUIDs
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub(crate) gpus: Option<Vec<String>>,
    /// Folder whose files the engine may read as images
    #[arg(long, value_name = "DIR")]
    pub(crate) media_dir: Option<PathBuf>,
    /// Port of 127.0.0.1 for the engine to listen on, instead of a unix socket
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Address of the gate, through which other hosts reach the engine; none where not given
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// File with the bearer keys of the gate, as `name:key` lines
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub(crate) key_file: Option<PathBuf>,
    /// Address of a NATS server, as nats://127.0.0.1:4222, over which frontends ask the gate too, as
    /// with dispatch.request_plane = "nats"; may be repeated
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
    /// Further arguments of the engine; with `--kind command`, its command line, in which {port},
    /// {uds}, {model}, {name}, {kv_events}, {kv_replay}, {worker}, {ranks} and {media_dir} are
    /// filled in
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

impl Args {
    /// The configuration that was given as flags.
    pub fn flags(&self) -> Values {
        let nats = (!self.nats.is_empty()).then_some(&self.nats);
        Values::default()
            .set_given("engine.block_size", self.block_size)
            .set_given("dispatch.request_plane", nats.map(|_| RequestPlane::Nats))
            .set_given("nats.servers", nats)
    }

    /// The flags with what `[workers.NAME]` says of the instance, where one was named. `place` is where
    /// the configuration came from.
    ///
    /// # Errors
    /// When there is no such worker.
    pub fn of_instance(self, config: &Config, place: &str) -> Result<Self, UnknownInstance> {
        let Some(name) = &self.instance else {
            return Ok(self);
        };
        let instance = config.instance(name, place)?;
        let told = instance.config;
        Ok(Self {
            worker: Some(instance.worker),
            image: told.image,
            driver_min: told.driver_min,
            kind: told.engine,
            model: told.model,
            name: told.name,
            ranks: told.ranks,
            gpus: (!told.gpus.is_empty()).then_some(told.gpus),
            media_dir: told.media_dir,
            listen: Some(instance.listen),
            key_file: told.key_file,
            args: told.args,
            ..self
        })
    }

    /// What says which GPUs the engine may see, as a person would look for it.
    pub(crate) fn gpus_key(&self) -> String {
        match &self.instance {
            Some(name) => format!("workers.{name}.gpus"),
            None => "--gpus".to_owned(),
        }
    }

    /// What says which model it serves, likewise.
    pub(crate) fn model_key(&self) -> String {
        match &self.instance {
            Some(name) => format!("workers.{name}.model"),
            None => "--model".to_owned(),
        }
    }

    /// What says that it is vLLM, likewise.
    pub(crate) fn kind_key(&self) -> String {
        match &self.instance {
            Some(name) => format!("workers.{name}.engine (vllm)"),
            None => "--kind vllm".to_owned(),
        }
    }

    /// The oldest driver to start it with, and what says so. The stand-in needs none, and of programs of
    /// this host only vLLM takes what is said of all.
    pub(crate) fn driver_min(&self, config: &Config) -> Option<(String, DriverVersion)> {
        if self.kind == Kind::Mock {
            return None;
        }
        let own = self.instance.iter().zip(self.driver_min.clone());
        let own = own.map(|(name, least)| (format!("workers.{name}.driver_min"), least));
        let is_meant = self.kind == Kind::Vllm || self.image.is_some();
        let all = config.engine.driver_min.clone().filter(|_| is_meant);
        let all = all.map(|least| ("engine.driver_min".to_owned(), least));
        own.chain(all).next()
    }
}
