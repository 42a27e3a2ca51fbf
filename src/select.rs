//! The cost model: which of several candidates a request goes to. Same inputs and seed, same choice.

pub mod churn;
pub mod load;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::block::BlockSize;
use crate::select::load::Load;

/// How a worker is chosen.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum RouterMode {
    /// The cheapest by what is still to compute there and what it already does.
    #[default]
    Kv,
    /// Each in turn.
    RoundRobin,
    /// Any, by chance.
    Random,
    /// The one with the fewest requests in flight.
    LeastLoaded,
}

/// What the choice depends on beside the candidates.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub mode: RouterMode,
    /// Weight of the prefill term; 0 ignores the caches.
    pub overlap_weight: f64,
    /// 0 takes the cheapest; above, costlier candidates are taken now and then.
    pub temperature: f64,
}

/// One worker rank that could take the request.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub block_size: BlockSize,
    /// Leading blocks of the prompt it holds, already capped at what a cache can answer.
    pub overlap_blocks: u32,
    /// Leading blocks of the prompt that a prompt in flight there has too.
    pub shared_blocks: u32,
    /// What there is room for in its cache; `None` where that is not known.
    pub room: Option<Room>,
    pub load: Load,
}

/// What a cache loses by taking in more.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Blocks that hold nothing yet.
    pub free_blocks: u64,
    /// The share of the rest that came lately, 0 to 1: what is old will hardly be missed.
    pub young: f64,
}

impl Room {
    /// What it loses when so many new blocks come, in blocks that are likely to be asked for again.
    fn lost_blocks(&self, new_blocks: u64) -> f64 {
        new_blocks.saturating_sub(self.free_blocks) as f64 * self.young
    }
}

impl Candidate {
    /// Counts the tokens of a prompt that are still to be computed there.
    pub fn uncached_tokens(&self, prompt_tokens: u32) -> u32 {
        prompt_tokens.saturating_sub(self.overlap_blocks * self.block_size.tokens())
    }
}

/// What the candidates are asked to take.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub prompt_tokens: u32,
    /// Tokens that not even the candidate which holds most of the prompt has cached.
    pub new_tokens: u32,
}

impl Ask {
    /// A prompt, asked of these candidates.
    pub fn of<'a>(prompt_tokens: u32, candidates: impl Iterator<Item = &'a Candidate>) -> Self {
        let uncached = candidates.map(|candidate| candidate.uncached_tokens(prompt_tokens));
        Self {
            prompt_tokens,
            new_tokens: uncached.min().unwrap_or(prompt_tokens),
        }
    }
}

/// The terms of one candidate's cost, in tokens, so that workers of different block sizes compare.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Cost {
    /// To be computed before the first token: this prompt's uncached part and what is queued there.
    pub prefill_tokens: f64,
    /// Held while decoding: what is active there and this prompt's own.
    pub decode_tokens: f64,
    /// Pushed out of the cache by what of this prompt is new everywhere.
    pub evicted_tokens: f64,
    /// `overlap_weight × (prefill_tokens + evicted_tokens) + decode_tokens`.
    pub total: f64,
}

/// The cost of a prompt on one candidate. Two terms as in NVIDIA Dynamo's router: work before the
/// first token, weighted, and memory held afterwards. Dynamo counts both in blocks; so do we, times
/// the block size.
///
/// The third is ours. Prompts mostly begin alike, with a system prompt; whoever holds that lead is
/// cheapest by it for every new prompt, and without load would be sent all of them for ever while
/// other caches stay empty, or keep what nobody asks for. So what is new everywhere costs what it
/// pushes out, as far as that is young; where all caches are equally young it changes nothing.
pub fn cost(ask: Ask, candidate: &Candidate, policy: Policy) -> Cost {
    let block_tokens = candidate.block_size.tokens();
    let uncached_tokens = u64::from(candidate.uncached_tokens(ask.prompt_tokens));
    let prefill_tokens = (candidate.load.prefill_tokens + uncached_tokens) as f64;
    let blocks = ask.prompt_tokens.div_ceil(block_tokens);
    // What a prompt in flight holds already is in the load.
    let own_blocks = u64::from(blocks.saturating_sub(candidate.shared_blocks));
    let decode_blocks = candidate.load.decode_blocks + own_blocks;
    let decode_tokens = decode_blocks as f64 * f64::from(block_tokens);
    let new_blocks = u64::from(ask.new_tokens.div_ceil(block_tokens));
    let evicted_blocks = candidate
        .room
        .map_or(0.0, |room| room.lost_blocks(new_blocks));
    let evicted_tokens = evicted_blocks * f64::from(block_tokens);
    let total = policy.overlap_weight * (prefill_tokens + evicted_tokens) + decode_tokens;
    Cost {
        prefill_tokens,
        decode_tokens,
        evicted_tokens,
        total,
    }
}

