//! How an agent meets the rest of a rack: its record in etcd, its feed on the bus.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, BusError};
use crate::config::Config;
use crate::lifecycle::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use crate::worker::broadcast;
use crate::worker::feed::Feed;

/// Starts what tells others of `feed`, until `stop`.
///
/// # Errors
/// When the bus' addresses or credentials cannot be used.
pub(crate) async fn start(
    config: &Config,
    feed: &Arc<Feed>,
    metrics: &Arc<Metrics>,
    (tasks, stop): (&mut Tasks, &CancellationToken),
) -> Result<(), BusError> {
    if config.nats.is_used() {
        let bus = Bus::connect(&config.nats, feed.worker().as_str()).await?;
        let telling = broadcast::run(feed.clone(), bus, stop.clone());
        tasks.spawn("the feed on the bus", telling);
    }
    if config.etcd.is_used() {
        let registering = register(config, feed, metrics.clone(), stop.clone());
        tasks.spawn("the registration", registering);
    }
    Ok(())
}

#[cfg(feature = "etcd")]
fn register(
    config: &Config,
    feed: &Arc<Feed>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    use tokio::sync::watch;

    use crate::discovery::etcd::Etcd;
    use crate::discovery::plane::PlaneState;

    let (plane, _) = watch::channel(PlaneState::untried());
    let etcd = Etcd::new(config.etcd.clone(), metrics, plane);
    etcd.register(feed.record(), feed.deregistered(), stop)
}

/// Without it, the configuration that names it is refused.
#[cfg(not(feature = "etcd"))]
fn register(
    _config: &Config,
    _feed: &Arc<Feed>,
    _metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    stop.cancelled_owned()
}
