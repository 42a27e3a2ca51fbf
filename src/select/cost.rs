//! What a request would cost on one candidate.

use crate::select::{Ask, Candidate, Policy};

/// What a token that must be computed counts, against one that is queued: it also keeps back those
/// that come after it, and takes room in a second cache. `kvlens replay` finds the most hits that cost
/// no time at about 2; with 1 prompts leave the caches that hold them too soon, beyond 3 they queue.
const CACHE_WEIGHT: f64 = 2.0;

/// What a token that is held while decoding counts, against one to compute: its keys and values, some
/// 128 KiB, are read in 40 ns with each step of its answer, and it was computed in some 50 µs. So 60
/// steps are a twentieth of that.
const DECODE_WEIGHT: f64 = 0.05;

/// The terms of one candidate's cost, in tokens, so that workers of different block sizes compare.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cost {
    /// Of this prompt, to be computed before the first token.
    pub uncached_tokens: f64,
    /// Of others, to be computed before.
    pub queued_tokens: f64,
    /// Held while decoding: what is active there and this prompt's own.
    pub decode_tokens: f64,
    /// Pushed out of the cache by what of this prompt is new everywhere.
    pub evicted_tokens: f64,
    /// What of it is spared by images that were encoded lately, and by blocks that are loaded from
    /// slower tiers: each times its weight.
    pub spared_tokens: f64,
    /// 1, more for a degraded worker, less for one with preferred labels.
    pub factor: f64,
    /// `factor × (2 × overlap_weight × (uncached_tokens − spared_tokens + evicted_tokens) +
    /// queued_tokens + decode_tokens / 20)`.
    pub total: f64,
}

/// How a total is made of the other terms, and what is spared of a candidate's tokens, in words: two
/// lines.
pub fn formula(policy: Policy) -> String {
    let work_weight = CACHE_WEIGHT * policy.overlap_weight;
    let held_share = 1.0 / DECODE_WEIGHT;
    let Policy {
        media_credit,
        host_credit,
        disk_credit,
        ..
    } = policy;
    format!(
        "total = factor × ({work_weight} × (uncached − spared + evicted) + queued + decode / \
         {held_share})\nspared = {media_credit} × encoded + {host_credit} × host + {disk_credit} × disk"
    )
}

