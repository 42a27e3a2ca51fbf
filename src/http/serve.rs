//! A listener's life: accepts connections, answers requests, drains.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::http::header::{ALLOW, CONNECTION};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, Method};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use futures_util::FutureExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::http::body::HeldBody;
use crate::http::listener::{Listener, Stream};
use crate::http::reply::{Reply, ReplyBody, internal_error};
use crate::http::{Call, Guard, Handler, Limits, Routes, body};
use crate::id::RequestId;
use crate::openai::error::{ApiError, ErrorKind};

/// Echoed on every answer; taken from the request where it is well formed.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a connection that is open when a settled listener closes may stay idle: its client may
/// have sent its first request already, which is answered.
const LINGER: Duration = Duration::from_millis(500);

/// How long to wait after a failed accept (no file descriptors left, say) before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Requests that panicked since the program started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts the requests that panicked since the program started; each was answered 500.
pub fn panics_total() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// When a listener closes, and whether it settles before.
#[derive(Clone, Debug)]
pub struct Stop {
    /// From here on each answer asks its client to close the connection and open another, which may
    /// lead elsewhere. Where this comes first, whoever has connected by the close is answered.
    pub settle: CancellationToken,
    /// The listener closes.
    pub close: CancellationToken,
}

impl Stop {
    /// A stop that has not come.
    pub fn new() -> Self {
        Self::from(CancellationToken::new())
    }

    /// Waits until connections without a request are to end.
    async fn has_closed(&self) {
        self.close.cancelled().await;
        if self.settle.is_cancelled() {
            tokio::time::sleep(LINGER).await;
        }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl From<CancellationToken> for Stop {
    /// A listener that closes without settling.
    fn from(close: CancellationToken) -> Self {
        Self {
            settle: CancellationToken::new(),
            close,
        }
    }
}

/// Serves `routes` on `listener` until `stop`, then closes the listener and returns when every
/// request in flight has ended. A caller that cannot wait so long drops the future.
pub async fn serve(
    listener: impl Into<Listener>,
    routes: Routes,
    limits: Limits,
    stop: impl Into<Stop>,
) {
    let (listener, stop) = (listener.into(), stop.into());
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut server = hyper::server::conn::http1::Builder::new();
    // Over this hyper answers 431 without a body; up to it `check_headers` says why.
    server.max_buf_size(limits.header_bytes_max.max(8 << 10) * 4);
    server
        .max_headers(256)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read);
    let router = router(routes, limits, &stop.settle);
    let connections = TaskTracker::new();
    let open = |stream| connection(server.clone(), stream, router.clone(), stop.clone());
    while let Some(slot) = stop
        .close
        .run_until_cancelled(slots.clone().acquire_owned())
        .await
    {
        let Some(accepted) = stop.close.run_until_cancelled(listener.accept()).await else {
            break;
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = open(stream);
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    match stop.settle.is_cancelled() {
        true => listener.close().into_iter().for_each(|stream| {
            connections.spawn(open(stream));
        }),
        false => drop(listener),
    }
    connections.close();
    connections.wait().await;
}

/// One connection until it ends; after `stop` it ends with its current request, or where the listener
/// has settled with one that comes at once.
fn connection(
    server: hyper::server::conn::http1::Builder,
    stream: Stream,
    router: Router,
    stop: Stop,
) -> impl Future<Output = ()> {
    let service = TowerToHyperService::new(router);
    async move {
        let connection = server.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.has_closed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended early");
        }
    }
}

/// What the requests of a listener share.
struct Hall {
    limits: Limits,
    room: Arc<Semaphore>,
    guard: Option<Guard>,
}

fn router(routes: Routes, limits: Limits, settle: &CancellationToken) -> Router {
    let hall = Arc::new(Hall {
        room: body::room(&limits),
        limits,
        guard: routes.guard,
    });
    let mut router = Router::new();
    for (path, methods) in routes.paths {
        let methods: Arc<[(Method, Handler)]> = methods.into();
        let (hall, settle) = (hall.clone(), settle.clone());
        let answer = move |request: Request| {
            let (methods, hall) = (methods.clone(), hall.clone());
            identified(request, settle.clone(), move |id, request| {
                answer(id, request, methods, hall)
            })
        };
        router = router.route(&path, any(answer));
    }
    let settle = settle.clone();
    router.fallback(move |request: Request| {
        identified(request, settle.clone(), async |_, request| {
            let message = format!("no route {}", request.uri().path());
            ApiError::new(404, ErrorKind::InvalidRequestError, "not_found", message).into()
        })
    })
}

/// Gives the request its id, answers it, and writes the id into the answer. A panic in one request
/// is a 500 to it alone.
async fn identified<F, A>(request: Request, settle: CancellationToken, answer: F) -> Response
where
    F: FnOnce(RequestId, Request) -> A,
    A: Future<Output = Reply>,
{
    let id = request_id(request.headers());
    let reply = AssertUnwindSafe(answer(id.clone(), request))
        .catch_unwind()
        .await;
    let reply = reply.unwrap_or_else(|_| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        error!(request_id = %id, "a request panicked");
        internal_error().into()
    });
    let reply = reply.with_header(REQUEST_ID, id.as_str());
    response(match settle.is_cancelled() {
        true => reply.with_header(CONNECTION, "close"),
        false => reply,
    })
}

/// The id that a request names; where it names none, or one that is not well formed, a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> RequestId {
    let sent = headers
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    sent.and_then(RequestId::from_client)
        .unwrap_or_else(|| RequestId::from_bits(uuid::Uuid::new_v4().as_u128()))
}

