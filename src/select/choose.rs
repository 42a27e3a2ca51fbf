//! The ways of choosing one of several candidates.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::select::cost::Cost;
use crate::select::{Candidate, Device, Policy, RouterMode};

/// Chooses one of `candidates`, given each one's cost: its position, or `None` when there are none.
/// `turn` counts placements; it orders round-robin, and with it ties and chances are spread.
///
/// A degraded worker is costlier where its cost or load is looked at; the ways that look at neither
/// leave it out while others are there. [`RouterMode::Direct`] takes the cheapest rank of those that
/// its caller has left.
pub fn select(
    candidates: &[Candidate],
    costs: &[Cost],
    policy: Policy,
    turn: u64,
) -> Option<usize> {
    debug_assert_eq!(candidates.len(), costs.len(), "one cost per candidate");
    if candidates.is_empty() {
        return None;
    }
    let chance = Chance { policy, turn };
    let busyness = |at: usize| busyness(&candidates[at], policy);
    let all = 0..candidates.len();
    Some(match policy.mode {
        RouterMode::RoundRobin => {
            let unharmed = unharmed(candidates);
            unharmed[(turn % unharmed.len() as u64) as usize]
        }
        RouterMode::Random => {
            let unharmed = unharmed(candidates);
            unharmed[chance.below(unharmed.len())]
        }
        RouterMode::PowerOfTwo => {
            let (first, second) = chance.two_below(candidates.len());
            match busyness(second) < busyness(first) {
                true => second,
                false => first,
            }
        }
        RouterMode::LeastLoaded => chance.cheapest(all.map(|at| (at, busyness(at)))),
        RouterMode::DeviceAwareWeighted => {
            let device = idler_device(candidates, policy);
            let group = all.filter(|at| candidates[*at].standing.device == device);
            chance.cheapest(group.map(|at| (at, busyness(at))))
        }
        RouterMode::Kv if policy.temperature > 0.0 => chance.softmax(costs),
        RouterMode::Kv | RouterMode::Direct => chance.cheapest(all.map(|at| (at, costs[at].total))),
    })
}

/// Positions of those that are not degraded; of all, where none is left.
fn unharmed(candidates: &[Candidate]) -> Vec<usize> {
    let all = 0..candidates.len();
    let unharmed: Vec<_> = all
        .clone()
        .filter(|at| !candidates[*at].standing.is_degraded)
        .collect();
    match unharmed.is_empty() {
        true => all.collect(),
        false => unharmed,
    }
}

/// Requests in flight, this one included, so that a degraded worker without any is still costlier.
fn busyness(candidate: &Candidate, policy: Policy) -> f64 {
    let weight = match candidate.standing.is_degraded {
        true => policy.degraded_weight,
        false => 1.0,
    };
    f64::from(candidate.load.requests + 1) * weight
}

/// The kind of device that has less to do for what it can: requests in flight by candidate, a GPU
/// counted as many CPUs. As in NVIDIA Dynamo's router.
fn idler_device(candidates: &[Candidate], policy: Policy) -> Device {
    let share = |device: Device, weight: f64| {
        let group = candidates.iter().filter(|c| c.standing.device == device);
        let requests: f64 = group.clone().map(|c| f64::from(c.load.requests)).sum();
        match group.count() {
            0 => f64::INFINITY,
            count => requests / (count as f64 * weight),
        }
    };
    let gpus = share(Device::Gpu, policy.gpu_to_cpu_ratio);
    match share(Device::Cpu, 1.0) < gpus {
        true => Device::Cpu,
        false => Device::Gpu,
    }
}

/// Evenly spread choices, drawn from a seed and a count of placements.
#[derive(Clone, Copy)]
struct Chance {
    policy: Policy,
    turn: u64,
}

impl Chance {
    fn bits(self) -> u64 {
        xxh3_64_with_seed(&self.turn.to_le_bytes(), self.policy.seed)
    }

    fn below(self, count: usize) -> usize {
        (self.bits() % count.max(1) as u64) as usize
    }

