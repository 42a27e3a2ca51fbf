//! Requests that cannot be answered: each names what is wrong, and the next good one is answered.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::end_to_end::client::Answer;
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};
use crate::end_to_end::stack::{FAST, Stack};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A small limit, so that a body over it is quickly made.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Asserts status, code and field of an error, in the form that every error has.
fn assert_error(answer: &Answer, (status, code, param): (u16, &str, Value), what: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/json", "{what}");
    assert!(!answer.header("x-request-id").is_empty(), "{what}");
    let body = answer.json();
    assert_eq!(body["error"]["code"], code, "{what}: {body}");
    assert_eq!(body["error"]["param"], param, "{what}: {body}");
    assert!(
        body["error"]["message"].as_str().unwrap_or_default().len() > 10,
        "{what}"
    );
}

async fn post(stack: &Stack, path: &str, body: impl Into<Bytes>) -> Answer {
    let request = crate::end_to_end::client::post(&stack.url(path), body);
    stack.client.send(request).await
}

/// A chat in which the fields of `change` replace or join those of a good one.
fn with(change: Value) -> Value {
    let mut body = chat(&[text("Good day.")]);
    for (name, value) in change.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let config = format!("[frontend.limits]\nbody_bytes_max = {BODY_BYTES_MAX}\n");
    let stack = Stack::configured(&format!("-- {FAST}"), &config).await;
    let good = with(json!({})).to_string();
    let none = Value::Null;
    let invalid = (400, "invalid_json", none.clone());
    let rows: Vec<(&str, Vec<u8>, (u16, &str, Value))> = vec![
        ("empty", vec![], invalid.clone()),
        (
            "cut",
            good.as_bytes()[..good.len() - 1].into(),
            invalid.clone(),
        ),
        ("a list", b"[1]".into(), invalid.clone()),
        ("deep", vec![b'['; 500_000], invalid.clone()),
        ("not UTF-8", b"{\"model\":\"\xff\"}".into(), invalid.clone()),
        (
            "a lone surrogate",
            br#"{"model":"\ud800"}"#.into(),
            invalid.clone(),
        ),
        ("a huge number", br#"{"max_tokens":1e400}"#.into(), invalid),
        (
            "over the limit",
            vec![b' '; BODY_BYTES_MAX + 1],
            (413, "body_too_large", none),
        ),
    ];
    for (what, body, expected) in rows {
        assert_error(&post(&stack, CHAT, body).await, expected, what);
    }
    assert_eq!(post(&stack, CHAT, good).await.status, 200);
    stack.end().await;
}

#[tokio::test]
async fn fields_that_are_wrong_are_named() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let images = vec![image(&data_uri(&png(8, 8, 1))); 17];
    let rows = [
        (json!({"model": "other"}), 404, "model_not_found", "model"),
        (json!({"model": null}), 400, "missing_field", "model"),
        (json!({"messages": null}), 400, "missing_field", "messages"),
        (json!({"messages": {}}), 400, "invalid_type", "messages"),
        (json!({"messages": []}), 400, "invalid_value", "messages"),
        (json!({"messages": [7]}), 400, "invalid_type", "messages[0]"),
        (
            json!({"messages": [{"role": "root"}]}),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}),
            400,
            "unsupported_content",
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "invalid_type",
            "messages[0].content[0].image_url.url",
        ),
        (
            json!({"messages": [{"role": "user", "content": images}]}),
            400,
            "too_many_images",
            "messages",
        ),
        (json!({"max_tokens": 0}), 400, "invalid_value", "max_tokens"),
        (
            json!({"max_tokens": -1}),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            json!({"max_tokens": 1.5}),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            json!({"max_tokens": 9_223_372_036_854_775_808_u64}),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (json!({"n": 1_000_000_000}), 400, "invalid_value", "n"),
        (
            json!({"temperature": "hot"}),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            json!({"stop": vec!["x"; 100_000]}),
            400,
            "invalid_value",
            "stop",
        ),
        (json!({"stream": "yes"}), 400, "invalid_type", "stream"),
        (
            json!({"stream_options": {}}),
            400,
            "invalid_value",
            "stream_options",
        ),
        (
            json!({"cache_salt": ""}),
            400,
            "invalid_value",
            "cache_salt",
        ),
        (
            json!({"chat_template": "x"}),
            400,
            "field_not_accepted",
            "chat_template",
        ),
        (
            json!({"kv_transfer_params": {}}),
            400,
            "field_not_accepted",
            "kv_transfer_params",
        ),
        (
            json!({"mm_processor_kwargs": {}}),
            400,
            "field_not_accepted",
            "mm_processor_kwargs",
        ),
        (json!({"tools": [7]}), 400, "invalid_type", "tools"),
        (
            json!({"messages": [{"role": "user", "content": "word ".repeat(40_000)}]}),
            400,
            "context_length_exceeded",
            "messages",
        ),
    ];
    for (change, status, code, param) in rows {
        let body = with(change.clone());
        let answer = post(&stack, CHAT, body.to_string()).await;
        let what: String = change.to_string().chars().take(100).collect();
        assert_error(&answer, (status, code, json!(param)), &what);
    }
    let rows = [
        (
            COMPLETION,
            json!({"model": "demo"}),
            400,
            "missing_field",
            "prompt",
        ),
        (
            COMPLETION,
            json!({"model": "demo", "prompt": ""}),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            COMPLETION,
            json!({"model": "demo", "prompt": [1, -1]}),
            400,
            "invalid_type",
            "prompt",
        ),
        (
            COMPLETION,
            json!({"model": "demo", "prompt": ["a", "b"]}),
            400,
            "several_prompts",
            "prompt",
        ),
        (
            COMPLETION,
            json!({"model": "no", "prompt": "a"}),
            404,
            "model_not_found",
            "model",
        ),
        (
            COMPLETION,
            json!({"model": "demo", "prompt": vec![5; 40_000]}),
            400,
            "context_length_exceeded",
            "prompt",
        ),
        (
            EMBEDDINGS,
            json!({"model": "demo"}),
            400,
            "missing_field",
            "input",
        ),
        (
            EMBEDDINGS,
            json!({"model": "no", "input": "a"}),
            404,
            "model_not_found",
            "model",
        ),
    ];
    for (path, body, status, code, param) in rows {
        let answer = post(&stack, path, body.to_string()).await;
        let what: String = body.to_string().chars().take(100).collect();
        assert_error(&answer, (status, code, json!(param)), &what);
    }
    assert_eq!(
        post(&stack, CHAT, with(json!({})).to_string()).await.status,
        200
    );
    stack.end().await;
}

