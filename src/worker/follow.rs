//! The task of one rank: carries what its source gives to the router, and heeds its agent.

use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep_until;
use tracing::error;

use crate::block::BlockSize;
use crate::discovery::Update;
use crate::events::zmq::{self, Feed, Source};
use crate::id::Incarnation;
use crate::index::KvEvent;
use crate::worker::rank::{Rank, RankStatus};
use crate::worker::state_file::StateFile;

/// Batches between a source and its ledger. A full queue leaves the rest in the engine's own
/// buffers; more would only hide that the ledger is too slow, and each may have 32 MiB.
const FEED_MAX: usize = 32;

/// What an agent tells its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The engine may be another process: nothing is told of its blocks until the source has shown
    /// over a new connection that it is not. The number says which time this is.
    Prove(u64),
    /// What the engine's metrics say.
    Describe {
        capacity_blocks: Option<u64>,
        block_size: Option<BlockSize>,
    },
    /// The engine is about to be asked to clear its cache.
    ExpectClearing,
    /// It was asked, and did it or not.
    SettleClearing { is_done: bool },
}

/// Where a rank's task tells and keeps what it found.
#[derive(Debug)]
pub struct Told {
    pub updates: mpsc::Sender<Update>,
    pub status: watch::Sender<RankStatus>,
    /// `None` where nothing is kept for the next agent.
    pub state_file: Option<StateFile>,
}

impl Told {
    /// Waits until the rank is to be kept next; without end where it is not kept.
    async fn due(&self) {
        match &self.state_file {
            Some(file) => sleep_until(file.due().into()).await,
            None => std::future::pending().await,
        }
    }

    /// Keeps the rank. Encoding a large ledger takes a while, so it is done elsewhere.
    async fn keep(&mut self, rank: &Rank) {
        let Some(mut file) = self.state_file.take() else {
            return;
        };
        let saved = rank.save();
        let kept = spawn_blocking(move || {
            file.save(saved.as_ref());
            file
        });
        match kept.await {
            Ok(file) => self.state_file = Some(file),
            Err(error) => error!(%error, "ledger is not kept any more"),
        }
    }
}

/// Follows one rank until nobody takes its updates or gives it orders any more.
pub async fn follow(
    mut rank: Rank,
    source: Source,
    mut orders: mpsc::Receiver<Order>,
    mut told: Told,
) {
    let mut goes_on = true;
    while goes_on {
        let (feed, fed) = mpsc::channel(FEED_MAX);
        let known = rank.last();
        goes_on = tokio::select! {
            () = zmq::follow(&source, known, &feed) => false,
            again = relay(&mut rank, &source, fed, (&mut orders, &mut told)) => again,
        };
    }
}

/// Relays until the source has to be followed anew, which is true, or nobody listens.
async fn relay(
    rank: &mut Rank,
    source: &Source,
    mut fed: mpsc::Receiver<Feed>,
    (orders, told): (&mut mpsc::Receiver<Order>, &mut Told),
) -> bool {
    loop {
        let (event, again) = tokio::select! {
            // First, so that a batch that comes after an order finds it heeded.
            biased;
            order = orders.recv() => match order {
                Some(order) => heed(rank, source, order),
                None => return false,
            },
            next = fed.recv() => match next {
                Some(next) => (rank.take(next, new_incarnation), false),
                None => return false,
            },
            () = told.due() => {
                told.keep(rank).await;
                continue;
            }
        };
        told.status.send_replace(rank.status());
        if let Some(event) = event
            && told.updates.send(Update::Kv(event)).await.is_err()
        {
            return false;
        }
        if again {
            return true;
        }
    }
}

/// What follows from an order: an event, and whether the source is followed anew.
fn heed(rank: &mut Rank, source: &Source, order: Order) -> (Option<KvEvent>, bool) {
    match order {
        Order::Prove(number) => {
            // A socket that waits for the engine to connect proves each connection anyway; closed,
            // it would only have to be found again.
            let waits = source.bind && !rank.is_caught_up();
            (rank.ask_proof(number), !waits)
        }
        Order::Describe {
            capacity_blocks,
            block_size,
        } => {
            rank.describe(capacity_blocks, block_size);
            (None, false)
        }
        Order::ExpectClearing => {
            rank.expect_clearing();
            (None, false)
        }
        Order::SettleClearing { is_done } => (rank.settle_clearing(is_done), false),
    }
}

/// An incarnation that no other life of an engine has.
pub fn new_incarnation() -> Incarnation {
    Incarnation(uuid::Uuid::new_v4().as_u64_pair().0)
}
