//! Which units a host runs, from its configuration alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::config::Config;
use crate::config::host::Listener;
use crate::config::instance::{Instance, Runtime};
use crate::config::units::{Part, Role};
use crate::id::WorkerId;

/// Which units a host runs, in the order of their start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HostPlan {
    pub(crate) target: &'static str,
    pub(crate) units: Vec<Unit>,
    /// Whether workers are named that the host's roles do not run.
    #[serde(skip)]
    pub(crate) is_inference_missing: bool,
}

/// One unit of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The worker of `[workers.NAME]` that it belongs to.
    pub(crate) instance: Option<String>,
    /// GPUs that it has; none leaves an engine the choice.
    pub(crate) gpus: Vec<String>,
    /// Where it listens, by what for.
    pub(crate) listens: BTreeMap<&'static str, SocketAddr>,
}

impl HostPlan {
    pub(crate) fn new(config: &Config) -> Self {
        let listeners = config.listeners();
        let unit = |name: &str, role| unit(&listeners, name, (role, None));
        let socket = |name: &str, purpose| {
            let mut socket = unit(name, Role::Frontend);
            socket.listens.retain(|found, _| *found == purpose);
            socket
        };
        let mut units = Vec::new();
        if config.units.has(Part::Control) {
            units.push(unit("kvlens-etcd.service", Role::Etcd));
            units.push(unit("kvlens-nats.service", Role::Nats));
        }
        if config.units.has(Part::Router) {
            units.push(unit("kvlens-router.service", Role::Router));
        }
        if config.units.has(Part::Frontend) {
            units.push(socket("kvlens-frontend.socket", "public"));
            units.push(socket("kvlens-frontend-admin.socket", "admin"));
            units.push(unit("kvlens-frontend.service", Role::Frontend));
        }
        let is_inference = config.units.has(Part::Inference);
        if is_inference {
            let instances = config.instances();
            let of_instance = |one| of_instance(&listeners, one);
            units.extend(instances.iter().flat_map(of_instance));
        }
        Self {
            target: "kvlens.target",
            units,
            is_inference_missing: !is_inference && !config.workers.is_empty(),
        }
    }

    /// Whether it has a unit of this role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.units.iter().any(|unit| unit.role == role)
    }

    /// Whether it has a unit of this name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.units.iter().any(|unit| unit.name == name)
    }
}

/// The unit of a role, a worker's where there is one, with its listeners.
fn unit(listeners: &[Listener], name: &str, (role, worker): (Role, Option<&WorkerId>)) -> Unit {
    let own = |one: &&Listener| one.role == role && one.worker.as_ref() == worker;
    let own = listeners.iter().filter(own);
    Unit {
        name: name.to_owned(),
        role,
        instance: worker.map(ToString::to_string),
        gpus: Vec::new(),
        listens: own.map(|one| (one.purpose, one.address)).collect(),
    }
}

/// The engine and the agent of a worker.
fn of_instance(listeners: &[Listener], one: &Instance) -> [Unit; 2] {
    let name = &one.worker;
    let engine = match one.config.runtime {
        Runtime::Native => format!("kvlens-engine@{name}.service"),
        Runtime::Podman => format!("kvlens-engine-podman@{name}.service"),
    };
    let agent = format!("kvlens-worker@{name}.service");
    [
        Unit {
            gpus: one.config.gpus.clone(),
            ..unit(listeners, &engine, (Role::Engine, Some(name)))
        },
        unit(listeners, &agent, (Role::Worker, Some(name))),
    ]
}
