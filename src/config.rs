//! The configuration: defaults, below a file, below `KVLENS_*` variables, below flags; checked whole.

pub mod circuit;
pub mod cluster;
pub mod discovery;
pub mod dispatch;
pub mod driver;
pub mod engine;
pub mod etcd;
pub mod frontend;
pub mod gpu;
pub mod host;
pub mod instance;
mod layer;
pub mod log;
pub mod media;
pub mod named_file;
pub mod nats;
pub mod network;
pub mod openai;
pub mod problem;
pub mod reference;
pub mod retries;
pub mod router;
mod schema;
pub mod units;
pub mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;

use figment::Figment;
use figment::value::Dict;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::cluster::ClusterConfig;
use crate::config::discovery::DiscoveryConfig;
use crate::config::dispatch::{DispatchConfig, RequestPlane};
use crate::config::engine::EngineConfig;
use crate::config::etcd::EtcdConfig;
use crate::config::frontend::{FrontendConfig, RouterPlace};
use crate::config::gpu::GpuConfig;
use crate::config::instance::InstanceConfig;
use crate::config::layer::Layer;
use crate::config::log::LogConfig;
use crate::config::media::MediaConfig;
use crate::config::nats::NatsConfig;
use crate::config::openai::OpenaiConfig;
use crate::config::problem::{ConfigError, Problem};
use crate::config::router::RouterConfig;
use crate::config::schema::{Key, Kind};
use crate::config::units::UnitsConfig;
use crate::config::worker::WorkerConfig;
use crate::select::RouterMode;

/// All that can be configured, one table per role or concern.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The listeners, and the limits of what clients may send.
    pub frontend: FrontendConfig,
    /// How the OpenAI API is read.
    pub openai: OpenaiConfig,
    /// Images: whether they are taken, and from where.
    pub media: MediaConfig,
    /// How a worker is chosen.
    pub router: RouterConfig,
    /// What every frontend, router and agent of a cluster must have alike.
    pub cluster: ClusterConfig,
    /// Which workers a frontend knows of.
    pub discovery: DiscoveryConfig,
    /// How placed requests get to their workers.
    pub dispatch: DispatchConfig,
    /// Where agents register their workers, and routers find them. Unset, workers are named in
    /// `[discovery]`.
    pub etcd: EtcdConfig,
    /// The bus between agents, routers and frontends. Unset, routers read each agent's feed over HTTP.
    pub nats: NatsConfig,
    /// The agent beside one engine, where it runs as a process of its own.
    pub worker: WorkerConfig,
    /// Engines that run as our child processes.
    pub engine: EngineConfig,
    /// The GPUs of this host, and when one is sick.
    pub gpu: GpuConfig,
    /// What is logged.
    pub log: LogConfig,
    /// What of kvlens this host runs as units of systemd.
    pub units: UnitsConfig,
    /// The workers of this host, by name: what `--instance NAME` runs.
    pub workers: BTreeMap<String, InstanceConfig>,
}

/// Values by key path, as `("router.mode", …)`: the flags given, or the defaults of a role.
#[derive(Clone, Debug, Default)]
pub struct Values {
    dict: Dict,
}

impl Values {
    /// Sets the key at `path`, as `frontend.port`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Serialize) -> Self {
        // A value that serde cannot represent would be a fault of the flag's own type; the key then
        // stays as it was.
        if let Ok(value) = figment::value::Value::serialize(value) {
            let path: Vec<_> = path.split('.').collect();
            layer::put(&mut self.dict, &path, value);
        }
        self
    }

    /// Whether no key is set.
    pub fn is_empty(&self) -> bool {
        self.dict.is_empty()
    }

    /// Sets the key at `path` when there is a value.
    #[must_use]
    pub fn set_given(self, path: &str, value: Option<impl Serialize>) -> Self {
        match value {
            Some(value) => self.set(path, value),
            None => self,
        }
    }
}

/// Where configuration comes from, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// What a role sets apart from the common defaults.
    pub role: Values,
    pub file: Option<PathBuf>,
    /// Variables by name; those that do not start with `KVLENS_` are ignored.
    pub environment: Vec<(String, String)>,
    pub flags: Values,
}

