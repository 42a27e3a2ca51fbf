//! What the router needs to know of a request: hashes and counts, never its text or images.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::{BlockSize, SequenceHash};
use crate::id::{DpRank, MediaDigest, WorkerId};
use crate::select::RouterMode;

/// A request as the router sees it.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// The model's base name.
    pub model: Arc<str>,
    /// The adapter asked for, where it is one.
    pub adapter: Option<Arc<str>>,
    /// Whose request it is; empty where clients have no names.
    pub tenant: Arc<str>,
    /// Sequence hashes of the prompt's full blocks, for each block size among the model's workers.
    /// Empty for a prompt that reads no cache.
    pub hashes: Vec<(BlockSize, Arc<[SequenceHash]>)>,
    /// Tokens known for sure.
    pub prompt_tokens: u32,
    /// Those of them before the first image.
    pub text_tokens: u32,
    /// Tokens beyond those known, estimated: an image of unknown size, an embedding's input. They
    /// weigh on the worker like others, and overlap with nothing.
    pub estimated_tokens: u32,
    /// The images whose expansions are known, in prompt order.
    pub media: Arc<[MediaShare]>,
    /// The answer comes in pieces, so that its first token is seen.
    pub stream: bool,
    pub hints: Hints,
}

/// One image of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaShare {
    pub digest: MediaDigest,
    /// The position of its first token in the prompt.
    pub start: u32,
    /// Tokens of its expansion.
    pub tokens: u32,
}

/// What a client says of its request's importance and length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Seconds by which it goes ahead of others in a queue.
    pub priority: u32,
    /// Requests with a higher one go first, whatever they wait.
    pub strict_priority: u32,
    /// Tokens that the answer is expected to have.
    pub output_tokens: Option<u32>,
}

/// What is asked of one placement beyond the request's own needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Workers that must not be chosen.
    pub excluded: Vec<WorkerId>,
    /// The way of choosing, where it is not the router's own.
    pub mode: Option<RouterMode>,
    /// The only worker that may be chosen.
    pub worker: Option<WorkerId>,
    /// The only data-parallel rank that may be chosen.
    pub rank: Option<DpRank>,
}

impl Footprint {
    /// A prompt of so many tokens, none of which has a name, from nobody in particular.
    pub fn new(model: impl Into<Arc<str>>, prompt_tokens: u32) -> Self {
        Self {
            model: model.into(),
            adapter: None,
            tenant: Arc::default(),
            hashes: Vec::new(),
            prompt_tokens,
            text_tokens: prompt_tokens,
            estimated_tokens: 0,
            media: Arc::default(),
            stream: false,
            hints: Hints::default(),
        }
    }

    /// Tokens of the whole prompt, known and estimated.
    pub fn all_tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.estimated_tokens)
    }

    pub(crate) fn hashes_for(&self, size: BlockSize) -> Option<&Arc<[SequenceHash]>> {
        self.hashes
            .iter()
            .find(|(known, _)| *known == size)
            .map(|(_, hashes)| hashes)
    }
}

impl Wish {
    /// Whether a rank of a worker is among those that the wish names; all are where it names none.
    pub(crate) fn names(&self, worker: &WorkerId, rank: DpRank) -> bool {
        self.worker.as_ref().is_none_or(|named| named == worker)
            && self.rank.is_none_or(|named| named == rank)
    }

    /// Any worker but these.
    pub fn without(excluded: &[WorkerId]) -> Self {
        Self {
            excluded: excluded.to_vec(),
            ..Self::default()
        }
    }

    /// Whether any worker will do.
    pub(crate) fn is_open(&self) -> bool {
        self.worker.is_none() && self.rank.is_none() && self.excluded.is_empty()
    }
}
