//! What the workers and listeners of one host cannot have all at once, in sentences.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::config::Config;
use crate::config::instance::{Instance, InstanceConfig, Kind, NUMBER_MAX, Runtime};
use crate::config::units::{Part, Role};
use crate::config::worker::WorkerConfig;
use crate::id::{RouterId, WorkerId};

/// Where the shipped units of etcd and NATS listen, on 127.0.0.1: whose, what for, in words, the port.
const CONTROL: [(Role, &str, &str, u16); 4] = [
    (Role::Etcd, "clients", "etcd for clients", 2379),
    (Role::Etcd, "peers", "etcd for peers", 2380),
    (Role::Nats, "clients", "NATS for clients", 4222),
    (Role::Nats, "figures", "NATS for figures", 8222),
];

/// A listener of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub role: Role,
    /// Whose engine's or agent's it is.
    pub worker: Option<WorkerId>,
    /// What for, as `clients`.
    pub purpose: &'static str,
    /// The key that moves it; words for one that no key moves.
    pub key: String,
    pub address: SocketAddr,
    /// Whether its port is from its worker's name.
    is_from_name: bool,
}

impl Listener {
    fn new(role: Role, purpose: &'static str, key: &str, address: SocketAddr) -> Self {
        Self {
            role,
            worker: None,
            purpose,
            key: key.to_owned(),
            address,
            is_from_name: false,
        }
    }

    /// Those of a worker: its engine's gate and its agent's.
    fn of_worker(one: &Instance) -> [Self; 2] {
        let name = &one.worker;
        let key = |field: &str| format!("workers.{name}.{field}");
        let (listen, agent_listen) = (key("listen"), key("agent_listen"));
        [
            Self {
                worker: Some(name.clone()),
                is_from_name: one.config.listen.is_none(),
                ..Self::new(Role::Engine, "gate", &listen, one.listen)
            },
            Self {
                worker: Some(name.clone()),
                is_from_name: one.config.agent_listen.is_none(),
                ..Self::new(Role::Worker, "agent", &agent_listen, one.agent_listen)
            },
        ]
    }

    /// Why both cannot be had.
    fn clash(&self, other: &Self) -> String {
        let (key, address) = (&self.key, self.address);
        if self.is_from_name && other.is_from_name {
            return format!(
                "{} and {key} are both {address}, after the number at the end of the names: set one of \
                 them",
                other.key
            );
        }
        format!(
            "{key} is {address}, and {} is {}: two listeners need two addresses",
            other.key, other.address
        )
    }
}

impl Config {
    /// The TCP listeners of all units of this host. Those of etcd and NATS are where the shipped units
    /// put them.
    pub fn listeners(&self) -> Vec<Listener> {
        let mut all = Vec::new();
        if self.units.has(Part::Control) {
            all.extend(CONTROL.map(|(role, purpose, key, port)| {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                Listener::new(role, purpose, key, address)
            }));
        }
        if self.units.has(Part::Router) {
            let (key, address) = ("router.admin", self.router.admin);
            all.push(Listener::new(Role::Router, "admin", key, address));
        }
        if self.units.has(Part::Frontend) {
            let (public, admin) = (self.frontend.address(), self.frontend.admin_address());
            let media = self.media.http_listen;
            let rows = [
                ("public", "frontend.port", Some(public)),
                ("admin", "frontend.admin_port", Some(admin)),
                ("media", "media.http_listen", media),
            ];
            all.extend(rows.into_iter().filter_map(|(purpose, key, address)| {
                Some(Listener::new(Role::Frontend, purpose, key, address?))
            }));
        }
        if self.units.has(Part::Inference) {
            all.extend(self.instances().iter().flat_map(Listener::of_worker));
        }
        all
    }

    /// What is wrong with `[units]` and `[workers.NAME]`: the key to look at, and the sentence.
    pub(crate) fn wrong_on_host(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        for (name, worker) in &self.workers {
            let key = format!("workers.{name}");
            if WorkerId::new(name).is_err() {
                let text = "its name must be 1 to 63 of a-z, 0-9 and -";
                wrong.push((key.clone(), format!("[{key}]: {text}")));
            }
            let faults = worker.faults().into_iter();
            let faults = faults.chain(worker.listener_faults(&self.worker));
            let faults = faults.filter(|(is_wrong, ..)| *is_wrong);
            let faults = faults.map(|(_, field, text)| (field, text.to_owned()));
            let told = faults.chain(worker.without_port(name));
            wrong.extend(told.map(|(field, text)| {
                let key = format!("{key}.{field}");
                let sentence = format!("{key} {text}");
                (key, sentence)
            }));
        }
        wrong.extend(self.shared_gpus());
        // Only where units of workers are planned: else the listeners are nobody's to clash.
        if !self.workers.is_empty() {
            wrong.extend(self.clashes());
        }
        let router = self.units.router.as_deref();
        if router.is_some_and(|name| RouterId::new(name).is_err()) {
            let text = "units.router must be 1 to 63 of a-z, 0-9 and -";
            wrong.push(("units.router".to_owned(), text.to_owned()));
        }
        wrong
    }

