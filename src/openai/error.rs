//! The one error body that clients see, and the kinds it comes in.

use serde::Serialize;

/// The `type` of an error body, each with its usual HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong; sent again unchanged it fails again.
    InvalidRequestError,
    /// The client should slow down.
    RateLimitError,
    /// Something took too long.
    Timeout,
    /// No worker can take the request now.
    ServiceUnavailable,
    /// A fault of ours or of an engine.
    ServerError,
}

/// An error as a client sees it. The text is safe to show: causes stay in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: u16,
    pub kind: ErrorKind,
    pub message: String,
    /// The field at fault, as `messages[0].content`.
    pub param: Option<String>,
    /// A stable name for programs, as `model_not_found`.
    pub code: &'static str,
    /// Sent as `Retry-After`, in seconds.
    pub retry_after_secs: Option<u32>,
}

impl ApiError {
    /// A 400 that blames `param`.
    pub fn invalid(
        code: &'static str,
        param: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let error = Self::new(400, ErrorKind::InvalidRequestError, code, message);
        Self {
            param: Some(param.into()),
            ..error
        }
    }

    /// An error of any status that blames no field.
    pub fn new(
        status: u16,
        kind: ErrorKind,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code,
            retry_after_secs: None,
        }
    }

    /// The same error, with a hint when to come again.
    pub fn retry_after(self, secs: u32) -> Self {
        Self {
            retry_after_secs: Some(secs),
            ..self
        }
    }

    /// The OpenAI error body.
    pub fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Fields<'a>,
        }
        #[derive(Serialize)]
        struct Fields<'a> {
            message: &'a str,
            r#type: ErrorKind,
            param: Option<&'a str>,
            code: &'a str,
        }
        let fields = Fields {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        // A struct of texts always serialises.
        serde_json::to_vec(&Body { error: fields }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_openais() {
        let error = ApiError::invalid("invalid_value", "n", "n must be at least 1");
        let body: serde_json::Value = serde_json::from_slice(&error.body()).unwrap();
        let expected = serde_json::json!({"error": {
            "message": "n must be at least 1", "type": "invalid_request_error",
            "param": "n", "code": "invalid_value"}});
        assert_eq!(body, expected);
    }
}
