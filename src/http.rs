//! HTTP servers: listeners with limits, routes, and bodies that stream.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::id::RequestId;

/// A request whose body has been read whole, within the limits.
#[derive(Debug)]
pub struct Call {
    pub id: RequestId,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The body of an answer.
pub enum ReplyBody {
    Full(Bytes),
    /// Each item is written to the client as it comes; dropped when the client goes away. An `Err`
    /// ends the connection without a proper end, so that a client never takes a cut body for whole.
    Stream(BoxStream<'static, Result<Bytes, std::io::Error>>),
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: ReplyBody,
}

/// A handler's pending answer.
pub type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Limits of a listener; each is answered by its own status when exceeded.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body; one byte more is 413.
    pub body_bytes_max: usize,
    /// Largest sum of bodies in flight; over it a request is 503.
    pub bodies_in_flight_bytes_max: usize,
    /// Largest sum of all headers; over it 431.
    pub header_bytes_max: usize,
    pub header_read: Duration,
    pub body_read: Duration,
    /// Most connections open at once.
    pub connections_max: usize,
}

/// Which handler answers which path.
#[derive(Debug, Default)]
pub struct Routes {}

impl Routes {
    /// Answers `POST path` with `handler`.
    pub fn post<H>(self, _path: &str, _handler: H) -> Self
    where
        H: Fn(Call) -> Answer + Clone + Send + Sync + 'static,
    {
        unimplemented!()
    }

    /// Answers `GET path` with `handler`.
    pub fn get<H>(self, _path: &str, _handler: H) -> Self
    where
        H: Fn(Call) -> Answer + Clone + Send + Sync + 'static,
    {
        unimplemented!()
    }
}

/// Serves `routes` on `listener` until `stop`, then lets requests in flight finish.
pub async fn serve(
    _listener: TcpListener,
    _routes: Routes,
    _limits: Limits,
    _stop: CancellationToken,
) {
    unimplemented!()
}

impl Reply {
    /// A JSON answer.
    pub fn json(_status: StatusCode, _body: &impl serde::Serialize) -> Self {
        unimplemented!()
    }

    /// A plain text answer.
    pub fn text(_status: StatusCode, _body: String) -> Self {
        unimplemented!()
    }

    /// A stream of server-sent events; each item is passed as it comes.
    pub fn events(_stream: BoxStream<'static, Result<Bytes, std::io::Error>>) -> Self {
        unimplemented!()
    }
}

impl std::fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Binds a listener.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(_address: SocketAddr) -> std::io::Result<TcpListener> {
    unimplemented!()
}
