//! Bodies that clients send: what is refused, naming the field; what passes; what is dropped.

use kvlens::openai::chat::ChatRequest;
use kvlens::openai::completion::{CompletionRequest, Prompt};
use kvlens::openai::embeddings::EmbeddingsRequest;
use kvlens::openai::fields::UnknownFields;
use kvlens::openai::request::RequestLimits;
use serde_json::{Value, json};

const LIMITS: RequestLimits = RequestLimits {
    messages_max: 3,
    images_max: 2,
    unknown_fields: UnknownFields::Drop,
};

/// A chat with one more field.
fn chat_with(field: &str, value: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"{field}":{value}}}"#)
}

fn chat_of(content: &Value) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": content}]}).to_string()
}

fn refused(body: &str) -> (u16, &'static str, Option<String>) {
    let error = ChatRequest::parse(body.as_bytes(), LIMITS).expect_err(body);
    assert!(!error.message.is_empty());
    (error.status, error.code, error.param)
}

#[test]
fn bodies_that_are_no_request() {
    let deep = "[".repeat(1_000_000);
    for body in [
        "",
        "{",
        "[]",
        "null",
        "nonsense",
        "\u{feff}{}",
        r#"{"a":"\ud800"}"#,
        "{\"a\":1e400}",
        &deep,
    ] {
        let shown: String = body.chars().take(20).collect();
        assert_eq!(refused(body), (400, "invalid_json", None), "{shown}");
    }
    assert_eq!(
        ChatRequest::parse(b"{\"a\":\"\xff\"}", LIMITS)
            .unwrap_err()
            .code,
        "invalid_json"
    );
}