impl Sources {
    /// The sources of this process: the file named by `--config` or else by `KVLENS_CONFIG`, and
    /// the process's environment.
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let named = || std::env::var_os(layer::FILE_VARIABLE).map(PathBuf::from);
        Self {
            file: file.or_else(named),
            environment: layer::process_environment(),
            ..Self::default()
        }
    }

    /// Where most of it comes from, in words.
    pub fn place(&self) -> String {
        match &self.file {
            Some(path) => format!("file {}", path.display()),
            None => format!(
                "the configuration: neither --config nor {} names a file",
                layer::FILE_VARIABLE
            ),
        }
    }
}

impl Config {
    /// Reads all sources and checks the result, values against each other included.
    ///
    /// # Errors
    /// Every problem found, not only the first: each names the key and where it was set.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let keys = schema::keys();
        let mut problems = Vec::new();
        let figment = layers(sources, &keys, &mut problems)
            .into_iter()
            .fold(Figment::new(), Figment::merge);
        let config = match figment.extract::<Self>() {
            Ok(config) => {
                problems.extend(out_of_range(&config, &figment, &keys));
                problems.extend(config.contradictions(&figment));
                config
            }
            Err(error) => {
                problems.extend(error.into_iter().map(|e| value_problem(&e)));
                Self::default()
            }
        };
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { problems })
        }
    }

    /// Values that are each legal but cannot hold together.
    fn contradictions(&self, figment: &Figment) -> Vec<Problem> {
        let rows = self
            .across_tables()
            .into_iter()
            .chain(self.etcd.contradictions());
        let rows = rows.chain(self.nats.contradictions());
        let rows = rows.chain(self.media.contradictions());
        let keys = schema::keys();
        let problem = |text: &'static str| Problem::Contradiction {
            text,
            places: places(text, &keys, figment),
        };
        let wrong = rows.filter(|(wrong, _)| *wrong);
        let wrong = wrong.map(|(_, text)| problem(text));
        let on_host = self.wrong_on_host().into_iter().chain(self.gpu.wrong());
        let on_host = on_host.map(|(key, text)| Problem::OnHost {
            text,
            place: place(&key, figment),
        });
        wrong.chain(on_host).collect()
    }

    /// What cannot hold together in values of several tables, and whether it is so.
    fn across_tables(&self) -> Vec<(bool, &'static str)> {
        let limits = &self.frontend.limits;
        let rows = [
            (
                self.frontend.admin_port() == Some(self.frontend.port)
                    && self.frontend.port != 0
                    && self.frontend.admin_host == self.frontend.host,
                "frontend.admin_port is frontend.port: the two listeners need two addresses",
            ),
            (
                self.frontend.admin_port().is_none(),
                "frontend.admin_port is unset and frontend.port is 65535: no port follows it",
            ),
            (
                limits.body_bytes_max > limits.bodies_in_flight_bytes_max,
                "frontend.limits.body_bytes_max is above frontend.limits.bodies_in_flight_bytes_max: \
                 the largest body would never be admitted",
            ),
            (
                self.frontend.hand_over
                    && self
                        .media
                        .http_listen
                        .is_some_and(|address| address.port() != 0),
                "frontend.hand_over is true and media.http_listen has a port of its own: a frontend \
                 that takes over could not have it too; give it port 0",
            ),
            (
                self.worker.is_open(),
                "worker.listen is reachable from other hosts and worker.key_file is unset: anybody \
                 there could take the worker out; name a key file (--key-file) or listen on 127.0.0.1",
            ),
            (
                self.frontend.router == RouterPlace::Remote && !self.nats.is_used(),
                "frontend.router is remote and nats.servers is unset: no router could be asked",
            ),
            (
                self.dispatch.request_plane == RequestPlane::Nats && !self.nats.is_used(),
                "dispatch.request_plane is nats and nats.servers is unset: no engine could be asked",
            ),
            (
                self.dispatch.request_plane == RequestPlane::Nats
                    && self
                        .media
                        .http_url
                        .as_deref()
                        .is_some_and(|url| url.starts_with("https")),
                "dispatch.request_plane is nats and media.http_url is https: engines' gates fetch over \
                 plain HTTP alone",
            ),
            (
                self.router.bad_preference().is_some(),
                "router.preferred_labels has an entry that is not label=weight",
            ),
            (
                self.router.mode == RouterMode::Direct && !self.router.allow_overrides,
                "router.mode is direct and router.allow_overrides is false: no request could name \
                 its worker",
            ),
            (
                self.router.mode != RouterMode::Kv && self.router.temperature > 0.0,
                "router.temperature is above 0 and router.mode is not kv: nothing would use it",
            ),
            (
                self.engine.backoff_first() > self.engine.backoff_max(),
                "engine.backoff_first_millis is above engine.backoff_max_secs",
            ),
        ];
        rows.into()
    }
}

