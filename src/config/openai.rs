//! `[openai]`: how the OpenAI API is read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of a request's field that nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownFields {
    /// Left out and counted.
    #[default]
    Drop,
    /// Sent to the engine as it came.
    Pass,
    /// Answered 400.
    Refuse,
}

/// How the OpenAI API is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OpenaiConfig {
    /// What becomes of a request's field that nobody knows.
    pub unknown_fields: UnknownFields,
}
