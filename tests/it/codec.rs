//! Every event form of vLLM 0.15 to 0.33 decodes, and no bytes make the decoder panic.

use std::path::{Path, PathBuf};

use kvlens::events::codec::decode;
use kvlens::ledger::{EngineEvent, EngineHash, ExtraKey, Stored};
use proptest::prelude::*;
use serde_json::Value;

pub(crate) fn golden(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/vllm").join(path)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(length);
    *bytes = tail;
    head
}

fn length(bytes: &mut &[u8]) -> usize {
    let number = take(bytes, 4).try_into().expect("4 bytes");
    u32::from_be_bytes(number) as usize
}

/// The recorded messages of a scenario as (sequence, payload).
pub(crate) fn frames(scenario: &str) -> Vec<(u64, Vec<u8>)> {
    let bytes = std::fs::read(golden(&format!("{scenario}.bin"))).expect("a golden file");
    let mut rest = bytes.as_slice();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        assert_eq!(length(&mut rest), 3, "topic, sequence, payload");
        let parts = [(); 3].map(|()| {
            let size = length(&mut rest);
            take(&mut rest, size)
        });
        let sequence = u64::from_be_bytes(parts[1].try_into().expect("8 bytes"));
        messages.push((sequence, parts[2].to_vec()));
    }
    messages
}

/// Every scenario recorded in a folder, in the order of their first message.
pub(crate) fn scenarios(folder: &str) -> Vec<String> {
    let listing = std::fs::read_dir(golden(folder)).expect("a golden folder");
    let names = listing.filter_map(|entry| {
        let name = entry.expect("an entry").file_name();
        let name = name.to_str().expect("ASCII").strip_suffix(".bin")?;
        Some(format!("{folder}/{name}"))
    });
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| frames(name)[0].0);
    names
}

pub(crate) fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(golden(path)).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

/// A hash as the recording's JSON shows it: a number, or `{"bin": hex}`.
pub(crate) fn hash_of(value: &Value) -> Option<EngineHash> {
    if let Some(number) = value.as_u64() {
        return Some(EngineHash::Int(number));
    }
    let text = value.get("bin")?.as_str()?;
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
    Some(EngineHash::Bytes(bytes.into()))
}

fn keys_of(value: &Value) -> Vec<ExtraKey> {
    let keys = value.as_array().into_iter().flatten();
    keys.map(|key| match (key.as_str(), key.as_array()) {
        (Some(text), _) => ExtraKey::Text(text.into()),
        (_, Some(pair)) => ExtraKey::Item(
            pair[0].as_str().expect("an id").into(),
            pair[1].as_i64().expect("an offset"),
        ),
        _ => ExtraKey::Unknown,
    })
    .collect()
}

fn event_of(event: &Value) -> EngineEvent {
    let list = |key: &str| event[key].as_array().cloned().unwrap_or_default();
    let text = |key: &str| event[key].as_str().map(Into::into);
    let number = |key: &str| event[key].as_u64().map(|number| number as u32);
    let hashes = list("block_hashes");
    let hashes = hashes.iter().filter_map(hash_of).collect();
    match event["type"].as_str() {
        Some("BlockStored") => EngineEvent::Stored(Stored {
            hashes,
            parent: hash_of(&event["parent_block_hash"]),
            tokens: list("token_ids")
                .iter()
                .filter_map(|token| token.as_u64().map(|token| token as u32))
                .collect(),
            block_size: number("block_size").expect("a size"),
            lora_name: text("lora_name"),
            medium: text("medium"),
            extra_keys: list("extra_keys").iter().map(keys_of).collect(),
            group: number("group_idx"),
            group_kind: text("kv_cache_spec_kind"),
            session_id: text("session_id"),
        }),
        Some("BlockRemoved") => EngineEvent::Removed {
            hashes,
            medium: text("medium"),
            group: number("group_idx"),
        },
        _ => EngineEvent::Cleared,
    }
}

