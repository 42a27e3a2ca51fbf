//! A simulated engine: one prompt after the other is computed, beside any number of answers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::block::{BlockSize, SequenceHash};
use crate::commands::replay::cache::{Held, PrefixCache};

/// What an engine can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    /// Prompt tokens computed in a second.
    pub(crate) prefill_tokens_per_second: f64,
    /// Tokens of one answer in a second, however many are under way.
    pub(crate) decode_tokens_per_second: f64,
}

/// A request at an engine.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its place in the trace.
    pub(crate) request: usize,
    pub(crate) hashes: Arc<[SequenceHash]>,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
}

/// A prompt whose computation begins.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) request: usize,
    /// Prompt tokens found in the cache.
    pub(crate) cached_tokens: u32,
    /// The others.
    pub(crate) computed_tokens: u32,
    /// How long they take.
    pub(crate) takes: Duration,
    /// Blocks that went for it.
    pub(crate) removed: Vec<SequenceHash>,
}

/// A prompt that is computed: its first token is there.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) request: usize,
    /// Blocks that are in the cache since.
    pub(crate) stored: Vec<SequenceHash>,
    /// How long the rest of the answer takes.
    pub(crate) takes: Duration,
}

/// One engine. It has room for a request's prompt and whole answer before it begins it; a real one
/// takes the answer's blocks one by one, and puts a request back when they run out. Prompts and
/// answers do not slow each other down.
#[derive(Debug)]
pub(crate) struct Engine {
    block_size: BlockSize,
    speed: Speed,
    cache: PrefixCache,
    waiting: VecDeque<Job>,
    /// The prompt under way, and how many of its blocks were found.
    computing: Option<(Job, Held, u32)>,
    answering: HashMap<usize, Held>,
}

/// Blocks that a request needs at its end.
pub(crate) fn blocks_at_end(prompt_tokens: u32, output_tokens: u32, size: BlockSize) -> u64 {
    let tokens = u64::from(prompt_tokens) + u64::from(output_tokens);
    tokens.div_ceil(u64::from(size.tokens()))
}

impl Engine {
    pub(crate) fn new(block_size: BlockSize, capacity_blocks: u64, speed: Speed) -> Self {
        Self {
            block_size,
            speed,
            cache: PrefixCache::new(capacity_blocks),
            waiting: VecDeque::new(),
            computing: None,
            answering: HashMap::new(),
        }
    }

    /// Takes a request; it waits for those before it.
    pub(crate) fn enqueue(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Begins the next prompt, unless one is under way, none waits, or the cache has no room.
    pub(crate) fn start(&mut self) -> Option<Started> {
        if self.computing.is_some() {
            return None;
        }
        let job = self.waiting.front()?;
        let all_blocks = blocks_at_end(job.prompt_tokens, job.output_tokens, self.block_size);
        let unnamed_blocks = all_blocks - job.hashes.len() as u64;
        let taken = self.cache.take(&job.hashes, unnamed_blocks)?;
        let job = self.waiting.pop_front()?;
        // The last token is always computed, and with it its block.
        let most_blocks = self.block_size.cacheable_blocks(job.prompt_tokens);
        let cached_tokens = taken.found_blocks.min(most_blocks) * self.block_size.tokens();
        let computed_tokens = job.prompt_tokens - cached_tokens;
        let rate = self.speed.prefill_tokens_per_second;
        let started = Started {
            request: job.request,
            cached_tokens,
            computed_tokens,
            takes: Duration::from_secs_f64(f64::from(computed_tokens) / rate),
            removed: taken.evicted,
        };
        self.computing = Some((job, taken.held, taken.found_blocks));
        Some(started)
    }

    /// Ends the computation of the prompt under way; its answer begins.
    pub(crate) fn computed(&mut self) -> Option<Computed> {
        let (job, held, found_blocks) = self.computing.take()?;
        let rate = self.speed.decode_tokens_per_second;
        // The first token comes with the prompt.
        let rest_tokens = job.output_tokens.saturating_sub(1);
        self.answering.insert(job.request, held);
        Some(Computed {
            request: job.request,
            stored: job.hashes[found_blocks as usize..].to_vec(),
            takes: Duration::from_secs_f64(f64::from(rest_tokens) / rate),
        })
    }

    /// Ends an answer.
    pub(crate) fn answered(&mut self, request: usize) {
        if let Some(held) = self.answering.remove(&request) {
            self.cache.give_up(&held);
        }
    }

    /// Whether nothing is under way or held.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.computing.is_none() && self.cache.held_blocks() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(capacity_blocks: u64) -> Engine {
        let speed = Speed {
            prefill_tokens_per_second: 1_000.0,
            decode_tokens_per_second: 10.0,
        };
        Engine::new(BlockSize::new(16).unwrap(), capacity_blocks, speed)
    }

    fn job(request: usize, prompt_tokens: u32, hashes: &[u64]) -> Job {
        Job {
            request,
            hashes: hashes.iter().copied().map(SequenceHash).collect(),
            prompt_tokens,
            output_tokens: 5,
        }
    }

    #[test]
    fn one_prompt_after_the_other_is_computed() {
        let mut engine = engine(8);
        for (request, prompt_tokens) in [(0, 48), (1, 50)] {
            engine.enqueue(job(request, prompt_tokens, &[1, 2, 3]));
        }
        let first = engine.start().unwrap();
        assert_eq!((first.request, first.cached_tokens), (0, 0));
        assert_eq!(first.takes, Duration::from_millis(48));
        assert!(engine.start().is_none());
        let computed = engine.computed().unwrap();
        assert_eq!(computed.stored, [1, 2, 3].map(SequenceHash));
        assert_eq!(computed.takes, Duration::from_millis(400));
        // Its blocks are there while its answer is under way.
        let second = engine.start().unwrap();
        assert_eq!((second.cached_tokens, second.computed_tokens), (48, 2));
        assert!(engine.computed().unwrap().stored.is_empty());
        engine.answered(0);
        assert!(!engine.is_idle());
        engine.answered(1);
        assert!(engine.is_idle());
    }

    #[test]
    fn the_last_block_is_computed_again() {
        let mut engine = engine(8);
        for request in 0..2 {
            engine.enqueue(job(request, 48, &[1, 2, 3]));
            let started = engine.start().unwrap();
            assert_eq!(started.cached_tokens, 32 * request as u32);
            engine.computed().unwrap();
        }
    }

    #[test]
    fn a_prompt_waits_for_room() {
        let mut engine = engine(5);
        engine.enqueue(job(0, 48, &[1, 2, 3]));
        engine.enqueue(job(1, 32, &[4, 5]));
        engine.start().unwrap();
        engine.computed().unwrap();
        assert!(engine.start().is_none());
        engine.answered(0);
        let second = engine.start().unwrap();
        assert_eq!(second.removed, [SequenceHash(3)]);
    }
}
