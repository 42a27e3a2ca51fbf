//! KV events as vLLM puts them on the wire.

use rmpv::Value;
use rmpv::encode::write_value;

use crate::mock::hash::{BlockHash, ExtraKey};
use crate::mock::pool::{Event, Stored};

/// How an event is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventForm {
    /// Maps with named keys: releases ≥ 0.24.
    Maps,
    /// Arrays with the tag first: releases 0.22 and 0.23.
    Arrays,
}

/// How a block's hash is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HashForm {
    /// The low 64 bits as a number.
    Int,
    /// All 32 bytes.
    Bytes,
}

/// What every batch of one rank has in common.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub events: EventForm,
    pub hashes: HashForm,
    pub block_size: usize,
    pub rank: u32,
}

impl Wire {
    /// One step's events: `[seconds, events, rank]` in MessagePack.
    pub fn batch(&self, seconds: f64, events: &[Event]) -> Vec<u8> {
        let events = events.iter().map(|event| self.event(event)).collect();
        let batch = Value::Array(vec![
            Value::F64(seconds),
            Value::Array(events),
            Value::from(self.rank),
        ]);
        let mut payload = Vec::with_capacity(512);
        // Writing into memory cannot fail; a batch cut short would not decode and so not mislead.
        let _ = write_value(&mut payload, &batch);
        payload
    }

    fn event(&self, event: &Event) -> Value {
        let (tag, fields) = match event {
            Event::Stored(stored) => ("BlockStored", self.stored(stored)),
            Event::Removed(hash) => ("BlockRemoved", self.removed(*hash, "GPU")),
            Event::Cleared => ("AllBlocksCleared", Vec::new()),
            Event::Offloaded(hash) => ("BlockStored", self.offloaded(*hash)),
            Event::OffloadedRemoved(hash) => ("BlockRemoved", self.removed(*hash, "CPU")),
        };
        match self.events {
            EventForm::Maps => {
                let tag = (Value::from("type"), Value::from(tag));
                let named = fields
                    .into_iter()
                    .map(|(key, value)| (Value::from(key), value));
                Value::Map(std::iter::once(tag).chain(named).collect())
            }
            EventForm::Arrays => {
                let values = fields.into_iter().map(|(_, value)| value);
                Value::Array(std::iter::once(Value::from(tag)).chain(values).collect())
            }
        }
    }

    fn stored(&self, stored: &Stored) -> Vec<(&'static str, Value)> {
        let lora = stored.lora.as_deref();
        let array = |values: Vec<Value>| Value::Array(values);
        let mut fields = vec![
            (
                "block_hashes",
                array(stored.hashes.iter().map(|h| self.hash(*h)).collect()),
            ),
            (
                "parent_block_hash",
                stored.parent.map_or(Value::Nil, |h| self.hash(h)),
            ),
            (
                "token_ids",
                array(stored.tokens.iter().map(|t| Value::from(*t)).collect()),
            ),
            ("block_size", Value::from(self.block_size)),
            (
                "lora_id",
                lora.map_or(Value::Nil, |lora| Value::from(lora.id)),
            ),
            ("medium", Value::from("GPU")),
            (
                "lora_name",
                lora.map_or(Value::Nil, |lora| Value::from(lora.name.as_str())),
            ),
            (
                "extra_keys",
                array(stored.extra_keys.iter().map(|keys| extra(keys)).collect()),
            ),
            ("group_idx", Value::from(0)),
            ("kv_cache_spec_kind", Value::from("full_attention")),
        ];
        // Maps leave defaults out; arrays cannot, and end before the releases that know a session.
        match (self.events, &stored.session) {
            (EventForm::Arrays, _) => fields.push(("kv_cache_spec_sliding_window", Value::Nil)),
            (EventForm::Maps, Some(session)) => {
                fields.push(("session_id", Value::from(&**session)));
            }
            (EventForm::Maps, None) => {}
        }
        fields
    }

    /// An offloading connector knows a block by its hash alone.
    fn offloaded(&self, hash: BlockHash) -> Vec<(&'static str, Value)> {
        let mut fields = vec![
            ("block_hashes", Value::Array(vec![self.hash(hash)])),
            ("parent_block_hash", Value::Nil),
            ("token_ids", Value::Array(Vec::new())),
            ("block_size", Value::from(0)),
            ("lora_id", Value::Nil),
            ("medium", Value::from("CPU")),
            ("lora_name", Value::Nil),
        ];
        if self.events == EventForm::Arrays {
            fields.push(("extra_keys", Value::Nil));
        }
        fields.push(("group_idx", Value::from(0)));
        fields
    }

    fn removed(&self, hash: BlockHash, medium: &str) -> Vec<(&'static str, Value)> {
        vec![
            ("block_hashes", Value::Array(vec![self.hash(hash)])),
            ("medium", Value::from(medium)),
            ("group_idx", Value::from(0)),
        ]
    }

    fn hash(&self, hash: BlockHash) -> Value {
        match self.hashes {
            HashForm::Int => Value::from(hash.low_u64()),
            HashForm::Bytes => Value::Binary(hash.0.to_vec()),
        }
    }
}

fn extra(keys: &[ExtraKey]) -> Value {
    if keys.is_empty() {
        return Value::Nil;
    }
    let key = |key: &ExtraKey| match key {
        ExtraKey::Lora(lora) => Value::from(lora.name.as_str()),
        ExtraKey::Media { id, offset } => {
            Value::Array(vec![Value::from(&**id), Value::from(*offset)])
        }
        ExtraKey::Salt(salt) => Value::from(&**salt),
    };
    Value::Array(keys.iter().map(key).collect())
}
