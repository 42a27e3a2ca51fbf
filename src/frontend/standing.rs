//! How a frontend stands: what operators and systemd are told of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::dispatch::own::OwnListener;
use crate::frontend::Frontend;
use crate::frontend::listeners::Ending;
use crate::lifecycle::notify;
use crate::lifecycle::tasks::{TaskEnd, Tasks};
use crate::router::view::WorkerView;

/// Longest wait for a first worker: to list those that etcd knows and to hear them takes some tenths of
/// a second.
const FIRST_MAX: Duration = Duration::from_secs(1);

/// The same where those who connect wait in systemd's socket and come to no harm: to fetch a model's
/// files takes longer.
const FIRST_HELD_MAX: Duration = Duration::from_secs(3);

/// How often is looked whether there is one.
const FIRST_POLL: Duration = Duration::from_millis(20);

/// Beyond settling and draining: idle connections linger for half a second.
const END_MAX: Duration = Duration::from_secs(2);

impl Frontend {
    /// Waits until who is there has been looked at once: until a worker takes requests and no model's
    /// files are on their way, or for as long as is worth it.
    pub(crate) async fn look(&self, is_held: bool) {
        notify::status("looking for workers");
        let known = async {
            while !self.has_workers() || self.models.awaited_first().is_some() {
                sleep(FIRST_POLL).await;
            }
        };
        let longest = if is_held { FIRST_HELD_MAX } else { FIRST_MAX };
        // Nobody may be there, which is no reason not to begin.
        timeout(longest, known).await.ok();
    }

    /// Tells systemd that the public listener answers, once it does, and then how it goes.
    pub(crate) async fn begin(&self, own: &OwnListener) -> Infallible {
        own.begun().await;
        notify::ready();
        self.show().await
    }

    /// Says how many workers take requests, whenever that changes, and to systemd what is in flight.
    async fn show(&self) -> Infallible {
        let mut shown = None;
        let mut status = notify::Status::default();
        loop {
            let workers = self.router.workers();
            let takes = |worker: &&WorkerView| worker.record.verdict.takes_requests();
            let (ready, all) = (workers.iter().filter(takes).count(), workers.len());
            if shown.replace((ready, all)) != Some((ready, all)) {
                info!(ready, workers = all, "workers that take requests");
            }
            let in_flight = self.in_flight();
            let away = self.planes.away().map(|away| format!("; {away}"));
            let away = away.unwrap_or_default();
            status.tell(format!(
                "{ready} of {all} workers take requests, {in_flight} in flight{away}"
            ));
            sleep(notify::LOOK_EVERY).await;
        }
    }

    /// Settles and drains what [`Listeners::serve`](crate::frontend::listeners::Listeners::serve)
    /// started, and says how far it is.
    pub(crate) async fn end(
        self: &Arc<Self>,
        ending: &Ending,
        serving: Tasks,
    ) -> Result<(), TaskEnd> {
        let begun = Instant::now();
        let text = || {
            let what = match begun.elapsed() < ending.settle {
                true => "settling",
                false => "draining",
            };
            format!("{what}, {} in flight", self.in_flight())
        };
        let longest = ending.settle + ending.drain + END_MAX;
        let drained = notify::extended(longest, ending.drain(serving));
        tokio::select! {
            biased;
            drained = drained => drained,
            never = notify::follow(text) => match never {},
        }
    }

    fn in_flight(&self) -> i64 {
        self.metrics.in_flight_requests.get()
    }
}
