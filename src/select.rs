//! The cost model: which of several candidates a request goes to. Same inputs and seed, same choice.

pub mod affinity;
pub mod choose;
pub mod churn;
pub mod cost;
pub mod drift;
pub mod load;
pub mod prompts;
pub mod queue;
pub mod stored;

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
    /// Of two by chance, the one with fewer requests in flight.
    PowerOfTwo,
    /// The one with the fewest requests in flight.
    LeastLoaded,
    /// GPUs and CPUs in proportion to what they do, then the one with the fewest requests in flight.
    DeviceAwareWeighted,
    /// The one that the request names.
    Direct,
}

/// What the choice depends on beside the candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub mode: RouterMode,
    /// Weight of what is to be computed against load; 0 ignores the caches.
    pub overlap_weight: f64,
    /// 0 takes the cheapest; above, costlier candidates are taken now and then.
    pub temperature: f64,
    /// Whether prefill that is queued at a candidate counts.
    pub tracks_prefill: bool,
    /// The share of an image's work that its encoder output saves, where a worker still has that.
    pub media_credit: f64,
    /// The share of a block's work that is spared where it is loaded from the host's memory.
    pub host_credit: f64,
    /// The same of a disk.
    pub disk_credit: f64,
    /// What a degraded worker's cost is multiplied by, at least 1.
    pub degraded_weight: f64,
    /// How many times as much a GPU is given to do as a CPU.
    pub gpu_to_cpu_ratio: f64,
    /// Where chances begin; with the same seed the same requests are placed alike.
    pub seed: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: RouterMode::default(),
            overlap_weight: 1.0,
            temperature: 0.0,
            tracks_prefill: true,
            // Qwen2-VL 7B: four patches of a 675 M encoder against one token of a 7.6 B decoder.
            media_credit: 0.25,
            // Some 20 GB/s over PCIe bring 128 KiB of a token in 7 µs, where to compute it takes 50; a
            // disk is five times slower. Both as in NVIDIA Dynamo's router.
            host_credit: 0.75,
            disk_credit: 0.25,
            // Where it holds more than half of a prompt, it is still the cheapest.
            degraded_weight: 2.0,
            gpu_to_cpu_ratio: 8.0,
            seed: 0,
        }
    }
}

/// One worker rank that could take the request.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub block_size: BlockSize,
    /// Leading blocks of the prompt it holds on the GPU, already capped at what a cache can answer.
    pub overlap_blocks: u32,
    /// The blocks right behind them that it holds in slower tiers, capped with them.
    pub host_blocks: u32,
    pub disk_blocks: u32,
    /// Leading blocks of the prompt that a prompt in flight there has too.
    pub shared_blocks: u32,
    /// Tokens of the prompt's images that it encoded lately, and whose blocks it does not hold.
    pub encoded_tokens: u32,
    /// What there is room for in its cache; `None` where that is not known.
    pub room: Option<Room>,
    pub load: Load,
    pub standing: Standing,
}

/// What an engine computes on.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    #[default]
    Gpu,
    Cpu,
}

/// What makes a candidate more or less wanted, whatever it holds and does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    pub is_degraded: bool,
    pub device: Device,
    /// The sum of the weights of the preferred labels that it has.
    pub preference: f64,
}

impl Standing {
    /// What its cost is multiplied by. Preferences count as in NVIDIA Dynamo's router, so that they
    /// never outweigh a factor of e, whatever their weights.
    fn factor(self, policy: Policy) -> f64 {
        let degraded = if self.is_degraded {
            policy.degraded_weight
        } else {
            1.0
        };
        degraded * (-self.preference.tanh()).exp()
    }
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

    /// Counts the leading tokens of a prompt that it holds in any tier.
    pub fn held_tokens(&self) -> u32 {
        (self.overlap_blocks + self.host_blocks + self.disk_blocks) * self.block_size.tokens()
    }

    /// What is spared by loading blocks from slower tiers, in tokens to compute. What is left of them
    /// is the time that loading takes.
    pub fn loading_spares_tokens(&self, policy: Policy) -> f64 {
        let host_blocks = policy.host_credit * f64::from(self.host_blocks);
        let disk_blocks = policy.disk_credit * f64::from(self.disk_blocks);
        (host_blocks + disk_blocks) * f64::from(self.block_size.tokens())
    }
}

/// What the candidates are asked to take.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub prompt_tokens: u32,
    /// Tokens that not even the candidate which holds most of the prompt has, in whatever tier.
    pub new_tokens: u32,
}

impl Ask {
    /// A prompt, asked of these candidates.
    pub fn of<'a>(prompt_tokens: u32, candidates: impl Iterator<Item = &'a Candidate>) -> Self {
        let held_tokens = candidates.map(Candidate::held_tokens).max().unwrap_or(0);
        Self {
            prompt_tokens,
            new_tokens: prompt_tokens.saturating_sub(held_tokens),
        }
    }
}
