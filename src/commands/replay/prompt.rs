//! The prompts of a trace, and the names of their blocks.

use std::iter::repeat_n;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::block::{self, BlockSize, SequenceHash};
use crate::id::MediaDigest;
use crate::prompt::{ExpandedPrompt, MediaSpan};
use crate::router::footprint::MediaShare;

/// The model that every request of a replay asks for, and every worker serves.
pub(crate) const MODEL: &str = "replay";

/// Tokens of the blocks that a Mooncake trace names.
pub(crate) const NAMED_TOKENS: u32 = 512;

/// What an image's tokens look like in a prompt; its id tells images apart.
const PLACEHOLDER: u32 = u32::MAX;

/// A prompt as a trace tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// Names of its blocks of [`NAMED_TOKENS`], the part-filled last one included.
    Named { ids: Box<[u64]>, tokens: u32 },
    /// What it is put together from.
    Parts(Box<[Part]>),
}

/// A piece of a prompt: equal ids have equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    pub(crate) id: u64,
    pub(crate) tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind {
    Text,
    Image,
}

impl Part {
    pub(crate) fn text(id: u64, tokens: u32) -> Self {
        let kind = PartKind::Text;
        Self { kind, id, tokens }
    }

    pub(crate) fn image(id: u64, tokens: u32) -> Self {
        let kind = PartKind::Image;
        Self { kind, id, tokens }
    }
}

impl Prompt {
    /// Its length in tokens.
    pub(crate) fn tokens(&self) -> u32 {
        match self {
            Self::Named { tokens, .. } => *tokens,
            Self::Parts(parts) => parts.iter().map(|part| part.tokens).sum(),
        }
    }

    /// Its tokens before the first image.
    pub(crate) fn text_tokens(&self) -> u32 {
        match self {
            Self::Named { tokens, .. } => *tokens,
            Self::Parts(parts) => {
                let text = parts.iter().take_while(|part| part.kind == PartKind::Text);
                text.map(|part| part.tokens).sum()
            }
        }
    }

    /// Its images, in order.
    pub(crate) fn media(&self) -> Vec<MediaShare> {
        let Self::Parts(parts) = self else {
            return Vec::new();
        };
        let mut start = 0;
        let place = |part: &Part| {
            let share = MediaShare {
                digest: digest(part.id),
                start,
                tokens: part.tokens,
            };
            start += part.tokens;
            (part.kind == PartKind::Image).then_some(share)
        };
        parts.iter().filter_map(place).collect()
    }

    /// The names of its full blocks. Prompts that begin alike have their first names in common;
    /// those of two tenants have none.
    pub(crate) fn hashes(&self, tenant: &str, size: BlockSize) -> Vec<SequenceHash> {
        let root = block::root(MODEL, "", tenant);
        match self {
            Self::Named { ids, tokens } => named(root, ids, *tokens, size),
            Self::Parts(parts) => block::sequence_hashes(root, &expanded(parts), size),
        }
    }
}

/// A block is named by the ids that it touches and where in the first of them it begins.
fn named(root: SequenceHash, ids: &[u64], tokens: u32, size: BlockSize) -> Vec<SequenceHash> {
    let mut parent = root;
    let size_tokens = size.tokens();
    let name = |block: u32| {
        let start = block * size_tokens;
        let first = start / NAMED_TOKENS;
        let last = (start + size_tokens - 1) / NAMED_TOKENS;
        let mut bytes = [0; 24];
        for (at, id) in [first, last].into_iter().enumerate() {
            let id = ids.get(id as usize).copied().unwrap_or_default();
            bytes[8 * at..8 * at + 8].copy_from_slice(&id.to_le_bytes());
        }
        bytes[16..20].copy_from_slice(&(start % NAMED_TOKENS).to_le_bytes());
        parent = SequenceHash(xxh3_64_with_seed(&bytes, parent.0));
        parent
    };
    (0..size.full_blocks(tokens)).map(name).collect()
}

fn expanded(parts: &[Part]) -> ExpandedPrompt {
    let mut prompt = ExpandedPrompt::default();
    for part in parts {
        match part.kind {
            PartKind::Text => {
                let tokens = (0..part.tokens).map(|at| token(part.id, at));
                prompt.tokens.extend(tokens);
            }
            PartKind::Image => {
                let span = MediaSpan {
                    start: prompt.tokens.len() as u32,
                    token_count: part.tokens,
                    id: digest(part.id).to_string().into(),
                };
                prompt.spans.push(span);
                let pads = repeat_n(PLACEHOLDER, part.tokens as usize);
                prompt.tokens.extend(pads);
            }
        }
    }
    prompt
}

/// The token at one place of a text: a mixing function, because real ones hardly repeat.
fn token(id: u64, at: u32) -> u32 {
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(at);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 32) as u32 & (PLACEHOLDER >> 1)
}

/// A digest in the place of that of an image's bytes.
fn digest(id: u64) -> MediaDigest {
    let mut bytes = [0; 32];
    for (bytes, id) in bytes.chunks_exact_mut(8).zip(repeat_n(id, 4)) {
        bytes.copy_from_slice(&id.to_le_bytes());
    }
    MediaDigest(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(a: &Prompt, b: &Prompt, tenants: [&str; 2]) -> usize {
        let size = BlockSize::new(16).unwrap();
        let (a, b) = (a.hashes(tenants[0], size), b.hashes(tenants[1], size));
        a.iter().zip(&b).take_while(|(a, b)| a == b).count()
    }

    fn with_ids(ids: &[u64], tokens: u32) -> Prompt {
        Prompt::Named {
            ids: ids.into(),
            tokens,
        }
    }

    #[test]
    fn prompts_share_the_blocks_they_begin_with() {
        let parts = |parts: &[Part]| Prompt::Parts(parts.into());
        let system = Part::text(1, 40);
        let cat = Part::image(2, 100);
        for (a, b, blocks) in [
            (with_ids(&[1, 2], 1_000), with_ids(&[1, 2], 1_000), 62),
            (with_ids(&[1, 2], 1_000), with_ids(&[1, 3], 1_024), 32),
            (with_ids(&[1], 100), with_ids(&[1, 2], 1_024), 6),
            (with_ids(&[2, 1], 1_024), with_ids(&[1, 1], 1_024), 0),
            (
                parts(&[system, cat, Part::text(3, 20)]),
                parts(&[system, cat, Part::text(4, 20)]),
                8, // 140 tokens
            ),
            (
                parts(&[system, cat]),
                parts(&[system, Part::image(9, 100)]),
                2,
            ),
            (parts(&[cat, system]), parts(&[Part::image(2, 99)]), 6),
            // A longer text of the same id goes on where the shorter one ends.
            (parts(&[system]), parts(&[Part::text(1, 400)]), 2),
        ] {
            assert_eq!(shared(&a, &b, ["", ""]), blocks, "{a:?} {b:?}");
            assert_eq!(shared(&a, &b, ["", "x"]), 0);
        }
    }

    #[test]
    fn lengths_are_sums() {
        let prompt = Prompt::Parts([Part::text(1, 5), Part::image(2, 7), Part::text(1, 5)].into());
        assert_eq!((prompt.tokens(), prompt.text_tokens()), (17, 5));
        let images = prompt.media();
        let places: Vec<_> = images.iter().map(|i| (i.start, i.tokens)).collect();
        assert_eq!(places, [(5, 7)]);
        let prompt = with_ids(&[1], 9);
        assert_eq!((prompt.tokens(), prompt.text_tokens()), (9, 9));
    }
}
