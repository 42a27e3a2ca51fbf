//! The one door from our errors to what clients see: status, code, field. Causes stay in the log.

use crate::dispatch::{DispatchError, GATE_NOT_FETCHED};
use crate::frontend::overrides::{RANK, WORKER};
use crate::http::lent::LendError;
use crate::media::MediaError;
use crate::model::ModelError;
use crate::openai::error::{ApiError, ErrorKind};
use crate::prompt::PromptError;
use crate::router::RouteError;

/// When to come again after a 503: engines restart within seconds.
const RETRY_SECS: u32 = 2;

/// When to come again after a 429 or 504 of the queue: it moves with every prompt that is computed,
/// and those who are sent away should not all be back at once.
const QUEUE_RETRY_SECS: u32 = 5;

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match &error {
            RouteError::UnknownModel { model } => unknown_model(model),
            RouteError::NoEligibleWorker { .. } => {
                unavailable("no_eligible_worker", error.to_string())
            }
            RouteError::WorkerNotFound { .. } => Self {
                status: 404,
                ..Self::invalid("worker_not_found", WORKER, error.to_string())
            },
            RouteError::RankNotFound { .. } => {
                Self::invalid("invalid_value", RANK, error.to_string())
            }
            RouteError::WorkerUnavailable { .. } => Self {
                status: 409,
                ..Self::invalid("worker_unavailable", WORKER, error.to_string())
            },
            RouteError::WorkerNotNamed => {
                Self::invalid("worker_required", WORKER, error.to_string())
            }
            RouteError::QueueFull { .. } => {
                let message = format!("{error}; send it again after the time in Retry-After");
                Self::new(429, ErrorKind::RateLimitError, "queue_full", message)
                    .retry_after(QUEUE_RETRY_SECS)
            }
            RouteError::QueueTimeout { .. } => {
                let message = format!("{error}; send it again after the time in Retry-After");
                Self::new(504, ErrorKind::Timeout, "queue_timeout", message)
                    .retry_after(QUEUE_RETRY_SECS)
            }
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Prompt(PromptError::Compile { .. }) => server_error("bad_chat_template"),
            ModelError::Prompt(error) => error.into(),
            ModelError::NoChatTemplate { .. } => {
                let message = "the model has no chat template; use /v1/completions";
                Self::invalid("chat_not_supported", "model", message)
            }
            _ => server_error("model_files"),
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        let code = match &error {
            PromptError::PlaceholderCount { .. } => "placeholder_mismatch",
            PromptError::TooLong { .. } => "context_length_exceeded",
            _ => "invalid_messages",
        };
        Self::invalid(code, "messages", error.to_string())
    }
}

/// The 404 of a model nobody serves.
pub(crate) fn unknown_model(model: &str) -> ApiError {
    // A name is echoed, so that a typo shows, but never at a length that a log or a terminal minds.
    let shown: String = model.chars().take(128).collect();
    let message = format!("model {shown:?} is not served here; GET /v1/models lists what is");
    ApiError {
        status: 404,
        ..ApiError::invalid("model_not_found", "model", message)
    }
}

/// The 503 of a model whose workers are all away.
pub(crate) fn no_worker(model: &str) -> ApiError {
    unavailable(
        "no_eligible_worker",
        format!("no worker of model {model:?} is ready"),
    )
}

/// A 503 with a hint when to come again.
pub(crate) fn unavailable(code: &'static str, message: String) -> ApiError {
    ApiError::new(503, ErrorKind::ServiceUnavailable, code, message).retry_after(RETRY_SECS)
}

/// An image that cannot be used, blamed on its field.
pub(crate) fn media(error: &MediaError, param: String) -> ApiError {
    ApiError::invalid(error.code(), param, error.to_string())
}

/// The 502 of engines that broke off before they answered.
pub(crate) fn engine_failed(engines: usize) -> ApiError {
    let message = format!("{engines} engine(s) failed before they answered this request");
    ApiError::new(502, ErrorKind::ServerError, "engine_failed", message)
}

/// The answer to a request that would be retried, were a retry left: 502 where engines failed under
/// it, else 503.
pub(crate) fn no_retry_left(failures: usize) -> ApiError {
    let message = "the request failed, and too many are being retried to try it again; retry later";
    let (status, kind) = match failures {
        0 => (503, ErrorKind::ServiceUnavailable),
        _ => (502, ErrorKind::ServerError),
    };
    ApiError::new(status, kind, "retry_budget_exhausted", message).retry_after(RETRY_SECS)
}

/// The 422 of a request that engines have died of.
pub(crate) fn deadly() -> ApiError {
    let message = "engines have died of this request; it is not accepted for some minutes";
    let kind = ErrorKind::InvalidRequestError;
    ApiError::new(422, kind, "request_killed_engines", message)
}