    fn shared_gpus(&self) -> Vec<(String, String)> {
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (name, worker) in &self.workers {
            for gpu in &worker.gpus {
                if let Some(other) = owners.insert(gpu, name) {
                    let key = format!("workers.{name}.gpus");
                    let text = format!(
                        "workers.{other}.gpus and {key} both have {gpu}: each engine takes its GPU's \
                         memory for itself"
                    );
                    wrong.push((key, text));
                }
            }
        }
        wrong
    }

    fn clashes(&self) -> Vec<(String, String)> {
        let listeners = self.listeners();
        let mut wrong = Vec::new();
        for (place, one) in listeners.iter().enumerate() {
            let other = listeners[..place].iter();
            let other = other.rev().find(|other| clash(one.address, other.address));
            wrong.extend(other.map(|other| (one.key.clone(), one.clash(other))));
        }
        wrong
    }
}

/// Whether two listeners cannot both be had. A free port (0) is nobody's.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let every = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (every || one.ip() == other.ip())
}

/// Whether it is so, the key, and what is said of it.
type Fault = (bool, &'static str, &'static str);

impl InstanceConfig {
    /// What cannot hold together in one worker.
    fn faults(&self) -> [Fault; 6] {
        let in_podman = self.runtime == Runtime::Podman;
        let folder = |text: &String| Path::new(text).is_absolute();
        [
            (
                in_podman && self.image.is_none(),
                "image",
                "is unset and its runtime is podman: name the image that podman runs",
            ),
            (
                !in_podman && self.image.is_some(),
                "image",
                "is set and its runtime is native: nothing would use it",
            ),
            (
                in_podman && self.engine == Kind::Mock,
                "runtime",
                "is podman and its engine is mock, which is in no image: take native",
            ),
            (
                in_podman && !self.model.as_ref().is_none_or(folder),
                "model",
                "is no absolute path and its runtime is podman, which is shown folders alone",
            ),
            (
                self.engine == Kind::Vllm && self.model.is_none(),
                "model",
                "is unset and its engine is vllm: name the model's folder",
            ),
            (
                self.engine == Kind::Command && self.args.is_empty(),
                "args",
                "is empty and its engine is command: put the command line there",
            ),
        ]
    }

    /// Where a worker cannot listen; `agent` is what agents here have in common.
    fn listener_faults(&self, agent: &WorkerConfig) -> [Fault; 4] {
        let is_open = |listen: Option<SocketAddr>| listen.is_some_and(|at| !at.ip().is_loopback());
        let is_every =
            |listen: Option<SocketAddr>| listen.is_some_and(|at| at.ip().is_unspecified());
        let is_told = self.agent_advertise.is_some() || agent.advertise.is_some();
        [
            (
                is_open(self.listen) && self.key_file.is_none(),
                "listen",
                "is reachable from other hosts and its key_file is unset: anybody there could ask \
                 the engine; name a key file or listen on 127.0.0.1",
            ),
            (
                is_every(self.listen),
                "listen",
                "is every address of this host, so that nobody can be told which: name one",
            ),
            (
                is_open(self.agent_listen) && agent.key_file.is_none(),
                "agent_listen",
                "is reachable from other hosts and worker.key_file is unset: anybody there could take \
                 the worker out; name a key file or listen on 127.0.0.1",
            ),
            (
                is_every(self.agent_listen) && !is_told,
                "agent_listen",
                "is every address of this host, so that nobody can be told which: name one, or say with \
                 agent_advertise where others reach it",
            ),
        ]
    }

    /// The listeners of the worker of this name whose ports nothing says.
    fn without_port(&self, name: &str) -> impl Iterator<Item = (&'static str, String)> {
        let text = format!(
            "is unset, and the name does not end in a number of 0 to {NUMBER_MAX}, which would give its \
             port: set it"
        );
        let rows = [
            ("listen", self.gate(name)),
            ("agent_listen", self.agent(name)),
        ];
        let unset = rows.into_iter().filter(|(_, address)| address.is_none());
        unset.map(move |(field, _)| (field, text.clone()))
    }
}
