//! Resets of a prefix cache through `kvlens up`.

use serde_json::json;

use crate::end_to_end::pictures::{chat, text};
use crate::end_to_end::stack::{FAST, Stack, until};

#[tokio::test]
async fn a_reset_shows_in_the_very_next_request() {
    let stack = Stack::start(&format!("--workers 1 -- --dev {FAST}")).await;
    let body = chat(&[text(&"the same words again, ".repeat(40))]);
    stack.ask(&body).await;
    let told = stack.ask_settled(&body).await;
    assert!(told.cached_tokens > 0, "{told:?}");

    let url = format!("{}/kvlens/v1/reset", stack.admin);
    let answer = stack.client.post(&url, &json!({"worker": "mock-0"})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // No event says so: an engine tells it with its next step.
    until("its blocks leave the index", async || {
        stack.worker("mock-0").await["indexed_blocks"] == 0
    })
    .await;
    let told = stack.ask(&body).await;
    assert_eq!(told.cached_tokens, 0, "{told:?}");
    assert_eq!(told.overlap_blocks, 0, "{told:?}");
    let told = stack.ask_settled(&body).await;
    assert!(told.cached_tokens > 0, "{told:?}");
    assert_eq!(told.overlap_blocks * 16, told.cached_tokens, "{told:?}");

    for (body, status, part) in [
        (json!({"worker": "mock-7"}), 404, "mock-7"),
        (json!({"worker": 3}), 400, "invalid type"),
        (json!({"engine": "mock-0"}), 400, "unknown field"),
    ] {
        let answer = stack.client.post(&url, &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.text().contains(part), "{answer:?}");
    }
    stack.end().await;
}

#[tokio::test]
async fn an_engine_without_resets_is_said_to_have_none() {
    let stack = Stack::start(&format!("--workers 2 -- {FAST}")).await;
    let url = format!("{}/kvlens/v1/reset", stack.admin);
    let answer = stack.client.post(&url, &json!({"worker": "mock-1"})).await;
    assert_eq!(answer.status, 501, "{answer:?}");
    assert!(answer.text().contains("VLLM_SERVER_DEV_MODE=1"));
    let answer = stack.client.post(&url, &json!({})).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    stack.end().await;
}
