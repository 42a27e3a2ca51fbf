//! `[workers.NAME]`: the workers of this host, an engine and an agent each, as units run them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::config::driver::DriverVersion;
use crate::id::WorkerId;

/// The gates' ports from here on: of a worker that names none it is this one and the number that the
/// worker's name ends in. So no worker's port depends on which others there are.
const GATE_PORT: u16 = 8100;

/// The agents' ports likewise.
const AGENT_PORT: u16 = 8200;

/// The largest such number: the agents' ports begin behind the gates'.
pub(crate) const NUMBER_MAX: u16 = 99;

/// Which program an engine is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The stand-in inside this binary; needs no GPU.
    Mock,
    /// `vllm serve`.
    #[default]
    Vllm,
    /// A command line of the user's.
    Command,
}

impl Kind {
    /// Its name, as `--engine` takes it and as workers are named after it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mock => "mock",
            Self::Vllm => "vllm",
            Self::Command => "command",
        }
    }
}

/// Where an engine's program comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// This host.
    #[default]
    Native,
    /// An image, run by podman.
    Podman,
}

/// One worker of this host: an engine and the agent beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceConfig {
    /// Which engine it runs.
    pub engine: Kind,
    /// Where the engine's program comes from.
    pub runtime: Runtime,
    /// The image that podman runs, best with its digest: `docker.io/vllm/vllm-openai@sha256:…`.
    pub image: Option<String>,
    /// Folder or name of the model to serve; unset, the mock serves the demo model. With podman a
    /// folder.
    pub model: Option<String>,
    /// The model's base name; unset, its folder's or its own.
    pub name: Option<String>,
    /// GPUs that the engine may see, best by their UUIDs; none of them leaves the choice to it.
    pub gpus: Vec<String>,
    /// The oldest NVIDIA driver that its engine is started with, as `engine.driver_min`; unset takes
    /// that.
    pub driver_min: Option<DriverVersion>,
    /// Data-parallel ranks of the engine.
    #[schemars(range(min = 1, max = 1024))]
    pub ranks: u16,
    /// Further arguments of the engine; of a `command` the whole command line, in which `{port}`,
    /// `{uds}`, `{model}` and so on are filled in.
    pub args: Vec<String>,
    /// Folder whose files the engine may read as images.
    pub media_dir: Option<PathBuf>,
    /// Address and port of the engine's gate; unset, 127.0.0.1 and 8100 plus the number, 0 to 99, that
    /// the worker's name ends in: 8113 for gpu-13. A name without one needs it set.
    pub listen: Option<SocketAddr>,
    /// File of the bearer keys of the gate, which it needs beyond loopback.
    pub key_file: Option<PathBuf>,
    /// Address and port of the agent's listener; unset, 127.0.0.1 and 8200 plus that number. Beyond
    /// loopback it needs `worker.key_file`.
    pub agent_listen: Option<SocketAddr>,
    /// Where other hosts reach the agent's listener, as `http://10.0.0.5:8200`; unset, as
    /// `agent_listen` says.
    pub agent_advertise: Option<String>,
    /// What routers may prefer the worker by, see `router.preferred_labels`.
    pub labels: Vec<String>,
}

impl Default for InstanceConfig {
    fn default() -> Self {
        Self {
            engine: Kind::default(),
            runtime: Runtime::default(),
            image: None,
            model: None,
            name: None,
            gpus: Vec::new(),
            driver_min: None,
            ranks: 1,
            args: Vec::new(),
            media_dir: None,
            listen: None,
            key_file: None,
            agent_listen: None,
            agent_advertise: None,
            labels: Vec::new(),
        }
    }
}

impl InstanceConfig {
    /// Where the gate of the worker of this name listens; `None` where neither of the two says it.
    pub(crate) fn gate(&self, name: &str) -> Option<SocketAddr> {
        self.listen.or_else(|| local(GATE_PORT, name))
    }

    /// Where its agent listens, likewise.
    pub(crate) fn agent(&self, name: &str) -> Option<SocketAddr> {
        self.agent_listen.or_else(|| local(AGENT_PORT, name))
    }
}

