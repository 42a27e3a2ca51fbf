//! Refused requests, in the words and shape of vLLM.

use ::http::StatusCode;
use serde_json::json;

use crate::http::reply::Reply;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("The model `{0}` does not exist.")]
    UnknownModel(String),
    #[error("Cache miss for image at index {index} but data is not provided.")]
    MediaNotCached { index: usize },
    #[error("cannot identify image at index {index}: {reason}")]
    Undecodable { index: usize, reason: String },
    #[error(
        "This model's maximum context length is {max} tokens. However, your request has {tokens} \
         input tokens. Please reduce the length of the input messages."
    )]
    TooLong { tokens: usize, max: usize },
    #[error("{0}")]
    Broken(String),
}

impl Refusal {
    /// A refusal of the request's own making.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// The answer the client gets.
    pub fn reply(&self) -> Reply {
        let (status, kind) = match self {
            Self::UnknownModel(_) => (StatusCode::NOT_FOUND, "NotFoundError"),
            Self::Broken(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
            _ => (StatusCode::BAD_REQUEST, "BadRequestError"),
        };
        let param = match self {
            Self::UnknownModel(_) => Some("model"),
            Self::TooLong { .. } => Some("input_tokens"),
            _ => None,
        };
        let error = json!({
            "message": self.to_string(),
            "type": kind,
            "param": param,
            "code": status.as_u16(),
        });
        Reply::json(status, &json!({ "error": error }))
    }
}
