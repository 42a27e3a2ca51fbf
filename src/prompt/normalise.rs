//! Brings OpenAI messages into the form that the engine hands to its chat template.
//!
//! The rules are vLLM's (0.31 and later), so that the text rendered here is the engine's text.

use serde_json::{Map, Value, json};

use crate::prompt::PromptError;
use crate::prompt::content::ContentFormat;

/// What a model's template and family ask of messages.
#[derive(Clone, Copy, Debug)]
pub struct Dialect<'a> {
    pub content_format: ContentFormat,
    /// Stands for one image where content is one text; `None` for a model that takes no images.
    pub placeholder_text: Option<&'a str>,
    /// Whether the template treats the role `developer`.
    pub knows_developer: bool,
}

/// The messages as the template gets them: content in its form, tool calls as objects, `developer`
/// turned into `system` where the template lacks it.
///
/// # Errors
/// When a message is malformed or has a part that is not text or an image.
pub fn normalise(messages: &[Value], dialect: Dialect<'_>) -> Result<Vec<Value>, PromptError> {
    let mut normal = Vec::with_capacity(messages.len());
    let mut has_developer = false;
    for (index, message) in messages.iter().enumerate() {
        let message = one_message(message, dialect)
            .map_err(|reason| PromptError::Message { index, reason })?;
        has_developer |= message["role"] == "developer";
        normal.push(Value::Object(message));
    }
    if has_developer && !dialect.knows_developer {
        normal = merge_system(normal);
    }
    Ok(normal)
}

fn one_message(message: &Value, dialect: Dialect<'_>) -> Result<Map<String, Value>, String> {
    let role = message["role"].as_str().ok_or("it has no role")?;
    let parts = parts(&message["content"])?;
    let content = match dialect.content_format {
        ContentFormat::OpenAi => as_parts(&parts),
        ContentFormat::String => Value::String(as_text(&parts, dialect.placeholder_text)?),
    };
    let mut normal = Map::new();
    normal.insert("role".to_owned(), json!(role));
    normal.insert("content".to_owned(), content);
    match role {
        "assistant" => assistant(message, &mut normal)?,
        "tool" => tool(message, &mut normal),
        "developer" => {
            normal.insert("tools".to_owned(), message["tools"].clone());
        }
        _ => {}
    }
    for key in ["name", "task"] {
        if message[key].is_string() {
            normal.insert(key.to_owned(), message[key].clone());
        }
    }
    Ok(normal)
}

/// One part of a message's content.
enum Part<'a> {
    Text(&'a str),
    Image,
    /// A deferred tool, by name.
    ToolReference(&'a str),
}

fn parts(content: &Value) -> Result<Vec<Part<'_>>, String> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![Part::Text(text)]),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| one_part(part).transpose())
            .collect(),
        _ => Err("its content is neither text nor a list of parts".to_owned()),
    }
}

/// `None` for a part that the engine skips: a text that is null.
fn one_part(part: &Value) -> Result<Option<Part<'_>>, String> {
    if let Value::String(text) = part {
        return Ok(Some(Part::Text(text)));
    }
    let kind = match &part["type"] {
        Value::String(kind) => kind.as_str(),
        Value::Null if part.get("image_url").is_some() => "image_url",
        _ => return Err("a content part has no type".to_owned()),
    };
    let key = match kind {
        "image_url" | "input_image" => return Ok(Some(Part::Image)),
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        "thinking" => "thinking",
        "tool_reference" => "name",
        _ => return Err(format!("content part of type {kind:?} is not supported")),
    };
    match &part[key] {
        Value::String(name) if kind == "tool_reference" => Ok(Some(Part::ToolReference(name))),
        Value::String(text) => Ok(Some(Part::Text(text))),
        Value::Null if matches!(kind, "text" | "refusal") => Ok(None),
        _ => Err(format!(
            "content part of type {kind:?} has no text under {key:?}"
        )),
    }
}

fn as_parts(parts: &[Part<'_>]) -> Value {
    let wrap = |part: &Part<'_>| match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Image => json!({"type": "image"}),
        Part::ToolReference(name) => json!({"type": "tool_reference", "name": name}),
    };
    parts.iter().map(wrap).collect()
}

