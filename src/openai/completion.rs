//! A completion request: one prompt, as text or as token ids.

use serde_json::Value;

use crate::openai::error::ApiError;
use crate::openai::fields;
use crate::openai::request::{RequestLimits, RequestOptions, parse_object};

/// The prompt of a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A completion request, checked and sorted.
#[derive(Debug)]
pub struct CompletionRequest {
    pub prompt: Prompt,
    /// The tokenizer's own special tokens (a leading BOS, say) are added, as the engine does.
    pub add_special_tokens: bool,
    pub options: RequestOptions,
}

impl CompletionRequest {
    /// Reads a body; every refusal names the field and why.
    ///
    /// # Errors
    /// When the body is not JSON, a field is missing, refused or illegal.
    pub fn parse(body: &[u8], limits: RequestLimits) -> Result<Self, ApiError> {
        let mut fields = parse_object(body)?;
        let prompt = match fields.shift_remove("prompt") {
            None | Some(Value::Null) => {
                return Err(ApiError::invalid(
                    "missing_field",
                    "prompt",
                    "prompt is missing",
                ));
            }
            Some(prompt) => read_prompt(prompt)?,
        };
        let add_special_tokens = fields::take_bool(&mut fields, "add_special_tokens")?;
        Ok(Self {
            prompt,
            add_special_tokens: add_special_tokens.unwrap_or(true),
            options: RequestOptions::take(fields, limits)?,
        })
    }
}

/// One prompt: a text, a list of token ids, or a list that holds just one of these. Several prompts
/// would need several placements, so they come as several requests.
fn read_prompt(prompt: Value) -> Result<Prompt, ApiError> {
    let expected = || fields::invalid_type("prompt", "a string or a list of token ids");
    match prompt {
        Value::String(text) if text.is_empty() => Err(empty()),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) if list.is_empty() => Err(empty()),
        Value::Array(mut list) if !list[0].is_number() => match (list.pop(), list.len()) {
            (Some(only), 0) if !only.is_object() => read_prompt(only),
            (Some(Value::String(_) | Value::Array(_)), _) => {
                let message = "prompt holds several prompts; send one per request";
                Err(ApiError::invalid("several_prompts", "prompt", message))
            }
            _ => Err(expected()),
        },
        Value::Array(list) => {
            let token = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
            list.iter()
                .map(token)
                .collect::<Option<_>>()
                .map(Prompt::Tokens)
                .ok_or_else(expected)
        }
        _ => Err(expected()),
    }
}

fn empty() -> ApiError {
    ApiError::invalid("invalid_value", "prompt", "prompt is empty")
}
