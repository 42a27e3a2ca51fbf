//! Splits an expanded prompt into blocks and names each by its canonical sequence hash, which
//! covers every token and media item before it.

pub mod packed;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::prompt::{ExpandedPrompt, MediaSpan};

/// Seed of every root: ASCII `kvlens`, so that our hashes never equal another program's by chance.
const ROOT_SEED: u64 = 0x6b76_6c65_6e73;

/// Version of the hashing, inside every root: prompts hashed by other rules never match.
const HASH_VERSION: &[u8] = b"1";

/// Tag before each media item of a block, so that an item is never read as tokens.
const MEDIA_TAG: u8 = 0x01;

/// Tokens per KV-cache block of an engine; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// One token a block: what stands in for a worker that has not said its block size.
    pub const ONE: Self = Self(NonZeroU32::MIN);

    /// A block size of `tokens`; `None` when that is zero.
    pub fn new(tokens: u32) -> Option<Self> {
        NonZeroU32::new(tokens).map(Self)
    }

    /// The size in tokens.
    pub fn tokens(self) -> u32 {
        self.0.get()
    }

    /// Counts the full blocks in `tokens`; a part-filled last block does not count, because
    /// engines cache only full blocks.
    pub fn full_blocks(self, tokens: u32) -> u32 {
        tokens / self.0.get()
    }

    /// The most blocks of a prompt that a cache can answer: its last token is always computed, so
    /// a prompt of whole blocks never has its last one served.
    pub fn cacheable_blocks(self, prompt_tokens: u32) -> u32 {
        prompt_tokens.saturating_sub(1) / self.0.get()
    }
}

/// Names one block and everything before it: model, adapter, salt, tokens, media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceHash(pub u64);

/// Sequence hashes are uniform already: hashing them again would only cost time.
#[derive(Clone, Debug, Default)]
pub struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A map by sequence hash.
pub type BlockMap<V> = HashMap<SequenceHash, V, BuildHasherDefault<Uniform>>;

/// Context of the key that is drawn from a cluster's secret.
const KEY_CONTEXT: &str = "kvlens 2026-11 names of blocks";

/// What a key's fingerprint is the keyed hash of.
const FINGERPRINT: &[u8] = b"fingerprint";

/// Seals sequence hashes before they leave a process, so that who has no key cannot find the tokens
/// behind them by guessing.
///
/// A secret in the root alone would not do: each block after the first is hashed with the one before
/// it as seed, which would stand there for all to see. So each hash is sealed by itself, and the
/// chain inside stays what it is without a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u8; 32]);

impl HashKey {
    /// The key that a secret stands for.
    pub fn new(secret: &str) -> Self {
        Self(blake3::derive_key(KEY_CONTEXT, secret.as_bytes()))
    }

    /// Tells one key from another, and nothing more of it: 8 hex digits.
    pub fn fingerprint(&self) -> String {
        let mut hex = blake3::keyed_hash(&self.0, FINGERPRINT).to_string();
        hex.truncate(8);
        hex
    }

    /// A hash as others see it. Like hashes stay alike.
    pub fn seal(&self, hash: SequenceHash) -> SequenceHash {
        let sealed = blake3::keyed_hash(&self.0, &hash.0.to_le_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *sealed.as_bytes();
        SequenceHash(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Seals each of `hashes`.
    pub fn seal_all(&self, hashes: &mut [SequenceHash]) {
        for hash in hashes {
            *hash = self.seal(*hash);
        }
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.fingerprint())
    }
}

/// One media item that touches a block: its id text and where it starts, in tokens from the
/// block's first (negative when it began in an earlier block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockItem<'a> {
    pub id: &'a str,
    pub offset: i32,
}

/// The seed of a prompt's first block: prompts of another model, adapter or salt share nothing.
/// `model` is the worker record's base name, `lora` and `salt` are empty where there is none.
pub fn root(model: &str, lora: &str, salt: &str) -> SequenceHash {
    let mut bytes = Vec::with_capacity(64);
    for field in [
        HASH_VERSION,
        model.as_bytes(),
        lora.as_bytes(),
        salt.as_bytes(),
    ] {
        push_field(&mut bytes, field);
    }
    SequenceHash(xxh3_64_with_seed(&bytes, ROOT_SEED))
}

/// The hash of the block after `parent` (the root for the first): its token ids as u32 LE, then
/// per media item in prompt order a tag, the id as a field and the offset as i32 LE.
pub fn chain<'a>(
    parent: SequenceHash,
    tokens: &[u32],
    items: impl IntoIterator<Item = BlockItem<'a>>,
    scratch: &mut Vec<u8>,
) -> SequenceHash {
    scratch.clear();
    // Whole first, then filled: the compiler makes one copy of it.
    scratch.resize(size_of_val(tokens), 0);
    for (bytes, token) in scratch.chunks_exact_mut(size_of::<u32>()).zip(tokens) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    for item in items {
        scratch.push(MEDIA_TAG);
        push_field(scratch, item.id.as_bytes());
        scratch.extend_from_slice(&item.offset.to_le_bytes());
    }
    SequenceHash(xxh3_64_with_seed(scratch, parent.0))
}

