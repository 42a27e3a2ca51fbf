//! Frames of a real vLLM through codec, ledger and index: what we predict is what it had cached.

use std::collections::HashMap;

use kvlens::block::{BlockSize, SequenceHash, root, sequence_hashes};
use kvlens::events::codec::decode;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::{Index, KvEvent};
use kvlens::ledger::counts::{Alarm, Counts};
use kvlens::ledger::{EngineEvent, EngineHash, Ledger, Options, Published};
use kvlens::prompt::{ExpandedPrompt, MediaSpan};
use serde_json::Value;

use crate::codec::{frames, golden, hash_of, json, scenarios};
use crate::hash_vectors::Vector;

const BLOCK_TOKENS: u32 = 16;

/// One engine's ledger and the index it feeds.
struct Follower {
    ledger: Ledger,
    index: Index,
    /// The sequence hashes up to each engine hash, itself included.
    paths: HashMap<EngineHash, Vec<SequenceHash>>,
}

impl Follower {
    fn new(options: Options) -> Self {
        Self {
            ledger: Ledger::new("tiny-vl", options),
            index: Index::new(),
            paths: HashMap::new(),
        }
    }

    fn take(&mut self, sequence: u64, payload: &[u8]) {
        let events = decode(payload).expect("a batch");
        let Published {
            cleared,
            removed,
            stored,
            lower,
        } = self.ledger.apply(events.clone());
        self.index.apply(&KvEvent {
            worker: WorkerId::new("w").expect("a legal id"),
            rank: DpRank(0),
            incarnation: Incarnation(1),
            sequence,
            cleared,
            removed,
            stored,
            lower,
        });
        for event in events {
            let EngineEvent::Stored(stored) = event else {
                continue;
            };
            let parent = stored.parent.and_then(|parent| self.paths.get(&parent));
            let mut path = parent.cloned().unwrap_or_default();
            for hash in stored.hashes {
                path.extend(self.ledger.name(&hash));
                self.paths.insert(hash, path.clone());
            }
        }
    }

    /// Cached tokens as a router predicts them: the last token is always computed.
    fn predict(&self, hashes: &[SequenceHash], prompt_tokens: u32) -> u32 {
        let size = BlockSize::new(BLOCK_TOKENS).expect("16 is not zero");
        let overlap = self.index.overlap(hashes);
        let blocks = overlap.first().map_or(0, |overlap| overlap.blocks);
        blocks.min(size.cacheable_blocks(prompt_tokens)) * BLOCK_TOKENS
    }

    /// The path before the first block a payload stores.
    fn path_before(&self, payload: &[u8]) -> Option<Vec<SequenceHash>> {
        let events = decode(payload).expect("a batch");
        let first = events.into_iter().find_map(|event| match event {
            EngineEvent::Stored(stored) => Some(stored.parent),
            _ => None,
        })?;
        Some(first.map_or_else(Vec::new, |parent| self.paths[&parent].clone()))
    }
}

