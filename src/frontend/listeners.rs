//! The listeners of a frontend, two for others and one for engines: how they are taken over, settle and drain.

use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::frontend::{FrontendConfig, LimitsConfig};
use crate::config::media::MediaConfig;
use crate::frontend::Frontend;
use crate::frontend::held::Held;
use crate::http::lent::{self, Loans};
use crate::http::listener::{Listener, bind, bind_shared, hold, is_anothers, is_taken, listen};
use crate::http::serve::{Stop, serve};
use crate::http::{Limits, Routes};
use crate::lifecycle::sockets::{self, SocketError};
use crate::lifecycle::tasks::{TaskEnd, Tasks};

/// How often a frontend that is to take over looks whether it can.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Between a frontend's first worker and its first request: its other workers' agents, asked at the same
/// time, have answered too by then, and the first one is not sent all there is.
const JOIN: Duration = Duration::from_millis(500);

const PUBLIC: &str = "the public listener";
const ADMIN: &str = "the admin listener";
const PRIVATE: &str = "the private listener";
const ADMIN_PORT: &str = "--port (the admin listener takes the next one) or frontend.admin_port";

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{what} cannot listen on {address}; choose another port with {remedy}")]
    Bind {
        what: &'static str,
        address: SocketAddr,
        remedy: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("systemd's socket for {what} cannot be used")]
    Held {
        what: &'static str,
        source: io::Error,
    },
}

impl ListenError {
    /// Whether it would fail again however often it is started.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Bind { source, .. } => is_anothers(source),
            Self::Socket(_) | Self::Held { .. } => true,
        }
    }
}

/// Where the two listeners are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// The listeners, bound before anything is started, so that a taken port stops nothing.
#[derive(Debug)]
pub struct Listeners {
    public: Bound,
    admin: Bound,
    pub addresses: Addresses,
    /// Another process may have the same two.
    is_shared: bool,
    /// From which engines fetch.
    private: Option<(TcpListener, Loans)>,
}

impl Listeners {
    /// Takes those that systemd hands over, and binds the others.
    ///
    /// # Errors
    /// When an address is taken or not ours.
    pub async fn bind(config: &FrontendConfig, media: &MediaConfig) -> Result<Self, ListenError> {
        let held = Held::sort(sockets::take()?)?;
        // A free port is nobody else's, and the one after it may be anybody's.
        let is_shared = config.hand_over && config.port != 0 && held.public.is_none();
        let public = match held.public {
            Some(socket) => taken_over(PUBLIC, config.address(), socket)?,
            None => {
                take(
                    PUBLIC,
                    config.address(),
                    (is_shared, "frontend.port (--port)"),
                )
                .await?
            }
        };
        let public_address = public.address().unwrap_or(config.address());
        if !public_address.ip().is_loopback() && config.key_file.is_none() {
            let host = public_address.ip();
            warn!(%host, "other hosts may ask without a key, frontend.key_file asks for one");
        }
        // A free public port still has the admin listener on the next one, where that is free too.
        let next = SocketAddr::new(config.admin_host, public_address.port().wrapping_add(1));
        let own = take(ADMIN, config.admin_address(), (is_shared, ADMIN_PORT));
        let admin = match (held.admin, config.admin_port, config.port) {
            (Some(socket), ..) => taken_over(ADMIN, config.admin_address(), socket)?,
            (None, None, 0) => match bind(next).await {
                Ok(listener) => Bound::Listening(listener.into()),
                Err(_) => own.await?,
            },
            _ => own.await?,
        };
        let admin_address = admin.address().unwrap_or(config.admin_address());
        let addresses = Addresses {
            public: public_address,
            admin: admin_address,
        };
        Ok(Self {
            public,
            admin,
            addresses,
            is_shared,
            private: private(media).await?,
        })
    }

    /// Whether new connections wait in systemd's socket while no process takes them.
    pub fn is_held(&self) -> bool {
        matches!(self.public, Bound::Listening(Listener::Held(_)))
    }

    /// What engines may fetch from here; `None` where there is no listener for them.
    pub fn loans(&self) -> Option<Loans> {
        self.private.as_ref().map(|(_, loans)| loans.clone())
    }

    /// Serves on all until told to stop, until the public one has settled, and until the last request has
    /// ended. Where another process has the two, they are taken over once there are workers.
    pub fn serve(
        self,
        frontend: &Arc<Frontend>,
        admin: Routes,
        limits: &LimitsConfig,
        ending: &Ending,
    ) -> Tasks {
        let limits = Limits::from(limits);
        let is_held = self.is_held();
        let mut listeners = Tasks::default();
        let public_stop = Stop {
            settle: ending.settling.clone(),
            ..Stop::new()
        };
        let admin_stop = Stop::new();
        let drained = CancellationToken::new();
        if let Some((listener, loans)) = self.private {
            let routes = loans.routes();
            let private = serve(listener, routes, lent::limits(), drained.clone());
            listeners.spawn(PRIVATE, private);
        }
        let public = self.public.serve(
            (frontend.clone(), frontend.listening.clone()),
            frontend.routes(),
            limits.clone(),
            public_stop.clone(),
        );
        let admin = self.admin.serve(
            (frontend.clone(), CancellationToken::new()),
            admin,
            limits,
            admin_stop.clone(),
        );
        let (ending, is_shared) = (ending.clone(), self.is_shared);
        listeners.spawn(PUBLIC, async move {
            let mut public = std::pin::pin!(public);
            let stopped = async {
                ending.stop.cancelled().await;
                if is_shared || is_held {
                    // However short it settles: who has connected is answered.
                    ending.settling.cancel();
                    admin_stop.settle.cancel();
                }
                if is_shared {
                    // Whoever asks there means the process that has taken over.
                    admin_stop.close.cancel();
                }
                ending.settle().await;
                public_stop.close.cancel();
            };
            tokio::select! {
                // It could not take over, and with it ends the frontend.
                () = public.as_mut() => {}
                () = stopped => public.await,
            }
            // Who watches a drain asks the admin listener how far it is.
            admin_stop.close.cancel();
            // What is in flight may be placed again until then, and its images fetched.
            drained.cancel();
        });
        listeners.spawn(ADMIN, admin);
        listeners
    }
}

