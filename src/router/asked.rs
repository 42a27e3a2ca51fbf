//! What frontends ask routers in other processes, and what they are told.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::block::{BlockSize, SequenceHash};
use crate::discovery::ParityScope;
use crate::id::{DpRank, RouterId, WorkerId};
use crate::router::RouteError;
use crate::router::basis::Basis;
use crate::router::footprint::{Footprint, Hints, MediaShare, Wish};
use crate::select::cost::Cost;

/// Most hashes of one question: a prompt of 1.6 M tokens in blocks of 16, and within what a server
/// takes in one message. Blocks behind them overlap with nothing.
const ASKED_HASHES_MAX: usize = 100_000;

/// Where a request goes?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Who asks, and which life of it.
    pub(crate) from: RouterId,
    pub(crate) life: u64,
    /// What the booking will be called there.
    pub(crate) key: u64,
    /// Whether the request may wait for room.
    pub(crate) may_wait: bool,
    pub(crate) request: Request,
}

/// A footprint and a wish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    model: Arc<str>,
    adapter: Option<Arc<str>>,
    tenant: Arc<str>,
    hashes: Vec<Named>,
    prompt_tokens: u32,
    text_tokens: u32,
    estimated_tokens: u32,
    media: Arc<[MediaShare]>,
    stream: bool,
    hints: Hints,
    wish: Wish,
}

/// The names of a prompt's blocks of one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Named {
    size: BlockSize,
    #[serde(with = "crate::block::packed")]
    hashes: Vec<SequenceHash>,
}

/// What a frontend is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Placed(Box<Placed>),
    Refused(RouteError),
    /// It waits for room; more follows.
    Waits,
}

/// A placement as another router made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub(crate) worker: WorkerId,
    pub(crate) rank: DpRank,
    pub(crate) overlap_blocks: u32,
    pub(crate) lower_blocks: u32,
    pub(crate) cost: Cost,
    pub(crate) queued: Duration,
    pub(crate) parity_failed: Option<ParityScope>,
    pub(crate) basis: Basis,
}

impl Request {
    pub(crate) fn new(footprint: &Footprint, wish: &Wish) -> Self {
        let mut room = ASKED_HASHES_MAX;
        let named = |(size, hashes): &(BlockSize, Arc<[SequenceHash]>)| {
            let hashes = hashes[..hashes.len().min(room)].to_vec();
            room -= hashes.len();
            Named {
                size: *size,
                hashes,
            }
        };
        Self {
            model: footprint.model.clone(),
            adapter: footprint.adapter.clone(),
            tenant: footprint.tenant.clone(),
            hashes: footprint.hashes.iter().map(named).collect(),
            prompt_tokens: footprint.prompt_tokens,
            text_tokens: footprint.text_tokens,
            estimated_tokens: footprint.estimated_tokens,
            media: footprint.media.clone(),
            stream: footprint.stream,
            hints: footprint.hints,
            wish: wish.clone(),
        }
    }

    pub(crate) fn parts(self) -> (Footprint, Wish) {
        let named = |named: Named| (named.size, named.hashes.into());
        let footprint = Footprint {
            model: self.model,
            adapter: self.adapter,
            tenant: self.tenant,
            hashes: self.hashes.into_iter().map(named).collect(),
            prompt_tokens: self.prompt_tokens,
            text_tokens: self.text_tokens,
            estimated_tokens: self.estimated_tokens,
            media: self.media,
            stream: self.stream,
            hints: self.hints,
        };
        (footprint, self.wish)
    }
}
