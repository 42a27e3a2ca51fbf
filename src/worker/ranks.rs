//! The tasks that follow an engine's ranks: one each, ended together, and none fails in silence.

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use crate::id::DpRank;
use crate::worker::rank::RankStatus;

/// The ranks of one life of an engine. Dropping it ends the tasks.
#[derive(Debug, Default)]
pub struct Ranks {
    tasks: JoinSet<()>,
    /// The task and the status of each rank, rank 0 first.
    followed: Vec<(Id, watch::Receiver<RankStatus>)>,
}

impl Ranks {
    /// Runs the task of the next rank, which owns the sender of `status`.
    pub fn follow(
        &mut self,
        status: watch::Receiver<RankStatus>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        self.followed.push((id, status));
    }

    /// Where each rank stands. One whose task has ended follows nothing: it is partial and holds no
    /// blocks, whatever it said last.
    pub fn statuses(&self) -> Vec<RankStatus> {
        let status = |(_, status): &(Id, watch::Receiver<RankStatus>)| {
            let last = *status.borrow();
            match status.has_changed() {
                Ok(_) => last,
                Err(_) => RankStatus {
                    blocks: 0,
                    is_partial: true,
                    ..last
                },
            }
        };
        self.followed.iter().map(status).collect()
    }

    /// Waits for a task to panic; never returns while none does. Losing the future loses nothing.
    pub async fn failure(&mut self) -> (DpRank, JoinError) {
        while let Some(ended) = self.tasks.join_next().await {
            let Err(error) = ended else {
                continue;
            };
            let mut ids = self.followed.iter().map(|(id, _)| *id);
            if let Some(rank) = ids.position(|id| id == error.id()) {
                return (DpRank(rank as u32), error);
            }
        }
        std::future::pending().await
    }

    /// Ends all tasks and waits until they have ended.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, WorkerId};
    use crate::ledger::{Ledger, Options};
    use crate::worker::rank::Rank;

    #[tokio::test]
    async fn a_rank_that_panics_is_named_and_holds_nothing() {
        let ledger = Ledger::new("m", Options::default());
        let worker = WorkerId::new("w").unwrap();
        let status = Rank::new(worker, DpRank(0), Incarnation(1), ledger).status();
        let status = RankStatus {
            blocks: 7,
            is_partial: false,
            ..status
        };
        let mut ranks = Ranks::default();
        for rank in 0..3 {
            let (sender, receiver) = watch::channel(status);
            ranks.follow(receiver, async move {
                assert_ne!(rank, 1, "this one fails");
                sender.closed().await;
            });
        }
        let (rank, error) = ranks.failure().await;
        assert_eq!(rank, DpRank(1));
        assert!(error.is_panic());
        let held = ranks.statuses().into_iter();
        let held: Vec<_> = held
            .map(|status| (status.blocks, status.is_partial))
            .collect();
        assert_eq!(held, [(7, false), (0, true), (7, false)]);
        ranks.stop().await;
    }
}
