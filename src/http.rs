//! HTTP servers: routes, whole requests in, answers or streams out. Nothing else names axum or
//! hyper's server.

pub mod body;
pub mod keys;
pub mod reply;
pub mod serve;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderMap, Method};
use bytes::Bytes;

use crate::config::frontend::LimitsConfig;
use crate::http::reply::Reply;
use crate::id::RequestId;

/// A request whose body has been read whole, within the limits.
#[derive(Debug)]
pub struct Call {
    pub id: RequestId,
    pub headers: HeaderMap,
    /// What stands behind the path's `?`; empty where nothing does.
    pub query: String,
    pub body: Bytes,
    /// When the last byte of it had come.
    pub received: Instant,
}

/// A handler's pending answer; dropped when the client goes away before it is there.
pub type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;

type Handler = Arc<dyn Fn(Call) -> Answer + Send + Sync>;

/// Answers a request that may not pass, by its path and headers; `None` for one that may.
type Guard = Arc<dyn Fn(&str, &HeaderMap) -> Option<Reply> + Send + Sync>;

/// Limits of a listener; each is answered by its own status when exceeded.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body; one byte more is 413.
    pub body_bytes_max: usize,
    /// Largest sum of bodies in flight; over it a request is 503.
    pub bodies_in_flight_bytes_max: usize,
    /// Largest sum of all headers; over it 431.
    pub header_bytes_max: usize,
    /// A connection that takes longer to send its headers is closed.
    pub header_read: Duration,
    /// A body that takes longer to arrive is 408.
    pub body_read: Duration,
    /// Most connections open at once; further ones wait to be accepted.
    pub connections_max: usize,
}

impl From<&LimitsConfig> for Limits {
    fn from(config: &LimitsConfig) -> Self {
        Self {
            body_bytes_max: config.body_bytes_max,
            bodies_in_flight_bytes_max: config.bodies_in_flight_bytes_max,
            header_bytes_max: config.header_bytes_max,
            header_read: config.header_read(),
            body_read: config.body_read(),
            connections_max: config.connections_max,
        }
    }
}

/// Which handler answers which path and method.
#[derive(Default)]
pub struct Routes {
    paths: Vec<(String, Vec<(Method, Handler)>)>,
    guard: Option<Guard>,
}

impl Routes {
    /// Answers `POST path` with `handler`.
    pub fn post<H>(self, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> Answer + Send + Sync + 'static,
    {
        self.route(Method::POST, path, Arc::new(handler))
    }

    /// Answers `GET path`, and `HEAD` without its body, with `handler`.
    pub fn get<H>(self, path: &str, handler: H) -> Self
    where
        H: Fn(Call) -> Answer + Send + Sync + 'static,
    {
        let handler: Handler = Arc::new(handler);
        self.route(Method::GET, path, handler.clone())
            .route(Method::HEAD, path, handler)
    }

    /// Asks `guard` about each request that has a route, before its body is read: an answer of its
    /// is given instead of the handler's.
    pub fn guarded<G>(self, guard: G) -> Self
    where
        G: Fn(&str, &HeaderMap) -> Option<Reply> + Send + Sync + 'static,
    {
        Self {
            guard: Some(Arc::new(guard)),
            ..self
        }
    }

    fn route(mut self, method: Method, path: &str, handler: Handler) -> Self {
        match self.paths.iter_mut().find(|(known, _)| known == path) {
            Some((_, methods)) => methods.push((method, handler)),
            None => self.paths.push((path.to_owned(), vec![(method, handler)])),
        }
        self
    }
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.paths.iter().map(|(path, _)| path))
            .finish()
    }
}
