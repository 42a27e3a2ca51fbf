//! The gate in front of an engine: lets a list of paths through under bearer keys, counts what is in
//! flight, drains.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, WWW_AUTHENTICATE,
};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use futures_util::stream;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::dispatch::{DispatchError, EngineAnswer, EngineClient, GATE_BROKEN_OFF, GATE_REFUSED};
use crate::http::keys::Keys;
use crate::http::reply::{Reply, ReplyBody};
use crate::http::serve::REQUEST_ID;
use crate::http::{Answer, Call, Routes};
use crate::openai::error::{ApiError, ErrorKind};

/// What may be asked of an engine across hosts: nothing that resets, sleeps or loads.
const POSTS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/tokenize",
];
const GETS: [&str; 4] = ["/health", "/v1/models", "/metrics", "/version"];

/// Headers of one connection, and those that the next one writes itself.
const OF_A_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Seconds after which a refused request may come again: another worker is there sooner.
const RETRY_SECS: u32 = 1;

/// A gate in front of one engine.
#[derive(Debug)]
pub struct Gate {
    /// The engine's address.
    engine: String,
    client: EngineClient,
    draining: AtomicBool,
    in_flight: watch::Sender<usize>,
}

impl Gate {
    /// A gate in front of the engine at `address`.
    pub fn new(address: String) -> Self {
        Self {
            engine: address,
            client: EngineClient::new(),
            draining: AtomicBool::new(false),
            in_flight: watch::Sender::new(0),
        }
    }

    /// Its routes, open to whom `keys` admit; without keys, to everybody who reaches the listener.
    pub fn routes(self: &Arc<Self>, keys: Option<Keys>) -> Routes {
        let mut routes = Routes::default();
        for path in POSTS {
            routes = routes.post(path, self.handler(Method::POST, path));
        }
        for path in GETS {
            routes = routes.get(path, self.handler(Method::GET, path));
        }
        match keys {
            None => routes,
            Some(keys) => routes.guarded(move |_, headers| match keys.admits(headers) {
                Some(name) => {
                    debug!(name, "admitted by a key");
                    None
                }
                None => Some(unauthorised()),
            }),
        }
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Refuses new requests from now on, or takes them again. Pages of the engine are shown all the
    /// while.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
    }

    /// Waits until no request is in flight.
    pub async fn idle(&self) {
        let mut in_flight = self.in_flight.subscribe();
        // The sender is ours and lives as long.
        in_flight.wait_for(|count| *count == 0).await.ok();
    }

    fn handler(
        self: &Arc<Self>,
        method: Method,
        path: &'static str,
    ) -> impl Fn(Call) -> Answer + Send + Sync + 'static {
        let gate = self.clone();
        move |call| {
            let (gate, method) = (gate.clone(), method.clone());
            Box::pin(async move { gate.pass(method, path, call).await })
        }
    }

    /// Answers a request that came another way than over the listener, with the same list of paths.
    pub(crate) async fn answer(self: &Arc<Self>, method: &Method, call: Call) -> Reply {
        let paths: &[&'static str] = match *method {
            Method::POST => &POSTS,
            Method::GET => &GETS,
            _ => &[],
        };
        match paths.iter().find(|path| **path == call.uri.path()) {
            Some(path) => self.clone().pass(method.clone(), path, call).await,
            None => {
                let message = "the gate lets no such request through";
                let kind = ErrorKind::InvalidRequestError;
                ApiError::new(404, kind, "not_found", message).into()
            }
        }
    }

    async fn pass(self: Arc<Self>, method: Method, path: &'static str, call: Call) -> Reply {
        let is_work = method == Method::POST;
        let entered = is_work.then(|| Entered::new(&self));
        // Counted first, so that whoever waits for none in flight misses none.
        if is_work && self.is_draining() {
            return draining();
        }
        let mut request = Request::new(call.body);
        *request.method_mut() = method;
        *request.headers_mut() = onward(call.headers);
        request.headers_mut().remove(AUTHORIZATION);
        if let Ok(id) = HeaderValue::from_str(call.id.as_str()) {
            request.headers_mut().insert(REQUEST_ID, id);
        }
        match self.client.forward(&self.engine, path, request).await {
            // A page is no request in flight, however slowly it is read.
            Ok(answer) => relay(answer, entered),
            Err(error) => {
                warn!(request_id = %call.id, path, %error, "engine did not answer");
                unanswered(&error)
            }
        }
    }
}

