//! A listener's life: accepts connections, answers requests, drains.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::http::header::ALLOW;
use ::http::request::Parts;
use ::http::{HeaderName, Method};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use futures_util::FutureExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

use crate::http::body::HeldBody;
use crate::http::reply::{Reply, ReplyBody, internal_error};
use crate::http::{Call, Guard, Handler, Limits, Routes, body};
use crate::id::RequestId;
use crate::openai::error::{ApiError, ErrorKind};

/// Echoed on every answer; taken from the request where it is well formed.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long to wait after a failed accept (no file descriptors left, say) before the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Requests that panicked since the program started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts the requests that panicked since the program started; each was answered 500.
pub fn panics_total() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Binds a listener.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Binds a listener on a unix socket, which nothing may stand at yet.
///
/// # Errors
/// When something stands at the path, or it cannot be made.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    UnixListener::bind(path)
}

/// Where requests come in.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // A small chunk waits for nothing: Nagle's algorithm would hold it 40 ms.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "cannot set TCP_NODELAY");
                }
                Ok(Either::Left(stream))
            }
            Self::Unix(listener) => Ok(Either::Right(listener.accept().await?.0)),
        }
    }
}

/// Serves `routes` on `listener` until `stop`, then closes the listener and returns when every
/// request in flight has ended. A caller that cannot wait so long drops the future.
pub async fn serve(
    listener: impl Into<Listener>,
    routes: Routes,
    limits: Limits,
    stop: CancellationToken,
) {
    let listener = listener.into();
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut server = hyper::server::conn::http1::Builder::new();
    // Over this hyper answers 431 without a body; up to it `check_headers` says why.
    server.max_buf_size(limits.header_bytes_max.max(8 << 10) * 4);
    server
        .max_headers(256)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read);
    let router = router(routes, limits);
    let connections = TaskTracker::new();
    while let Some(slot) = stop
        .run_until_cancelled(slots.clone().acquire_owned())
        .await
    {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
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
        let connection = connection(server.clone(), stream, router.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection until it ends; after `stop` it ends with its current request.
fn connection(
    server: hyper::server::conn::http1::Builder,
    stream: Stream,
    router: Router,
    stop: CancellationToken,
) -> impl Future<Output = ()> {
    let service = TowerToHyperService::new(router);
    async move {
        let connection = server.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
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

fn router(routes: Routes, limits: Limits) -> Router {
    let hall = Arc::new(Hall {
        room: body::room(&limits),
        limits,
        guard: routes.guard,
    });
    let mut router = Router::new();
    for (path, methods) in routes.paths {
        let methods: Arc<[(Method, Handler)]> = methods.into();
        let hall = hall.clone();
        let answer = move |request: Request| {
            let (methods, hall) = (methods.clone(), hall.clone());
            identified(request, move |id, request| {
                answer(id, request, methods, hall)
            })
        };
        router = router.route(&path, any(answer));
    }
    router.fallback(|request: Request| {
        identified(request, async |_, request| {
            let message = format!("no route {}", request.uri().path());
            ApiError::new(404, ErrorKind::InvalidRequestError, "not_found", message).into()
        })
    })
}

/// Gives the request its id, answers it, and writes the id into the answer. A panic in one request
/// is a 500 to it alone.
async fn identified<F, A>(request: Request, answer: F) -> Response
where
    F: FnOnce(RequestId, Request) -> A,
    A: Future<Output = Reply>,
{
    let sent = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let id = sent
        .and_then(RequestId::from_client)
        .unwrap_or_else(|| RequestId::from_bits(uuid::Uuid::new_v4().as_u128()));
    let reply = AssertUnwindSafe(answer(id.clone(), request))
        .catch_unwind()
        .await;
    let reply = reply.unwrap_or_else(|_| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        error!(request_id = %id, "a request panicked");
        internal_error().into()
    });
    response(reply.with_header(REQUEST_ID, id.as_str()))
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
        query: parts.uri.query().unwrap_or_default().to_owned(),
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
