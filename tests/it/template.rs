//! Chat templates against what transformers renders (tests/golden/templates/make.py).

use std::path::Path;

use jiff::civil::date;
use jiff::tz::TimeZone;
use kvlens::prompt::PromptError;
use kvlens::prompt::template::{Template, TemplateInput};
use serde_json::{Value, json};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).expect("a file of the repository")
}

fn rows(name: &str) -> Vec<Value> {
    let text = read(&format!("tests/golden/templates/{name}.json"));
    serde_json::from_str(&text).expect("golden rows")
}

fn render(template: &Template, chat: &Value) -> Result<String, PromptError> {
    let now = date(2025, 3, 9).at(14, 5, 6, 0).to_zoned(TimeZone::UTC);
    template.render(&TemplateInput {
        messages: chat["messages"].as_array().expect("messages"),
        tools: chat.get("tools"),
        variables: chat.get("variables"),
        special_tokens: Some(&json!({"bos_token": "<s>", "eos_token": "</s>"})),
        add_generation_prompt: chat["add_generation_prompt"] == true,
        continue_final_message: chat["continue_final_message"] == true,
        now: &now.expect("a time"),
    })
}

fn check(name: &str, path: &str) {
    let template = Template::new(&read(path)).expect("a template");
    let chats = rows("conversations");
    let golden = rows(name);
    assert_eq!(chats.len(), golden.len());
    for (row, (chat, want)) in chats.iter().zip(&golden).enumerate() {
        let got = match render(&template, chat) {
            Ok(text) => json!({"text": text}),
            Err(PromptError::Refused { reason }) => json!({"error": reason}),
            Err(other) => panic!("{name} row {row}: {other}"),
        };
        assert_eq!(&got, want, "{name} row {row}: {}", chat["messages"]);
    }
}

#[test]
fn the_demo_template_renders_as_in_python() {
    check("demo", "src/model/demo/chat_template.jinja");
}

#[test]
fn a_models_template_renders_as_in_python() {
    check(
        "qwen3_vl",
        "tests/golden/models/qwen3_vl/chat_template.jinja",
    );
}

#[test]
fn what_templates_use_renders_as_in_python() {
    check("features", "tests/golden/templates/features.jinja");
}

#[test]
fn a_template_without_end_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let template = Template::new(source).unwrap();
    let error = render(&template, &json!({"messages": []})).unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
}

#[test]
fn there_must_be_a_message_to_continue() {
    let template = Template::new("{{ messages[-1].content[:2] }}").unwrap();
    for (messages, prompt, reason) in [
        (json!([]), false, "there is no message"),
        (
            json!([{"role": "user"}]),
            false,
            "the final message has no text",
        ),
        (
            json!([{"content": [{"type": "image"}]}]),
            false,
            "the final message has no text",
        ),
        (
            json!([{"content": "abc"}]),
            false,
            "the template changes the final message",
        ),
        (
            json!([{"content": "abc"}]),
            true,
            "add_generation_prompt is set as well",
        ),
    ] {
        let chat = json!({
            "messages": messages,
            "continue_final_message": true,
            "add_generation_prompt": prompt,
        });
        assert_eq!(
            render(&template, &chat),
            Err(PromptError::Continue { reason })
        );
    }
}

#[test]
fn long_messages_render_in_one_pass() {
    let template = Template::new(&read("src/model/demo/chat_template.jinja")).unwrap();
    let content = "x <&> \u{e9} ".repeat(400_000);
    let chat = json!({"messages": [{"role": "user", "content": content}]});
    // Four megabytes: anything quadratic would take minutes here.
    assert!(render(&template, &chat).unwrap().contains(content.as_str()));
}
