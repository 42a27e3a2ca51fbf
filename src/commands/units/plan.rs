//! Which units a host runs, from its configuration alone.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::config::Config;
use crate::config::host::{ETCD_PORTS, NATS_PORTS};
use crate::config::instance::{Instance, Runtime};
use crate::config::units::Part;

/// Which units a host runs, in the order of their start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HostPlan {
    pub(crate) target: &'static str,
    pub(crate) units: Vec<Unit>,
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

/// What a unit is to kvlens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    Etcd,
    Nats,
    Router,
    Frontend,
    Engine,
    Worker,
}

impl HostPlan {
    pub(crate) fn new(config: &Config) -> Self {
        let local = |(what, port): (&'static str, u16)| {
            (what, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        };
        let (public, admin) = (
            ("public", config.frontend.address()),
            ("admin", config.frontend.admin_address()),
        );
        let mut units = Vec::new();
        if config.units.has(Part::Control) {
            units.push(unit(
                "kvlens-etcd.service",
                Role::Etcd,
                ETCD_PORTS.map(local),
            ));
            units.push(unit(
                "kvlens-nats.service",
                Role::Nats,
                NATS_PORTS.map(local),
            ));
        }
        if config.units.has(Part::Router) {
            let admin = [("admin", config.router.admin)];
            units.push(unit("kvlens-router.service", Role::Router, admin));
        }
        if config.units.has(Part::Frontend) {
            let role = Role::Frontend;
            units.push(unit("kvlens-frontend.socket", role, [public]));
            units.push(unit("kvlens-frontend-admin.socket", role, [admin]));
            let media = config.media.http_listen.map(|address| ("media", address));
            let listens = [public, admin].into_iter().chain(media);
            units.push(unit("kvlens-frontend.service", role, listens));
        }
        if config.units.has(Part::Inference) {
            units.extend(config.instances().iter().flat_map(of_instance));
        }
        Self {
            target: "kvlens.target",
            units,
        }
    }

    /// Units of which no more is known than their names.
    pub(crate) fn of_names(names: Vec<String>) -> Self {
        let roles = [
            ("kvlens-etcd", Role::Etcd),
            ("kvlens-nats", Role::Nats),
            ("kvlens-router", Role::Router),
            ("kvlens-engine", Role::Engine),
            ("kvlens-worker", Role::Worker),
        ];
        let known = |name: String| {
            let role = roles.iter().find(|(start, _)| name.starts_with(start));
            let role = role.map_or(Role::Frontend, |(_, role)| *role);
            unit(&name, role, [])
        };
        Self {
            target: "kvlens.target",
            units: names.into_iter().map(known).collect(),
        }
    }

    /// Whether it has a unit of this role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.units.iter().any(|unit| unit.role == role)
    }
}

fn unit(
    name: &str,
    role: Role,
    listens: impl IntoIterator<Item = (&'static str, SocketAddr)>,
) -> Unit {
    Unit {
        name: name.to_owned(),
        role,
        instance: None,
        gpus: Vec::new(),
        listens: listens.into_iter().collect(),
    }
}

/// The engine and the agent of a worker.
fn of_instance(one: &Instance) -> [Unit; 2] {
    let name = &one.worker;
    let engine = match one.config.runtime {
        Runtime::Native => format!("kvlens-engine@{name}.service"),
        Runtime::Podman => format!("kvlens-engine-podman@{name}.service"),
    };
    let agent = format!("kvlens-worker@{name}.service");
    let instance = Some(name.to_string());
    [
        Unit {
            instance: instance.clone(),
            gpus: one.config.gpus.clone(),
            ..unit(&engine, Role::Engine, [("gate", one.listen)])
        },
        Unit {
            instance,
            ..unit(&agent, Role::Worker, [("agent", one.agent_listen)])
        },
    ]
}
