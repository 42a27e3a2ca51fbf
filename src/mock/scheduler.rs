//! vLLM's scheduler in small: continuous batching, chunked prefill, waiting and preemption.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::mock::free::BlockId;
use crate::mock::hash::{BlockHash, Identity};
use crate::mock::pool::{Event, Pool, Stored};

/// Names a request inside its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SequenceId(pub u64);

/// Bounds of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub block_size: usize,
    pub blocks: u32,
    /// Blocks that host memory keeps of those evicted.
    pub host_blocks: usize,
    /// Most requests that run at once; others wait.
    pub running_max: usize,
    /// Most tokens computed in one step; a longer prompt is computed in chunks.
    pub batched_tokens_max: usize,
}

/// What the cache did for a request, known when it is first admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    pub cached_tokens: usize,
    /// Tokens of the prompt's full blocks that were not cached before.
    pub created_tokens: usize,
}

/// The tokens a request will answer with, decided when it is admitted.
pub type AnswerTokens = Box<dyn FnOnce(Admission) -> Arc<[u32]> + Send>;

/// A request as the engine sees it.
pub struct Sequence {
    pub id: SequenceId,
    /// The prompt; answers are appended.
    pub tokens: Vec<u32>,
    pub identity: Identity,
    /// Publishes reused blocks too (`kv_cache_report_mode` "full").
    pub report_reused: bool,
    /// Computes the whole prompt anew, as `prompt_logprobs` needs.
    pub skip_cache: bool,
    pub session: Option<Arc<str>>,
    pub answer: AnswerTokens,
}

/// How far a request has come in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub id: SequenceId,
    /// Answer tokens so far.
    pub produced: usize,
    pub finished: bool,
}

/// The work of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens computed for the first time.
    pub prefill_tokens: usize,
    /// Requests that only add the token they produced last.
    pub decoding: usize,
}

/// Token counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub queried_tokens: u64,
    pub hit_tokens: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub preemptions: u64,
}

/// One rank's requests and cache.
pub struct Scheduler {
    bounds: Bounds,
    pool: Pool,
    waiting: VecDeque<Running>,
    running: Vec<Running>,
    totals: Totals,
}

struct Running {
    sequence: Sequence,
    prompt_tokens: usize,
    hashes: Vec<BlockHash>,
    blocks: Vec<BlockId>,
    stored_blocks: usize,
    computed: usize,
    scheduled: usize,
    produced: usize,
    answer: Option<Arc<[u32]>>,
}

impl Scheduler {
    /// An idle rank; events are kept only if `published`.
    pub fn new(bounds: Bounds, published: bool) -> Self {
        Self {
            pool: Pool::new(bounds.blocks, bounds.host_blocks, published),
            bounds,
            waiting: VecDeque::new(),
            running: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Queues a request. The caller has made sure that it fits an empty cache.
    pub fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(Running {
            prompt_tokens: sequence.tokens.len(),
            sequence,
            hashes: Vec::new(),
            blocks: Vec::new(),
            stored_blocks: 0,
            computed: 0,
            scheduled: 0,
            produced: 0,
            answer: None,
        });
    }

    /// Drops a request wherever it is; its full blocks stay cached.
    pub fn abort(&mut self, id: SequenceId) {
        self.waiting.retain(|request| request.sequence.id != id);
        let position = |request: &Running| request.sequence.id == id;
        if let Some(index) = self.running.iter().position(position) {
            let request = self.running.remove(index);
            self.pool.release(&request.blocks);
        }
    }

    pub fn running_len(&self) -> usize {
        self.running.len()
    }

    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub fn usage(&self) -> f64 {
        self.pool.usage()
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Forgets the cache; refused while a request holds blocks. Published with the next step.
    pub fn clear_cache(&mut self) -> bool {
        self.pool.clear()
    }

    /// Decides the next step: running requests first, then waiting ones, while tokens are left.
    pub fn schedule(&mut self) -> Work {
        let mut work = Work::default();
        let mut budget = self.bounds.batched_tokens_max;
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let request = &mut self.running[index];
            let count = budget.min(request.sequence.tokens.len() - request.computed);
            if request.allocate(&mut self.pool, count, self.bounds.block_size) {
                budget -= count;
                work.add(request);
                index += 1;
            } else if let Some(youngest) = self.running.pop() {
                // The youngest request gives way, so that the oldest always ends.
                self.preempt(youngest);
                preempted = true;
            }
        }
        if !preempted {
            self.admit(budget, &mut work);
        }
        work
    }

    /// Ends the step: every request whose tokens are all computed produces one more.
    pub fn finish_step(&mut self) -> Vec<Progress> {
        let mut progress = Vec::with_capacity(self.running.len());
        let mut finished = Vec::new();
        for request in &mut self.running {
            request.computed += std::mem::take(&mut request.scheduled);
            if request.computed < request.sequence.tokens.len() {
                continue;
            }
            let Some(&token) = request
                .answer
                .as_ref()
                .and_then(|a| a.get(request.produced))
            else {
                continue;
            };
            request.sequence.tokens.push(token);
            request.produced += 1;
            self.totals.generated_tokens += 1;
            let ended = request
                .answer
                .as_ref()
                .is_none_or(|a| a.len() == request.produced);
            progress.push(Progress {
                id: request.sequence.id,
                produced: request.produced,
                finished: ended,
            });
            if ended {
                finished.push(request.sequence.id);
            }
        }
        finished.into_iter().for_each(|id| self.abort(id));
        progress
    }

    /// The events of this step, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.pool.take_events()
    }

