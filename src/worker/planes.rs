//! How an agent meets the rest of a rack: its record in etcd, its feed on the bus.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError};
use crate::config::Config;
use crate::discovery::plane::{PlaneState, Planes};
use crate::lifecycle::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::worker::broadcast;
use crate::worker::feed::Feed;

/// Starts what tells others of `feed`, until `stop`; how what it tells them by is.
///
/// # Errors
/// When the bus' addresses or credentials cannot be used.
pub(crate) async fn start(
    config: &Config,
    feed: &Arc<Feed>,
    metrics: &Arc<Metrics>,
    (tasks, stop): (&mut Tasks, &CancellationToken),
) -> Result<Planes, BusError> {
    let mut planes = Planes::default();
    if config.nats.is_used() {
        let bus = Bus::connect(&config.nats, feed.worker().as_str()).await?;
        planes.nats = Some(bus.state());
        let telling = broadcast::run(feed.clone(), bus, stop.clone());
        tasks.spawn("the feed on the bus", telling);
    }
    if config.etcd.is_used() {
        let (plane, state) = watch::channel(PlaneState::untried());
        planes.etcd = Some(state);
        let telling = (metrics.clone(), plane);
        let registering = register(config, feed, telling, stop.clone());
        tasks.spawn("the registration", registering);
    }
    Ok(planes)
}

#[cfg(feature = "etcd")]
fn register(
    config: &Config,
    feed: &Arc<Feed>,
    (metrics, plane): (Arc<Metrics>, watch::Sender<PlaneState>),
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    use crate::discovery::etcd::Etcd;

    let etcd = Etcd::new(config.etcd.clone(), metrics, plane);
    etcd.register(feed.record(), feed.deregistered(), stop)
}

/// Without it, the configuration that names it is refused.
#[cfg(not(feature = "etcd"))]
fn register(
    _config: &Config,
    _feed: &Arc<Feed>,
    _telling: (Arc<Metrics>, watch::Sender<PlaneState>),
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    stop.cancelled_owned()
}
