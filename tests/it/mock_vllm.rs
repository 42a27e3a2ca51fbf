//! The mock engine's cache against what a real vLLM 0.32.0 published for the same requests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kvlens::mock::hash::{BlockHash, ExtraKey, Identity, Lora, MediaSpan};
use kvlens::mock::pool::{Event, Stored};
use kvlens::mock::scheduler::{Bounds, Scheduler, Sequence, SequenceId};
use kvlens::mock::wire::{EventForm, HashForm, Wire};
use serde_json::Value;

const BLOCK: usize = 16;

/// One engine rank of a recording, replayed.
struct Replay {
    scheduler: Scheduler,
    wire: Wire,
    pad: u64,
    /// What vLLM called an image that came without a name of the client's.
    ids: HashMap<String, String>,
}

impl Replay {
    fn new(blocks: u32, hashes: HashForm, rank: u32, pad: u64) -> Self {
        let bounds = Bounds {
            block_size: BLOCK,
            blocks,
            host_blocks: 0,
            running_max: 256,
            batched_tokens_max: 8192,
        };
        let wire = Wire {
            events: EventForm::Maps,
            hashes,
            block_size: BLOCK,
            rank,
        };
        Self {
            scheduler: Scheduler::new(bounds, true),
            wire,
            pad,
            ids: HashMap::new(),
        }
    }

    fn run(&mut self, tokens: Vec<u32>, answer: Vec<u32>, identity: Identity, full: bool) -> Ran {
        let (admitted, admission) = std::sync::mpsc::channel();
        self.scheduler.submit(Sequence {
            id: SequenceId(1),
            tokens,
            identity,
            report_reused: full,
            skip_cache: false,
            session: None,
            answer: Box::new(move |admission| {
                admitted.send(admission).expect("the test listens");
                answer.into()
            }),
        });
        let mut batches = Vec::new();
        while self.scheduler.running_len() + self.scheduler.waiting_len() > 0 {
            self.scheduler.schedule();
            self.scheduler.finish_step();
            batches.push(self.scheduler.take_events());
        }
        batches.retain(|events| !events.is_empty());
        let admission = admission.recv().expect("the request was admitted");
        Ran {
            batches,
            cached: admission.cached_tokens as u64,
            created: admission.created_tokens as u64,
        }
    }

    /// Replays one step of a recording and compares every frame; returns how many there were.
    fn step(&mut self, step: &Value) -> usize {
        if step["path"] == "/reset_prefix_cache" {
            assert!(self.scheduler.clear_cache(), "an idle engine can be reset");
            return 0;
        }
        if step["status"] != 200 {
            return 0;
        }
        let (request, response) = (&step["request"], &step["response"]);
        let choice = &response["choices"][0];
        let prompt = [&request["prompt"], &response["prompt_token_ids"]];
        let tokens = prompt
            .iter()
            .find_map(|ids| ids.as_array().map(|_| numbers(ids)));
        let tokens = tokens.expect("prompt token ids");
        let answer = match choice["token_ids"].as_array() {
            Some(_) => numbers(&choice["token_ids"]),
            None => vec![0],
        };
        let identity = self.identity(step, &tokens);
        let is_lora = identity.lora.is_some();
        let full = request["vllm_xargs"]["kv_cache_report_mode"] == "full";
        let ran = self.run(tokens, answer, identity, full);
        let label = &step["label"];
        let details = &response["usage"]["prompt_tokens_details"];
        assert_eq!(
            ran.cached, details["cached_tokens"],
            "cached tokens of {label}"
        );
        if let Some(created) = details["created_cache_tokens"].as_u64() {
            assert_eq!(ran.created, created, "created cache tokens of {label}");
        }
        let messages = step["messages"].as_array().expect("messages");
        assert_eq!(ran.batches.len(), messages.len(), "batches of {label}");
        for (events, message) in ran.batches.iter().zip(messages) {
            let theirs = unhex(message["payload_hex"].as_str().expect("payload"));
            let seconds = theirs[2..10].try_into().expect("eight bytes");
            let ours = self.wire.batch(f64::from_be_bytes(seconds), events);
            if is_lora {
                // The adapter's path is hashed but not recorded, so only the hashes may differ.
                assert_eq!(without_hashes(&ours), without_hashes(&theirs), "{label}");
            } else {
                assert_eq!(ours, theirs, "{label}");
            }
        }
        messages.len()
    }

