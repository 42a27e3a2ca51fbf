//! A chat request: messages with their images taken out, and how they are to be rendered.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;
use crate::openai::fields;
use crate::openai::inline::Lifted;
use crate::openai::request::{RequestLimits, RequestOptions, parse_object};
use crate::openai::tools;

/// Template variables a client may set: those that published templates read. Anything else could
/// steer loops inside a template.
const TEMPLATE_VARIABLES: &[&str] = &["enable_thinking", "thinking", "add_vision_id"];

/// One image part: where it stands, and its URL, taken out of the message.
#[derive(Debug)]
pub struct ImagePart {
    pub message: usize,
    pub part: usize,
    pub url: String,
}

impl ImagePart {
    /// Whether the image comes inside the request, as a data URI.
    pub fn is_inline(&self) -> bool {
        self.url
            .get(..5)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
    }

    /// The field's path, for error bodies.
    pub fn param(&self) -> String {
        format!(
            "messages[{}].content[{}].image_url.url",
            self.message, self.part
        )
    }
}

/// A chat request, checked and sorted.
#[derive(Debug)]
pub struct ChatRequest {
    /// The messages in OpenAI's form; image parts have lost their URL.
    pub messages: Vec<Value>,
    /// The images in prompt order.
    pub images: Vec<ImagePart>,
    pub tools: Option<Value>,
    pub variables: Map<String, Value>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    pub options: RequestOptions,
}

impl ChatRequest {
    /// Reads a body; every refusal names the field and why.
    ///
    /// # Errors
    /// When the body is not JSON, a field is missing, refused or illegal, or a limit is passed.
    pub fn parse(body: &[u8], limits: RequestLimits) -> Result<Self, ApiError> {
        if let Some(lifted) = Lifted::new(body)
            && let Ok(mut request) = Self::parse_json(&lifted.json, limits)
            && lifted.put_back(&mut request.images)
        {
            return Ok(request);
        }
        // What is refused is read as it came, so that the refusal speaks of what was sent.
        Self::parse_json(body, limits)
    }

    pub(crate) fn parse_json(body: &[u8], limits: RequestLimits) -> Result<Self, ApiError> {
        let mut fields = parse_object(body)?;
        let mut messages = take_messages(&mut fields, limits)?;
        let images = take_images(&mut messages, limits)?;
        let tools = tools::take(&mut fields)?;
        let continue_final_message =
            fields::take_bool(&mut fields, "continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields::take_bool(&mut fields, "add_generation_prompt")?;
        let add_generation_prompt = add_generation_prompt.unwrap_or(!continue_final_message);
        if continue_final_message && add_generation_prompt {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::invalid(
                "invalid_value",
                "continue_final_message",
                message,
            ));
        }
        let mut variables = take_variables(&mut fields)?;
        let options = RequestOptions::take(fields, limits)?;
        add_reasoning_effort(&mut variables, &options.passed);
        Ok(Self {
            messages,
            images,
            tools,
            variables,
            add_generation_prompt,
            continue_final_message,
            options,
        })
    }
}

fn take_messages(
    fields: &mut Map<String, Value>,
    limits: RequestLimits,
) -> Result<Vec<Value>, ApiError> {
    let messages = match fields.shift_remove("messages") {
        Some(Value::Array(messages)) => messages,
        None | Some(Value::Null) => {
            return Err(ApiError::invalid(
                "missing_field",
                "messages",
                "messages is missing",
            ));
        }
        Some(_) => return Err(fields::invalid_type("messages", "a list")),
    };
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "invalid_value",
            "messages",
            "messages is empty",
        ));
    }
    if messages.len() > limits.messages_max {
        let message = format!(
            "{} messages; at most {}",
            messages.len(),
            limits.messages_max
        );
        return Err(ApiError::invalid("too_many_messages", "messages", message));
    }
    for (index, message) in messages.iter().enumerate() {
        check_role(index, message)?;
    }
    Ok(messages)
}

fn check_role(index: usize, message: &Value) -> Result<(), ApiError> {
    let param = format!("messages[{index}]");
    let Some(message) = message.as_object() else {
        return Err(fields::invalid_type(&param, "an object"));
    };
    const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
    match message.get("role").and_then(Value::as_str) {
        Some(role) if ROLES.contains(&role) => fields::refuse_inside(message, &param),
        _ => {
            let message = format!("{param}.role must be one of {}", ROLES.join(", "));
            Err(ApiError::invalid(
                "invalid_value",
                format!("{param}.role"),
                message,
            ))
        }
    }
}

