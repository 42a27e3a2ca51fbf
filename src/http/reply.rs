//! Answers: whole bodies, streams, and errors in OpenAI's form.

use std::io;

use ::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Serialize;

use crate::openai::error::{ApiError, ErrorKind};

/// The body of an answer.
pub enum ReplyBody {
    Full(Bytes),
    /// Each item is written to the client as it comes; dropped when the client goes away. An `Err`
    /// ends the connection without a proper end, so that a client never takes a cut body for whole.
    Stream(BoxStream<'static, io::Result<Bytes>>),
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: ReplyBody,
}

impl Reply {
    /// An answer of `content_type` with a whole body.
    pub fn full(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self {
            status,
            headers,
            body: ReplyBody::Full(body.into()),
        }
    }

    /// A JSON answer; a body that cannot be serialised is our bug, and a 500.
    pub fn json(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(bytes) => Self::full(status, "application/json", bytes),
            Err(_) => internal_error().into(),
        }
    }

    /// A plain text answer.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::full(status, "text/plain; charset=utf-8", body.into())
    }

    /// A stream of server-sent events; each item is passed as it comes.
    pub fn events(stream: BoxStream<'static, io::Result<Bytes>>) -> Self {
        let reply = Self::full(
            StatusCode::OK,
            "text/event-stream; charset=utf-8",
            Bytes::new(),
        );
        let reply = reply.with_header(CACHE_CONTROL, "no-cache");
        Self {
            body: ReplyBody::Stream(stream),
            ..reply
        }
    }

    /// The same answer with one header more; a value that is not legal in a header is left out.
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let reply = Self::full(status, "application/json", error.body());
        match error.retry_after_secs {
            Some(secs) => reply.with_header(RETRY_AFTER, &secs.to_string()),
            None => reply,
        }
    }
}

/// The 500 of a bug of ours; what happened stands in the log under the request's id.
pub fn internal_error() -> ApiError {
    let message = "the server failed to answer; the request id names this failure in its log";
    ApiError::new(500, ErrorKind::ServerError, "internal_error", message)
}

impl std::fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}
