//! The best that could be: one cache for all workers, and nobody waits.

use std::time::Duration;

use crate::commands::replay::cache::PrefixCache;
use crate::commands::replay::engine::Speed;
use crate::commands::replay::outcome::Tally;
use crate::commands::replay::progress::Progress;
use crate::commands::replay::routed::Fleet;
use crate::commands::replay::trace::Trace;

/// The name of this policy.
pub(crate) const NAME: &str = "oracle";

/// Replays a trace on one prefix cache that is as large as those of all workers together. A prompt
/// is in it from its arrival on, and holds it for no time; its uncached part is computed at once, by
/// the workers in turn, without a queue. No placement has a higher hit rate under such caches, nor a
/// shorter time to the first token at that hit rate.
pub(crate) fn replay(trace: &Trace, fleet: Fleet, speed: Speed, progress: &mut Progress) -> Tally {
    let mut cache = PrefixCache::new(fleet.capacity_blocks * fleet.workers as u64);
    let mut tally = Tally::new(fleet.workers);
    for (number, request) in trace.requests.iter().enumerate() {
        let hashes = request.prompt.hashes(&request.tenant, fleet.block_size);
        let prompt_tokens = request.prompt.tokens();
        let most_blocks = fleet.block_size.cacheable_blocks(prompt_tokens);
        // A prompt fits even one worker's cache, so it fits all of them while nothing is held.
        let taken = cache.take(&hashes, 0).unwrap_or_default();
        cache.give_up(&taken.held);
        let cached_tokens = taken.found_blocks.min(most_blocks) * fleet.block_size.tokens();
        let computed_tokens = prompt_tokens - cached_tokens;
        tally.add(number % fleet.workers, cached_tokens, computed_tokens);
        let seconds = f64::from(computed_tokens) / speed.prefill_tokens_per_second;
        tally.ttft.push(Duration::from_secs_f64(seconds));
        progress.at(number + 1);
    }
    tally
}