/// Texts joined by line breaks; placeholders that no text spells come first.
fn as_text(parts: &[Part<'_>], placeholder_text: Option<&str>) -> Result<String, String> {
    let texts = parts.iter().filter_map(|part| match part {
        Part::Text(text) | Part::ToolReference(text) if !text.is_empty() => Some(*text),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    let images = parts.iter().filter(|part| matches!(part, Part::Image));
    let images = images.count();
    if images == 0 {
        return Ok(text);
    }
    let placeholder = placeholder_text.ok_or("the model takes no images")?;
    let spelled = text.matches(placeholder).count();
    let missing = images
        .checked_sub(spelled)
        .ok_or_else(|| format!("its text spells {spelled} placeholders for {images} images"))?;
    let mut lines = vec![placeholder; missing];
    if !text.is_empty() {
        lines.push(&text);
    }
    Ok(lines.join("\n"))
}

fn assistant(message: &Value, normal: &mut Map<String, Value>) -> Result<(), String> {
    match &message["tool_calls"] {
        Value::Null => {}
        Value::Array(calls) => {
            let calls: Vec<Value> = calls.iter().map(tool_call).collect::<Result<_, _>>()?;
            // Templates ask whether tool_calls is there, not whether it is empty.
            if !calls.is_empty() {
                normal.insert("tool_calls".to_owned(), Value::Array(calls));
            }
        }
        _ => return Err("its tool_calls is not a list".to_owned()),
    }
    if message["reasoning"].is_string() {
        for key in ["reasoning", "reasoning_content"] {
            normal.insert(key.to_owned(), message["reasoning"].clone());
        }
    }
    Ok(())
}

/// A tool call with its arguments as an object; what is not an object becomes an empty one, as in
/// the engine, so that one malformed call does not spoil every later turn.
fn tool_call(call: &Value) -> Result<Value, String> {
    let mut call = call.clone();
    let kind = call.get("type").unwrap_or(&Value::Null);
    let is_function = kind.is_null() || kind == "function";
    match call.get_mut("function") {
        Some(Value::Object(function)) if is_function => {
            let arguments = match function.get("arguments") {
                Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_default(),
                Some(arguments) => arguments.clone(),
                None => Value::Null,
            };
            let arguments = match arguments {
                Value::Object(map) => map,
                _ => Map::new(),
            };
            function.insert("arguments".to_owned(), Value::Object(arguments));
            Ok(call)
        }
        _ => Err("one of its tool_calls is not a function call".to_owned()),
    }
}

fn tool(message: &Value, normal: &mut Map<String, Value>) {
    if let Some(id) = message.get("tool_call_id") {
        normal.insert("tool_call_id".to_owned(), id.clone());
    }
    let content = normal.get("content").and_then(Value::as_array);
    // Most templates know only text here; parts that are not text stay as they are.
    if let Some(text) = content.and_then(|parts| joined(parts)) {
        normal.insert("content".to_owned(), Value::String(text));
    }
}

/// The texts of `parts` joined by line breaks; `None` when one of them is not text.
fn joined(parts: &[Value]) -> Option<String> {
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    texts.map(|texts| texts.join("\n"))
}

/// Turns `developer` into `system` and moves all system messages into one at the front, if there
/// are several or one is not first.
fn merge_system(mut messages: Vec<Value>) -> Vec<Value> {
    for message in &mut messages {
        if message["role"] == "developer" {
            message["role"] = json!("system");
            if let Some(message) = message.as_object_mut() {
                message.shift_remove("tools");
            }
        }
    }
    let is_system = |message: &Value| message["role"] == "system";
    if !messages.iter().skip(1).any(is_system) {
        return messages;
    }
    let (system, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_system);
    let texts = system.iter().map(|message| plain_text(&message["content"]));
    let texts: Vec<String> = texts.filter(|text| !text.is_empty()).collect();
    let merged = json!({"role": "system", "content": texts.join("\n\n")});
    [merged].into_iter().chain(others).collect()
}

fn plain_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part["text"].as_str())
                .collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}
