//! The ways in to one engine: its gate, the listener of the gate, and the bus.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bus::{Bus, BusError};
use crate::config::Config;
use crate::config::dispatch::RequestPlane;
use crate::engine::Spec;
use crate::engine::gate::Gate;
use crate::engine::requests::Requests;
use crate::http::Limits;
use crate::http::keys::Keys;
use crate::http::listener::bind;
use crate::http::serve::serve;

/// Why there is no way in.
#[derive(Debug, thiserror::Error)]
pub enum EntranceError {
    #[error(
        "the gate cannot listen on {address}; choose another with --listen, or listen of its table in \
         [workers]"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// A gate, and the ways to it.
#[derive(Debug)]
pub(super) struct Entrance {
    pub(super) gate: Arc<Gate>,
    listener: Option<(TcpListener, SocketAddr, Option<Keys>)>,
    requests: Option<Requests>,
}

impl Entrance {
    /// Opens the ways that are asked for; `None` where none is.
    pub(super) async fn open(
        address: Option<SocketAddr>,
        keys: Option<Keys>,
        spec: &Spec,
        config: &Config,
    ) -> Result<Option<Self>, EntranceError> {
        let is_on_bus = config.dispatch.request_plane == RequestPlane::Nats;
        if address.is_none() && !is_on_bus {
            return Ok(None);
        }
        let gate = Arc::new(Gate::new(spec.address.to_string()));
        let listener = match address {
            None => None,
            Some(address) => {
                let failed = |source| EntranceError::Listen { address, source };
                let listener = bind(address).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                info!(worker = %spec.worker, %address, "gate listens");
                Some((listener, address, keys))
            }
        };
        let requests = match is_on_bus {
            false => None,
            true => {
                if !config.nats.has_credentials() {
                    warn!(
                        "whoever reaches the NATS servers may ask this engine: they know no users"
                    );
                }
                let bus = Bus::connect(&config.nats, spec.worker.as_str()).await?;
                let to = (bus, spec.worker.clone());
                let limits = Limits::from(&config.frontend.limits);
                let networks = &config.discovery.networks;
                Some(Requests::new(gate.clone(), to, limits, networks))
            }
        };
        Ok(Some(Self {
            gate,
            listener,
            requests,
        }))
    }

    /// Where others reach the listener; `None` where there is none, and where it listens on all
    /// addresses and cannot tell which one.
    pub(super) fn public_address(&self) -> Option<String> {
        let (_, address, _) = self.listener.as_ref()?;
        let is_one = !address.ip().is_unspecified();
        is_one.then(|| format!("http://{address}"))
    }

    /// Lets requests in until `stop`.
    pub(super) fn serve(self, limits: &Limits, parts: &mut JoinSet<()>, stop: &CancellationToken) {
        if let Some((listener, _, keys)) = self.listener {
            let routes = self.gate.routes(keys);
            parts.spawn(serve(listener, routes, limits.clone(), stop.clone()));
        }
        if let Some(requests) = self.requests {
            parts.spawn(requests.run(stop.clone()));
        }
    }
}