fn taken_over(
    what: &'static str,
    configured: SocketAddr,
    socket: net::TcpListener,
) -> Result<Bound, ListenError> {
    let listener = hold(socket).map_err(|source| ListenError::Held { what, source })?;
    let address = listener.address().map(|address| address.to_string());
    info!(listener = what, address, "systemd's socket is served");
    if let Some(address) = listener.address().filter(|address| *address != configured) {
        warn!(listener = what, %address, %configured, "systemd's socket is not where the configuration says, `kvlens units install` moves it");
    }
    Ok(Bound::Listening(listener))
}

/// An address that is ours.
#[derive(Debug)]
enum Bound {
    Listening(Listener),
    /// Another process listens there, and answers until we can.
    Taken(SocketAddr, TcpSocket),
}

impl Bound {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Listening(listener) => listener.address(),
            Self::Taken(address, _) => Some(*address),
        }
    }

    /// Serves until `stop`, from when there are workers or nobody else is there; `listening` is then
    /// cancelled.
    async fn serve(
        self,
        (frontend, listening): (Arc<Frontend>, CancellationToken),
        routes: Routes,
        limits: Limits,
        stop: Stop,
    ) {
        let listener = match self {
            Self::Listening(listener) => listener,
            Self::Taken(address, socket) => {
                let ready = may_take_over(&frontend, address);
                if stop.close.run_until_cancelled(ready).await.is_none() {
                    return;
                }
                match listen(socket) {
                    Ok(listener) => listener.into(),
                    // The end of this task is the end of the frontend.
                    Err(error) => return error!(%address, %error, "cannot take over"),
                }
            }
        };
        listening.cancel();
        serve(listener, routes, limits, stop).await;
    }
}

/// Waits until a worker takes requests and others have had time to join, or nobody else listens.
async fn may_take_over(frontend: &Frontend, address: SocketAddr) {
    while is_taken(address) {
        if frontend.has_workers() {
            tokio::time::sleep(JOIN).await;
            info!(%address, "taking over");
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// When and how slowly a frontend ends.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The first stop signal.
    pub stop: CancellationToken,
    /// Cancelled once clients are sent elsewhere: the frontend is not ready any more.
    pub settling: CancellationToken,
    /// Time for which they are, before no more are taken.
    pub settle: Duration,
    /// Time for requests in flight to finish after that.
    pub drain: Duration,
}

impl Ending {
    /// The end of a frontend at `stop`, settling for so long.
    pub fn new(
        frontend: &Frontend,
        config: &FrontendConfig,
        settle: Duration,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            stop: stop.clone(),
            settling: frontend.settling.clone(),
            settle,
            drain: config.drain(),
        }
    }

    /// Lets clients and load balancers go elsewhere, for as long as it is to take.
    async fn settle(&self) {
        if self.settle.is_zero() {
            return;
        }
        info!(settle = ?self.settle, "settling: not ready any more, and still answering");
        self.settling.cancel();
        tokio::time::sleep(self.settle).await;
    }

    /// Waits until what [`Listeners::serve`] started has ended, its requests in flight with it; those
    /// that take longer than they have are cut.
    ///
    /// # Errors
    /// When a listener panicked.
    pub async fn drain(&self, serving: Tasks) -> Result<(), TaskEnd> {
        let longest = self.settle + self.drain;
        let drained = tokio::time::timeout(longest, serving.end()).await;
        drained.unwrap_or_else(|_| {
            warn!(waited = ?longest, "requests still in flight are cut");
            Ok(())
        })
    }
}

/// The listener from which engines fetch, where there is to be one. It is never shared: what is lent
/// here no other process has.
async fn private(media: &MediaConfig) -> Result<Option<(TcpListener, Loans)>, ListenError> {
    let Some(address) = media.http_listen else {
        return Ok(None);
    };
    let listener = bind(address).await.map_err(|source| ListenError::Bind {
        what: PRIVATE,
        address,
        remedy: "media.http_listen",
        source,
    })?;
    let address = listener.local_addr().unwrap_or(address);
    let origin = media.http_origin(address);
    info!(%address, origin, "engines may fetch what is lent to them");
    let loans = Loans::new(&origin, media.http_bytes_max);
    Ok(Some((listener, loans)))
}

async fn take(
    what: &'static str,
    address: SocketAddr,
    (shared, remedy): (bool, &'static str),
) -> Result<Bound, ListenError> {
    let bound = match shared {
        false => bind(address)
            .await
            .map(Listener::from)
            .map(Bound::Listening),
        true => take_shared(what, address),
    };
    bound.map_err(|source| ListenError::Bind {
        what,
        address,
        remedy,
        source,
    })
}

fn take_shared(listener: &'static str, address: SocketAddr) -> io::Result<Bound> {
    let is_taken = is_taken(address);
    let socket = bind_shared(address)?;
    if !is_taken {
        info!(%address, listener, "another frontend of this user may take over from here");
        return listen(socket).map(Listener::from).map(Bound::Listening);
    }
    // Meant or not, whoever started this is to hear of it.
    warn!(%address, listener, "another process listens here, from which this one takes over once it has workers");
    Ok(Bound::Taken(address, socket))
}