/// The sequence hashes of all full blocks of `prompt`, first block first.
pub fn sequence_hashes(
    root: SequenceHash,
    prompt: &ExpandedPrompt,
    size: BlockSize,
) -> Vec<SequenceHash> {
    let size = size.tokens() as usize;
    let mut scratch = Vec::with_capacity(size * 4 + 96);
    let mut first_span = 0;
    let mut parent = root;
    let mut start = 0;
    let hash_block = |tokens: &[u32]| {
        let (block_start, block_end) = (start, start + size as u32);
        while prompt
            .spans
            .get(first_span)
            .is_some_and(|span| span_end(span) <= block_start)
        {
            first_span += 1;
        }
        let touching = prompt.spans[first_span..]
            .iter()
            .take_while(|span| span.start < block_end);
        let items = touching.map(|span| BlockItem {
            id: &span.id,
            offset: span.start as i32 - block_start as i32,
        });
        parent = chain(parent, tokens, items, &mut scratch);
        start = block_end;
        parent
    };
    prompt.tokens.chunks_exact(size).map(hash_block).collect()
}

fn span_end(span: &MediaSpan) -> u32 {
    span.start + span.token_count
}

/// Appends the length as u32 LE, then the bytes: two fields never run into each other.
fn push_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn known_answers() {
        let root = root("demo", "", "");
        assert_eq!(root.0, 15_697_398_963_587_662_569);
        let first: Vec<u32> = (1..=16).collect();
        let first = chain(root, &first, [], &mut Vec::new());
        assert_eq!(first.0, 14_660_100_221_927_890_793);
        let second: Vec<u32> = (17..=32).collect();
        let item = BlockItem {
            id: &"a".repeat(64),
            offset: -3,
        };
        let second = chain(first, &second, [item], &mut Vec::new());
        assert_eq!(second.0, 15_547_903_188_038_196_975);
    }

    #[test]
    fn a_key_makes_other_names_and_shows_nothing_of_itself() {
        let keys = ["a", "b"].map(HashKey::new);
        let hashes = [1, 2].map(SequenceHash);
        let mut seen = HashSet::from(hashes);
        for key in keys {
            let mut sealed = hashes;
            key.seal_all(&mut sealed);
            assert_eq!(sealed, hashes.map(|hash| key.seal(hash)));
            seen.extend(sealed);
        }
        assert_eq!(seen.len(), 6, "no name is another's");
        assert_ne!(keys[0].fingerprint(), keys[1].fingerprint());
        // Agents and frontends of two releases must agree.
        assert_eq!(
            HashKey::new("known").seal(SequenceHash(7)).0,
            14_008_475_028_542_929_063
        );
        assert_eq!(format!("{:?}", keys[0]), "HashKey(78db6741)");
    }

    #[test]
    fn only_full_blocks_are_hashed_and_the_last_token_is_never_cached() {
        let size = BlockSize::new(16).unwrap();
        for (tokens, full, cacheable) in [(0, 0, 0), (15, 0, 0), (16, 1, 0), (17, 1, 1), (33, 2, 2)]
        {
            assert_eq!(size.full_blocks(tokens), full);
            assert_eq!(size.cacheable_blocks(tokens), cacheable);
            let prompt = ExpandedPrompt {
                tokens: vec![7; tokens as usize],
                spans: vec![],
            };
            let hashes = sequence_hashes(root("m", "", ""), &prompt, size);
            assert_eq!(hashes.len() as u32, full);
        }
        assert_eq!(BlockSize::new(0), None);
    }
}
