//! Methods, paths and types: what is answered where, and what the rest is told.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::end_to_end::client::assert_error;
use crate::end_to_end::pictures::{chat, text};
use crate::end_to_end::stack::{FAST, Stack};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn methods_paths_and_types() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let good = chat(&[text("Good day.")]).to_string();
    let none = Value::Null;
    let rows = [
        ("GET", CHAT, "", (405, "method_not_allowed")),
        ("DELETE", "/v1/models", "", (405, "method_not_allowed")),
        (
            "POST",
            "/v1/models",
            "application/json",
            (405, "method_not_allowed"),
        ),
        ("POST", "/v1/chat", "application/json", (404, "not_found")),
        ("GET", "/metrics", "", (404, "not_found")),
        ("GET", "/kvlens/v1/workers", "", (404, "not_found")),
        ("POST", CHAT, "text/plain", (415, "unsupported_media_type")),
        (
            "POST",
            CHAT,
            "multipart/form-data; boundary=x",
            (415, "unsupported_media_type"),
        ),
    ];
    for (method, path, content_type, (status, code)) in rows {
        let mut request = Request::builder().method(method).uri(stack.url(path));
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request.body(Full::from(good.clone())).unwrap();
        let answer = stack.client.send(request).await;
        assert_error(
            &answer,
            (status, code, none.clone()),
            &format!("{method} {path}"),
        );
        assert_eq!(status == 405, !answer.header("allow").is_empty());
    }
    for path in ["/live", "/ready", "/health", "/v1/models"] {
        let answer = stack.client.get(&stack.url(path)).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.json().is_object(), "{path}");
    }
    let models = stack.client.get(&stack.url("/v1/models")).await.json();
    assert_eq!(models["data"][0]["id"], "demo");
    let input = json!({"model": "demo", "input": ["a", "b"]});
    let answer = stack
        .client
        .post(&stack.url("/v1/embeddings"), &input)
        .await;
    assert_eq!(
        answer.json()["data"].as_array().unwrap().len(),
        2,
        "{answer:?}"
    );
    // A well-formed id is kept, any other replaced.
    for (id, kept) in [
        ("abc-1", true),
        (&"x".repeat(10_000), false),
        ("a b", false),
    ] {
        let request = Request::get(stack.url("/live")).header("x-request-id", id);
        let answer = stack
            .client
            .send(request.body(Full::default()).unwrap())
            .await;
        assert_eq!(answer.header("x-request-id") == id, kept, "{answer:?}");
        assert!(!answer.header("x-request-id").is_empty());
    }
    stack.end().await;
}
