//! The mock engine's cache against 200 random requests that a real vLLM 0.32.0 served one by one:
//! several turns, images, salts. Prompts were not recorded; the events name all that matters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kvlens::mock::hash::{Identity, MediaSpan};
use kvlens::mock::pool::Event;
use kvlens::mock::scheduler::{Admission, Bounds, Scheduler, Sequence, SequenceId};
use kvlens::mock::wire::{EventForm, HashForm, Wire};
use rmpv::Value;

const BLOCK: usize = 16;

/// A block as some event described it.
#[derive(Clone)]
struct Block {
    parent: Option<u64>,
    tokens: Vec<u32>,
    /// Items that touch it, by their distance from its start.
    media: Vec<(String, i64)>,
}

/// What the events of one request tell of it: the blocks it found, then those it added.
struct Told {
    blocks: Vec<Block>,
    found: usize,
}

fn golden(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/vllm/recording/");
    std::fs::read(format!("{folder}{name}")).expect("a recording")
}

/// The payloads of all messages, in order of their sequence numbers.
fn payloads() -> Vec<Vec<u8>> {
    let bytes = golden("run1.bin");
    let mut rest = &bytes[..];
    let mut payloads = Vec::new();
    while !rest.is_empty() {
        let frames = number(&mut rest);
        let mut last = &rest[..0];
        for _ in 0..frames {
            let length = number(&mut rest) as usize;
            (last, rest) = rest.split_at(length);
        }
        payloads.push(last.to_vec());
    }
    payloads
}

fn number(rest: &mut &[u8]) -> u32 {
    let (head, tail) = rest.split_at(4);
    *rest = tail;
    u32::from_be_bytes(head.try_into().expect("four bytes"))
}

fn field<'a>(event: &'a Value, key: &str) -> &'a Value {
    let fields = event.as_map().expect("a map");
    let found = fields.iter().find(|(name, _)| name.as_str() == Some(key));
    &found.expect("the field").1
}

fn items<'a>(event: &'a Value, key: &str) -> &'a [Value] {
    field(event, key).as_array().expect("an array")
}

/// Adds the blocks of a batch to `known` and returns their hashes.
fn learn(payload: &[u8], known: &mut HashMap<u64, Block>) -> Vec<u64> {
    let batch = rmpv::decode::read_value(&mut &payload[..]).expect("MessagePack");
    let mut added = Vec::new();
    for event in batch[1].as_array().expect("events") {
        assert_eq!(
            field(event, "type").as_str(),
            Some("BlockStored"),
            "nothing was evicted"
        );
        let mut parent = field(event, "parent_block_hash").as_u64();
        let tokens = items(event, "token_ids");
        for (index, hash) in items(event, "block_hashes").iter().enumerate() {
            let tokens = &tokens[index * BLOCK..(index + 1) * BLOCK];
            let keys = items(event, "extra_keys")[index].as_array();
            let hash = hash.as_u64().expect("a hash");
            let item = |key: &Value| Some((key[0].as_str()?.to_owned(), key[1].as_i64()?));
            let block = Block {
                parent,
                tokens: tokens
                    .iter()
                    .filter_map(|t| t.as_u64().map(|t| t as u32))
                    .collect(),
                media: keys.into_iter().flatten().filter_map(item).collect(),
            };
            known.insert(hash, block);
            added.push(hash);
            parent = Some(hash);
        }
    }
    added
}

fn told(added: &[u64], known: &HashMap<u64, Block>) -> Told {
    let mut before = Vec::new();
    let mut parent = known[&added[0]].parent;
    while let Some(hash) = parent {
        before.push(known[&hash].clone());
        parent = known[&hash].parent;
    }
    before.reverse();
    let found = before.len();
    before.extend(added.iter().map(|hash| known[hash].clone()));
    Told {
        blocks: before,
        found,
    }
}