#[test]
fn cached_tokens_of_224_requests_are_predicted() {
    let messages = frames("recording/run1");
    let rows = std::fs::read_to_string(golden("recording/run1.jsonl")).unwrap();
    let rows = rows
        .lines()
        .map(|row| serde_json::from_str::<Value>(row).unwrap());
    let mut follower = Follower::new(Options::default());
    let (mut next, mut checked, mut held_checked) = (0, 0, 0);
    for row in rows {
        let sequences: Vec<u64> = row["seqs"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        let (Some(first), Some(last)) = (sequences.first(), sequences.last()) else {
            continue;
        };
        while next < *first {
            follower.take(next, &messages[next as usize].1);
            next += 1;
        }
        // The prompt's hashes are not recorded, but its first new block names its parent: all
        // before it must be held, and be what the engine says it had cached. With
        // `prompt_logprobs` vLLM reads no cache at all.
        let path = follower.path_before(&messages[*first as usize].1);
        let label = row["label"].as_str().unwrap();
        if let (Some(path), Some(cached)) = (path, row["cached"].as_u64())
            && !label.starts_with("prompt_logprobs")
            && label != "report_full"
        {
            let prompt_tokens = row["usage"]["prompt_tokens"].as_u64().unwrap() as u32;
            let predicted = follower.predict(&path, prompt_tokens);
            assert_eq!(u64::from(predicted), cached, "{label} at {first}");
            checked += 1;
        }
        while next <= *last {
            follower.take(next, &messages[next as usize].1);
            next += 1;
        }
        if let Some(held) = row["held"].as_u64() {
            assert_eq!(follower.ledger.blocks(), held, "{label} at {first}");
            assert_eq!(follower.index.total_blocks(), held);
            held_checked += 1;
        }
    }
    assert_eq!(checked, 224, "requests that stored something");
    assert!(
        held_checked > 180,
        "only {held_checked} states were checked"
    );
    assert_eq!(next, 472);
    assert_eq!(follower.ledger.waiting_blocks(), 0);
    assert!(!follower.ledger.is_partial());
}

/// What vLLM's pool holds, counted from the JSON form of its events.
#[derive(Default)]
struct Pool {
    copies: HashMap<EngineHash, u64>,
}

impl Pool {
    fn take(&mut self, event: &Value) {
        let hashes = event["block_hashes"].as_array();
        let hashes = hashes.into_iter().flatten().filter_map(hash_of);
        match event["type"].as_str() {
            Some("BlockStored") => hashes.for_each(|hash| {
                *self.copies.entry(hash).or_default() += 1;
            }),
            Some("BlockRemoved") => hashes.for_each(|hash| {
                let copies = self.copies.remove(&hash).unwrap_or_default();
                if copies > 1 {
                    self.copies.insert(hash, copies - 1);
                }
            }),
            _ => self.copies.clear(),
        }
    }
}

/// The hashes of a step's prompt: of the golden vector where there is one, else of its tokens when
/// they hold no image, else with the uuids that the request gave its images.
fn hashes_of(step: &Value, vector: Option<&Vector>) -> Option<Vec<SequenceHash>> {
    if let Some(vector) = vector {
        return Some(vector.hashes());
    }
    let tokens = step["response"]["prompt_token_ids"].as_array()?;
    let tokens: Vec<u32> = tokens
        .iter()
        .filter_map(|t| t.as_u64().map(|t| t as u32))
        .collect();
    let parts = step["request"]["messages"][0]["content"].as_array();
    let images = parts
        .into_iter()
        .flatten()
        .filter(|part| part["type"] == "image_url");
    let ids: Vec<_> = images.map(|part| part["uuid"].as_str()).collect();
    let mut spans: Vec<MediaSpan> = Vec::new();
    for (at, _) in tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| **token == 420)
    {
        match spans.last_mut() {
            Some(span) if span.start + span.token_count == at as u32 => span.token_count += 1,
            _ => spans.push(MediaSpan {
                start: at as u32,
                token_count: 1,
                id: (*ids.get(spans.len())?)?.into(),
            }),
        }
    }
    assert_eq!(
        spans.len(),
        ids.len(),
        "every image has its run of placeholders"
    );
    let model = step["request"]["model"].as_str()?;
    let lora = if model == "tiny-vl" { "" } else { model };
    let salt = step["request"]["cache_salt"].as_str().unwrap_or_default();
    let size = BlockSize::new(BLOCK_TOKENS)?;
    let prompt = ExpandedPrompt { tokens, spans };
    Some(sequence_hashes(root("tiny-vl", lora, salt), &prompt, size))
}

/// Replays a folder's scenarios in order; the number of requests whose cached tokens were checked.
fn replay(names: &[String], options: Options) -> (Follower, u32) {
    let mut follower = Follower::new(options);
    let mut pool = Pool::default();
    let vectors = Vector::all();
    let mut checked = 0;
    for name in names {
        let recorded = json(&format!("{name}.json"));
        let mut messages = frames(name).into_iter();
        for step in recorded["steps"].as_array().expect("steps") {
            let label = step["label"].as_str().expect("a label");
            let from = format!("{name}/{label}");
            let vector = vectors.iter().find(|vector| vector.from == from);
            let usage = &step["response"]["usage"];
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
            // After a reset the clearing comes with the next step's events.
            if let (Some(hashes), Some(cached), false) =
                (hashes_of(step, vector), cached, label == "after")
            {
                let prompt_tokens = usage["prompt_tokens"].as_u64().expect("a count") as u32;
                let predicted = follower.predict(&hashes, prompt_tokens);
                assert_eq!(u64::from(predicted), cached, "{from}");
                checked += 1;
            }
            for message in step["messages"].as_array().expect("messages") {
                let (sequence, payload) = messages.next().expect("as many frames");
                follower.take(sequence, &payload);
                for event in message["decoded"][1].as_array().expect("events") {
                    pool.take(event);
                }
                let ledger = &follower.ledger;
                assert_eq!(ledger.copies(), pool.copies.values().sum::<u64>(), "{from}");
                assert_eq!(ledger.blocks(), pool.copies.len() as u64, "{from}");
                assert_eq!(follower.index.total_blocks(), ledger.blocks(), "{from}");
                for hash in pool.copies.keys() {
                    assert!(ledger.name(hash).is_some(), "{from}: {hash:?} has no name");
                }
            }
            if let Some(vector) = vector {
                let held = follower.predict(&vector.hashes(), u32::MAX);
                let all = vector.hashes().len() as u32 * BLOCK_TOKENS;
                assert_eq!(held, all, "{from}: every full block is held afterwards");
            }
        }
    }
    (follower, checked)
}

