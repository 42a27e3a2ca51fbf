//! An embeddings request, which passes through.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;
use crate::openai::request::{parse_object, take_model};

/// What passes to the engine; anything else (messages with images to fetch, say) does not.
const PASSED: [&str; 6] = [
    "add_special_tokens",
    "dimensions",
    "encoding_format",
    "input",
    "priority",
    "user",
];

/// An embeddings request, its fields sorted.
#[derive(Debug)]
pub struct EmbeddingsRequest {
    pub model: String,
    /// What goes to the engine as it came.
    pub passed: Map<String, Value>,
}

impl EmbeddingsRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is not JSON, or `model` or `input` is missing.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = parse_object(body)?;
        let model = take_model(&mut fields)?;
        fields.retain(|name, value| PASSED.contains(&name.as_str()) && !value.is_null());
        if !fields.contains_key("input") {
            return Err(ApiError::invalid(
                "missing_field",
                "input",
                "input is missing",
            ));
        }
        Ok(Self {
            model,
            passed: fields,
        })
    }
}
