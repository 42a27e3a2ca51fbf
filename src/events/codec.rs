//! Reads the event batches of vLLM 0.15 to 0.33: events as arrays (up to 0.23) or maps, hashes as
//! numbers or bytes.

use std::sync::Arc;

use crate::events::msgpack::{MsgpackError, Reader, Token};
use crate::ledger::{EngineEvent, EngineHash, ExtraKey, Stored};

/// Largest payload. A batch covers one engine step; a prompt of a million tokens takes about 5 MiB.
/// Decoding takes at most some 25 times as much memory.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// Why a payload is not a batch of events.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    #[error("payload of {bytes} bytes is over {PAYLOAD_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("payload is not MessagePack")]
    Msgpack(#[from] MsgpackError),
    #[error("{field} is not {expected}")]
    Shape {
        field: &'static str,
        expected: &'static str,
    },
}

type Read<T> = Result<T, CodecError>;

/// Decodes one payload: the events of one engine step, in order. Fields and events it does not know are skipped, so that a newer engine
/// stays readable.
///
/// # Errors
/// When the payload is too large, cut short, or a field it knows has another shape.
pub fn decode(payload: &[u8]) -> Read<Vec<EngineEvent>> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(CodecError::TooLarge {
            bytes: payload.len(),
        });
    }
    let mut reader = Reader::new(payload);
    let fields = array(&mut reader, "batch")?;
    let mut decoded = Vec::new();
    for field in 0..fields {
        if field != 1 {
            reader.skip()?;
            continue;
        }
        for _ in 0..array(&mut reader, "events")? {
            decoded.extend(event(&mut reader)?);
        }
    }
    Ok(decoded)
}

/// Fields of an event in the order of the array form; maps name them. Vendors only ever append.
const STORED: [&str; 14] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "ownership",
    "session_id",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

/// One event; `None` for a kind we do not know.
fn event(reader: &mut Reader<'_>) -> Read<Option<EngineEvent>> {
    match reader.read()? {
        Token::Array(0) | Token::Nil => Ok(None),
        Token::Array(count) => {
            let tag = text(reader, "event type")?;
            fields_of(&tag, reader, (1..count).map(Key::At))
        }
        Token::Map(pairs) => {
            // The type comes first in what vLLM sends, but a map promises no order.
            let tag = type_of(&mut reader.clone(), pairs)?;
            fields_of(&tag, reader, (0..pairs).map(|_| Key::Named))
        }
        _ => Err(shape("event", "an array or a map")),
    }
}

fn type_of(reader: &mut Reader<'_>, pairs: u32) -> Read<Arc<str>> {
    for _ in 0..pairs {
        if reader.read()? == Token::Text(b"type") {
            return text(reader, "event type");
        }
        reader.skip()?;
    }
    Err(shape("event", "a map with a type"))
}

/// Where the name of the next field comes from.
enum Key {
    /// From its position, the tag being 0.
    At(u32),
    /// From the payload.
    Named,
}

