//! What all kinds of requests share: JSON to fields, model, stream, salt, hints.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;
use crate::openai::fields::{self, UnknownFields};
use crate::openai::nvext::Nvext;

/// Limits on what one request may carry.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    pub messages_max: usize,
    pub images_max: usize,
    pub unknown_fields: UnknownFields,
}

/// The fields that every kind of request has, checked.
#[derive(Debug)]
pub struct RequestOptions {
    pub model: String,
    pub stream: bool,
    /// The client wants the usage chunk at the end of its stream.
    pub include_usage: bool,
    /// The client's own salt; never sent as it is.
    pub cache_salt: String,
    /// Prompt log-probabilities are wanted: the engine then reads no cache.
    pub bypasses_cache: bool,
    /// What it says in `nvext`.
    pub nvext: Nvext,
    /// What goes to the engine as it came.
    pub passed: Map<String, Value>,
    /// Fields left out because we do not know them.
    pub dropped_fields: u32,
}

/// Reads a body as a JSON object.
///
/// # Errors
/// When it is empty, not JSON, or no object.
pub fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let invalid = |message: String| ApiError {
        param: None,
        ..ApiError::invalid("invalid_json", "", message)
    };
    if body.is_empty() {
        return Err(invalid(
            "the body is empty; it must be a JSON object".to_owned(),
        ));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(invalid("the body must be a JSON object".to_owned())),
        Err(error) => Err(invalid(format!("the body is not JSON: {error}"))),
    }
}

impl RequestOptions {
    /// Whether several answers are wanted of the one prompt, which then is computed several times.
    pub fn wants_choices(&self) -> bool {
        let several = |name: &&str| {
            let number = self.passed.get(*name).and_then(Value::as_u64);
            number.is_some_and(|number| number > 1)
        };
        ["n", "best_of"].iter().any(several)
    }

    /// Takes the shared fields out of `fields` and sorts all that are left.
    ///
    /// # Errors
    /// When a field is missing, refused, or has an illegal value.
    pub(crate) fn take(
        mut fields: Map<String, Value>,
        limits: RequestLimits,
    ) -> Result<Self, ApiError> {
        let model = take_model(&mut fields)?;
        let stream = fields::take_bool(&mut fields, "stream")?.unwrap_or(false);
        let include_usage = take_include_usage(&mut fields, stream)?;
        let cache_salt = take_salt(&mut fields)?;
        let logprobs = take_logprobs(&mut fields)?;
        let (nvext, unread) = Nvext::take(&mut fields, limits.unknown_fields)?;
        let echo = fields.get("echo") == Some(&Value::Bool(true));
        let (mut passed, dropped_fields) = fields::sort(fields, limits.unknown_fields)?;
        let bypasses_cache = passed.contains_key("prompt_logprobs") || echo && logprobs.is_some();
        passed.extend(logprobs.map(|value| ("logprobs".to_owned(), value)));
        Ok(Self {
            model,
            stream,
            include_usage,
            cache_salt,
            bypasses_cache,
            nvext,
            dropped_fields: dropped_fields + unread,
            passed,
        })
    }
}

/// The `model` field, which every request must have.
pub(crate) fn take_model(fields: &mut Map<String, Value>) -> Result<String, ApiError> {
    match fields::take_text(fields, "model")? {
        Some(model) if !model.is_empty() => Ok(model),
        _ => Err(ApiError::invalid(
            "missing_field",
            "model",
            "model is missing",
        )),
    }
}

/// Whether the client asked for the usage chunk.
fn take_include_usage(fields: &mut Map<String, Value>, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields::take_object(fields, "stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let message = "stream_options is only allowed when stream is true";
        return Err(ApiError::invalid(
            "invalid_value",
            "stream_options",
            message,
        ));
    }
    Ok(fields::take_bool(&mut options, "include_usage")?.unwrap_or(false))
}

fn take_salt(fields: &mut Map<String, Value>) -> Result<String, ApiError> {
    const SALT_BYTES_MAX: usize = 1_024;
    let Some(salt) = fields::take_text(fields, "cache_salt")? else {
        return Ok(String::new());
    };
    if salt.is_empty() || salt.len() > SALT_BYTES_MAX {
        let message = format!("cache_salt must have 1 to {SALT_BYTES_MAX} bytes");
        return Err(ApiError::invalid("invalid_value", "cache_salt", message));
    }
    Ok(salt)
}

/// A boolean in chats, a number in completions.
fn take_logprobs(fields: &mut Map<String, Value>) -> Result<Option<Value>, ApiError> {
    match fields.shift_remove("logprobs") {
        None | Some(Value::Null) => Ok(None),
        Some(value) if value.is_boolean() => Ok(Some(value)),
        Some(value) if value.as_u64().is_some_and(|number| number <= 20) => Ok(Some(value)),
        Some(_) => Err(fields::invalid_type(
            "logprobs",
            "a boolean or a number from 0 to 20",
        )),
    }
}
