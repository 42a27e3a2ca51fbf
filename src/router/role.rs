//! `kvlens router`: a router in a process of its own, asked by frontends over NATS.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use clap::ValueHint;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::bus::{Bus, BusError};
use crate::config::dispatch::RequestPlane;
use crate::config::frontend::LimitsConfig;
use crate::config::{Config, Values};
use crate::discovery::flags::PlaneFlags;
use crate::discovery::gpus::{self, GPUS_PATH};
use crate::discovery::plane::{PlaneState, Planes};
use crate::dispatch::EngineClient;
use crate::http::keys::{KeyFileError, first_key};
use crate::http::listener::{bind, is_anothers};
use crate::http::reply::Reply;
use crate::http::serve::{panics_total, serve};
use crate::http::{Answer, Call, Limits, Routes};
use crate::id::{InvalidRouterId, RouterId};
use crate::lifecycle::notify;
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::lifecycle::watchdog::Watchdog;
use crate::openai::error::{ApiError, ErrorKind};
use crate::router::Router;
use crate::router::answers::Answers;
use crate::router::feed::Feeds;
use crate::router::members::{self, BadSources, Sources};
use crate::router::own::OwnQuestion;
use crate::router::rules::Rules;
use crate::router::sharing;
use crate::telemetry::metrics::{self, Metrics};

/// Longest wait until it answers over the bus: NATS that is away holds up nobody who starts behind this
/// router.
const BUS_MAX: Duration = Duration::from_secs(3);

/// Longest wait for a first worker: to list and to hear those who are there takes some tenths of a second.
const FIRST_MAX: Duration = Duration::from_secs(1);

/// Between two looks for it.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Beyond the longest wait of a request: its answer is on its way.
const END_MAX: Duration = Duration::from_secs(1);

/// Chooses workers for frontends in other processes, which ask over NATS.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the router: 1 to 63 of a-z, 0-9 and -; unless told, as units.router or the host has it.
    /// Frontends ask the first by name that is there
    #[arg(long, value_parser = RouterId::new)]
    id: Option<RouterId>,
    #[command(flatten)]
    planes: PlaneFlags,
    /// What carries requests to engines, and so the question whether one is well: connections to
    /// each, or NATS
    #[arg(long)]
    request_plane: Option<RequestPlane>,
    /// Listener of a worker's agent, as http://127.0.0.1:8200; may be repeated
    #[arg(long, value_name = "URL")]
    worker_url: Vec<String>,
    /// File whose first bearer key is shown to the agents and to their engines' gates
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    worker_key_file: Option<PathBuf>,
    /// Address and port of the admin listener: metrics, workers
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
}

impl Args {
    /// The configuration that was given as flags.
    pub fn flags(&self) -> Values {
        let workers = (!self.worker_url.is_empty()).then_some(&self.worker_url);
        self.planes
            .values(Values::default())
            .set_given("dispatch.request_plane", self.request_plane)
            .set_given("discovery.workers", workers)
            .set_given("discovery.key_file", self.worker_key_file.as_ref())
            .set_given("router.admin", self.admin)
    }
}

/// Whom to follow and to answer, checked.
#[derive(Debug)]
pub struct Plan {
    id: RouterId,
    sources: Sources,
    client: EngineClient,
}

/// Why a router cannot be started so.
#[derive(Debug, thiserror::Error)]
pub enum BadPlan {
    #[error("no NATS server is named, over which frontends could ask; name one with --nats")]
    NoBus,
    #[error("a router cannot be called {name:?}; name it with units.router (--id)")]
    Name {
        name: String,
        source: InvalidRouterId,
    },
    #[error(transparent)]
    Sources(#[from] BadSources),
    #[error(transparent)]
    Keys(#[from] KeyFileError),
}

/// Why a router ends.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(
        "the admin listener cannot listen on {address}; choose another with router.admin (--admin)"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Ended(#[from] TaskEnd),
}

impl RouterError {
    /// Whether it stays until somebody changes the configuration, a file or another program.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Bus(error) => error.is_lasting(),
            Self::Listen { source, .. } => is_anothers(source),
            Self::Ended(_) => false,
        }
    }
}

