//! How a frontend meets the rest of a rack: the agents it follows, the routers it asks, and those it
//! shares bookings with.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError};
use crate::config::Config;
use crate::config::frontend::RouterPlace;
use crate::config::router::RouterConfig;
use crate::discovery::plane::{self, PlaneState};
use crate::dispatch::EngineClient;
use crate::id::RouterId;
use crate::lifecycle::tasks::Tasks;
use crate::router::Router;
use crate::router::feed::Feeds;
use crate::router::members::{self, Sources};
use crate::router::remote::Remote;
use crate::router::rules::Rules;
use crate::router::sharing::{self, Sharing};
use crate::telemetry::metrics::Metrics;

/// Who chooses a frontend's workers.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Knows the workers, and holds this frontend's bookings.
    pub local: Arc<Router>,
    /// `None` where the local one chooses.
    pub remote: Option<Arc<Remote>>,
    /// How what connects it with them is.
    pub planes: plane::Planes,
}

impl From<Arc<Router>> for Routing {
    fn from(local: Arc<Router>) -> Self {
        Self {
            local,
            remote: None,
            planes: plane::Planes::default(),
        }
    }
}

/// What runs beside a frontend's listeners. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Planes {
    pub(crate) routing: Routing,
    /// Reaches engines over what carries requests.
    pub(crate) client: EngineClient,
    /// For a person: whom it hears of workers.
    pub(crate) waits_for: String,
    pub(crate) tasks: Tasks,
}

impl Planes {
    /// Starts to follow agents, whose workers are served by `rules`.
    ///
    /// # Errors
    /// When the bus' addresses or credentials cannot be used.
    pub(crate) async fn start(
        config: &Config,
        rules: Arc<Rules>,
        (sources, client): (Sources, EngineClient),
        metrics: &Arc<Metrics>,
    ) -> Result<Self, BusError> {
        let id = RouterId::from_bits(uuid::Uuid::new_v4().as_u64_pair().0);
        let bus = match config.nats.is_used() {
            true => Some(Bus::connect(&config.nats, id.as_str()).await?),
            false => None,
        };
        let mut tasks = Tasks::default();
        let client = client.reaching(&config.dispatch, bus.as_ref(), &mut tasks);
        let is_remote = config.frontend.router == RouterPlace::Remote;
        let router = Router::new(&router_config(config, is_remote), metrics.clone());
        let feeds = Feeds::new(
            router.clone(),
            rules,
            config.discovery.stale_after(),
            client.clone(),
        );
        let feeds = Arc::new(feeds.over(bus.clone(), !is_remote));
        let mut planes = Self {
            routing: router.clone().into(),
            client,
            waits_for: sources.to_string(),
            tasks,
        };
        if is_remote {
            router.hear_no_events();
        }
        let (plane, etcd) = watch::channel(PlaneState::untried());
        planes.routing.planes = plane::Planes {
            etcd: config.etcd.is_used().then_some(etcd),
            nats: bus.as_ref().map(Bus::state),
        };
        let following = members::follow(feeds, sources, metrics.clone(), plane);
        planes.tasks.spawn("the followers", following);
        if let Some(bus) = bus {
            planes.share(router, bus, (id, is_remote));
        }
        Ok(planes)
    }

    fn share(&mut self, router: Arc<Router>, bus: Bus, (id, is_remote): (RouterId, bool)) {
        let stop = CancellationToken::new();
        let sharing = Sharing::new(router.clone(), bus.clone(), id.clone());
        let names = (id.clone(), sharing.life());
        self.tasks.spawn("our bookings", sharing.tell(stop.clone()));
        if is_remote {
            let remote = Remote::new(router, bus, names);
            self.tasks.spawn("the routers", remote.clone().follow(stop));
            self.routing.remote = Some(remote);
        } else {
            let hearing = sharing::hear(router, bus, id, stop);
            self.tasks.spawn("other routers' bookings", hearing);
        }
    }
}

/// The local router where others choose: it knows of no blocks, and places by turns if it must.
fn router_config(config: &Config, is_remote: bool) -> RouterConfig {
    match is_remote {
        true => RouterConfig {
            use_kv_events: false,
            ..config.router.clone()
        },
        false => config.router.clone(),
    }
}
