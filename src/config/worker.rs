//! `[worker]`: the agent beside one engine, where it runs as a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::select::Device;

/// The agent beside one engine, where it runs as a process of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Address and port that the agent's listener binds: its feed for routers, its metrics and its
    /// commands. Beyond loopback it needs `worker.key_file`.
    pub listen: SocketAddr,
    /// Where other hosts reach that listener, as `http://10.0.0.5:8200`; unset, as `listen` says.
    pub advertise: Option<String>,
    /// File of the bearer keys that the listener takes, one a line (`name:key` or `key`), not
    /// readable for everybody; unset takes none.
    pub key_file: Option<PathBuf>,
    /// Folder of the agent's own, made where it is missing, in which it keeps across its restarts what
    /// it knows of its engine's cache; unset takes `agent-<worker>` beside the engine's folder.
    pub state_dir: Option<PathBuf>,
    /// What the engine computes on.
    pub device: Device,
    /// What routers may prefer the worker by, see `router.preferred_labels`.
    pub labels: Vec<String>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8200)),
            advertise: None,
            key_file: None,
            state_dir: None,
            device: Device::default(),
            labels: Vec::new(),
        }
    }
}

impl WorkerConfig {
    /// Where others reach the listener that is bound at `address`; `None` where nobody told and it is
    /// bound to every address of the host.
    pub(crate) fn reached_at(&self, address: SocketAddr) -> Option<String> {
        let told = self.advertise.as_deref();
        let told = told.map(|url| url.trim_end_matches('/').to_owned());
        told.or_else(|| (!address.ip().is_unspecified()).then(|| format!("http://{address}")))
    }

    /// Whether other hosts could reach the listener without a key.
    pub(crate) fn is_open(&self) -> bool {
        !self.listen.ip().is_loopback() && self.key_file.is_none()
    }
}