impl Plan {
    /// Checks the flags.
    ///
    /// # Errors
    /// When the role could never do its work with them.
    pub fn new(args: &Args, config: &Config) -> Result<Self, BadPlan> {
        if !config.nats.is_used() {
            return Err(BadPlan::NoBus);
        }
        let key = config.discovery.key_file.as_deref();
        let key = key.map(first_key).transpose()?;
        Ok(Self {
            id: id(args, config)?,
            sources: Sources::new(config)?,
            client: EngineClient::with_key(key.as_deref()),
        })
    }
}

/// As told; else this host's name, as far as it can be a router's.
fn id(args: &Args, config: &Config) -> Result<RouterId, BadPlan> {
    if let Some(id) = &args.id {
        return Ok(id.clone());
    }
    let name = match &config.units.router {
        Some(name) => name.clone(),
        None => {
            let host = rustix::system::uname();
            let host = host.nodename().to_string_lossy().to_lowercase();
            let first = host.split('.').next().unwrap_or_default();
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            first.replace(|c| !legal(c), "-")
        }
    };
    RouterId::new(&name).map_err(|source| BadPlan::Name { name, source })
}

/// Answers until `stop`, and those who have asked by then to the end.
///
/// # Errors
/// When the listener or the bus cannot be had, or a part ended by itself.
pub async fn run(plan: Plan, config: Config, stop: CancellationToken) -> Result<(), RouterError> {
    let address = config.router.admin;
    let refused = |source| RouterError::Listen { address, source };
    let listener = bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let bus = Bus::connect(&config.nats, plan.id.as_str()).await?;
    let metrics = Arc::new(Metrics::default());
    let router = Router::new(&config.router, metrics.clone());
    let (plane, etcd) = watch::channel(PlaneState::untried());
    let pages = Arc::new(Pages {
        router: router.clone(),
        metrics: metrics.clone(),
        id: plan.id.clone(),
        bus: bus.clone(),
        planes: Planes {
            etcd: config.etcd.is_used().then_some(etcd),
            nats: Some(bus.state()),
        },
    });
    let mut tasks = Tasks::default();
    let limits = Limits::from(&LimitsConfig::default());
    let routes = pages.clone().routes();
    tasks.spawn(
        "the listener",
        serve(listener, routes, limits, stop.clone()),
    );

    let stale_after = config.discovery.stale_after();
    let rules = Arc::new(Rules::any().within(&config.discovery.networks));
    let mut followers = Tasks::default();
    let client = plan
        .client
        .reaching(&config.dispatch, Some(&bus), &mut followers);
    let feeds = Feeds::new(router.clone(), rules, stale_after, client);
    let feeds = Arc::new(feeds.over(Some(bus.clone()), true));
    followers.spawn(
        "the followers",
        members::follow(feeds, plan.sources, metrics, plane),
    );
    let (id, end) = (plan.id.clone(), CancellationToken::new());
    let others = sharing::hear(router.clone(), bus.clone(), id.clone(), end.clone());
    followers.spawn("other routers' bookings", others);
    let own = Arc::new(OwnQuestion::new(router.clone(), bus.clone(), id.clone()));
    let answers = Answers::new(router, bus, id);
    let answering = answers.run(config.router.queue_requests_max, stop.clone());
    tasks.spawn("the answers", answering);
    watch(&own, &mut tasks, &stop);
    let shown = async {
        pages.begin(&own).await;
        info!(id = %plan.id, admin = %address, "router ready");
        notify::ready();
        notify::follow(|| pages.status()).await
    };
    let running = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        end = tasks.next_end() => Err(end),
        end = followers.next_end() => Err(end),
        never = shown => match never {},
    };
    stop.cancel();
    // Where it ends by itself nobody has said so, and the watchdog is fed no more.
    notify::stopping();
    notify::status("answering those who wait");
    let longest = Duration::from_secs(config.router.queue_wait_secs) + END_MAX;
    let ended = notify::extended(longest, tasks.end()).await;
    drop(followers);
    info!(id = %plan.id, "router stopped");
    Ok(running.and(ended)?)
}