/// Chooses one of `candidates`, given each one's cost: its position, or `None` when there are none.
/// `turn` counts placements; it orders round-robin, and with it ties and chances are spread.
pub fn select(
    candidates: &[Candidate],
    costs: &[Cost],
    policy: Policy,
    turn: u64,
) -> Option<usize> {
    debug_assert_eq!(candidates.len(), costs.len(), "one cost per candidate");
    let count = candidates.len() as u64;
    if count == 0 {
        return None;
    }
    let choice = match policy.mode {
        RouterMode::RoundRobin => (turn % count) as usize,
        RouterMode::Random => (chance(turn) % count) as usize,
        RouterMode::LeastLoaded => {
            cheapest(candidates.iter().map(|c| c.load.requests as f64), turn)
        }
        RouterMode::Kv if policy.temperature > 0.0 => softmax(costs, policy.temperature, turn),
        RouterMode::Kv => cheapest(costs.iter().map(|cost| cost.total), turn),
    };
    Some(choice)
}

/// The position of the lowest value; ties are spread evenly, and not in turns: a client that sends
/// each new prompt twice would find every new one at the same position.
fn cheapest(values: impl Iterator<Item = f64> + Clone, turn: u64) -> usize {
    let lowest = values.clone().fold(f64::INFINITY, f64::min);
    let ties: Vec<usize> = values
        .enumerate()
        .filter(|(_, value)| *value <= lowest)
        .map(|(at, _)| at)
        .collect();
    ties.get((chance(turn) % ties.len().max(1) as u64) as usize)
        .copied()
        .unwrap_or(0)
}

/// Draws a position with probability falling in its cost. Costs are scaled to 0..1 first, so that
/// one temperature means the same for short and long prompts.
fn softmax(costs: &[Cost], temperature: f64, turn: u64) -> usize {
    let lowest = costs
        .iter()
        .map(|cost| cost.total)
        .fold(f64::INFINITY, f64::min);
    let highest = costs
        .iter()
        .map(|cost| cost.total)
        .fold(f64::NEG_INFINITY, f64::max);
    let range = (highest - lowest).max(f64::MIN_POSITIVE);
    let weight = |cost: &Cost| (-(cost.total - lowest) / range / temperature).exp();
    let sum: f64 = costs.iter().map(weight).sum();
    // 53 random bits make a fraction of every size a double can tell apart.
    let mut left = (chance(turn) >> 11) as f64 / (1_u64 << 53) as f64 * sum;
    for (at, cost) in costs.iter().enumerate() {
        left -= weight(cost);
        if left < 0.0 {
            return at;
        }
    }
    costs.len() - 1
}

