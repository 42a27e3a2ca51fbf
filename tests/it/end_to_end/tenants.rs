//! Tenants with keys of their own: who may ask, and what they share.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use rustix::process::Signal;
use serde_json::Value;

use crate::end_to_end::client::{Answer, post};
use crate::end_to_end::stack::{FAST, Stack, until};

fn write(path: &Path, keys: &str) {
    fs::write(path, keys).expect("a file");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, mode).expect("a mode");
}

/// Asks with a key; "" shows none.
async fn ask(stack: &Stack, url: &str, body: &Value, key: &str) -> Answer {
    let mut request = post(url, body.to_string());
    if !key.is_empty() {
        let value = HeaderValue::from_str(&format!("Bearer {key}")).expect("a legal key");
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    stack.client.send(request).await
}

#[tokio::test]
async fn tenants_show_keys_and_share_no_cache() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    // printf %s hidden | sha256sum
    let hash = "e564b4081d7a9ea4b00dada53bdae70c99b87b6fce869f0c3dd4d2bfa1e53e1c";
    write(&file, &format!("alice:first\nbob:sha256:{hash}\n"));
    let words = format!("--workers 1 --key-file {} -- {FAST}", file.display());
    let stack = Stack::start(&words).await;
    let url = stack.url("/v1/chat/completions");
    let overlap = async |key: &str| {
        stack.settle().await;
        let answer = ask(&stack, &url, &stack.example, key).await;
        assert_eq!(answer.status, 200, "{key}: {answer:?}");
        answer.header("x-kvlens-overlap").to_owned()
    };
    for key in ["", "second", hash] {
        let refused = ask(&stack, &url, &stack.example, key).await;
        assert_eq!(refused.status, 401, "{key}: {refused:?}");
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    assert_eq!(stack.metric("kvlens_unauthorised_total").await, 3.0);
    assert_eq!(stack.client.get(&stack.url("/v1/models")).await.status, 401);
    assert_eq!(stack.client.get(&stack.url("/health")).await.status, 200);
    let found = [
        overlap("first").await,
        overlap("hidden").await,
        overlap("first").await,
        overlap("hidden").await,
    ];
    // The same picture and words, and yet each must begin on its own.
    assert_eq!(found, ["0/6", "0/6", "6/6", "6/6"]);
    let explain = format!("{}/kvlens/v1/explain", stack.admin);
    for (tenant, blocks) in [("alice", 6), ("bob", 6), ("", 0)] {
        let mut request = post(&explain, stack.example.to_string());
        let value = HeaderValue::from_static(tenant);
        request.headers_mut().insert("x-kvlens-tenant", value);
        let explained = stack.client.send(request).await.json();
        assert_eq!(
            explained["candidates"][0]["overlap_blocks"], blocks,
            "{tenant:?}"
        );
    }

    write(&file, "alice:second\n");
    stack.signal(Signal::HUP);
    until("the keys are read again", async || {
        ask(&stack, &url, &stack.example, "first").await.status == 401
    })
    .await;
    // Another key of the same tenant, whose cache it is.
    assert_eq!(overlap("second").await, "6/6");
    write(&file, "alice:\n");
    stack.signal(Signal::HUP);
    until("the fault is told", async || {
        stack.log().contains("the keys stay as they were")
    })
    .await;
    assert_eq!(overlap("second").await, "6/6");
    stack.end().await;
}