#[test]
fn the_ledger_holds_what_vllms_pool_holds_after_every_step() {
    let rows = [
        ("b16", "report_full", 20),
        ("bytes", "", 1),
        ("qwen3vl", "", 3),
    ];
    for (folder, left_out, least) in rows {
        let mut names = scenarios(folder);
        names.retain(|name| left_out.is_empty() || !name.ends_with(left_out));
        let (follower, checked) = replay(&names, Options::default());
        assert!(
            checked >= least,
            "{folder}: only {checked} requests were checked"
        );
        let ledger = &follower.ledger;
        assert_eq!(*ledger.counts(), Counts::default(), "{folder}: no alarm");
        assert!(!ledger.is_partial(), "{folder}");
    }
}

#[test]
fn evictions_and_duplicate_blocks_are_counted_as_the_engine_counts() {
    let options = Options {
        capacity_blocks: Some(19),
        ..Options::default()
    };
    let (follower, checked) = replay(&scenarios("evict"), options);
    assert!(checked >= 10, "only {checked} requests were checked");
    // The recording begins after 13 messages: three blocks of before it are removed.
    let counts = follower.ledger.counts();
    let alarms: Vec<_> = counts.since(&Counts::default()).collect();
    assert_eq!(alarms, [(Alarm::RemovedUnknown, 3)]);
}

#[test]
fn each_data_parallel_rank_has_its_own_sequence_and_ledger() {
    let mut ranks: HashMap<u64, (Ledger, u64)> = HashMap::new();
    for name in ["dp2/dp_req0", "dp2/dp_req1", "dp2/dp_req2"] {
        let recorded = json(&format!("{name}.json"));
        let steps = recorded["steps"].as_array().unwrap().iter();
        let messages = steps.flat_map(|step| step["messages"].as_array().unwrap());
        for ((sequence, payload), message) in frames(name).into_iter().zip(messages) {
            let rank = message["decoded"][2].as_u64();
            let rank = rank.expect("vLLM names the rank");
            let fresh = || (Ledger::new("tiny-vl", Options::default()), 0);
            let (ledger, next) = ranks.entry(rank).or_insert_with(fresh);
            assert_eq!(sequence, *next, "{name}");
            *next += 1;
            ledger.apply(decode(&payload).unwrap());
            assert_eq!(ledger.waiting_blocks(), 0);
            assert_eq!(*ledger.counts(), Counts::default());
        }
    }
    assert_eq!(ranks.len(), 2);
}

#[test]
fn a_reset_shows_with_the_next_step_and_takes_everything() {
    let mut follower = Follower::new(Options::default());
    for (sequence, payload) in frames("b16/text_only").iter().chain(&frames("b16/reset")) {
        let before = follower.ledger.blocks();
        let events = decode(payload).unwrap();
        follower.take(*sequence, payload);
        if events.contains(&EngineEvent::Cleared) {
            assert!(before > 0);
            assert_eq!(follower.ledger.blocks(), 4, "68 tokens after the reset");
            assert_eq!(follower.index.total_blocks(), 4);
            return;
        }
    }
    panic!("no clearing was recorded");
}

#[test]
fn a_full_report_under_our_session_changes_nothing_that_is_held() {
    let mut follower = Follower::new(Options {
        session_id: Some("ours".into()),
        ..Options::default()
    });
    let mut names = scenarios("b16");
    let report = names.iter().position(|name| name.ends_with("report_full"));
    names.truncate(report.expect("the scenario") + 1);
    for name in &names {
        for (sequence, payload) in frames(name) {
            if !name.ends_with("report_full") {
                follower.take(sequence, &payload);
                continue;
            }
            let before = follower.ledger.copies();
            let mut events = decode(&payload).unwrap();
            for event in &mut events {
                if let EngineEvent::Stored(stored) = event {
                    stored.session_id = Some("ours".into());
                }
            }
            let published = follower.ledger.apply(events);
            assert_eq!(published, Published::default(), "all was known");
            assert_eq!(follower.ledger.copies(), before);
        }
    }
}
