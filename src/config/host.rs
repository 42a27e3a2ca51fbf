//! What the workers and listeners of one host cannot have all at once, in sentences.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::config::Config;
use crate::config::instance::{InstanceConfig, Kind, Runtime};
use crate::config::units::Part;
use crate::id::{RouterId, WorkerId};

/// Where the shipped unit of etcd listens, on 127.0.0.1.
pub const ETCD_PORTS: [(&str, u16); 2] = [("clients", 2379), ("peers", 2380)];

/// Where the shipped unit of NATS listens, on 127.0.0.1.
pub const NATS_PORTS: [(&str, u16); 2] = [("clients", 4222), ("figures", 8222)];

/// A listener of this host, by the key that moves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub key: String,
    pub address: SocketAddr,
}

impl Config {
    /// The TCP listeners of all units of this host. Those of etcd and NATS are where the shipped units
    /// put them.
    pub fn listeners(&self) -> Vec<Listener> {
        let of = |key: &str, address| Listener {
            key: key.to_owned(),
            address,
        };
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut all = Vec::new();
        if self.units.has(Part::Control) {
            let ports = |of_whom, ports: [(&str, u16); 2]| {
                ports.map(|(what, port)| of(&format!("{of_whom} for {what}"), local(port)))
            };
            all.extend(ports("etcd", ETCD_PORTS));
            all.extend(ports("NATS", NATS_PORTS));
        }
        if self.units.has(Part::Router) {
            all.push(of("router.admin", self.router.admin));
        }
        if self.units.has(Part::Frontend) {
            all.push(of("frontend.port", self.frontend.address()));
            all.push(of("frontend.admin_port", self.frontend.admin_address()));
            let media = self.media.http_listen;
            all.extend(media.map(|address| of("media.http_listen", address)));
        }
        if self.units.has(Part::Inference) {
            for one in self.instances() {
                let name = &one.worker;
                all.push(of(&format!("workers.{name}.listen"), one.listen));
                let agent = format!("workers.{name}.agent_listen");
                all.push(of(&agent, one.agent_listen));
            }
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
            let faults = worker.faults();
            let faults = faults.filter(|(is_wrong, ..)| *is_wrong);
            wrong.extend(faults.map(|(_, field, text)| {
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
            wrong.extend(other.map(|other| {
                let (key, address) = (&one.key, one.address);
                let text = format!(
                    "{key} is {address}, and {} is {}: two listeners need two addresses",
                    other.key, other.address
                );
                (key.clone(), text)
            }));
        }
        wrong
    }
}

/// Whether two listeners cannot both be had. A free port (0) is nobody's.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let every = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (every || one.ip() == other.ip())
}

impl InstanceConfig {
    /// What cannot hold together in one worker: whether it is so, the key, and what is said of it.
    fn faults(&self) -> impl Iterator<Item = (bool, &'static str, &'static str)> {
        let in_podman = self.runtime == Runtime::Podman;
        let folder = |text: &String| Path::new(text).is_absolute();
        let open = |address: SocketAddr| !address.ip().is_loopback();
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
            (
                self.listen.is_some_and(open) && self.key_file.is_none(),
                "listen",
                "is reachable from other hosts and its key_file is unset: anybody there could ask \
                 the engine; name a key file or listen on 127.0.0.1",
            ),
        ]
        .into_iter()
    }
}
