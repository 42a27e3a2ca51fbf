//! The tasks that follow an engine's ranks: one each, ended together, and none fails in silence.

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use crate::id::DpRank;
use crate::worker::follow::Order;
use crate::worker::rank::RankStatus;

/// Most orders that wait for a rank's task. It takes one at a time between two batches, and an
/// agent has few to give.
pub const ORDERS_MAX: usize = 16;

/// The ranks of an engine. Dropping it ends the tasks.
#[derive(Debug, Default)]
pub struct Ranks {
    tasks: JoinSet<()>,
    /// The ranks, rank 0 first.
    followed: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    task: Id,
    status: watch::Receiver<RankStatus>,
    orders: mpsc::Sender<Order>,
}

impl Ranks {
    /// Runs the task of the next rank, which owns the sender of `status` and heeds `orders`.
    pub fn follow(
        &mut self,
        status: watch::Receiver<RankStatus>,
        orders: mpsc::Sender<Order>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let task = self.tasks.spawn(task).id();
        self.followed.push(Followed {
            task,
            status,
            orders,
        });
    }

    /// Where each rank stands. One whose task has ended follows nothing: it is partial and holds no
    /// blocks, whatever it said last.
    pub fn statuses(&self) -> Vec<RankStatus> {
        let status = |followed: &Followed| {
            let last = followed.status.borrow().clone();
            match followed.status.has_changed() {
                Ok(_) => last,
                Err(_) => RankStatus {
                    blocks: 0,
                    is_caught_up: false,
                    is_partial: true,
                    cause: Some("kv events are not followed: the task that did has failed".into()),
                    ..last
                },
            }
        };
        self.followed.iter().map(status).collect()
    }

    /// Who gives orders to each rank.
    pub fn orders(&self) -> Vec<mpsc::Sender<Order>> {
        let orders = self.followed.iter().map(|followed| &followed.orders);
        orders.cloned().collect()
    }

    /// Gives an order to every rank.
    pub async fn order(&self, order: Order) {
        for followed in &self.followed {
            // A rank whose task has ended follows nothing that an order could be about.
            let _ = followed.orders.send(order).await;
        }
    }

    /// Waits for a task to panic; never returns while none does. Losing the future loses nothing.
    pub async fn failure(&mut self) -> (DpRank, JoinError) {
        while let Some(ended) = self.tasks.join_next().await {
            let Err(error) = ended else {
                continue;
            };
            let mut ids = self.followed.iter().map(|followed| followed.task);
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
            let (sender, receiver) = watch::channel(status.clone());
            let (orders, _) = mpsc::channel(1);
            ranks.follow(receiver, orders, async move {
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