    /// Two different positions, or the only one twice.
    fn two_below(self, count: usize) -> (usize, usize) {
        let first = self.below(count);
        if count < 2 {
            return (first, first);
        }
        // The upper half of the bits has no part in the first.
        let step = 1 + ((self.bits() >> 32) % (count as u64 - 1)) as usize;
        (first, (first + step) % count)
    }

    /// The position with the lowest value; ties are spread evenly, and not in turns: a client that
    /// sends each new prompt twice would find every new one at the same position.
    fn cheapest(self, values: impl Iterator<Item = (usize, f64)> + Clone) -> usize {
        let lowest = values
            .clone()
            .map(|(_, value)| value)
            .fold(f64::INFINITY, f64::min);
        let ties = values.filter(|(_, value)| *value <= lowest);
        let count = ties.clone().count();
        ties.map(|(at, _)| at).nth(self.below(count)).unwrap_or(0)
    }

    /// Draws a position with probability falling in its cost. Costs are scaled to 0..1 first, so
    /// that one temperature means the same for short and long prompts.
    fn softmax(self, costs: &[Cost]) -> usize {
        let totals = costs.iter().map(|cost| cost.total);
        let lowest = totals.clone().fold(f64::INFINITY, f64::min);
        let highest = totals.fold(f64::NEG_INFINITY, f64::max);
        let range = (highest - lowest).max(f64::MIN_POSITIVE);
        let weight = |cost: &Cost| (-(cost.total - lowest) / range / self.policy.temperature).exp();
        let sum: f64 = costs.iter().map(weight).sum();
        // 53 random bits make a fraction of every size a double can tell apart.
        let mut left = (self.bits() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        for (at, cost) in costs.iter().enumerate() {
            left -= weight(cost);
            if left < 0.0 {
                return at;
            }
        }
        costs.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;
    use crate::select::Standing;
    use crate::select::load::Load;

    const MODES: [RouterMode; 7] = [
        RouterMode::Kv,
        RouterMode::RoundRobin,
        RouterMode::Random,
        RouterMode::PowerOfTwo,
        RouterMode::LeastLoaded,
        RouterMode::DeviceAwareWeighted,
        RouterMode::Direct,
    ];

    /// A candidate with so many requests in flight.
    fn busy(requests: u32) -> Candidate {
        Candidate {
            block_size: BlockSize::new(16).unwrap(),
            overlap_blocks: 0,
            host_blocks: 0,
            disk_blocks: 0,
            shared_blocks: 0,
            encoded_tokens: 0,
            room: None,
            load: Load {
                requests,
                ..Load::default()
            },
            standing: Standing::default(),
        }
    }

    fn with(requests: u32, is_degraded: bool, device: Device) -> Candidate {
        let standing = Standing {
            is_degraded,
            device,
            preference: 0.0,
        };
        Candidate {
            standing,
            ..busy(requests)
        }
    }

    /// Costs as high as the requests in flight.
    fn costs(candidates: &[Candidate]) -> Vec<Cost> {
        let cost = |candidate: &Candidate| Cost {
            uncached_tokens: 0.0,
            queued_tokens: 0.0,
            decode_tokens: 0.0,
            evicted_tokens: 0.0,
            spared_tokens: 0.0,
            factor: 1.0,
            total: f64::from(candidate.load.requests),
        };
        candidates.iter().map(cost).collect()
    }

    fn drawn(policy: Policy, candidates: &[Candidate], turns: u64) -> Vec<usize> {
        let mut drawn = vec![0; candidates.len()];
        for turn in 0..turns {
            drawn[select(candidates, &costs(candidates), policy, turn).unwrap()] += 1;
        }
        drawn
    }

    fn policy(mode: RouterMode) -> Policy {
        Policy {
            mode,
            ..Policy::default()
        }
    }

    #[test]
    fn nobody_is_chosen_of_none_and_the_only_one_of_one() {
        for mode in MODES {
            for turn in 0..9 {
                assert_eq!(select(&[], &[], policy(mode), turn), None);
                let one = [with(3, true, Device::Cpu)];
                assert_eq!(select(&one, &costs(&one), policy(mode), turn), Some(0));
            }
        }
    }

    #[test]
    fn each_mode_keeps_its_promise() {
        let gpu = |requests| with(requests, false, Device::Gpu);
        let cpu = |requests| with(requests, false, Device::Cpu);
        let ill = |requests| with(requests, true, Device::Gpu);
        for (mode, candidates, only) in [
            (RouterMode::LeastLoaded, [busy(3), busy(1), busy(2)], 1),
            (RouterMode::Kv, [busy(3), busy(1), busy(2)], 1),
            (RouterMode::Direct, [busy(3), busy(1), busy(2)], 1),
            (RouterMode::LeastLoaded, [ill(2), busy(3), busy(4)], 1), // 3 × 2 against 4
            (RouterMode::LeastLoaded, [ill(0), busy(2), busy(3)], 0),
            // A GPU is given eight times as much as a CPU.
            (RouterMode::DeviceAwareWeighted, [cpu(1), gpu(7), gpu(6)], 2),
            (RouterMode::DeviceAwareWeighted, [cpu(0), gpu(7), gpu(6)], 0),
            (RouterMode::DeviceAwareWeighted, [gpu(9), gpu(7), gpu(8)], 1),
            (RouterMode::DeviceAwareWeighted, [cpu(9), cpu(7), cpu(8)], 1),
            // Two of three always have one that is not the busiest.
            (RouterMode::Random, [ill(0), ill(0), busy(9)], 2),
            (RouterMode::RoundRobin, [ill(0), busy(9), ill(0)], 1),
        ] {
            let drawn = drawn(policy(mode), &candidates, 50);
            assert_eq!(drawn[only], 50, "{mode:?} {candidates:?}");
        }
        let of_two = drawn(
            policy(RouterMode::PowerOfTwo),
            &[busy(9), busy(1), busy(5)],
            3_000,
        );
        assert_eq!(of_two[0], 0, "of any two, one is less busy");
        assert!((1_850..2_150).contains(&of_two[1]), "{of_two:?}");
    }

    #[test]
    fn ties_are_spread_evenly_and_turns_are_taken() {
        let same = [busy(0); 3];
        let turns: Vec<_> = (0..4)
            .map(|turn| select(&same, &costs(&same), policy(RouterMode::RoundRobin), turn))
            .collect();
        assert_eq!(turns, [Some(0), Some(1), Some(2), Some(0)]);
        for mode in MODES
            .into_iter()
            .filter(|mode| *mode != RouterMode::RoundRobin)
        {
            for step in [1, 2, 3] {
                let mut drawn = [0_u32; 3];
                for turn in 0..3_000 {
                    let chosen = select(&same, &costs(&same), policy(mode), turn * step);
                    drawn[chosen.unwrap()] += 1;
                }
                assert!(
                    drawn.iter().all(|count| (850..1_150).contains(count)),
                    "{mode:?}: {drawn:?}"
                );
            }
        }
    }

    #[test]
    fn the_same_seed_chooses_alike_and_another_does_not() {
        let same = [busy(0); 4];
        for mode in [RouterMode::Random, RouterMode::PowerOfTwo, RouterMode::Kv] {
            let choices = |seed| {
                let policy = Policy {
                    seed,
                    ..policy(mode)
                };
                let turns = (0..64).map(|turn| select(&same, &costs(&same), policy, turn));
                turns.collect::<Vec<_>>()
            };
            assert_eq!(choices(7), choices(7), "{mode:?}");
            assert_ne!(choices(7), choices(8), "{mode:?}");
        }
    }

    #[test]
    fn temperature_takes_the_costlier_now_and_then() {
        let policy = Policy {
            temperature: 0.5,
            ..Policy::default()
        };
        let drawn = drawn(policy, &[busy(0), busy(9)], 2_000);
        // e^0 : e^-2 is 0.881 : 0.119.
        assert!((1_700..1_820).contains(&drawn[0]), "{drawn:?}");
    }
}
