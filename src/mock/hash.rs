//! vLLM's own block hashes (`sha256_cbor`, releases ≥ 0.31): the chain an engine names its blocks by.

use std::sync::{Arc, LazyLock};

use sha2::{Digest, Sha256};

/// The hash of one full block and all blocks before it, as the engine keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// The number events carry by default: the last eight bytes, big-endian.
    pub fn low_u64(self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[24..]);
        u64::from_be_bytes(low)
    }
}

/// An adapter as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lora {
    pub name: String,
    /// Counts from 1 in the order of the command line.
    pub id: u32,
}

impl Lora {
    /// Where the adapter would lie on disk; vLLM hashes it, but does not publish it.
    pub fn path(&self) -> String {
        format!("/lora/{}", self.name)
    }
}

/// An image's place in the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaSpan {
    pub id: Arc<str>,
    /// Index of the first placeholder token.
    pub start: usize,
    pub length: usize,
}

/// What tells blocks of equal tokens apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub lora: Option<Arc<Lora>>,
    pub salt: Option<Arc<str>>,
    /// In prompt order.
    pub media: Vec<MediaSpan>,
}

/// One element of a block's `extra_keys`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtraKey {
    Lora(Arc<Lora>),
    /// The item starts `offset` tokens after the block does; negative when it began earlier.
    Media {
        id: Arc<str>,
        offset: i64,
    },
    Salt(Arc<str>),
}

impl Identity {
    /// The keys of the block at `index`, in vLLM's order: adapter, media, salt on block 0 only.
    pub fn extra_keys(&self, index: usize, block_size: usize) -> Vec<ExtraKey> {
        let (start, end) = (index * block_size, (index + 1) * block_size);
        let lora = self.lora.clone().map(ExtraKey::Lora);
        let media = self
            .media
            .iter()
            .filter(|span| span.start < end && start < span.start + span.length)
            .map(|span| ExtraKey::Media {
                id: Arc::clone(&span.id),
                offset: span.start as i64 - start as i64,
            });
        let salt = self.salt.clone().filter(|_| index == 0).map(ExtraKey::Salt);
        lora.into_iter().chain(media).chain(salt).collect()
    }

    /// Extends `hashes` to every full block of `tokens`.
    pub fn extend_hashes(&self, hashes: &mut Vec<BlockHash>, tokens: &[u32], block_size: usize) {
        let mut cbor = Vec::with_capacity(block_size * 5 + 64);
        for index in hashes.len()..tokens.len() / block_size {
            let parent = hashes.last().copied().unwrap_or(*NONE_HASH);
            let block = &tokens[index * block_size..(index + 1) * block_size];
            cbor.clear();
            encode_block(
                &mut cbor,
                parent,
                block,
                &self.extra_keys(index, block_size),
            );
            hashes.push(sha256(&cbor));
        }
    }
}

/// The parent of every first block, in releases ≥ 0.29.
static NONE_HASH: LazyLock<BlockHash> = LazyLock::new(|| {
    let mut cbor = Vec::new();
    put_text(&mut cbor, "vllm-none-hash");
    sha256(&cbor)
});

fn sha256(bytes: &[u8]) -> BlockHash {
    BlockHash(Sha256::digest(bytes).into())
}

fn encode_block(out: &mut Vec<u8>, parent: BlockHash, tokens: &[u32], extra: &[ExtraKey]) {
    put_head(out, ARRAY, 3);
    put_head(out, BYTES, parent.0.len() as u64);
    out.extend_from_slice(&parent.0);
    put_head(out, ARRAY, tokens.len() as u64);
    for &token in tokens {
        put_head(out, UNSIGNED, u64::from(token));
    }
    if extra.is_empty() {
        out.push(NULL);
        return;
    }
    put_head(out, ARRAY, extra.len() as u64);
    for key in extra {
        put_key(out, key);
    }
}

fn put_key(out: &mut Vec<u8>, key: &ExtraKey) {
    match key {
        ExtraKey::Lora(lora) => {
            put_head(out, ARRAY, 3);
            put_text(out, "lora");
            put_text(out, &lora.name);
            put_text(out, &lora.path());
        }
        ExtraKey::Media { id, offset } => {
            put_head(out, ARRAY, 3);
            put_text(out, "mm");
            put_text(out, id);
            match u64::try_from(*offset) {
                Ok(offset) => put_head(out, UNSIGNED, offset),
                Err(_) => put_head(out, NEGATIVE, (-1 - offset) as u64),
            }
        }
        ExtraKey::Salt(salt) => {
            put_head(out, ARRAY, 2);
            put_text(out, "cache_salt");
            put_text(out, salt);
        }
    }
}

// CBOR's major types, shifted into place.
const UNSIGNED: u8 = 0x00;
const NEGATIVE: u8 = 0x20;
const BYTES: u8 = 0x40;
const TEXT: u8 = 0x60;
const ARRAY: u8 = 0x80;
const NULL: u8 = 0xf6;

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Canonical CBOR: the shortest form that holds `value`.
fn put_head(out: &mut Vec<u8>, major: u8, value: u64) {
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}
