//! What engines of partial ledgers are asked, and what their answers disprove.

use std::sync::Arc;

use kvlens::config::media::MediaConfig;
use kvlens::discovery::Completeness;
use kvlens::discovery::Update;
use kvlens::id::{DpRank, Incarnation, WorkerId};
use kvlens::index::KvEvent;
use kvlens::ledger::tier::Tiers;
use serde_json::{Value, json};

use crate::bodies::{CHAT, COMPLETION, EMBEDDINGS, Pair, answered};
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};

#[tokio::test]
async fn a_report_is_asked_for_while_the_record_says_so() {
    let pair = Pair::start(MediaConfig::default(), answered).await;
    let bodies = [
        (CHAT, chat(&[text("a"), image(&data_uri(&png(32, 32, 1)))])),
        (COMPLETION, json!({"model": "demo", "prompt": "a"})),
        (EMBEDDINGS, json!({"model": "demo", "input": "a"})),
    ];
    let mut plain = Vec::new();
    for (path, body) in &bodies {
        let sent = pair.sent(path, body).await;
        assert_eq!(
            (sent.get("vllm_xargs"), sent.get("session_id")),
            (None, None)
        );
        plain.push(sent);
    }
    let session = "kvlens \"}1";
    pair.up(|record| record.ledger.report_session = Some(session.to_owned()));
    for ((path, body), mut expected) in bodies.iter().zip(plain) {
        if *path != EMBEDDINGS {
            expected["vllm_xargs"] = json!({"kv_cache_report_mode": "full"});
            expected["session_id"] = json!(session);
        }
        assert_eq!(pair.sent(path, body).await, expected);
    }
}

/// An event by which the worker has stored the first blocks of a chat.
async fn stored(pair: &Pair, body: &Value, sequence: u64) -> usize {
    let prepared = pair
        .frontend
        .prepare_chat(body.to_string().as_bytes(), &Arc::default())
        .await;
    let hashes = prepared.expect("a legal chat").footprint.hashes[0]
        .1
        .clone();
    pair.frontend.router.apply(Update::Kv(KvEvent {
        worker: WorkerId::new("w").expect("a legal name"),
        rank: DpRank(0),
        incarnation: Incarnation(1),
        sequence,
        cleared: false,
        removed: Vec::new(),
        stored: hashes.to_vec(),
        lower: Tiers::default(),
    }));
    hashes.len()
}

/// 20 tokens of the prompt were found: one whole block.
fn found_little(_body: &Value) -> (u16, Value) {
    let usage = json!({
        "prompt_tokens": 100,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 20},
    });
    (200, json!({"choices": [], "usage": usage}))
}

#[tokio::test]
async fn what_an_answer_disproves_is_counted_by_the_ledger_it_came_from() {
    let pair = Pair::start(MediaConfig::default(), found_little).await;
    let indexed = || pair.frontend.router.workers()[0].indexed_blocks as usize;
    let long = "the house by the river ".repeat(20);
    let mut body = chat(&[text(&long)]);
    let blocks = stored(&pair, &body, 0).await;
    assert!(blocks > 4);

    pair.sent(CHAT, &body).await;
    assert_eq!(indexed(), blocks, "the request has just computed them");
    let line = |ledger: &str, count: usize| {
        format!("kvlens_overlap_disproved_blocks_total{{ledger=\"{ledger}\"}} {count}")
    };
    assert!(pair.counts(&line("complete", blocks - 1)));

    pair.up(|record| record.ledger.completeness = Completeness::Partial);
    // Of several choices the engine speaks for one.
    body["n"] = json!(2);
    pair.sent(CHAT, &body).await;
    assert_eq!(indexed(), blocks);
    body["n"] = json!(1);
    assert!(!pair.counts(&line("partial", blocks - 1)));
    pair.sent(CHAT, &body).await;
    assert_eq!(indexed(), blocks);
    assert!(pair.counts(&line("partial", blocks - 1)));
}