/// Feeds systemd's watchdog, where there is one, until `stop`.
fn watch(own: &Arc<OwnQuestion>, tasks: &mut Tasks, stop: &CancellationToken) {
    if let Some(watchdog) = Watchdog::asked() {
        let (own, stop) = (own.clone(), stop.clone());
        tasks.spawn("the watchdog", async move {
            watchdog.feed(stop, |deadline| own.is_well(deadline)).await;
        });
    }
}

/// What the admin listener shows.
struct Pages {
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    id: RouterId,
    bus: Bus,
    planes: Planes,
}

impl Pages {
    fn routes(self: Arc<Self>) -> Routes {
        Routes::default()
            .get("/metrics", self.page(Self::metrics))
            .get("/kvlens/v1/workers", self.page(Self::workers))
            .get(GPUS_PATH, self.page(Self::gpus))
            .get("/live", self.page(|_| Ok(shown("live"))))
            .get("/ready", self.page(Self::ready))
    }

    /// Waits until it answers over the bus and has looked for workers, as long as is worth it.
    async fn begin(&self, own: &OwnQuestion) {
        notify::status("waiting for NATS");
        timeout(BUS_MAX, own.begun()).await.ok();
        notify::status("looking for workers");
        let known = async {
            while self.workers_ready().0 == 0 {
                sleep(LOOK_PAUSE).await;
            }
        };
        timeout(FIRST_MAX, known).await.ok();
    }

    /// In a line.
    fn status(&self) -> String {
        let (ready, all, in_flight) = self.workers_ready();
        let away = self.planes.away().map(|away| format!("; {away}"));
        let away = away.unwrap_or_default();
        format!("{ready} of {all} workers take requests, {in_flight} in flight{away}")
    }

    /// How many workers take requests, how many there are, and what is in flight on them.
    fn workers_ready(&self) -> (usize, usize, u32) {
        let workers = self.router.workers();
        let takes = workers.iter().filter(|w| w.record.verdict.takes_requests());
        let loads = workers.iter().flat_map(|worker| &worker.load);
        (
            takes.count(),
            workers.len(),
            loads.map(|load| load.requests).sum(),
        )
    }

    fn page(
        self: &Arc<Self>,
        show: fn(&Self) -> Result<Reply, ApiError>,
    ) -> impl Fn(Call) -> Answer + Send + Sync + 'static {
        let pages = self.clone();
        move |_| {
            let reply = show(&pages).unwrap_or_else(Reply::from);
            Box::pin(std::future::ready(reply))
        }
    }

    fn metrics(&self) -> Result<Reply, ApiError> {
        // Counted elsewhere: set, not added, so that two readers at once count nothing twice.
        let panics = self.metrics.panics.inner();
        panics.store(panics_total(), std::sync::atomic::Ordering::Relaxed);
        self.router.show();
        self.planes.show(&self.metrics);
        let text = self.metrics.encode();
        Ok(Reply::full(StatusCode::OK, metrics::CONTENT_TYPE, text))
    }

    fn workers(&self) -> Result<Reply, ApiError> {
        let body = json!({"router": self.id, "workers": self.router.workers()});
        Ok(Reply::json(StatusCode::OK, &body))
    }

    fn gpus(&self) -> Result<Reply, ApiError> {
        let workers = self.router.workers();
        let page = gpus::page(workers.iter().map(|worker| &worker.record));
        Ok(Reply::json(StatusCode::OK, &page))
    }

    /// 200 while frontends can ask and a worker takes requests.
    fn ready(&self) -> Result<Reply, ApiError> {
        if !self.bus.is_up() {
            return Err(unready("NATS is away"));
        }
        let (ready, _, _) = self.workers_ready();
        match (ready, self.planes.away()) {
            (0, Some(away)) => Err(unready(&format!("no worker takes requests; {away}"))),
            (0, None) => Err(unready("no worker takes requests")),
            _ => Ok(shown("ready")),
        }
    }
}

fn shown(status: &str) -> Reply {
    Reply::json(StatusCode::OK, &json!({"status": status}))
}

fn unready(message: &str) -> ApiError {
    ApiError::new(503, ErrorKind::ServiceUnavailable, "not_ready", message).retry_after(1)
}
