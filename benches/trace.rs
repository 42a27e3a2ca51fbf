//! Events and questions as a fleet makes them: workers with caches that forget what was used
//! longest ago, prompts of a shared system prompt, shared images and a tail of their own.

use std::collections::{BTreeMap, HashMap, HashSet};

use kvlens::block::SequenceHash;
use kvlens::id::{DpRank, Incarnation};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::fleet::{self, Chance, WORKERS};

const SYSTEM_PROMPTS: usize = 64;
const IMAGES: usize = 4_096;
/// How much more often the first of a kind is used than the second, and so on.
const ZIPF: f64 = 1.1;
/// Workers that take prompts of one kind.
const HOMES: u64 = 8;
/// One placement in so many goes to any worker instead.
const STRAY: u64 = 10;
/// Most blocks that one event removes.
const REMOVED_MAX: usize = 64;
/// (Worker, block) pairs that the caches hold together.
const ENTRIES: usize = 1 << 20;

/// One block: what is in it, and what its prompt is up to its end.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) content: u64,
    pub(crate) sequence: SequenceHash,
}

/// One event, and what a tree needs beyond it.
pub(crate) struct Told {
    pub(crate) worker: u32,
    pub(crate) event: KvEvent,
    pub(crate) stored: Vec<Block>,
    pub(crate) parent: Option<SequenceHash>,
}

impl Told {
    pub(crate) fn blocks(&self) -> usize {
        self.event.stored.len() + self.event.removed.len()
    }
}

pub(crate) type Prompt = Vec<Block>;

/// A cache that forgets what was used longest ago; of one prompt its end first.
#[derive(Default)]
struct Cache {
    used_at: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl Cache {
    fn leading(&self, prompt: &Prompt) -> usize {
        let held = |block: &&Block| self.used_at.contains_key(&block.sequence.0);
        prompt.iter().take_while(held).count()
    }

    fn take_in(&mut self, prompt: &Prompt, blocks_max: usize) -> Vec<SequenceHash> {
        for block in prompt.iter().rev() {
            self.uses += 1;
            self.by_use.insert(self.uses, block.sequence.0);
            if let Some(before) = self.used_at.insert(block.sequence.0, self.uses) {
                self.by_use.remove(&before);
            }
        }
        let mut forgotten = Vec::new();
        while self.used_at.len() > blocks_max {
            let Some((_, hash)) = self.by_use.pop_first() else {
                break;
            };
            self.used_at.remove(&hash);
            forgotten.push(SequenceHash(hash));
        }
        forgotten
    }
}

/// A fleet that takes prompts of so many blocks.
pub(crate) struct Trace {
    prompt_blocks: usize,
    chance: Chance,
    system_prompts: Vec<f64>,
    images: Vec<f64>,
    caches: Vec<Cache>,
    sequences: Vec<u64>,
    prompts: u64,
}

impl Trace {
    pub(crate) fn new(prompt_blocks: usize) -> Self {
        let workers = WORKERS as usize;
        Self {
            prompt_blocks,
            chance: Chance(prompt_blocks as u64),
            system_prompts: zipf(SYSTEM_PROMPTS),
            images: zipf(IMAGES),
            caches: (0..workers).map(|_| Cache::default()).collect(),
            sequences: vec![0; workers],
            prompts: 0,
        }
    }