    fn identity(&mut self, step: &Value, tokens: &[u32]) -> Identity {
        let request = &step["request"];
        let published = published_ids(step);
        let urls = image_urls(request);
        let spans = self.placeholder_runs(tokens);
        assert_eq!(urls.len(), spans.len(), "one run of placeholders per image");
        let mut media = Vec::new();
        for ((start, length), (url, uuid)) in spans.into_iter().zip(urls) {
            if let Some(id) = published.get(&start) {
                self.ids.insert(url.clone(), id.clone());
            }
            let id = uuid.unwrap_or_else(|| self.ids[&url].clone());
            let id = Arc::from(id.as_str());
            media.push(MediaSpan { id, start, length });
        }
        let name = "tinylora";
        let lora = Lora {
            name: name.into(),
            id: 1,
        };
        Identity {
            lora: (request["model"] == name).then(|| Arc::new(lora)),
            salt: request["cache_salt"].as_str().map(Arc::from),
            media,
        }
    }

    fn placeholder_runs(&self, tokens: &[u32]) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (index, &token) in tokens.iter().enumerate() {
            match runs.last_mut() {
                _ if u64::from(token) != self.pad => {}
                Some((start, length)) if *start + *length == index => *length += 1,
                _ => runs.push((index, 1)),
            }
        }
        runs
    }
}

struct Ran {
    batches: Vec<Vec<Event>>,
    cached: u64,
    created: u64,
}

/// Where each image starts in the prompt, and its name, as the events say.
fn published_ids(step: &Value) -> HashMap<usize, String> {
    let mut ids = HashMap::new();
    let details = &step["response"]["usage"]["prompt_tokens_details"];
    let full = step["request"]["vllm_xargs"]["kv_cache_report_mode"] == "full";
    let mut cached = details["cached_tokens"].as_i64().unwrap_or(0);
    if full {
        cached = 0;
    }
    let batch = &step["messages"][0]["decoded"][1];
    let stored = batch.as_array().and_then(|events| events.last());
    let blocks = stored.and_then(|event| event["extra_keys"].as_array());
    for (index, keys) in blocks.into_iter().flatten().enumerate() {
        for key in keys.as_array().into_iter().flatten() {
            if let (Some(id), Some(offset)) = (key[0].as_str(), key[1].as_i64()) {
                let start = cached + (index * BLOCK) as i64 + offset;
                ids.insert(start as usize, id.to_owned());
            }
        }
    }
    ids
}

fn image_urls(request: &Value) -> Vec<(String, Option<String>)> {
    let messages = request["messages"].as_array().into_iter().flatten();
    let parts = messages
        .filter_map(|message| message["content"].as_array())
        .flatten();
    let images = parts.filter(|part| part["type"] == "image_url");
    let describe = |part: &Value| {
        let uuid = part["uuid"].as_str().map(str::to_owned);
        (part["image_url"].to_string(), uuid)
    };
    images.map(describe).collect()
}

fn numbers(ids: &Value) -> Vec<u32> {
    let ids = ids.as_array().expect("a list of token ids");
    ids.iter()
        .map(|id| id.as_u64().expect("a token id") as u32)
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn without_hashes(payload: &[u8]) -> rmpv::Value {
    let mut batch = rmpv::decode::read_value(&mut &payload[..]).expect("MessagePack");
    let rmpv::Value::Array(parts) = &mut batch else {
        panic!("a batch is an array")
    };
    let rmpv::Value::Array(events) = &mut parts[1] else {
        panic!("events are an array")
    };
    for event in events {
        let rmpv::Value::Map(fields) = event else {
            panic!("an event is a map")
        };
        fields.retain(|(key, _)| !key.as_str().is_some_and(|key| key.contains("block_hash")));
    }
    batch
}

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/vllm")
        .join(path)
}

fn steps(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(path)).expect("a recording");
    let mut recording: Value = serde_json::from_str(&text).expect("JSON");
    let Value::Array(steps) = recording["steps"].take() else {
        panic!("{path} has no steps")
    };
    steps
}

fn check(replay: &mut Replay, folder: &str, names: &[&str]) -> usize {
    let files = names.iter().map(|name| format!("{folder}/{name}.json"));
    files
        .flat_map(|file| steps(&file))
        .map(|step| replay.step(&step))
        .sum()
}