/// The port that the number at the end of a name gives.
fn local(first: u16, name: &str) -> Option<SocketAddr> {
    let is_digit = |c: char| c.is_ascii_digit();
    let digits = &name[name.trim_end_matches(is_digit).len()..];
    let number: u16 = digits.parse().ok()?;
    (number <= NUMBER_MAX).then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, first + number)))
}

/// A worker of this host with all that its name decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    pub worker: WorkerId,
    /// Where its gate listens.
    pub listen: SocketAddr,
    /// Where its agent listens.
    pub agent_listen: SocketAddr,
    pub config: InstanceConfig,
}

/// A name that the configuration has no worker of.
#[derive(Debug, thiserror::Error)]
#[error("there is no [workers.{name}] in {place}; {}", there_are(known))]
pub struct UnknownInstance {
    pub name: String,
    pub place: String,
    pub known: Vec<String>,
}

fn there_are(known: &[String]) -> String {
    match known {
        [] => "it has no [workers.NAME] at all".to_owned(),
        names => format!("its workers are {}", names.join(", ")),
    }
}

impl Config {
    /// The workers of this host, by name. One whose addresses nothing says is left out; a configuration
    /// with it is refused.
    pub fn instances(&self) -> Vec<Instance> {
        let instance = |(name, config): (&String, &InstanceConfig)| {
            Some(Instance {
                worker: WorkerId::new(name).ok()?,
                listen: config.gate(name)?,
                agent_listen: config.agent(name)?,
                config: config.clone(),
            })
        };
        self.workers.iter().filter_map(instance).collect()
    }

    /// The worker of this name. `place` says where it was looked for, as `file /etc/kvlens/kvlens.toml`.
    ///
    /// # Errors
    /// When there is none.
    pub fn instance(&self, name: &str, place: &str) -> Result<Instance, UnknownInstance> {
        let instances = self.instances();
        let known = || instances.iter().map(|found| found.worker.to_string());
        let known = known().collect();
        let found = instances
            .into_iter()
            .find(|one| one.worker.as_str() == name);
        found.ok_or_else(|| UnknownInstance {
            name: name.to_owned(),
            place: place.to_owned(),
            known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> Config {
        let workers = names
            .iter()
            .map(|name| ((*name).to_owned(), InstanceConfig::default()));
        Config {
            workers: workers.collect(),
            ..Config::default()
        }
    }

    #[test]
    fn ports_follow_the_number_of_the_name_alone() {
        let told = Some(SocketAddr::from(([10, 0, 0, 1], 9000)));
        for (name, told, gate, agent) in [
            ("gpu-0", None, "127.0.0.1:8100", "127.0.0.1:8200"),
            ("gpu-13", None, "127.0.0.1:8113", "127.0.0.1:8213"),
            ("gpu007", None, "127.0.0.1:8107", "127.0.0.1:8207"),
            ("99", None, "127.0.0.1:8199", "127.0.0.1:8299"),
            ("gpu-1", told, "10.0.0.1:9000", "127.0.0.1:8201"),
            ("gpu-100", told, "10.0.0.1:9000", ""),
            ("gpu-4294967297", None, "", ""),
            ("blue", None, "", ""),
            ("1-blue", None, "", ""),
        ] {
            let config = InstanceConfig {
                listen: told,
                ..InstanceConfig::default()
            };
            let shown = |address: Option<SocketAddr>| {
                let shown = address.map(|address| address.to_string());
                shown.unwrap_or_default()
            };
            assert_eq!(shown(config.gate(name)), gate, "{name}");
            assert_eq!(shown(config.agent(name)), agent, "{name}");
        }
        let all = config(&["gpu-3", "gpu-1"]).instances();
        let gates: Vec<_> = all.iter().map(|one| one.listen.port()).collect();
        assert_eq!(gates, [8101, 8103]);
    }

    #[test]
    fn an_unknown_name_is_told_with_those_that_are_there() {
        for (names, text) in [
            (
                &["gpu-1", "gpu-0"][..],
                "there is no [workers.gpu-9] in file k.toml; its workers are gpu-0, gpu-1",
            ),
            (
                &[],
                "there is no [workers.gpu-9] in file k.toml; it has no [workers.NAME] at all",
            ),
        ] {
            let error = config(names).instance("gpu-9", "file k.toml").unwrap_err();
            assert_eq!(error.to_string(), text);
        }
    }
}