/// The layers, lowest first, without the keys nobody knows: those go to `problems`.
fn layers(sources: &Sources, keys: &[Key], problems: &mut Vec<Problem>) -> Vec<Layer> {
    let mut layers = vec![Layer::new("the role's defaults", sources.role.dict.clone())];
    if let Some(path) = &sources.file {
        match layer::file(path) {
            Ok(layer) => layers.push(layer),
            Err(problem) => problems.push(problem),
        }
    }
    for (name, text) in &sources.environment {
        match layer::variable(name, text, keys) {
            Ok(layer) => layers.extend(layer),
            Err(problem) => problems.push(problem),
        }
    }
    layers.push(Layer::new("the flags", sources.flags.dict.clone()));
    for layer in &mut layers {
        problems.extend(layer.remove_unknown(keys));
    }
    layers
}

/// Where each key that a text names was set; keys at their defaults are left out.
fn places(text: &str, keys: &[Key], figment: &Figment) -> String {
    let words: Vec<_> = text
        .split(|c: char| !(c.is_alphanumeric() || "._".contains(c)))
        .collect();
    let named = keys.iter().map(Key::dotted);
    let named = named.filter(|key| words.contains(&key.as_str()));
    let set = named.filter_map(|key| {
        let place = figment.find_metadata(&key)?.name.to_string();
        Some(format!("{key} in {place}"))
    });
    set.collect::<Vec<_>>().join(", ")
}

/// Where a key, or the table it would be in, was set.
fn place(key: &str, figment: &Figment) -> String {
    let table = key.rsplit_once('.').map_or(key, |(table, _)| table);
    let found = figment
        .find_metadata(key)
        .or_else(|| figment.find_metadata(table));
    found.map_or_else(|| "the defaults".into(), |found| found.name.to_string())
}

fn value_problem(error: &figment::Error) -> Problem {
    let text = error.to_string().replace('\n', " ");
    Problem::Value { text }
}

/// Values outside the bounds that the schema states.
fn out_of_range(config: &Config, figment: &Figment, keys: &[Key]) -> Vec<Problem> {
    let Ok(values) = serde_json::to_value(config) else {
        return Vec::new();
    };
    let number = |key: &Key, dotted: &str, value: &serde_json::Value| {
        // JSON has no form for a number that is infinite or none.
        let as_given = || figment.extract_inner(dotted).ok();
        value.as_f64().or_else(|| match key.kind {
            Kind::Number => as_given(),
            _ => None,
        })
    };
    let problem = |key: &Key, dotted: String, value: f64| Problem::OutOfRange {
        value,
        place: place(&dotted, figment),
        bounds: match value.is_finite() {
            true => key.bounds(),
            false => format!("finite and {}", key.bounds()),
        },
        key: dotted,
    };
    let mut problems = Vec::new();
    for key in keys {
        for (dotted, value) in key.found_in(&values) {
            let value = number(key, &dotted, value);
            let value = value.filter(|value| !key.admits(*value));
            problems.extend(value.map(|value| problem(key, dotted, value)));
        }
    }
    problems
}