fn spans(blocks: &[Block]) -> Vec<MediaSpan> {
    let mut spans: BTreeMap<usize, MediaSpan> = BTreeMap::new();
    for (index, block) in blocks.iter().enumerate() {
        for (id, offset) in &block.media {
            let start = ((index * BLOCK) as i64 + offset) as usize;
            let span = spans.entry(start).or_insert_with(|| MediaSpan {
                id: Arc::from(id.as_str()),
                start,
                length: 0,
            });
            span.length = (index + 1) * BLOCK - start;
        }
    }
    spans.into_values().collect()
}

/// Steps until all is answered; the events of each step that had any.
fn run(scheduler: &mut Scheduler) -> Vec<Vec<Event>> {
    let mut batches = Vec::new();
    while scheduler.running_len() + scheduler.waiting_len() > 0 {
        scheduler.schedule();
        scheduler.finish_step();
        batches.push(scheduler.take_events());
    }
    batches.retain(|events| !events.is_empty());
    batches
}

fn engine() -> (Scheduler, Wire) {
    let bounds = Bounds {
        block_size: BLOCK,
        blocks: 4096,
        host_blocks: 0,
        running_max: 256,
        batched_tokens_max: 8192,
    };
    let wire = Wire {
        events: EventForm::Maps,
        hashes: HashForm::Int,
        block_size: BLOCK,
        rank: 0,
    };
    (Scheduler::new(bounds, true), wire)
}

#[test]
fn two_hundred_random_requests_are_cached_as_vllm_does() {
    let (mut scheduler, wire) = engine();
    let (payloads, mut known) = (payloads(), HashMap::new());
    let rows = String::from_utf8(golden("run1.jsonl")).expect("text");
    let rows = rows
        .lines()
        .map(|row| serde_json::from_str(row).expect("JSON"));
    let mut compared = 0;
    for row in rows.filter(|row: &serde_json::Value| row["label"] == "random") {
        let sequences = row["seqs"].as_array().expect("sequence numbers").iter();
        let theirs: Vec<_> = sequences
            .map(|sequence| &payloads[sequence.as_u64().expect("a number") as usize])
            .collect();
        let added = theirs.iter().flat_map(|payload| learn(payload, &mut known));
        let added: Vec<_> = added.collect();
        if added.is_empty() {
            // A mere hit adds nothing, and so tells nothing.
            continue;
        }
        let told = told(&added, &known);
        assert_eq!(row["cached"], told.found * BLOCK);
        let count = |value: &serde_json::Value| value.as_u64().expect("a count") as usize;
        let prompt = count(&row["n_prompt"]);
        let completion = count(&row["usage"]["completion_tokens"]);
        let mut tokens: Vec<_> = told.blocks.iter().flat_map(|b| b.tokens.clone()).collect();
        tokens.resize(prompt + completion, 0);
        let answer: Arc<[u32]> = tokens.split_off(prompt).into();
        let (admitted, admission) = std::sync::mpsc::channel();
        scheduler.submit(Sequence {
            id: SequenceId(1),
            tokens,
            identity: Identity {
                lora: None,
                salt: row["salt"].as_str().map(Arc::from),
                media: spans(&told.blocks),
            },
            report_reused: false,
            skip_cache: false,
            session: None,
            answer: Box::new(move |admission| {
                admitted.send(admission).expect("the test listens");
                answer
            }),
        });
        let batches = run(&mut scheduler);
        let admission = admission.recv().expect("the request was admitted");
        let Admission {
            cached_tokens,
            created_tokens,
        } = admission;
        assert_eq!(
            (&row["cached"], &row["created"]),
            (&cached_tokens.into(), &created_tokens.into())
        );
        assert_eq!(batches.len(), theirs.len());
        for (events, theirs) in batches.iter().zip(theirs) {
            let seconds = theirs[2..10].try_into().expect("eight bytes");
            let ours = wire.batch(f64::from_be_bytes(seconds), events);
            assert_eq!(&ours, theirs);
            compared += 1;
        }
    }
    assert_eq!(compared, 370);
}
