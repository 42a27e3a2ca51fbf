//! `[openai]`: how the OpenAI API is read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openai::fields::UnknownFields;

/// How the OpenAI API is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OpenaiConfig {
    /// What becomes of a request's field that nobody knows.
    pub unknown_fields: UnknownFields,
}
