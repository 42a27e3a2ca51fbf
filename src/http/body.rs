//! Reads a request's body whole, within the listener's limits.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::Limits;
use crate::openai::error::{ApiError, ErrorKind};

/// Reserved at once for an announced body; most are smaller.
const FIRST_BYTES: usize = 64 << 10;

/// Longest time for what is left of a refused body; a client that still sends then learns nothing.
const DISCARD_MAX: Duration = Duration::from_secs(1);

/// A client that sends nothing for so long waits for the answer.
const DISCARD_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A body, and the room it takes among all bodies in flight.
pub(crate) struct HeldBody {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// The room that all bodies in flight share, in bytes.
pub(crate) fn room(limits: &Limits) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(
        limits
            .bodies_in_flight_bytes_max
            .min(Semaphore::MAX_PERMITS),
    ))
}

/// Refuses headers over the limit, so that the answer has a body that says why.
pub(crate) fn check_headers(headers: &HeaderMap, limits: &Limits) -> Result<(), ApiError> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes <= limits.header_bytes_max {
        return Ok(());
    }
    let message = format!("headers are over {} bytes", limits.header_bytes_max);
    Err(ApiError::new(
        431,
        ErrorKind::InvalidRequestError,
        "headers_too_large",
        message,
    ))
}

/// Refuses what is said to be no JSON or to be compressed: a compressed body would slip past the
/// size limit.
pub(crate) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |message: &str| {
        ApiError::new(
            415,
            ErrorKind::InvalidRequestError,
            "unsupported_media_type",
            message,
        )
    };
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    if !matches!(encoding, None | Some(b"identity")) {
        return Err(unsupported("a compressed body is not accepted"));
    }
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = content_type
        .to_str()
        .unwrap_or("")
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    let json = essence.eq_ignore_ascii_case("application/json");
    if json {
        Ok(())
    } else {
        Err(unsupported("content-type must be application/json"))
    }
}

/// Reads the body, counting as it comes; a length said beforehand is checked before the first byte.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: &mut Body,
    limits: &Limits,
    room: &Arc<Semaphore>,
) -> Result<HeldBody, ApiError> {
    let said: Option<usize> = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    if said.is_some_and(|length| length > limits.body_bytes_max) {
        return Err(too_large(limits));
    }
    let mut held = HeldBody {
        bytes: Bytes::new(),
        _room: None,
    };
    // Memory and room grow with what arrives: whoever announces much and sends nothing holds nothing.
    let mut bytes = BytesMut::with_capacity(said.unwrap_or(0).min(FIRST_BYTES));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(cut_short());
        };
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        if bytes.len() + chunk.len() > limits.body_bytes_max {
            return Err(too_large(limits));
        }
        take_room(&mut held, room, chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    held.bytes = bytes.freeze();
    Ok(held)
}

/// Reads what is left of a refused request's body and forgets it, up to the limit of a body. A
/// connection closed with bytes unread is reset by the system, and the client, still sending, would
/// see that instead of the refusal.
pub(crate) async fn discard(headers: &HeaderMap, mut body: Body, limits: &Limits) {
    // Such a client sends only when told to, and reading is what tells it.
    if headers.contains_key(EXPECT) {
        return;
    }
    let mut left_bytes = limits.body_bytes_max;
    let reading = async {
        while let Ok(Some(Ok(frame))) = timeout(DISCARD_PAUSE_MAX, body.frame()).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left_bytes.checked_sub(bytes) {
                Some(left) => left_bytes = left,
                None => return,
            }
        }
    };
    // Late or not, it is over.
    let _ = timeout(DISCARD_MAX, reading).await;
}

fn take_room(held: &mut HeldBody, room: &Arc<Semaphore>, bytes: usize) -> Result<(), ApiError> {
    let permit = room_for(bytes, room)?;
    match &mut held._room {
        Some(taken) => taken.merge(permit),
        none => *none = Some(permit),
    }
    Ok(())
}

/// Room for so many bytes, for as long as it is held.
pub(crate) fn room_for(
    bytes: usize,
    room: &Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, ApiError> {
    let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
    let permit = room.clone().try_acquire_many_owned(wanted);
    permit.map_err(|_| {
        let message = "the bodies of the requests in flight take all the room there is";
        let error = ApiError::new(503, ErrorKind::ServiceUnavailable, "overloaded", message);
        error.retry_after(1)
    })
}

/// The 413 of a body over the limit.
pub(crate) fn too_large(limits: &Limits) -> ApiError {
    let message = format!("body is over {} bytes", limits.body_bytes_max);
    ApiError::new(
        413,
        ErrorKind::InvalidRequestError,
        "body_too_large",
        message,
    )
}

fn cut_short() -> ApiError {
    let message = "the body ended before its announced length";
    ApiError::new(
        400,
        ErrorKind::InvalidRequestError,
        "incomplete_body",
        message,
    )
}
