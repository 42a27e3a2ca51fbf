//! Messages in the form that vLLM hands to its chat template.

use kvlens::prompt::content::ContentFormat::{self, OpenAi, String as Text};
use kvlens::prompt::normalise::{Dialect, normalise};
use serde_json::{Value, json};

const PAD: &str = "<pad>";

fn dialect(content_format: ContentFormat) -> Dialect<'static> {
    Dialect {
        content_format,
        placeholder_text: Some(PAD),
        knows_developer: false,
    }
}

fn normal(messages: &Value, dialect: Dialect<'_>) -> Result<Value, String> {
    let messages = messages.as_array().expect("messages");
    normalise(messages, dialect)
        .map(Value::Array)
        .map_err(|error| error.to_string())
}

fn check(format: ContentFormat, messages: &Value, want: &Value) {
    assert_eq!(
        normal(messages, dialect(format)).as_ref(),
        Ok(want),
        "{messages}"
    );
}

fn image() -> Value {
    json!({"type": "image_url", "image_url": {"url": "data:,"}, "uuid": "u"})
}

#[test]
fn content_takes_the_templates_form() {
    let text = |text: &str| json!({"type": "text", "text": text});
    for (content, as_text, as_parts) in [
        (json!("hi"), json!("hi"), json!([text("hi")])),
        (json!(null), json!(""), json!([])),
        (json!([]), json!(""), json!([])),
        (
            json!([text("a"), "b", text("")]),
            json!("a\nb"),
            json!([text("a"), text("b"), text("")]),
        ),
        (
            json!([text("a"), image(), text("b"), image()]),
            json!("<pad>\n<pad>\na\nb"),
            json!([text("a"), {"type": "image"}, text("b"), {"type": "image"}]),
        ),
        (json!([image()]), json!("<pad>"), json!([{"type": "image"}])),
        (
            json!([{"image_url": "data:,"}]),
            json!("<pad>"),
            json!([{"type": "image"}]),
        ),
        (
            json!([image(), text("in <pad> text")]),
            json!("in <pad> text"),
            json!([{"type": "image"}, text("in <pad> text")]),
        ),
        (
            json!([{"type": "text", "text": null}, {"type": "refusal", "refusal": "no"}]),
            json!("no"),
            json!([text("no")]),
        ),
        (
            json!([{"type": "input_text", "text": "i"}, {"type": "thinking", "thinking": "t"}]),
            json!("i\nt"),
            json!([text("i"), text("t")]),
        ),
    ] {
        let messages = json!([{"role": "user", "content": content, "ignored": 1}]);
        check(
            Text,
            &messages,
            &json!([{"role": "user", "content": as_text}]),
        );
        check(
            OpenAi,
            &messages,
            &json!([{"role": "user", "content": as_parts}]),
        );
    }
}

#[test]
fn tool_calls_and_results_are_plain() {
    let call = |arguments: Value| json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
    for (arguments, want) in [
        (json!("{\"b\": 1, \"a\": \"x\"}"), json!({"b": 1, "a": "x"})),
        (json!({"kept": true}), json!({"kept": true})),
        (json!(""), json!({})),
        (json!("{broken"), json!({})),
        (json!("[1]"), json!({})),
        (json!(null), json!({})),
    ] {
        let messages =
            json!([{"role": "assistant", "content": null, "tool_calls": call(arguments)}]);
        let want = json!([{"role": "assistant", "content": "", "tool_calls": call(want)}]);
        check(Text, &messages, &want);
    }
    let messages = json!([
        {"role": "assistant", "content": "a", "tool_calls": [], "reasoning": "r"},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [
            {"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "tool_reference", "name": "g"}]},
    ]);
    let want = json!([
        {"role": "assistant", "content": [{"type": "text", "text": "a"}],
            "reasoning": "r", "reasoning_content": "r"},
        {"role": "tool", "content": "x\ny", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": [{"type": "tool_reference", "name": "g"}], "tool_call_id": "2"},
    ]);
    check(OpenAi, &messages, &want);
}

#[test]
fn developer_becomes_system_where_the_template_lacks_it() {
    let messages = |rows: &[(&str, &str)]| -> Value {
        let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
        rows.iter().map(message).collect()
    };
    for (given, want) in [
        (
            &[("developer", "d"), ("user", "u")][..],
            &[("system", "d"), ("user", "u")][..],
        ),
        (
            &[("system", "s"), ("developer", "d"), ("user", "u")],
            &[("system", "s\n\nd"), ("user", "u")],
        ),
        (
            &[("user", "u"), ("developer", "d")],
            &[("system", "d"), ("user", "u")],
        ),
        // Without a developer message nothing is merged.
        (
            &[("system", "s"), ("system", "t")],
            &[("system", "s"), ("system", "t")],
        ),
    ] {
        check(Text, &messages(given), &messages(want));
    }
    let known = Dialect {
        knows_developer: true,
        ..dialect(Text)
    };
    let given = json!([{"role": "developer", "content": "d", "tools": [1]}]);
    assert_eq!(normal(&given, known), Ok(given));
}

#[test]
fn malformed_messages_are_named() {
    let no_images = Dialect {
        placeholder_text: None,
        ..dialect(Text)
    };
    let part = |part: Value| json!({"role": "user", "content": [part]});
    for (message, reason) in [
        (json!("x"), "it has no role"),
        (
            json!({"role": "user", "content": 1}),
            "its content is neither text nor a list of parts",
        ),
        (part(json!({"text": "x"})), "a content part has no type"),
        (
            part(json!({"type": "video_url"})),
            "content part of type \"video_url\" is not supported",
        ),
        (
            part(json!({"type": "text", "text": 1})),
            "content part of type \"text\" has no text under \"text\"",
        ),
        (part(image()), "the model takes no images"),
        (
            json!({"role": "assistant", "tool_calls": [{"type": "custom"}]}),
            "one of its tool_calls is not a function call",
        ),
        (
            json!({"role": "assistant", "tool_calls": {}}),
            "its tool_calls is not a list",
        ),
    ] {
        let messages = json!([{"role": "user", "content": "fine"}, message]);
        assert_eq!(
            normal(&messages, no_images),
            Err(format!("message 1: {reason}"))
        );
    }
    let spelled = json!([{"role": "user", "content": [image(), "<pad> <pad>"]}]);
    let error = normal(&spelled, dialect(Text)).unwrap_err();
    assert_eq!(
        error,
        "message 0: its text spells 2 placeholders for 1 images"
    );
}
