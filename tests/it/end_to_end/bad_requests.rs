//! Requests that cannot be answered: each names what is wrong, and the next good one is answered.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::end_to_end::client::{Answer, assert_error};
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};
use crate::end_to_end::stack::{FAST, Stack};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A small limit, so that a body over it is quickly made.
const BODY_BYTES_MAX: usize = 1 << 20;

async fn post(stack: &Stack, path: &str, body: impl Into<Bytes>) -> Answer {
    let request = crate::end_to_end::client::post(&stack.url(path), body);
    stack.client.send(request).await
}

/// A chat in which the fields of `change` replace or join those of a good one.
fn with(change: &Value) -> Value {
    let mut body = chat(&[text("Good day.")]);
    for (name, value) in change.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn assert_serves(stack: &Stack) {
    let answer = post(stack, CHAT, with(&json!({})).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let config = format!("[frontend.limits]\nbody_bytes_max = {BODY_BYTES_MAX}\n");
    let stack = Stack::configured(&format!("-- {FAST}"), &config).await;
    let good = with(&json!({})).to_string();
    let bodies: [(&str, Vec<u8>); 7] = [
        ("empty", vec![]),
        ("cut", good.as_bytes()[..good.len() - 1].into()),
        ("a list", b"[1]".into()),
        ("deep", vec![b'['; 500_000]),
        ("not UTF-8", b"{\"model\":\"\xff\"}".into()),
        ("a lone surrogate", br#"{"model":"\ud800"}"#.into()),
        ("a huge number", br#"{"max_tokens":1e400}"#.into()),
    ];
    for (what, body) in bodies {
        let answer = post(&stack, CHAT, body).await;
        assert_error(&answer, (400, "invalid_json", Value::Null), what);
    }
    for path in [CHAT, COMPLETION, EMBEDDINGS] {
        let answer = post(&stack, path, vec![b' '; BODY_BYTES_MAX + 1]).await;
        assert_error(&answer, (413, "body_too_large", Value::Null), path);
    }
    assert_serves(&stack).await;
    stack.end().await;
}

/// A change to a good chat; the status, code and field of its error.
const FIELDS: &[(&str, u16, &str, &str)] = &[
    (r#"{"model": "other"}"#, 404, "model_not_found", "model"),
    (r#"{"model": null}"#, 400, "missing_field", "model"),
    (r#"{"messages": null}"#, 400, "missing_field", "messages"),
    (r#"{"messages": {}}"#, 400, "invalid_type", "messages"),
    (r#"{"messages": []}"#, 400, "invalid_value", "messages"),
    (r#"{"messages": [7]}"#, 400, "invalid_type", "messages[0]"),
    (
        r#"{"messages": [{"role": "root"}]}"#,
        400,
        "invalid_value",
        "messages[0].role",
    ),
    (
        r#"{"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}"#,
        400,
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    (
        r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
        400,
        "invalid_type",
        "messages[0].content[0].image_url.url",
    ),
    (r#"{"max_tokens": 0}"#, 400, "invalid_value", "max_tokens"),
    (r#"{"max_tokens": -1}"#, 400, "invalid_value", "max_tokens"),
    (r#"{"max_tokens": 1.5}"#, 400, "invalid_value", "max_tokens"),
    (
        r#"{"max_tokens": 9223372036854775808}"#,
        400,
        "invalid_value",
        "max_tokens",
    ),
    (r#"{"n": 1000000000}"#, 400, "invalid_value", "n"),
    (
        r#"{"temperature": "hot"}"#,
        400,
        "invalid_value",
        "temperature",
    ),
    (r#"{"stream": "yes"}"#, 400, "invalid_type", "stream"),
    (
        r#"{"stream_options": {}}"#,
        400,
        "invalid_value",
        "stream_options",
    ),
    (r#"{"cache_salt": ""}"#, 400, "invalid_value", "cache_salt"),
    (
        r#"{"chat_template": "x"}"#,
        400,
        "field_not_accepted",
        "chat_template",
    ),
    (
        r#"{"kv_transfer_params": {}}"#,
        400,
        "field_not_accepted",
        "kv_transfer_params",
    ),
    (
        r#"{"mm_processor_kwargs": {}}"#,
        400,
        "field_not_accepted",
        "mm_processor_kwargs",
    ),
    (r#"{"tools": [7]}"#, 400, "invalid_type", "tools"),
];

/// A path and a body; the status, code and field of its error.
const BODIES: &[(&str, &str, u16, &str, &str)] = &[
    (
        COMPLETION,
        r#"{"model": "demo"}"#,
        400,
        "missing_field",
        "prompt",
    ),
    (
        COMPLETION,
        r#"{"model": "demo", "prompt": ""}"#,
        400,
        "invalid_value",
        "prompt",
    ),
    (
        COMPLETION,
        r#"{"model": "demo", "prompt": [1, -1]}"#,
        400,
        "invalid_type",
        "prompt",
    ),
    (
        COMPLETION,
        r#"{"model": "demo", "prompt": ["a", "b"]}"#,
        400,
        "several_prompts",
        "prompt",
    ),
    (
        COMPLETION,
        r#"{"model": "no", "prompt": "a"}"#,
        404,
        "model_not_found",
        "model",
    ),
    (
        EMBEDDINGS,
        r#"{"model": "demo"}"#,
        400,
        "missing_field",
        "input",
    ),
    (
        EMBEDDINGS,
        r#"{"model": "no", "input": "a"}"#,
        404,
        "model_not_found",
        "model",
    ),
];

#[tokio::test]
async fn fields_that_are_wrong_are_named() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    for (change, status, code, param) in FIELDS {
        let change: Value = serde_json::from_str(change).unwrap();
        let answer = post(&stack, CHAT, with(&change).to_string()).await;
        assert_error(&answer, (*status, code, json!(param)), &change.to_string());
    }
    for (path, body, status, code, param) in BODIES {
        let answer = post(&stack, path, *body).await;
        assert_error(&answer, (*status, code, json!(param)), body);
    }
    assert_serves(&stack).await;
    stack.end().await;
}

#[tokio::test]
async fn too_much_of_anything_is_refused() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let images = vec![image(&data_uri(&png(8, 8, 1))); 17];
    let user = |content: Value| with(&json!({"messages": [{"role": "user", "content": content}]}));
    let tokens = json!({"model": "demo", "prompt": vec![5; 40_000]});
    let message = json!({"role": "user", "content": "a"});
    let messages = with(&json!({"messages": vec![message; 5_000]}));
    let words = "word ".repeat(40_000);
    for (path, body, code, param) in [
        (CHAT, user(json!(images)), "too_many_images", "messages"),
        (CHAT, messages, "too_many_messages", "messages"),
        (
            CHAT,
            user(json!(words)),
            "context_length_exceeded",
            "messages",
        ),
        (
            CHAT,
            with(&json!({"stop": vec!["x"; 100_000]})),
            "invalid_value",
            "stop",
        ),
        (
            CHAT,
            with(&json!({"tools": vec![json!({}); 200]})),
            "too_many_tools",
            "tools",
        ),
        (COMPLETION, tokens, "context_length_exceeded", "prompt"),
    ] {
        let answer = post(&stack, path, body.to_string()).await;
        assert_error(&answer, (400, code, json!(param)), code);
    }
    assert_serves(&stack).await;
    stack.end().await;
}

/// A change to a good chat that spells a media token (`PAD` stands for one), and where it does.
const SPELLED: &[(&str, &str)] = &[
    (
        r#"{"messages": [{"role": "user", "content": "PAD"}]}"#,
        "messages[0].content",
    ),
    (
        r#"{"messages": [{"role": "user", "content": "<|vision_start|>"}]}"#,
        "messages[0].content",
    ),
    (
        r#"{"messages": [{"role": "user", "content": "<|video_pad|>"}]}"#,
        "messages[0].content",
    ),
    (
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "PAD"}]}]}"#,
        "messages[0].content[0].text",
    ),
    (
        r#"{"messages": [{"role": "system", "content": "PAD"}, {"role": "user", "content": "a"}]}"#,
        "messages[0].content",
    ),
    (
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null,
            "tool_calls": [{"type": "function", "id": "1",
                "function": {"name": "<|vision_end|>", "arguments": "{}"}}]}]}"#,
        "messages[1].tool_calls[0].function.name",
    ),
    (
        r#"{"tools": [{"type": "function", "function": {"name": "PAD", "parameters": {}}}]}"#,
        "tools[0].function.name",
    ),
    (
        r#"{"tools": [{"type": "function", "function": {"name": "f",
            "parameters": {"properties": {"PAD": {}}}}}]}"#,
        "tools[0].function.parameters.properties",
    ),
];

#[tokio::test]
async fn media_tokens_in_text_are_refused_by_field() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let pad = "a <|image_pad|> b";
    for (change, param) in SPELLED {
        let change: Value = serde_json::from_str(&change.replace("PAD", pad)).unwrap();
        let answer = post(&stack, CHAT, with(&change).to_string()).await;
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
async fn an_engines_own_limit_has_the_same_code() {
    let stack = Stack::start(&format!("-- {FAST} --max-model-len 256")).await;
    let words = "word ".repeat(300);
    // The first is refused before it is placed; only the engine sees that the second is too long.
    for (body, param) in [
        (chat(&[text(&words)]), json!("messages")),
        (with(&json!({"max_tokens": 250})), Value::Null),
    ] {
        let answer = post(&stack, CHAT, body.to_string()).await;
        assert_error(&answer, (400, "context_length_exceeded", param), &words);
    }
    assert_eq!(stack.load().await, 0);
    stack.end().await;
}