#[test]
fn recorded_frames_decode_as_python_decoded_them() {
    let mut events = 0;
    for folder in ["b16", "evict", "bytes", "dp2", "qwen3vl"] {
        for scenario in scenarios(folder) {
            let recorded = json(&format!("{scenario}.json"));
            let steps = recorded["steps"].as_array().unwrap();
            let wanted: Vec<_> = steps
                .iter()
                .flat_map(|step| step["messages"].as_array().unwrap())
                .collect();
            let frames = frames(&scenario);
            assert_eq!(frames.len(), wanted.len(), "{scenario}");
            for ((sequence, payload), message) in frames.iter().zip(wanted) {
                assert_eq!(message["seq"], *sequence);
                let seen = decode(payload).unwrap();
                let decoded = message["decoded"].as_array().unwrap();
                let wanted: Vec<_> = decoded[1]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(event_of)
                    .collect();
                assert_eq!(seen, wanted, "{scenario} {sequence}");
                events += seen.len();
            }
        }
    }
    assert!(events > 150, "only {events} events were compared");
}

#[test]
fn every_release_decodes_to_the_same_events() {
    let index = json("synthetic/index.json");
    let mut first: Option<Stored> = None;
    for row in index.as_array().unwrap() {
        let file = row["file"].as_str().unwrap();
        let has_field = |field: &str| {
            let fields = row["BlockStored_fields"].as_array().unwrap();
            fields.iter().any(|name| name == field)
        };
        let payload = std::fs::read(golden(&format!("synthetic/{file}"))).unwrap();
        let events = decode(&payload).unwrap();
        let [
            EngineEvent::Stored(stored),
            EngineEvent::Removed { hashes, group, .. },
            last,
        ] = events.as_slice()
        else {
            panic!("{file}: {events:?}");
        };
        assert_eq!(*last, EngineEvent::Cleared, "{file}");
        assert_eq!((stored.hashes.len(), hashes.len()), (2, 1), "{file}");
        assert_eq!(stored.tokens.len(), 32, "{file}");
        assert_eq!(stored.block_size, 16, "{file}");
        assert_eq!(stored.medium.as_deref(), Some("GPU"), "{file}");
        assert_eq!(
            !stored.extra_keys.is_empty(),
            has_field("extra_keys"),
            "{file}"
        );
        if has_field("group_idx") {
            assert_eq!((stored.group, *group), (Some(0), Some(0)), "{file}");
        }
        let first = first.get_or_insert_with(|| stored.clone());
        assert_eq!(stored.tokens, first.tokens, "{file}");
        if file.ends_with("_int.bin") {
            assert_eq!(stored.hashes, first.hashes, "{file}");
        }
    }
    assert!(first.is_some());
}

#[test]
fn unknown_fields_and_events_are_skipped() {
    // [0.0, [{"type": "New", "x": [1, {}]}, ["Newer", [[]]], {"extra": nil, "type": "AllBlocksCleared"}]]
    let mut payload = vec![0x92, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0x93];
    payload.extend_from_slice(b"\x82\xa4type\xa3New\xa1x\x92\x01\x80");
    payload.extend_from_slice(b"\x92\xa5Newer\x91\x90");
    payload.extend_from_slice(b"\x82\xa5extra\xc0\xa4type\xb0AllBlocksCleared");
    assert_eq!(decode(&payload), Ok(vec![EngineEvent::Cleared]));
}

#[test]
fn a_payload_cut_anywhere_is_an_error_and_not_a_panic() {
    for scenario in ["b16/two_images", "bytes/bytes_hashes", "b16/lora"] {
        for (_, payload) in frames(scenario) {
            for end in 0..payload.len() {
                assert!(decode(&payload[..end]).is_err(), "{scenario} cut at {end}");
            }
        }
    }
    // A length of 4 Gi elements reserves nothing.
    assert!(decode(&[0x92, 0xc0, 0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_damage_panics(at in 0..700_usize, byte in any::<u8>()) {
        let (_, mut payload) = frames("b16/lora").swap_remove(0);
        let at = at % payload.len();
        payload[at] = byte;
        let _ = decode(&payload);
    }
}