/// The cost of a prompt on one candidate. Two terms as in NVIDIA Dynamo's router: work before the
/// first token and memory held afterwards, in blocks times the block size. Not as there, the work of
/// others that is queued is not weighted, and memory counts little: a token held does not delay the
/// first token as one to compute does.
///
/// The third is ours. Prompts mostly begin alike, with a system prompt; whoever holds that lead is
/// cheapest by it for every new prompt, and without load would be sent all of them for ever while
/// other caches stay empty, or keep what nobody asks for. So what is new everywhere costs what it
/// pushes out, as far as that is young; where all caches are equally young it changes nothing.
///
/// What a slower tier holds is not new, or a full cache that has offloaded a prompt would cost more
/// than an empty one that never had it.
pub fn cost(ask: Ask, candidate: &Candidate, policy: Policy) -> Cost {
    let block_tokens = candidate.block_size.tokens();
    let uncached_tokens = u64::from(candidate.uncached_tokens(ask.prompt_tokens));
    let queued_tokens = match policy.tracks_prefill {
        true => candidate.load.prefill_tokens,
        false => 0,
    };
    let blocks = ask.prompt_tokens.div_ceil(block_tokens);
    // What a prompt in flight holds already is in the load.
    let own_blocks = u64::from(blocks.saturating_sub(candidate.shared_blocks));
    let decode_blocks = candidate.load.decode_blocks + candidate.load.output_blocks + own_blocks;
    let decode_tokens = decode_blocks as f64 * f64::from(block_tokens);
    let new_blocks = u64::from(ask.new_tokens.div_ceil(block_tokens));
    let evicted_blocks = candidate
        .room
        .map_or(0.0, |room| room.lost_blocks(new_blocks));
    let evicted_tokens = evicted_blocks * f64::from(block_tokens);
    let encoded_tokens = f64::from(candidate.encoded_tokens);
    let spared_tokens =
        policy.media_credit * encoded_tokens + candidate.loading_spares_tokens(policy);
    let spared_tokens = spared_tokens.min(uncached_tokens as f64);
    let factor = candidate.standing.factor(policy);
    let work_tokens = uncached_tokens as f64 - spared_tokens + evicted_tokens;
    let load_tokens = queued_tokens as f64 + DECODE_WEIGHT * decode_tokens;
    Cost {
        uncached_tokens: uncached_tokens as f64,
        queued_tokens: queued_tokens as f64,
        decode_tokens,
        evicted_tokens,
        spared_tokens,
        factor,
        total: factor * (CACHE_WEIGHT * policy.overlap_weight * work_tokens + load_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;
    use crate::select::choose::select;
    use crate::select::load::Load;
    use crate::select::{Room, RouterMode, Standing};

    fn candidate(overlap_blocks: u32, prefill_tokens: u64, decode_blocks: u64) -> Candidate {
        let load = Load {
            prefill_tokens,
            decode_blocks,
            output_blocks: 0,
            requests: decode_blocks as u32,
        };
        Candidate {
            block_size: BlockSize::new(16).unwrap(),
            overlap_blocks,
            host_blocks: 0,
            disk_blocks: 0,
            shared_blocks: 0,
            encoded_tokens: 0,
            room: None,
            load,
            standing: Standing::default(),
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
            ..Policy::default()
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
        check(&[idle, candidate(5, 176, 0)], Some(0)); // 11 blocks queued outweigh 5 held
        check(&[idle, candidate(5, 144, 0)], Some(1));
        check(&[idle, candidate(5, 0, 201)], Some(0)); // so do 201 blocks being decoded
        check(&[idle, candidate(5, 0, 199)], Some(1));
        check(&[idle, candidate(0, 0, 1)], Some(0)); // and one, where nothing is held
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
    fn a_full_cache_that_has_offloaded_a_prompt_is_better_than_an_empty_one() {
        let full = Room {
            free_blocks: 0,
            young: 1.0,
        };
        let with = |host_blocks, disk_blocks| Candidate {
            host_blocks,
            disk_blocks,
            room: Some(full),
            ..candidate(0, 0, 0)
        };
        let empty = candidate(0, 0, 0);
        for (holder, chosen) in [
            (with(9, 0), 0),
            (with(0, 9), 0),
            (with(5, 0), 1), // 5 pushed out outweigh 5 loaded
            (with(0, 0), 1),
        ] {
            let found = choose(RouterMode::Kv, &[holder, empty], 0);
            assert_eq!(found, Some(chosen), "{holder:?}");
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
    fn every_term_moves_the_cost_as_it_says() {
        let plain = candidate(0, 0, 0);
        let policy = Policy::default();
        let ask = Ask {
            prompt_tokens: 160,
            new_tokens: 160,
        };
        let total = |candidate: &Candidate, policy| cost(ask, candidate, policy).total;
        let work = |tokens: f64| CACHE_WEIGHT * tokens;
        let decode = DECODE_WEIGHT * 160.0;
        let standing = |is_degraded, preference| Candidate {
            standing: Standing {
                is_degraded,
                preference,
                ..Standing::default()
            },
            ..plain
        };
        let encoded = |encoded_tokens| Candidate {
            encoded_tokens,
            ..plain
        };
        let offloaded = |host_blocks, disk_blocks| Candidate {
            host_blocks,
            disk_blocks,
            ..plain
        };
        let output = Candidate {
            load: Load {
                output_blocks: 3,
                ..Load::default()
            },
            ..plain
        };
        let queued = candidate(0, 100, 0);
        let untracked = Policy {
            tracks_prefill: false,
            ..policy
        };
        let unspared = Policy {
            host_credit: 0.0,
            disk_credit: 0.0,
            ..policy
        };
        for (candidate, policy, expected) in [
            (plain, policy, work(160.0) + decode),
            (encoded(80), policy, work(160.0 - 80.0 * 0.25) + decode),
            // Never more than all that is left to compute.
            (encoded(100_000), policy, decode),
            (offloaded(4, 0), policy, work(160.0 - 64.0 * 0.75) + decode),
            (offloaded(0, 4), policy, work(160.0 - 64.0 * 0.25) + decode),
            (offloaded(4, 4), unspared, work(160.0) + decode),
            (offloaded(100, 100), policy, decode),
            (output, policy, work(160.0) + decode + DECODE_WEIGHT * 48.0),
            (queued, policy, work(160.0) + 100.0 + decode),
            (queued, untracked, work(160.0) + decode),
            (standing(true, 0.0), policy, 2.0 * (work(160.0) + decode)),
            (
                standing(false, 0.5),
                policy,
                (work(160.0) + decode) * (-0.5_f64.tanh()).exp(),
            ),
            (
                standing(false, -1e9),
                policy,
                (work(160.0) + decode) * std::f64::consts::E,
            ),
        ] {
            let found = total(&candidate, policy);
            assert!((found - expected).abs() < 1e-6, "{candidate:?}: {found}");
        }
    }
}
