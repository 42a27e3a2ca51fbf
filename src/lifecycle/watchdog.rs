//! systemd's watchdog, which restarts a role that has stopped working. It is fed only when the way that
//! requests take has just been seen to work: a process that merely lives is of no use.

use std::future::Future;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::lifecycle::notify;

/// Longest pause between two checks. A check over HTTP so keeps its connection, which no listener closes
/// as quickly: one that is full takes no new one, and works all the same.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A watchdog that waits for this process.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    /// How long it waits.
    patience: Duration,
}

impl Watchdog {
    /// The watchdog that systemd has asked to be fed, if it has.
    pub fn asked() -> Option<Self> {
        let patience = notify::watchdog()?;
        info!(?patience, "systemd watches this process");
        Some(Self { patience })
    }

    /// Feeds it whenever `check` says yes within the time it is told, a third of the patience: one
    /// answer that is late, or two, end nothing. Until `stop`.
    pub async fn feed<C, F>(self, stop: CancellationToken, check: C)
    where
        C: FnMut(Duration) -> F,
        F: Future<Output = bool>,
    {
        let feeding = self.feed_with(notify::alive, check);
        stop.run_until_cancelled(feeding).await;
    }

    async fn feed_with<C, F>(self, feed: impl Fn(), mut check: C)
    where
        C: FnMut(Duration) -> F,
        F: Future<Output = bool>,
    {
        // At least a microsecond, which is systemd's unit.
        let deadline = (self.patience / 3).max(Duration::from_micros(1));
        let mut turns = interval(deadline.min(PAUSE_MAX));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_well = true;
        loop {
            turns.tick().await;
            let is_well = timeout(deadline, check(deadline)).await == Ok(true);
            match (was_well, is_well) {
                (true, false) => warn!(?deadline, "no answer from itself, watchdog not fed"),
                (false, true) => info!("it answers itself again"),
                _ => {}
            }
            if is_well {
                feed();
            }
            was_well = is_well;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use tokio::time::{Instant, sleep};

    use super::*;

    /// When it was fed, in seconds, by a check that takes so long and says so.
    async fn fed(patience: u64, check: impl AsyncFn(u32) -> bool) -> Vec<f64> {
        let (begun, fed) = (Instant::now(), RefCell::default());
        let watchdog = Watchdog {
            patience: Duration::from_secs(patience),
        };
        let feed = || Vec::push(&mut fed.borrow_mut(), begun.elapsed().as_secs_f64());
        let turn = Cell::new(0);
        let check = |_| {
            turn.set(turn.get() + 1);
            check(turn.get())
        };
        let feeding = watchdog.feed_with(feed, check);
        timeout(Duration::from_millis(9_500), feeding).await.ok();
        fed.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_only_by_a_yes_in_time() {
        assert_eq!(fed(6, async |_| true).await, [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(fed(6, async |turn| turn % 2 == 0).await, [2.0, 6.0]);
        let late = async |turn| {
            sleep(Duration::from_secs(if turn == 2 { 3 } else { 0 })).await;
            true
        };
        assert_eq!(fed(6, late).await, [0.0, 4.0, 6.0, 8.0]);
        assert_eq!(
            fed(60, async |_| true).await,
            [0.0, 3.0, 6.0, 9.0],
            "no connection of a check is idle for long"
        );
    }
}