#[tokio::test]
async fn media_tokens_in_text_are_refused_by_field() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let pad = "a <|image_pad|> b";
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let call = json!({"type": "function", "id": "1",
        "function": {"name": "<|vision_start|>", "arguments": "{}"}});
    let rows = [
        (json!({"messages": user(json!(pad))}), "messages[0].content"),
        (
            json!({"messages": user(json!("<|vision_start|>"))}),
            "messages[0].content",
        ),
        (
            json!({"messages": user(json!("x<|vision_end|>"))}),
            "messages[0].content",
        ),
        (
            json!({"messages": user(json!("<|video_pad|>"))}),
            "messages[0].content",
        ),
        (
            json!({"messages": user(json!([text("a"), text(pad)]))}),
            "messages[0].content[1].text",
        ),
        (
            json!({"messages": [{"role": "system", "content": pad}, {"role": "user", "content": "a"}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "b"}]}),
            "messages[1].tool_calls[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": pad, "parameters": {}}}]}),
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function",
                "function": {"name": "f", "parameters": {"properties": {pad: {}}}}}]}),
            "tools[0].function.parameters.properties",
        ),
    ];
    for (change, param) in rows {
        let answer = post(&stack, CHAT, with(change.clone()).to_string()).await;
        let expected = (400, "media_token_in_text", json!(param));
        assert_error(&answer, expected, &change.to_string());
    }
    for prompt in [json!(pad), json!([1, 2, 2460])] {
        let body = json!({"model": "demo", "prompt": prompt});
        let expected = (400, "media_token_in_text", json!("prompt"));
        assert_error(
            &post(&stack, COMPLETION, body.to_string()).await,
            expected,
            "prompt",
        );
    }
    // Other control tokens are text, to us as to the engine.
    let controls = chat(&[text("<|im_start|>system <|endoftext|> <image>")]);
    let told = stack.ask_settled(&controls).await;
    assert_eq!(told.cached_tokens, 0);
    stack.end().await;
}

#[tokio::test]
async fn methods_paths_and_types() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let good = with(json!({})).to_string();
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
    let answer = post(&stack, EMBEDDINGS, input.to_string()).await;
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

#[tokio::test]
async fn an_engines_own_limit_has_the_same_code() {
    let stack = Stack::start(&format!("-- {FAST} --max-model-len 256")).await;
    let words = "word ".repeat(300);
    for body in [chat(&[text(&words)]), with(json!({"max_tokens": 250}))] {
        let answer = post(&stack, CHAT, body.to_string()).await;
        assert_error(
            &answer,
            (400, "context_length_exceeded", Value::Null),
            &words,
        );
    }
    assert_eq!(stack.load().await, 0);
    stack.end().await;
}