/// A request in flight until it is dropped.
struct Entered {
    gate: Arc<Gate>,
}

impl Entered {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.in_flight.send_modify(|count| *count += 1);
        Self { gate: gate.clone() }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.gate.in_flight.send_modify(|count| *count -= 1);
    }
}

/// The engine's answer as it comes. Dropped before its end, because the client is gone, it aborts the
/// request in the engine.
fn relay(mut answer: EngineAnswer, entered: Option<Entered>) -> Reply {
    let headers = onward(std::mem::take(&mut answer.headers));
    let status = answer.status;
    let chunks = stream::unfold((answer, entered), |(mut answer, entered)| async {
        let chunk = answer.chunk().await?;
        Some((chunk.map_err(io::Error::other), (answer, entered)))
    });
    Reply {
        status,
        headers,
        body: ReplyBody::Stream(Box::pin(chunks)),
    }
}

/// The headers that go on to the next connection.
fn onward(mut headers: HeaderMap) -> HeaderMap {
    let named = headers.get_all(CONNECTION).iter();
    let named = named.filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|names| names.split(','));
    let named: Vec<HeaderName> = named.filter_map(|name| name.trim().parse().ok()).collect();
    for name in named.iter().chain(&OF_A_CONNECTION) {
        headers.remove(name);
    }
    let of_a_proxy = |name: &&HeaderName| name.as_str().starts_with("proxy-");
    let of_a_proxy: Vec<HeaderName> = headers.keys().filter(of_a_proxy).cloned().collect();
    for name in of_a_proxy {
        headers.remove(name);
    }
    headers
}

fn draining() -> Reply {
    let message = "this engine takes no new requests: it is about to stop";
    let error = ApiError::new(503, ErrorKind::ServiceUnavailable, "draining", message);
    error.retry_after(RETRY_SECS).into()
}

fn unauthorised() -> Reply {
    let message = "an authorization header with a bearer key of this engine's gate is needed";
    let kind = ErrorKind::InvalidRequestError;
    let error = ApiError::new(401, kind, "invalid_api_key", message);
    Reply::from(error).with_header(WWW_AUTHENTICATE, "Bearer")
}

fn unanswered(error: &DispatchError) -> Reply {
    match error {
        DispatchError::Refused { .. } => {
            let message = "the engine does not run now";
            let kind = ErrorKind::ServiceUnavailable;
            let error = ApiError::new(503, kind, GATE_REFUSED, message);
            error.retry_after(RETRY_SECS).into()
        }
        _ => {
            let message = "the engine broke off before its answer";
            ApiError::new(502, ErrorKind::ServerError, GATE_BROKEN_OFF, message).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_connection_stay_behind() {
        let rows = [
            ("connection", "keep-alive, X-Mine"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("host", "h"),
            ("x-data-parallel-rank", "1"),
            ("x-request-id", "r"),
            ("content-type", "application/json"),
        ];
        let header = |(name, value): (&'static str, &'static str)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        };
        let headers = onward(HeaderMap::from_iter(rows.map(header)));
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["content-type", "x-data-parallel-rank", "x-request-id"]
        );
    }

    #[tokio::test]
    async fn idle_is_when_the_last_request_has_gone() {
        let gate = Arc::new(Gate::new("unix:/nonexistent".to_owned()));
        gate.idle().await;
        let (one, two) = (Entered::new(&gate), Entered::new(&gate));
        assert_eq!(gate.in_flight(), 2);
        drop(one);
        let (idle, ()) = tokio::join!(gate.idle(), async { drop(two) });
        assert_eq!((idle, gate.in_flight()), ((), 0));
    }
}
