//! The two listeners of a frontend, and how they drain.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::frontend::{FrontendConfig, LimitsConfig};
use crate::http::serve::{bind, serve};
use crate::http::{Limits, Routes};
use crate::lifecycle::tasks::{TaskEnd, Tasks};

/// Time for requests in flight to finish after the first stop signal.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);

const PUBLIC: &str = "the public listener";
const ADMIN: &str = "the admin listener";
const ADMIN_PORT: &str = "--port (the admin listener takes the next one) or frontend.admin_port";

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot listen on {address}; choose another port with {remedy}")]
pub struct ListenError {
    what: &'static str,
    address: SocketAddr,
    remedy: &'static str,
    source: io::Error,
}

/// Where the two listeners are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// The two listeners, bound before anything is started, so that a taken port stops nothing.
#[derive(Debug)]
pub struct Listeners {
    public: TcpListener,
    admin: TcpListener,
    pub addresses: Addresses,
}

impl Listeners {
    /// Binds both.
    ///
    /// # Errors
    /// When an address is taken or not ours.
    pub async fn bind(config: &FrontendConfig) -> Result<Self, ListenError> {
        if !config.host.is_loopback() && config.key_file.is_none() {
            let host = config.host;
            tracing::warn!(%host, "other hosts may ask without a key, frontend.key_file asks for one");
        }
        let public = listen(PUBLIC, config.address(), "--port").await?;
        let public_address = public.local_addr().unwrap_or(config.address());
        // A free public port still has the admin listener on the next one, where that is free too.
        let next = SocketAddr::new(config.admin_host, public_address.port().wrapping_add(1));
        let admin = match (config.admin_port, config.port) {
            (None, 0) => match bind(next).await {
                Ok(listener) => listener,
                Err(_) => listen(ADMIN, config.admin_address(), ADMIN_PORT).await?,
            },
            _ => listen(ADMIN, config.admin_address(), ADMIN_PORT).await?,
        };
        let admin_address = admin.local_addr().unwrap_or(config.admin_address());
        let addresses = Addresses {
            public: public_address,
            admin: admin_address,
        };
        Ok(Self {
            public,
            admin,
            addresses,
        })
    }

    /// Serves on both until `stop` and until the last request has ended; the admin listener until
    /// the public one has drained.
    pub fn serve(
        self,
        public: Routes,
        admin: Routes,
        limits: &LimitsConfig,
        stop: &CancellationToken,
    ) -> Tasks {
        let limits = Limits::from(limits);
        let mut listeners = Tasks::default();
        let drained = CancellationToken::new();
        let admin = serve(self.admin, admin, limits.clone(), drained.clone());
        let public = serve(self.public, public, limits, stop.clone());
        // Who watches a drain asks the admin listener how far it is.
        listeners.spawn(PUBLIC, async move {
            public.await;
            drained.cancel();
        });
        listeners.spawn(ADMIN, admin);
        listeners
    }
}

/// Waits until what [`Listeners::serve`] started has ended, its requests in flight with it; those
/// that take longer than [`DRAIN_MAX`] are cut.
///
/// # Errors
/// When a listener panicked.
pub async fn drain(serving: Tasks) -> Result<(), TaskEnd> {
    let drained = tokio::time::timeout(DRAIN_MAX, serving.end()).await;
    drained.unwrap_or_else(|_| {
        tracing::warn!(waited = ?DRAIN_MAX, "requests still in flight are cut");
        Ok(())
    })
}

async fn listen(
    what: &'static str,
    address: SocketAddr,
    remedy: &'static str,
) -> Result<TcpListener, ListenError> {
    let bound = bind(address).await;
    bound.map_err(|source| ListenError {
        what,
        address,
        remedy,
        source,
    })
}