impl Key {
    fn name<'a>(self, reader: &mut Reader<'a>, order: &[&'static str]) -> Read<&'a [u8]> {
        match self {
            Self::At(position) => {
                let name = order.get(position as usize - 1);
                Ok(name.map_or(b"".as_slice(), |name| name.as_bytes()))
            }
            Self::Named => match reader.read()? {
                Token::Text(name) => Ok(name),
                _ => Err(shape("event key", "a text")),
            },
        }
    }
}

fn fields_of(
    tag: &str,
    reader: &mut Reader<'_>,
    keys: impl Iterator<Item = Key>,
) -> Read<Option<EngineEvent>> {
    match tag {
        "BlockStored" => stored(reader, keys).map(|stored| Some(EngineEvent::Stored(stored))),
        "BlockRemoved" => removed(reader, keys).map(Some),
        _ => {
            for key in keys {
                key.name(reader, &[])?;
                reader.skip()?;
            }
            Ok((tag == "AllBlocksCleared").then_some(EngineEvent::Cleared))
        }
    }
}

fn stored(reader: &mut Reader<'_>, keys: impl Iterator<Item = Key>) -> Read<Stored> {
    let mut stored = Stored::default();
    for key in keys {
        match key.name(reader, &STORED)? {
            b"block_hashes" => stored.hashes = list(reader, "block_hashes", hash)?,
            b"parent_block_hash" => stored.parent = optional_hash(reader)?,
            b"token_ids" => stored.tokens = list(reader, "token_ids", token_id)?,
            b"block_size" => {
                let size = optional_u32(reader, "block_size")?;
                stored.block_size = size.unwrap_or_default();
            }
            b"medium" => stored.medium = optional_text(reader, "medium")?,
            b"lora_name" => stored.lora_name = optional_text(reader, "lora_name")?,
            b"extra_keys" => stored.extra_keys = optional_list(reader, "extra_keys", extra_keys)?,
            b"group_idx" => stored.group = optional_u32(reader, "group_idx")?,
            b"kv_cache_spec_kind" => stored.group_kind = optional_text(reader, "spec kind")?,
            b"session_id" => stored.session_id = optional_text(reader, "session_id")?,
            _ => reader.skip()?,
        }
    }
    Ok(stored)
}

fn removed(reader: &mut Reader<'_>, keys: impl Iterator<Item = Key>) -> Read<EngineEvent> {
    let (mut hashes, mut medium, mut group) = (Vec::new(), None, None);
    for key in keys {
        match key.name(reader, &REMOVED)? {
            b"block_hashes" => hashes = list(reader, "block_hashes", hash)?,
            b"medium" => medium = optional_text(reader, "medium")?,
            b"group_idx" => group = optional_u32(reader, "group_idx")?,
            _ => reader.skip()?,
        }
    }
    Ok(EngineEvent::Removed {
        hashes,
        medium,
        group,
    })
}

/// The extra keys of one block: nil or an array of texts, `[id, offset]` pairs and others.
fn extra_keys(reader: &mut Reader<'_>) -> Read<Vec<ExtraKey>> {
    optional_list(reader, "extra_keys", |reader| match reader.read()? {
        Token::Text(bytes) => Ok(utf8(bytes).map_or(ExtraKey::Unknown, ExtraKey::Text)),
        Token::Array(2) => {
            let (id, offset) = (reader.read()?, None);
            reader.skip_rest_of(id)?;
            let next = reader.read()?;
            reader.skip_rest_of(next)?;
            let offset = match next {
                Token::Uint(number) => i64::try_from(number).ok(),
                Token::Negative(number) => Some(number),
                _ => offset,
            };
            Ok(match (id, offset) {
                (Token::Text(id), Some(offset)) => {
                    utf8(id).map_or(ExtraKey::Unknown, |id| ExtraKey::Item(id, offset))
                }
                _ => ExtraKey::Unknown,
            })
        }
        other => {
            reader.skip_rest_of(other)?;
            Ok(ExtraKey::Unknown)
        }
    })
}

fn hash(reader: &mut Reader<'_>) -> Read<EngineHash> {
    optional_hash(reader)?.ok_or(shape("block hash", "a number or bytes"))
}

fn optional_hash(reader: &mut Reader<'_>) -> Read<Option<EngineHash>> {
    match reader.read()? {
        Token::Nil => Ok(None),
        Token::Uint(number) => Ok(Some(EngineHash::Int(number))),
        // TensorRT-LLM and some forks send the same 64 bits as a signed number.
        Token::Negative(number) => Ok(Some(EngineHash::Int(number as u64))),
        Token::Bytes(bytes) => Ok(Some(EngineHash::Bytes(bytes.into()))),
        _ => Err(shape("block hash", "a number or bytes")),
    }
}

fn token_id(reader: &mut Reader<'_>) -> Read<u32> {
    optional_u32(reader, "token id")?.ok_or(shape("token id", "a number below 2^32"))
}

fn optional_u32(reader: &mut Reader<'_>, field: &'static str) -> Read<Option<u32>> {
    match reader.read()? {
        Token::Nil => Some(None),
        Token::Uint(number) => u32::try_from(number).map(Some).ok(),
        _ => None,
    }
    .ok_or(shape(field, "a number below 2^32"))
}

fn text(reader: &mut Reader<'_>, field: &'static str) -> Read<Arc<str>> {
    optional_text(reader, field)?.ok_or(shape(field, "a text"))
}

fn optional_text(reader: &mut Reader<'_>, field: &'static str) -> Read<Option<Arc<str>>> {
    match reader.read()? {
        Token::Nil => Ok(None),
        Token::Text(bytes) => utf8(bytes).map(Some).ok_or(shape(field, "UTF-8")),
        _ => Err(shape(field, "a text")),
    }
}

fn utf8(bytes: &[u8]) -> Option<Arc<str>> {
    std::str::from_utf8(bytes).ok().map(Arc::from)
}

fn list<T>(
    reader: &mut Reader<'_>,
    field: &'static str,
    item: impl FnMut(&mut Reader<'_>) -> Read<T>,
) -> Read<Vec<T>> {
    let count = array(reader, field)?;
    items(reader, count, item)
}

fn optional_list<T>(
    reader: &mut Reader<'_>,
    field: &'static str,
    item: impl FnMut(&mut Reader<'_>) -> Read<T>,
) -> Read<Vec<T>> {
    match reader.read()? {
        Token::Nil => Ok(Vec::new()),
        Token::Array(count) => items(reader, count, item),
        _ => Err(shape(field, "an array")),
    }
}

fn items<T>(
    reader: &mut Reader<'_>,
    count: u32,
    mut item: impl FnMut(&mut Reader<'_>) -> Read<T>,
) -> Read<Vec<T>> {
    // Grown as items come: a claimed length reserves nothing.
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(item(reader)?);
    }
    Ok(items)
}

fn array(reader: &mut Reader<'_>, field: &'static str) -> Read<u32> {
    match reader.read()? {
        Token::Array(count) => Ok(count),
        _ => Err(shape(field, "an array")),
    }
}

fn shape(field: &'static str, expected: &'static str) -> CodecError {
    CodecError::Shape { field, expected }
}
