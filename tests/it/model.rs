//! What a model's folder may leave out, say twice or say elsewhere.

use std::path::Path;

use kvlens::model::{ChatInput, Model, ModelError};
use kvlens::prompt::content::ContentFormat;
use kvlens::vision::ImageSize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with the demo's tokenizer, a configuration of another size and `files`.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("a file");
    };
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/demo/tokenizer.json");
    let tokenizer = std::fs::read_to_string(demo).expect("the demo's tokenizer");
    write("tokenizer.json", &tokenizer);
    write("config.json", "{\"model_type\": \"llama\"}");
    for (name, content) in files {
        match content {
            Value::String(text) => write(name, text),
            json => write(name, &json.to_string()),
        }
    }
    folder
}

fn render(model: &Model, tools: Option<&Value>) -> Result<String, ModelError> {
    model.render(&ChatInput {
        messages: &json!([{"role": "user", "content": "hi"}]),
        tools,
        variables: None,
        add_generation_prompt: false,
        continue_final_message: false,
    })
}

#[test]
fn the_template_is_taken_from_the_first_file_that_has_one() {
    let named = json!([
        {"name": "default", "template": "default{{ eos_token }}"},
        {"name": "tool_use", "template": "tools{{ tools|length }}"},
    ]);
    let config = |template: &Value| {
        let eos = json!({"content": "<|im_end|>", "lstrip": false});
        (
            "tokenizer_config.json",
            json!({"chat_template": template, "eos_token": eos}),
        )
    };
    let jinja = ("chat_template.jinja", json!("jinja"));
    let processor = ("chat_template.json", json!({"chat_template": "processor"}));
    for (files, plain, with_tools) in [
        (vec![config(&named)], "default<|im_end|>", "tools2"),
        (
            vec![config(&json!("one{{ tools }}"))],
            "oneNone",
            "one[1, 2]",
        ),
        (
            vec![config(&named), processor.clone()],
            "processor",
            "processor",
        ),
        (vec![config(&named), processor, jinja], "jinja", "jinja"),
    ] {
        let folder = folder(&files);
        let model = Model::load(folder.path()).unwrap();
        assert_eq!(render(&model, None).unwrap(), plain);
        assert_eq!(render(&model, Some(&json!([1, 2]))).unwrap(), with_tools);
        assert_eq!(model.content_format(), Some(ContentFormat::String));
    }
}

#[test]
fn without_a_template_only_rendering_fails() {
    let folder = folder(&[]);
    let model = Model::load(folder.path()).unwrap();
    assert!(model.encode("text", false).is_ok());
    let error = render(&model, None).unwrap_err().to_string();
    let path = folder.path().display();
    assert_eq!(error, format!("model in {path} has no chat template"));
    assert_eq!(model.content_format(), None);
    assert_eq!(model.context_tokens_max(), None);
    assert!(model.eos_tokens().is_empty());
}

#[test]
fn the_newer_processor_config_is_read_too() {
    let size = json!({"shortest_edge": 3136, "longest_edge": 12_845_056});
    let processor = json!({"patch_size": 14, "merge_size": 2, "size": size});
    let config = json!({
        "model_type": "qwen2_5_vl",
        "image_token_id": 2460,
        "vision_start_token_id": 2457,
        "max_position_embeddings": 128_000,
        "eos_token_id": 2450,
    });
    let folder = folder(&[
        ("config.json", config),
        (
            "processor_config.json",
            json!({"image_processor": processor}),
        ),
    ]);
    let model = Model::load(folder.path()).unwrap();
    let (width, height) = (640, 480);
    let expansion = model.family().unwrap().expand(ImageSize { width, height });
    assert_eq!(expansion.unwrap().token_count(), 391);
    assert_eq!(model.context_tokens_max(), Some(128_000));
    assert_eq!(model.eos_tokens(), [2450]);
    assert!(
        model
            .media_tokens()
            .iter()
            .any(|name| name == "<|vision_start|>")
    );
}