    /// The next prompt, and what the worker that took it told.
    pub(crate) fn step(&mut self) -> (Prompt, Vec<Told>) {
        let system_prompt = pick(&self.system_prompts, &mut self.chance) as u64;
        let mut contents = Vec::with_capacity(self.prompt_blocks);
        // A sixteenth to a half of the prompt, always the same for one system prompt.
        let least = self.prompt_blocks / 16;
        let more = mix([4, system_prompt, 0]) as usize % (self.prompt_blocks * 7 / 16);
        contents.extend((0..(least + more) as u64).map(|at| mix([1, system_prompt, at])));
        let (images, image_blocks) = match self.prompt_blocks {
            0..512 => (2, 4),
            _ => (4, 64),
        };
        let mut first_image = 0;
        for number in 0..images {
            let image = pick(&self.images, &mut self.chance) as u64;
            if number == 0 {
                first_image = image;
            }
            contents.extend((0..image_blocks).map(|at| mix([2, image, at])));
        }
        self.prompts += 1;
        let own = (0..).map(|at| mix([3, self.prompts, at]));
        let missing = self.prompt_blocks.saturating_sub(contents.len());
        contents.extend(own.take(missing));
        contents.truncate(self.prompt_blocks);
        let prompt = chained(&contents);
        let worker = match self.chance.next() % STRAY {
            0 => self.chance.next() % u64::from(WORKERS),
            _ => {
                let home = self.chance.next() % HOMES;
                mix([5 + home, system_prompt, first_image % 16]) % u64::from(WORKERS)
            }
        };
        let told = self.take_in(worker as u32, &prompt);
        (prompt, told)
    }

    fn take_in(&mut self, worker: u32, prompt: &Prompt) -> Vec<Told> {
        let cache = &mut self.caches[worker as usize];
        let cached = cache.leading(prompt);
        let blocks_max = (ENTRIES / WORKERS as usize).max(2 * self.prompt_blocks);
        let removed = cache.take_in(prompt, blocks_max);
        let sequence = &mut self.sequences[worker as usize];
        let mut tell = |removed: &[SequenceHash], stored: &[Block]| {
            *sequence += 1;
            Told {
                worker,
                event: KvEvent {
                    worker: fleet::worker(worker),
                    rank: DpRank(0),
                    incarnation: Incarnation(1),
                    sequence: *sequence,
                    cleared: false,
                    removed: removed.to_vec(),
                    stored: stored.iter().map(|block| block.sequence).collect(),
                    lower: Tiers::default(),
                },
                stored: stored.to_vec(),
                parent: cached.checked_sub(1).map(|at| prompt[at].sequence),
            }
        };
        let mut told: Vec<_> = removed
            .chunks(REMOVED_MAX)
            .map(|removed| tell(removed, &[]))
            .collect();
        if cached < prompt.len() {
            told.push(tell(&[], &prompt[cached..]));
        }
        told
    }

    /// The worker and leading blocks of each cache that holds any of the prompt.
    pub(crate) fn truth(&self, prompt: &Prompt) -> Vec<(u32, u32)> {
        let leading =
            |(worker, cache): (usize, &Cache)| (worker as u32, cache.leading(prompt) as u32);
        let all = self.caches.iter().enumerate().map(leading);
        all.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// (Worker, block) pairs that the caches hold.
    pub(crate) fn entries(&self) -> usize {
        self.caches.iter().map(|cache| cache.used_at.len()).sum()
    }

    /// Different blocks among them.
    pub(crate) fn distinct(&self) -> usize {
        let held = self.caches.iter().flat_map(|cache| cache.used_at.keys());
        held.collect::<HashSet<_>>().len()
    }

    /// Prompts that fill all caches twice over.
    pub(crate) fn warm_prompts(&self) -> usize {
        2 * ENTRIES / self.prompt_blocks + ENTRIES / self.prompt_blocks / 5
    }
}

/// The chance of each of so many, summed up.
fn zipf(count: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let add = |rank: usize| {
        sum += (rank as f64).powf(-ZIPF);
        sum
    };
    (1..=count).map(add).collect()
}

fn pick(sums: &[f64], chance: &mut Chance) -> usize {
    let all = sums.last().copied().unwrap_or_default();
    let drawn = (chance.next() >> 11) as f64 / (1_u64 << 53) as f64 * all;
    sums.partition_point(|sum| *sum <= drawn)
        .min(sums.len() - 1)
}

fn mix(parts: [u64; 3]) -> u64 {
    xxh3_64_with_seed(&parts.map(u64::to_le_bytes).concat(), 0)
}

fn chained(contents: &[u64]) -> Prompt {
    let mut before = 0;
    let block = |content: &u64| {
        before = xxh3_64_with_seed(&content.to_le_bytes(), before);
        Block {
            content: *content,
            sequence: SequenceHash(before),
        }
    };
    contents.iter().map(block).collect()
}