/// Evenly spread bits from a counter.
fn chance(turn: u64) -> u64 {
    xxh3_64_with_seed(&turn.to_le_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(overlap_blocks: u32, prefill_tokens: u64, decode_blocks: u64) -> Candidate {
        let load = Load {
            prefill_tokens,
            decode_blocks,
            requests: decode_blocks as u32,
        };
        Candidate {
            block_size: BlockSize::new(16).unwrap(),
            overlap_blocks,
            shared_blocks: 0,
            room: None,
            load,
        }
    }

    fn costs(candidates: &[Candidate], policy: Policy) -> Vec<Cost> {
        let ask = Ask::of(160, candidates.iter());
        let costs = candidates.iter().map(|c| cost(ask, c, policy));
        costs.collect()
    }

    fn choose(mode: RouterMode, candidates: &[Candidate], turn: u64) -> Option<usize> {
        let policy = Policy {
            mode,
            overlap_weight: 1.0,
            temperature: 0.0,
        };
        select(candidates, &costs(candidates, policy), policy, turn)
    }

    #[test]
    fn kv_weighs_overlap_against_load() {
        let idle = candidate(0, 0, 0);
        let holds_half = candidate(5, 0, 0);
        let check = |candidates: &[Candidate], expected| {
            assert_eq!(
                choose(RouterMode::Kv, candidates, 7),
                expected,
                "{candidates:?}"
            );
        };
        check(&[], None);
        check(&[idle, holds_half], Some(1));
        check(&[idle, candidate(5, 96, 0)], Some(0)); // 6 blocks queued outweigh 5 held
        check(&[idle, candidate(5, 0, 6)], Some(0)); // so do 6 blocks being decoded
        check(&[idle, candidate(5, 32, 2)], Some(1));
    }

    #[test]
    fn an_empty_cache_is_filled_before_a_full_one_is_emptied() {
        let with = |overlap_blocks: u32, free_blocks: u64| Candidate {
            room: Some(Room {
                free_blocks,
                young: 1.0,
            }),
            ..candidate(overlap_blocks, 0, 0)
        };
        for (candidates, chosen) in [
            ([with(1, 0), with(0, 100)], 1),
            ([with(1, 9), with(0, 100)], 0), // room for all that is new
            ([with(1, 5), with(0, 100)], 1), // 4 pushed out outweigh 1 held
            ([with(8, 0), with(0, 100)], 0), // 8 held outweigh 2 pushed out
            ([with(1, 0), with(0, 0)], 0),   // all full: the held block decides
        ] {
            assert_eq!(
                choose(RouterMode::Kv, &candidates, 0),
                Some(chosen),
                "{candidates:?}"
            );
        }
    }

    #[test]
    fn of_full_caches_the_one_with_old_content_takes_what_is_new() {
        let with = |overlap_blocks: u32, young: f64| Candidate {
            room: Some(Room {
                free_blocks: 0,
                young,
            }),
            ..candidate(overlap_blocks, 0, 0)
        };
        for (candidates, chosen) in [
            ([with(1, 0.9), with(0, 0.2)], 1),
            ([with(1, 0.5), with(0, 0.5)], 0),
            ([with(9, 1.0), with(0, 0.0)], 0),
        ] {
            assert_eq!(
                choose(RouterMode::Kv, &candidates, 0),
                Some(chosen),
                "{candidates:?}"
            );
        }
    }

    #[test]
    fn ties_are_spread_and_modes_keep_their_promise() {
        let same = [candidate(0, 0, 0); 3];
        let turns: Vec<_> = (0..4)
            .map(|turn| choose(RouterMode::RoundRobin, &same, turn))
            .collect();
        assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0)]);
        for mode in [RouterMode::Kv, RouterMode::LeastLoaded, RouterMode::Random] {
            for step in [1, 2, 3] {
                let mut drawn = [0_u32; 3];
                let turns = (0..3_000).map(|turn| turn * step);
                turns.for_each(|turn| drawn[choose(mode, &same, turn).unwrap()] += 1);
                assert!(
                    drawn.iter().all(|count| (850..1_150).contains(count)),
                    "{mode:?}: {drawn:?}"
                );
            }
        }
        let uneven = [candidate(9, 0, 3), candidate(0, 0, 1), candidate(0, 0, 2)];
        assert_eq!(choose(RouterMode::LeastLoaded, &uneven, 5), Some(1));
    }

    #[test]
    fn temperature_takes_the_costlier_now_and_then() {
        let candidates = [candidate(9, 0, 0), candidate(0, 0, 0)];
        let policy = Policy {
            mode: RouterMode::Kv,
            overlap_weight: 1.0,
            temperature: 0.5,
        };
        let costs = costs(&candidates, policy);
        let chosen = |turn| select(&candidates, &costs, policy, turn) == Some(0);
        let cheapest = (0..2_000).filter(|turn| chosen(*turn)).count();
        // e^0 : e^-2 is 0.881 : 0.119.
        assert!((1_700..1_820).contains(&cheapest), "{cheapest} of 2000");
    }
}