/// What a client is told of a request that no engine could be sent; `None` where one was.
pub(crate) fn not_carried(error: &DispatchError) -> Option<ApiError> {
    match error {
        DispatchError::Plane { .. } => {
            let message = "engines cannot be asked now: the bus to them is away";
            Some(unavailable("request_plane_away", message.to_owned()))
        }
        DispatchError::TooLarge { bytes, bytes_max } => {
            let message = format!(
                "the request is {bytes} bytes as engines get it, and NATS carries {bytes_max}; its \
                 operator can set media.http_listen, from which engines fetch larger ones"
            );
            let kind = ErrorKind::InvalidRequestError;
            Some(ApiError::new(413, kind, "body_too_large", message))
        }
        DispatchError::NotLent(LendError::Full { bytes, max, .. }) if bytes > max => {
            let message = format!(
                "the request is {bytes} bytes as engines get it, and media.http_bytes_max lets them \
                 fetch {max}"
            );
            let kind = ErrorKind::InvalidRequestError;
            Some(ApiError::new(413, kind, "body_too_large", message))
        }
        DispatchError::NotLent(_) => {
            let message = "the bodies that engines are to fetch take all the room there is";
            Some(unavailable("overloaded", message.to_owned()))
        }
        _ => None,
    }
}

/// The 503 of a request whose body an engine's gate could not fetch from here.
pub(crate) fn not_fetched() -> ApiError {
    let message = "the engine's gate could not fetch the request's body; its operator can look at \
                   media.http_url, and at discovery.networks of the gate";
    unavailable(GATE_NOT_FETCHED, message.to_owned())
}

/// The 429 of engines that all have too much to do.
pub(crate) fn busy(engines: usize) -> ApiError {
    let message = format!("{engines} engine(s) have too much to do");
    let error = ApiError::new(429, ErrorKind::RateLimitError, "engines_busy", message);
    error.retry_after(RETRY_SECS)
}

/// An engine's own refusal. Its text is shown only where it holds nothing of the engine's inside.
pub(crate) fn rejected(status: u16, body: &[u8], has_images: bool) -> ApiError {
    let text = engine_message(body);
    let about = |part: &str| {
        let text = text.as_deref();
        text.is_some_and(|text| text.to_lowercase().contains(part))
    };
    let code = if about("maximum context length") || about("maximum model length") {
        "context_length_exceeded"
    } else if has_images && about("image") {
        "invalid_image"
    } else if status == 413 {
        // An engine's gate has a limit of its own.
        "body_too_large"
    } else {
        "rejected_by_engine"
    };
    let shown = text.filter(|text| is_showable(text));
    let message = shown.unwrap_or_else(|| "the engine refused the request".to_owned());
    ApiError::new(status, ErrorKind::InvalidRequestError, code, message)
}

fn engine_message(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = body
        .pointer("/error/message")
        .or_else(|| body.get("message"))?;
    message.as_str().map(str::to_owned)
}

/// Whether a text is short and holds no address, path or object of the engine's process.
fn is_showable(text: &str) -> bool {
    text.len() <= 500
        && !["0x", "<", "/", "\\", "Traceback"]
            .iter()
            .any(|inner| text.contains(inner))
}

fn server_error(code: &'static str) -> ApiError {
    ApiError::new(
        500,
        ErrorKind::ServerError,
        code,
        "the model's files cannot render this request",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::select::queue::QueueFull;

    #[test]
    fn who_is_not_placed_is_told_when_to_come_again() {
        let model = || "m".to_owned();
        let full = QueueFull::Requests { requests_max: 9 };
        let waited = Duration::from_secs(50);
        for (error, status, code, retry_after_secs, part) in [
            (
                RouteError::UnknownModel { model: model() },
                404,
                "model_not_found",
                None,
                "GET /v1/models",
            ),
            (
                RouteError::NoEligibleWorker {
                    model: model(),
                    workers: 2,
                },
                503,
                "no_eligible_worker",
                Some(2),
                "none of the 2 workers",
            ),
            (
                RouteError::QueueFull {
                    model: model(),
                    full,
                },
                429,
                "queue_full",
                Some(5),
                "9 requests wait already, as many as may; send it again",
            ),
            (
                RouteError::QueueTimeout {
                    model: model(),
                    waited,
                },
                504,
                "queue_timeout",
                Some(5),
                "had room within 50s; send it again",
            ),
        ] {
            let told = ApiError::from(error);
            let seen = (told.status, told.code, told.retry_after_secs);
            assert_eq!(seen, (status, code, retry_after_secs));
            assert!(told.message.contains(part), "{}", told.message);
        }
    }

    #[test]
    fn an_engines_insides_are_not_shown() {
        let body = |message: &str| serde_json::json!({"error": {"message": message}}).to_string();
        let message = |text: &str| rejected(400, body(text).as_bytes(), true).message;
        assert_eq!(
            message("max_tokens is too large"),
            "max_tokens is too large"
        );
        for inner in [
            "cannot identify <_io.BytesIO object at 0x7f>",
            "no file /opt/model/x.py",
        ] {
            assert_eq!(message(inner), "the engine refused the request");
        }
        assert_eq!(
            rejected(400, body("bad image").as_bytes(), true).code,
            "invalid_image"
        );
        assert_eq!(
            rejected(400, body("bad image").as_bytes(), false).code,
            "rejected_by_engine"
        );
        assert_eq!(
            rejected(413, body("body is over 9 bytes").as_bytes(), true).code,
            "body_too_large"
        );
        let too_long = body("This model's maximum context length is 256 tokens, image or not.");
        assert_eq!(
            rejected(400, too_long.as_bytes(), true).code,
            "context_length_exceeded"
        );
        assert_eq!(
            rejected(400, b"<html>", true).message,
            "the engine refused the request"
        );
    }
}