/// Takes the URL out of every image part, in prompt order, and checks every part on the way.
fn take_images(messages: &mut [Value], limits: RequestLimits) -> Result<Vec<ImagePart>, ApiError> {
    let mut images = Vec::new();
    for (message, value) in messages.iter_mut().enumerate() {
        let param = format!("messages[{message}].content");
        let parts = match value.get_mut("content") {
            None | Some(Value::Null | Value::String(_)) => continue,
            Some(Value::Array(parts)) => parts,
            Some(_) => return Err(fields::invalid_type(&param, "a string or a list of parts")),
        };
        for (part, value) in parts.iter_mut().enumerate() {
            if let Some(url) = take_part(value, &format!("{param}[{part}]"))? {
                images.push(ImagePart { message, part, url });
            }
        }
    }
    if images.len() > limits.images_max {
        let message = format!("{} images; at most {}", images.len(), limits.images_max);
        return Err(ApiError::invalid("too_many_images", "messages", message));
    }
    Ok(images)
}

/// Checks one part; the URL of an image part is taken out, and any `uuid` dropped: identity comes
/// from the bytes alone, and beside a `uuid` vLLM looks for media in a part of any type.
fn take_part(part: &mut Value, param: &str) -> Result<Option<String>, ApiError> {
    let Some(fields) = part.as_object_mut() else {
        return Err(fields::invalid_type(param, "an object"));
    };
    fields.shift_remove("uuid");
    let kind = fields.get("type").and_then(Value::as_str);
    fields::refuse_in_part(fields, kind.unwrap_or_default(), param)?;
    match kind {
        Some("text") if fields.get("text").is_some_and(Value::is_string) => Ok(None),
        Some("text") => Err(fields::invalid_type(&format!("{param}.text"), "a string")),
        Some("refusal") if fields.get("refusal").is_some_and(Value::is_string) => Ok(None),
        Some("image_url") => take_url(fields, param).map(Some),
        Some(other) => {
            let message =
                format!("{param}.type {other:?} is not supported; text and image_url are");
            Err(ApiError::invalid(
                "unsupported_content",
                format!("{param}.type"),
                message,
            ))
        }
        None => Err(fields::invalid_type(&format!("{param}.type"), "a string")),
    }
}

fn take_url(fields: &mut Map<String, Value>, param: &str) -> Result<String, ApiError> {
    let url = match fields.get_mut("image_url") {
        Some(Value::Object(image_url)) => {
            // The rest is for an engine's own loading of images, which is done here.
            image_url.retain(|name, _| ["url", "detail"].contains(&name.as_str()));
            image_url.get_mut("url").map(Value::take)
        }
        Some(url @ Value::String(_)) => {
            let taken = url.take();
            *url = Value::Object(Map::new());
            Some(taken)
        }
        _ => None,
    };
    match url {
        Some(Value::String(url)) => Ok(url),
        _ => Err(fields::invalid_type(
            &format!("{param}.image_url.url"),
            "a string",
        )),
    }
}

/// What vLLM tells the template of `reasoning_effort`: the value, and whether to think at all unless
/// the client said so itself.
fn add_reasoning_effort(variables: &mut Map<String, Value>, passed: &Map<String, Value>) {
    let Some(effort) = passed.get("reasoning_effort") else {
        return;
    };
    variables.insert("reasoning_effort".to_owned(), effort.clone());
    variables
        .entry("enable_thinking")
        .or_insert_with(|| (effort != "none").into());
}

fn take_variables(fields: &mut Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let variables = fields::take_object(fields, "chat_template_kwargs")?.unwrap_or_default();
    for (name, value) in &variables {
        let param = format!("chat_template_kwargs.{name}");
        if !TEMPLATE_VARIABLES.contains(&name.as_str()) {
            let known = TEMPLATE_VARIABLES.join(", ");
            let message = format!("{param} is not accepted; {known} are");
            return Err(ApiError::invalid("field_not_accepted", param, message));
        }
        if !value.is_boolean() {
            return Err(fields::invalid_type(&param, "a boolean"));
        }
    }
    Ok(variables)
}