const QWEN2_PAD: u64 = 420;

#[test]
fn blocks_of_text_and_images_are_published_as_vllm_does() {
    let mut replay = Replay::new(4096, HashForm::Int, 0, QWEN2_PAD);
    let names = [
        "text_only",
        "text_generate",
        "image_twice",
        "image_uuid",
        "image_uuid_only",
        "two_images",
        "two_images_uuid",
        "same_image_twice",
        "two_small_in_block",
        "image_other_position",
        "cache_salt",
        "lora",
        "report_full",
        "reset",
    ];
    assert_eq!(check(&mut replay, "b16", &names), 21);
}

#[test]
fn blocks_are_evicted_in_the_order_of_vllm() {
    let mut replay = Replay::new(20, HashForm::Int, 0, QWEN2_PAD);
    // The recorded engine had answered this prompt before, and its blocks are the first to go.
    let earlier = numbers(&steps("evict/reset.json")[1]["request"]["prompt"]);
    replay.run(earlier, vec![0], Identity::default(), false);
    let names = [
        "eviction_text",
        "eviction_image",
        "duplicate_block",
        "reset",
    ];
    assert_eq!(check(&mut replay, "evict", &names), 27);
}

#[test]
fn hashes_may_be_bytes() {
    let mut replay = Replay::new(4096, HashForm::Bytes, 0, QWEN2_PAD);
    assert_eq!(check(&mut replay, "bytes", &["bytes_hashes"]), 3);
}

#[test]
fn another_family_is_published_alike() {
    let pad = steps("qwen3vl/image_twice.json")[0]["response"]["prompt_token_ids"][40].as_u64();
    let mut replay = Replay::new(4096, HashForm::Int, 0, pad.expect("a token id"));
    // The recording starts right after a reset.
    assert!(replay.scheduler.clear_cache());
    let names = ["image_twice", "image_uuid", "two_images_uuid"];
    assert_eq!(check(&mut replay, "qwen3vl", &names), 4);
}

#[test]
fn each_rank_has_its_own_cache() {
    let rank = |rank| Replay::new(4096, HashForm::Int, rank, QWEN2_PAD);
    let mut ranks = [rank(0), rank(1)];
    let mut frames = 0;
    for name in ["dp_req0", "dp_req1", "dp_req2"] {
        for step in steps(&format!("dp2/{name}.json")) {
            let rank = step["messages"][0]["decoded"][2].as_u64().expect("a rank");
            frames += ranks[rank as usize].step(&step);
        }
    }
    assert_eq!(frames, 3);
}

#[test]
fn both_forms_equal_vllms_own_encoding() {
    let hash = |byte: u8, low: u64| {
        let mut hash = [byte; 32];
        if byte == 0 {
            hash[24..].copy_from_slice(&low.to_be_bytes());
        }
        BlockHash(hash)
    };
    let rows = [
        ("v0.22.0_int", EventForm::Arrays, HashForm::Int),
        ("v0.23.0_bytes", EventForm::Arrays, HashForm::Bytes),
        ("v0.24.0_int", EventForm::Maps, HashForm::Int),
        ("v0.32.0_int", EventForm::Maps, HashForm::Int),
        ("v0.32.0_bytes", EventForm::Maps, HashForm::Bytes),
    ];
    for (name, events, hashes) in rows {
        let fill = |byte| if hashes == HashForm::Bytes { byte } else { 0 };
        let first = hash(fill(2), 10_248_191_152_060_860);
        let last = hash(fill(3), 15_372_286_728_091_290);
        let image = ExtraKey::Media {
            id: Arc::from("uuid-a"),
            offset: 5,
        };
        let stored = Stored {
            hashes: vec![first, last],
            parent: Some(hash(fill(1), 5_124_095_576_030_430)),
            tokens: (100..132).collect(),
            extra_keys: vec![vec![image], Vec::new()],
            lora: None,
            session: None,
        };
        let batch = [Event::Stored(stored), Event::Removed(last), Event::Cleared];
        let wire = Wire {
            events,
            hashes,
            block_size: BLOCK,
            rank: 0,
        };
        let theirs = std::fs::read(golden(&format!("synthetic/{name}.bin"))).expect("a payload");
        assert_eq!(wire.batch(1_700_000_000.5, &batch), theirs, "{name}");
    }
}
