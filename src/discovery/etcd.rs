//! Membership through etcd: agents register their workers under a lease, and who places requests
//! follows the set.

pub(crate) mod fault;
mod follow;
mod link;
pub(crate) mod probe;
mod register;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::config::etcd::EtcdConfig;
use crate::discovery::etcd::fault::{Fault, FaultKind};
use crate::discovery::plane::{Delay, PlaneState};
use crate::telemetry::metrics::Metrics;

/// One client of etcd: what follows or registers.
#[derive(Debug)]
pub struct Etcd {
    config: EtcdConfig,
    metrics: Arc<Metrics>,
    plane: watch::Sender<PlaneState>,
    /// The fault that was logged last; `None` while etcd works.
    shown: Option<FaultKind>,
    delay: Delay,
    /// Which of the members is asked, counted on with each fault.
    turn: usize,
}

impl Etcd {
    /// A client that says on `plane` how etcd is.
    pub fn new(
        config: EtcdConfig,
        metrics: Arc<Metrics>,
        plane: watch::Sender<PlaneState>,
    ) -> Self {
        Self {
            config,
            metrics,
            plane,
            shown: None,
            delay: Delay::default(),
            turn: 0,
        }
    }

    /// Notes that etcd does what was asked of it.
    fn up(&mut self, endpoint: &str) {
        self.delay = Delay::default();
        self.shown = None;
        let is_news = |state: &mut PlaneState| {
            let is_news = *state != PlaneState::Up;
            *state = PlaneState::Up;
            is_news
        };
        if self.plane.send_if_modified(is_news) {
            info!(endpoint, "etcd answers");
        }
    }

    /// Notes a fault, and says how long to wait before the next try, at another member.
    fn down(&mut self, fault: &Fault) -> Duration {
        self.turn = self.turn.wrapping_add(1);
        let cause = fault.cause();
        let kind = fault.kind();
        if self.shown != Some(kind) {
            match kind.is_operators() {
                true => error!(cause, "etcd cannot be used"),
                false => warn!(cause, "etcd is away, going on with what is known"),
            }
            self.shown = Some(kind);
        }
        let state = PlaneState::down(Some(&*self.plane.borrow()), cause);
        self.plane.send_if_modified(|known| {
            let is_news = *known != state;
            *known = state;
            is_news
        });
        self.delay.take()
    }
}
