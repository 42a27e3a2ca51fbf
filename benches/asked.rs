//! A frontend's side of a router elsewhere: it knows the workers from their records, asks for
//! placements over the bus, and tells of its bookings.

use std::sync::Arc;

use kvlens::block::{BlockSize, SequenceHash};
use kvlens::id::RouterId;
use kvlens::router::Router;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::router::remote::{Chooser, Remote};
use kvlens::router::sharing::Sharing;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::agents::{follow, runtime};
use crate::fleet::{self, BLOCKS_PER_WORKER, MODEL, WORKERS};
use crate::servers::{Routing, Server, until};

pub(crate) const PROMPT_BLOCKS: usize = 512;

/// Leading blocks that prompts have, and a quarter of the workers hold.
pub(crate) const SHARED_BLOCKS: usize = 128;

pub(crate) struct Frontend {
    pub(crate) remote: Arc<Remote>,
    pub(crate) runtime: Runtime,
    local: Arc<Router>,
}

impl Frontend {
    pub(crate) fn start(nats: &Server) -> Self {
        let runtime = runtime();
        let bus = runtime.block_on(nats.bus("frontend"));
        let local = follow(&runtime, &bus, WORKERS, false);
        let id = RouterId::new("frontend").expect("a legal name");
        let sharing = Sharing::new(local.clone(), bus.clone(), id.clone());
        let remote = Remote::new(local.clone(), bus, (id, sharing.life()));
        let stop = CancellationToken::new();
        runtime.spawn(sharing.tell(stop.clone()));
        runtime.spawn(remote.clone().follow(stop));
        until("the frontend knows all workers", || {
            local.workers().len() == WORKERS as usize
        });
        Self {
            remote,
            runtime,
            local,
        }
    }

    /// Blocks of a prompt that the router says a worker has, where it holds all of them; 0 where the
    /// router does not answer.
    pub(crate) async fn overlap_blocks(&self, worker: u32, shared: &[SequenceHash]) -> u64 {
        let held = fleet::blocks(worker, shared);
        let footprint = footprint(held[BLOCKS_PER_WORKER - PROMPT_BLOCKS..].into());
        let wish = Wish {
            worker: Some(fleet::worker(worker)),
            ..Wish::default()
        };
        match self.remote.place(&footprint, &wish).await {
            Ok(placed) if is_remote(&placed.chooser) => u64::from(placed.overlap_blocks),
            _ => 0,
        }
    }

    /// Bookings that are held.
    pub(crate) fn in_flight(&self) -> u32 {
        let workers = self.local.workers();
        workers.iter().map(|worker| worker.load[0].requests).sum()
    }
}

pub(crate) fn is_remote(chooser: &Chooser) -> bool {
    matches!(chooser, Chooser::Remote(id) if id.as_str() == Routing::ID)
}

/// A prompt of these blocks, and a token behind them, so that all of them can be cached.
pub(crate) fn footprint(hashes: Arc<[SequenceHash]>) -> Footprint {
    let size = BlockSize::new(16).expect("16 is not zero");
    let prompt_tokens = hashes.len() as u32 * size.tokens() + 1;
    Footprint {
        hashes: vec![(size, hashes)],
        ..Footprint::new(MODEL, prompt_tokens)
    }
}