async fn answer(
    id: RequestId,
    request: Request,
    methods: Arc<[(Method, Handler)]>,
    hall: Arc<Hall>,
) -> Reply {
    let (parts, mut body) = request.into_parts();
    let (handler, held) = match admit(&parts, &mut body, &methods, &hall).await {
        Ok(admitted) => admitted,
        Err(refusal) => {
            body::discard(&parts.headers, body, &hall.limits).await;
            return refusal;
        }
    };
    let call = Call {
        id,
        uri: parts.uri,
        headers: parts.headers,
        body: held.bytes.clone(),
        received: Instant::now(),
    };
    handler(call).await
}

/// The handler of a request that keeps the limits, and its body.
async fn admit<'a>(
    parts: &Parts,
    body: &mut Body,
    methods: &'a [(Method, Handler)],
    hall: &Hall,
) -> Result<(&'a Handler, HeldBody), Reply> {
    let limits = &hall.limits;
    body::check_headers(&parts.headers, limits)?;
    let guard = hall.guard.as_ref();
    if let Some(refusal) = guard.and_then(|guard| guard(parts.uri.path(), &parts.headers)) {
        return Err(refusal);
    }
    let Some((_, handler)) = methods.iter().find(|(method, _)| *method == parts.method) else {
        return Err(method_not_allowed(&parts.method, methods));
    };
    if parts.method == Method::POST {
        body::check_json(&parts.headers)?;
    }
    let reading = body::read(&parts.headers, body, limits, &hall.room);
    match tokio::time::timeout(limits.body_read, reading).await {
        Ok(held) => Ok((handler, held?)),
        Err(_) => {
            let message = format!("the body did not arrive within {:?}", limits.body_read);
            Err(ApiError::new(408, ErrorKind::Timeout, "body_timeout", message).into())
        }
    }
}

fn method_not_allowed(method: &Method, methods: &[(Method, Handler)]) -> Reply {
    let allowed: Vec<&str> = methods.iter().map(|(method, _)| method.as_str()).collect();
    let message = format!("method {method} is not allowed here");
    let error = ApiError::new(
        405,
        ErrorKind::InvalidRequestError,
        "method_not_allowed",
        message,
    );
    Reply::from(error).with_header(ALLOW, &allowed.join(", "))
}

fn response(reply: Reply) -> Response {
    let body = match reply.body {
        ReplyBody::Full(bytes) => Body::from(bytes),
        ReplyBody::Stream(stream) => Body::from_stream(stream),
    };
    let mut response = Response::new(body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}
