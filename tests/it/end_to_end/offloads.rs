//! Blocks that an engine has moved to its host's memory.

use serde_json::{Value, json};

use crate::end_to_end::stack::{FAST, Stack};

/// Tokens of a block of the mock engines.
const BLOCK: u64 = 16;

/// Fills an engine's cache behind the router's back, with nothing that anybody asks for again.
async fn fill(stack: &Stack, worker: &str) {
    let engine = stack.engine(worker).await;
    for start in [0, 1_000] {
        let prompt: Vec<u64> = (start..start + 900).collect();
        let body = json!({"model": "demo", "prompt": prompt, "max_tokens": 1});
        let url = format!("{engine}/v1/completions");
        assert_eq!(stack.client.post(&url, &body).await.status, 200);
    }
    stack.settle().await;
}

#[tokio::test]
async fn an_image_that_was_offloaded_is_sent_where_it_is_loaded_from() {
    let words = "--num-gpu-blocks 64 --host-blocks 1000";
    let stack = Stack::start(&format!("-- {FAST} {words}")).await;
    let first = stack.ask_settled(&stack.example).await;
    assert_eq!(first.cached_tokens, 0);
    stack.settle().await;
    fill(&stack, &first.worker).await;

    let cacheable_blocks = (first.prompt_tokens - 1) / BLOCK;
    let url = format!("{}/kvlens/v1/explain", stack.admin);
    let explained = stack.client.post(&url, &stack.example).await.json();
    let candidates = explained["candidates"].as_array().expect("a list");
    for candidate in candidates {
        let is_holder = candidate["worker"] == first.worker.as_str();
        let blocks = if is_holder { cacheable_blocks } else { 0 };
        assert_eq!(candidate["overlap_blocks"], 0, "{candidate}");
        assert_eq!(candidate["host_blocks"], blocks, "{candidate}");
        assert_eq!(candidate["chosen"], is_holder, "{candidate}");
        let spared_tokens = 0.75 * (blocks * BLOCK) as f64;
        assert_eq!(
            candidate["cost"]["spared_tokens"], spared_tokens,
            "{candidate}"
        );
    }
    let holder = stack.worker(&first.worker).await;
    assert!(
        holder["host_blocks"].as_u64() >= Some(cacheable_blocks),
        "{holder}"
    );
    assert_eq!(
        (&holder["disk_blocks"], &holder["cause"]),
        (&json!(0), &Value::Null)
    );

    let again = stack.ask(&stack.example).await;
    assert_eq!((&again.worker, again.overlap_blocks), (&first.worker, 0));
    assert_eq!(again.cached_tokens, cacheable_blocks * BLOCK, "{again:?}");
    // Loaded, it is on the GPU again.
    let third = stack.ask_settled(&stack.example).await;
    assert_eq!(
        (&third.worker, third.overlap_blocks),
        (&first.worker, cacheable_blocks)
    );
    let cached_tokens = stack.metric("kvlens_overlap_cached_tokens_total").await;
    let predicted_tokens = stack.metric("kvlens_overlap_predicted_tokens_total").await;
    assert_eq!(cached_tokens, predicted_tokens);
    stack.end().await;
}