/// A field, its value as JSON, and the code and field of the refusal.
const BAD_FIELDS: &[(&str, &str, &str, &str)] = &[
    ("max_tokens", "0", "invalid_value", "max_tokens"),
    ("max_tokens", "-1", "invalid_value", "max_tokens"),
    ("max_tokens", "1.5", "invalid_value", "max_tokens"),
    (
        "max_tokens",
        "9223372036854775808",
        "invalid_value",
        "max_tokens",
    ),
    ("n", "1000000000", "invalid_value", "n"),
    ("temperature", r#""hot""#, "invalid_value", "temperature"),
    ("top_p", "1.1", "invalid_value", "top_p"),
    ("stream", r#""yes""#, "invalid_type", "stream"),
    ("stream_options", "{}", "invalid_value", "stream_options"),
    ("stop", "[1]", "invalid_value", "stop"),
    ("top_logprobs", "1000", "invalid_value", "top_logprobs"),
    ("logprobs", "99", "invalid_type", "logprobs"),
    ("cache_salt", r#""""#, "invalid_value", "cache_salt"),
    ("tools", "{}", "invalid_type", "tools"),
    (
        "chat_template",
        r#""x""#,
        "field_not_accepted",
        "chat_template",
    ),
    (
        "chat_template_kwargs",
        r#"{"x":1}"#,
        "field_not_accepted",
        "chat_template_kwargs.x",
    ),
    (
        "mm_processor_kwargs",
        "{}",
        "field_not_accepted",
        "mm_processor_kwargs",
    ),
    ("vllm_xargs", "{}", "field_not_accepted", "vllm_xargs"),
    (
        "kv_transfer_params",
        "{}",
        "field_not_accepted",
        "kv_transfer_params",
    ),
    (
        "continue_final_message",
        r#"true,"add_generation_prompt":true"#,
        "invalid_value",
        "continue_final_message",
    ),
];

/// A message's content, and the code and field of the refusal.
const BAD_CONTENTS: &[(&str, &str, &str)] = &[
    ("7", "invalid_type", "messages[0].content"),
    (r#"["x"]"#, "invalid_type", "messages[0].content[0]"),
    (
        r#"[{"type":"text"}]"#,
        "invalid_type",
        "messages[0].content[0].text",
    ),
    (
        r#"[{"type":"video_url"}]"#,
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    (
        r#"[{"type":"image_embeds"}]"#,
        "unsupported_content",
        "messages[0].content[0].type",
    ),
    (
        r#"[{"type":"image_url","image_url":{"url":7}}]"#,
        "invalid_type",
        "messages[0].content[0].image_url.url",
    ),
    (
        r#"[{"type":"image_url","image_url":{"url":null}}]"#,
        "invalid_type",
        "messages[0].content[0].image_url.url",
    ),
    (
        r#"[{"type":"image_url"}]"#,
        "invalid_type",
        "messages[0].content[0].image_url.url",
    ),
];

/// A whole body, and the code and field of the refusal.
const BAD_BODIES: &[(&str, &str, &str)] = &[
    (r#"{"messages":[]}"#, "invalid_value", "messages"),
    (r#"{"model":"m"}"#, "missing_field", "messages"),
    (
        r#"{"messages":[{"role":"user","content":"x"}]}"#,
        "missing_field",
        "model",
    ),
    (r#"{"model":"m","messages":{}}"#, "invalid_type", "messages"),
    (
        r#"{"model":"m","messages":[1]}"#,
        "invalid_type",
        "messages[0]",
    ),
    (
        r#"{"model":"m","messages":[{"role":"robot"}]}"#,
        "invalid_value",
        "messages[0].role",
    ),
];

#[test]
fn every_bad_field_is_named() {
    let many = |what: &str, count| vec![what; count].join(",");
    let message = r#"{"role":"user","content":"x"}"#;
    let image = r#"{"type":"image_url","image_url":{"url":"x"}}"#;
    let mut rows: Vec<(String, &str, &str)> = vec![
        (
            format!(r#"{{"model":"m","messages":[{}]}}"#, many(message, 4)),
            "too_many_messages",
            "messages",
        ),
        (
            chat_of(&serde_json::from_str(&format!("[{}]", many(image, 3))).unwrap()),
            "too_many_images",
            "messages",
        ),
        (
            chat_with("stop", &format!("[{}]", many("\"x\"", 65))),
            "invalid_value",
            "stop",
        ),
    ];
    rows.extend(
        BAD_FIELDS
            .iter()
            .map(|(name, value, code, param)| (chat_with(name, value), *code, *param)),
    );
    rows.extend(BAD_CONTENTS.iter().map(|(content, code, param)| {
        (
            chat_of(&serde_json::from_str(content).unwrap()),
            *code,
            *param,
        )
    }));
    rows.extend(
        BAD_BODIES
            .iter()
            .map(|(body, code, param)| ((*body).to_owned(), *code, *param)),
    );
    for (body, code, param) in rows {
        assert_eq!(
            refused(&body),
            (400, code, Some(param.to_owned())),
            "{body}"
        );
    }
}

#[test]
fn fields_are_rendered_passed_or_dropped() {
    let body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "hi"}],
        "n": 2, "stop": ["x"], "temperature": 0.5, "top_p": 1, "seed": -3, "max_tokens": 9,
        "max_completion_tokens": 8, "logprobs": true, "top_logprobs": 3,
        "tools": [{"type": "function"}], "tool_choice": "auto", "response_format": {"type": "text"},
        "user": null, "uuid": "u", "brand_new": 1
    });
    let request = ChatRequest::parse(body.to_string().as_bytes(), LIMITS).unwrap();
    let options = &request.options;
    assert!(options.stream && options.include_usage && !options.bypasses_cache);
    assert_eq!(options.dropped_fields, 2); // uuid, brand_new
    let mut passed: Vec<_> = options.passed.keys().map(String::as_str).collect();
    passed.sort_unstable();
    assert_eq!(
        passed,
        [
            "logprobs",
            "max_completion_tokens",
            "max_tokens",
            "n",
            "response_format",
            "seed",
            "stop",
            "temperature",
            "tool_choice",
            "top_logprobs",
            "top_p"
        ]
    );
    assert!(request.tools.is_some() && request.add_generation_prompt);
}

#[test]
fn unknown_fields_pass_or_are_refused_as_configured() {
    let parse = |unknown_fields| {
        let limits = RequestLimits {
            unknown_fields,
            ..LIMITS
        };
        ChatRequest::parse(chat_with("brand_new", "1").as_bytes(), limits)
    };
    assert_eq!(
        parse(UnknownFields::Pass).unwrap().options.passed["brand_new"],
        1
    );
    assert_eq!(
        parse(UnknownFields::Refuse).unwrap_err().param.as_deref(),
        Some("brand_new")
    );
}

#[test]
fn images_are_taken_out_in_order_and_client_ids_dropped() {
    let content = json!([
        {"type": "image_url", "image_url": "first", "uuid": "mine"},
        {"type": "text", "text": "between"},
        {"type": "image_url", "image_url": {"url": "second", "detail": "low"}},
    ]);
    let request = ChatRequest::parse(chat_of(&content).as_bytes(), LIMITS).unwrap();
    let images: Vec<_> = request
        .images
        .iter()
        .map(|i| (i.part, i.url.as_str()))
        .collect();
    assert_eq!(images, [(0, "first"), (2, "second")]);
    assert_eq!(
        request.images[1].param(),
        "messages[0].content[2].image_url.url"
    );
    assert_eq!(request.messages[0]["content"][0].get("uuid"), None);
    assert_eq!(
        request.messages[0]["content"][2]["image_url"]["detail"],
        "low"
    );
}

#[test]
fn a_completion_has_one_prompt() {
    let parse = |prompt: Value| {
        let body = json!({"model": "m", "prompt": prompt}).to_string();
        CompletionRequest::parse(body.as_bytes(), LIMITS).map(|request| request.prompt)
    };
    for (prompt, read) in [
        (json!("x"), Prompt::Text("x".into())),
        (json!(["x"]), Prompt::Text("x".into())),
        (json!([1, 2]), Prompt::Tokens(vec![1, 2])),
        (json!([[1, 2]]), Prompt::Tokens(vec![1, 2])),
    ] {
        assert_eq!(parse(prompt).unwrap(), read);
    }
    for (prompt, code) in [
        (json!(""), "invalid_value"),
        (json!([]), "invalid_value"),
        (json!(["a", "b"]), "several_prompts"),
        (json!([[1], [2]]), "several_prompts"),
        (json!([-1]), "invalid_type"),
        (json!([4_294_967_296_u64]), "invalid_type"),
        (json!([1, "x"]), "invalid_type"),
        (json!({"a": 1}), "invalid_type"),
    ] {
        let error = parse(prompt.clone()).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (code, Some("prompt")),
            "{prompt}"
        );
    }
    let echoed = br#"{"model":"m","prompt":"x","echo":true,"logprobs":1}"#;
    assert!(
        CompletionRequest::parse(echoed, LIMITS)
            .unwrap()
            .options
            .bypasses_cache
    );
}

#[test]
fn embeddings_pass_only_what_fetches_nothing() {
    let body = br#"{"model":"m","input":["a"],"dimensions":4,"messages":[{"role":"user"}]}"#;
    let request = EmbeddingsRequest::parse(body).unwrap();
    assert_eq!(
        request.passed.keys().collect::<Vec<_>>(),
        ["input", "dimensions"]
    );
    let error = EmbeddingsRequest::parse(br#"{"model":"m"}"#).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("input"));
}
