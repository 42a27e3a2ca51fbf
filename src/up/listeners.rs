//! The two listeners of `kvlens up`.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::frontend::{FrontendConfig, LimitsConfig};
use crate::frontend::Frontend;
use crate::http::Limits;
use crate::http::serve::{bind, serve};
use crate::up::UpError;
use crate::up::setup::Addresses;
use crate::up::tasks::Tasks;
use crate::worker::reset;

const PUBLIC: &str = "the public listener";
const ADMIN: &str = "the admin listener";
const ADMIN_PORT: &str = "--port (the admin listener takes the next one) or frontend.admin_port";

/// The two listeners, bound before anything is started, so that a taken port stops nothing.
pub(crate) struct Listeners {
    public: TcpListener,
    admin: TcpListener,
    pub(crate) addresses: Addresses,
}

impl Listeners {
    pub(crate) async fn bind(config: &FrontendConfig) -> Result<Self, UpError> {
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
    pub(crate) fn serve(
        self,
        frontend: &Arc<Frontend>,
        agents: reset::Agents,
        limits: &LimitsConfig,
        stop: &CancellationToken,
    ) -> Tasks {
        let limits = Limits::from(limits);
        let mut listeners = Tasks::default();
        let drained = CancellationToken::new();
        let admin = serve(
            self.admin,
            agents.route(frontend.admin_routes()),
            limits.clone(),
            drained.clone(),
        );
        let public = serve(self.public, frontend.routes(), limits, stop.clone());
        // Who watches a drain asks the admin listener how far it is.
        listeners.spawn(PUBLIC, async move {
            public.await;
            drained.cancel();
        });
        listeners.spawn(ADMIN, admin);
        listeners
    }
}

async fn listen(
    what: &'static str,
    address: SocketAddr,
    remedy: &'static str,
) -> Result<TcpListener, UpError> {
    let bound = bind(address).await;
    bound.map_err(|source| UpError::Listen {
        what,
        address,
        remedy,
        source,
    })
}
