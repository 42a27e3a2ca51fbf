//! The prompts in flight on one rank as a tree, so that what they share is counted once and found
//! without a look at each block.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::block::{BlockMap, SequenceHash};

/// Prompts in flight. A sequence hash covers all before it, so whoever has a block has all before
/// it, and prompts that have a block in common have one lead: they make a tree. A run of blocks that
/// the same prompts have is one node; adding, taking out and comparing a prompt costs a few steps
/// for each node on its way, however long it is.
#[derive(Debug, Default)]
pub struct Prompts {
    /// By the first block of each run.
    runs: BlockMap<Run>,
}

/// Blocks that follow each other in all prompts that have the first of them. What was parted stays
/// parted until no prompt has it.
#[derive(Debug)]
struct Run {
    /// A prompt that had them when it was added, whole.
    prompt: Arc<[SequenceHash]>,
    /// Where it starts in them. A block that is elsewhere in another prompt is not the same, though
    /// its name is: 64 bits can be made to collide.
    start: usize,
    /// Where it ends in that prompt, and in every other that has it.
    end: usize,
    prompts: u32,
}

impl Run {
    /// Where a prompt that has this run from `start` on leaves it, or it ends.
    fn parting(&self, start: usize, hashes: &[SequenceHash]) -> usize {
        let most = self.end.min(hashes.len());
        // Mostly all of it is shared, and one look is enough.
        if self.prompt[most - 1] == hashes[most - 1] {
            return most;
        }
        let (ours, theirs) = (&hashes[start..most], &self.prompt[start..most]);
        let mut low = 1;
        let mut high = ours.len() - 1;
        while low < high {
            let middle = low.midpoint(high);
            match ours[middle] == theirs[middle] {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        start + low
    }
}

impl Prompts {
    /// Adds a prompt; the number of its blocks that no other has.
    pub fn add(&mut self, hashes: &Arc<[SequenceHash]>) -> u64 {
        let mut at = 0;
        while at < hashes.len() {
            let run = match self.runs.entry(hashes[at]) {
                Entry::Occupied(entry) if entry.get().start == at => entry.into_mut(),
                Entry::Occupied(_) => break,
                Entry::Vacant(entry) => {
                    entry.insert(Run {
                        prompt: hashes.clone(),
                        start: at,
                        end: hashes.len(),
                        prompts: 1,
                    });
                    break;
                }
            };
            let parting = run.parting(at, hashes);
            let rest = (parting < run.end).then(|| Run {
                prompt: run.prompt.clone(),
                start: parting,
                ..*run
            });
            run.end = parting;
            run.prompts += 1;
            if let Some(rest) = rest {
                self.runs.insert(rest.prompt[parting], rest);
            }
            at = parting;
        }
        (hashes.len() - at) as u64
    }

    /// Takes out a prompt that was added; the number of its blocks that no other has.
    pub fn remove(&mut self, hashes: &[SequenceHash]) -> u64 {
        let (mut at, mut own) = (0, 0);
        while let Some(hash) = hashes.get(at)
            && let Some(run) = self.runs.get_mut(hash).filter(|run| run.start == at)
        {
            let end = run.end;
            run.prompts -= 1;
            if run.prompts == 0 {
                self.runs.remove(hash);
                own += end - at;
            }
            at = end;
        }
        own as u64
    }

    /// Counts the leading blocks that any prompt here has too.
    pub fn shared_blocks(&self, hashes: &[SequenceHash]) -> u32 {
        let mut at = 0;
        while let Some(run) = hashes.get(at).and_then(|hash| self.runs.get(hash))
            && run.start == at
        {
            let parting = run.parting(at, hashes);
            let is_whole = parting == run.end;
            at = parting;
            if !is_whole {
                break;
            }
        }
        at as u32
    }

    /// Whether there are none, or only such without blocks.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// A prompt of so many blocks that follows one of a few others up to a block, and then itself.
    fn prompt(ways: &[u64]) -> Arc<[SequenceHash]> {
        let chain = |before: &mut u64, way: &u64| {
            *before = before.wrapping_mul(31).wrapping_add(*way + 1);
            Some(SequenceHash(*before))
        };
        ways.iter().scan(0, chain).collect()
    }

    #[test]
    fn a_name_at_another_depth_is_another_block() {
        let prompt = |hashes: &[u64]| -> Arc<[SequenceHash]> {
            hashes.iter().copied().map(SequenceHash).collect()
        };
        let mut prompts = Prompts::default();
        for hashes in [&[7][..], &[1], &[1, 7]] {
            prompts.add(&prompt(hashes));
        }
        assert_eq!(prompts.shared_blocks(&prompt(&[1, 7])), 1);
        for hashes in [&[1, 7][..], &[7], &[1]] {
            prompts.remove(&prompt(hashes));
        }
        assert!(prompts.is_empty());
    }

    proptest! {
        /// Counts as a plain set of blocks for each prompt would, in whatever order prompts come
        /// and go.
        #[test]
        fn shared_blocks_count_once(
            steps in prop::collection::vec((prop::collection::vec(0_u64..2, 0..12), any::<u8>()), 1..80),
        ) {
            let mut prompts = Prompts::default();
            let mut added: Vec<Arc<[SequenceHash]>> = Vec::new();
            let all = |added: &[Arc<[SequenceHash]>]| -> HashSet<u64> {
                added.iter().flat_map(|hashes| hashes.iter().map(|hash| hash.0)).collect()
            };
            for (ways, chance) in steps {
                let new = prompt(&ways);
                let before = all(&added);
                let shared = new.iter().take_while(|hash| before.contains(&hash.0)).count();
                prop_assert_eq!(prompts.shared_blocks(&new), shared as u32);
                if chance % 2 == 0 || added.is_empty() {
                    prop_assert_eq!(prompts.add(&new), (new.len() - shared) as u64);
                    added.push(new);
                } else {
                    let gone = added.swap_remove(usize::from(chance) / 2 % added.len());
                    let freed = before.len() - all(&added).len();
                    prop_assert_eq!(prompts.remove(&gone), freed as u64);
                }
                prop_assert!(prompts.runs.len() <= all(&added).len());
            }
            for gone in &added {
                prompts.remove(gone);
            }
            prop_assert!(prompts.is_empty());
        }
    }
}