    fn admit(&mut self, mut budget: usize, work: &mut Work) {
        while budget > 0 && self.running.len() < self.bounds.running_max {
            let Some(mut request) = self.waiting.pop_front() else {
                return;
            };
            if !self.start(&mut request) {
                self.waiting.push_front(request);
                return;
            }
            let count = budget.min(request.sequence.tokens.len() - request.computed);
            // `start` has made sure that all of the prompt fits.
            request.allocate(&mut self.pool, count, self.bounds.block_size);
            budget -= count;
            work.add(&request);
            self.running.push(request);
        }
    }

    /// Looks the prompt up and holds what is cached of it; false when the rest does not fit.
    fn start(&mut self, request: &mut Running) -> bool {
        let size = self.bounds.block_size;
        let tokens = request.sequence.tokens.len();
        request.extend_hashes(size);
        // The last token is always computed: its logits are what the answer starts from.
        let hits_max = if request.sequence.skip_cache {
            0
        } else {
            (tokens - 1) / size
        };
        let hits = self.pool.hits(&request.hashes[..hits_max]);
        let needed = tokens.div_ceil(size) - hits.len();
        if needed + self.pool.free_among(&hits) > self.pool.free_blocks() {
            return false;
        }
        if request.sequence.report_reused && !hits.is_empty() {
            self.pool.publish(|| request.stored(0, hits.len(), size));
        }
        self.pool.reuse(&hits);
        let loaded = self.pool.host_hits(&request.hashes[hits.len()..hits_max]);
        request.computed = hits.len() * size;
        request.stored_blocks = hits.len();
        request.blocks = hits;
        self.totals.queried_tokens += tokens as u64;
        self.totals.hit_tokens += request.computed as u64;
        // What is loaded is stored on the GPU as if it had been computed, and counts as cached.
        request.allocate(&mut self.pool, loaded * size, size);
        request.computed += std::mem::take(&mut request.scheduled);
        if request.answer.is_none() {
            self.totals.prompt_tokens += tokens as u64;
            request.decide_answer(size);
        }
        true
    }

    fn preempt(&mut self, mut request: Running) {
        self.pool.release(&request.blocks);
        request.blocks.clear();
        request.computed = 0;
        request.scheduled = 0;
        request.stored_blocks = 0;
        self.totals.preemptions += 1;
        self.waiting.push_front(request);
    }
}

impl Work {
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn add(&mut self, request: &Running) {
        if request.produced > 0 && request.scheduled == 1 {
            self.decoding += 1;
        } else {
            self.prefill_tokens += request.scheduled;
        }
    }
}

impl Running {
    fn extend_hashes(&mut self, block_size: usize) {
        let Sequence {
            identity, tokens, ..
        } = &self.sequence;
        identity.extend_hashes(&mut self.hashes, tokens, block_size);
    }

    /// Takes the blocks for `count` more tokens and stores those that become full.
    fn allocate(&mut self, pool: &mut Pool, count: usize, block_size: usize) -> bool {
        let end = self.computed + count;
        let missing = end.div_ceil(block_size).saturating_sub(self.blocks.len());
        if !pool.take(missing, &mut self.blocks) {
            return false;
        }
        self.scheduled = count;
        let (from, to) = (self.stored_blocks, end / block_size);
        if from < to {
            self.extend_hashes(block_size);
            pool.store(&self.blocks[from..to], &self.hashes[from..to]);
            pool.publish(|| self.stored(from, to, block_size));
            self.stored_blocks = to;
        }
        true
    }

    fn decide_answer(&mut self, block_size: usize) {
        let full = self.prompt_tokens / block_size * block_size;
        let admission = Admission {
            cached_tokens: self.computed,
            created_tokens: full.saturating_sub(self.computed),
        };
        let nothing: AnswerTokens = Box::new(|_| Arc::from([]));
        let answer = std::mem::replace(&mut self.sequence.answer, nothing);
        self.answer = Some(answer(admission));
    }

    /// The event for blocks `from..to`.
    fn stored(&self, from: usize, to: usize, block_size: usize) -> Event {
        let identity = &self.sequence.identity;
        Event::Stored(Stored {
            hashes: self.hashes[from..to].to_vec(),
            parent: from.checked_sub(1).map(|last| self.hashes[last]),
            tokens: self.sequence.tokens[from * block_size..to * block_size].to_vec(),
            extra_keys: (from..to)
                .map(|i| identity.extra_keys(i, block_size))
                .collect(),
            lora: identity.lora.clone(),
            session: self.sequence.session.clone(),
        })
    }
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequence")
            .field("id", &self.id)
            .field("prompt_tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("running", &self.running.len())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
