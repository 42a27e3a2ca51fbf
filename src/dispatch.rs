//! Sends requests to engines and takes their answers back. Nothing else names hyper's client.

mod body;
pub mod own;
pub mod parts;
pub mod plane;
pub mod request;
pub mod stream;
mod unix;
mod workers;

use std::time::Duration;

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use ::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::bus::BusError;
use crate::dispatch::body::AnswerBody;
use crate::dispatch::unix::UnixConnector;
use crate::dispatch::workers::Plane;
use crate::http::lent::LendError;
use crate::id::{DpRank, RequestId};

/// Pins a request to one data-parallel rank; vLLM reads it.
const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An engine on loopback or in the next rack that has not accepted by then will not.
const CONNECT: Duration = Duration::from_secs(3);

/// A connection on which nothing comes is asked for a sign from then on: a host that is cut off while
/// it answers shows within ten seconds, and an engine that computes for long does not mind.
const QUIET_MAX: Duration = Duration::from_secs(3);
const SIGN_EVERY: Duration = Duration::from_secs(2);
const SIGNS_MAX: u32 = 3;

/// Longest time for what was sent to be taken. A host takes some of it without its processes; an engine
/// that is busy reads the rest of a large body within seconds.
const UNTAKEN_MAX: Duration = Duration::from_secs(30);

/// Idle connections kept per engine: enough that a busy frontend never waits for a handshake.
const IDLE_CONNECTIONS_MAX: usize = 256;

/// An idle connection is given up before vLLM gives it up (after 5 s): a request that meets the
/// closing would look like one its engine died of.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Largest answer that is read whole: some 100,000 tokens with log-probabilities.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why an engine did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// The request never reached the engine, so it may go to any other.
    #[error("{address} refused the connection")]
    Refused {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine may have died of the request.
    #[error("{address} broke off before its answer")]
    BrokenOff {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{address} broke off inside its answer")]
    CutAnswer {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{address} did not answer within {waited:?}")]
    Timeout { address: String, waited: Duration },
    #[error("{address} is not the address of an engine")]
    Address {
        address: String,
        source: ::http::uri::InvalidUri,
    },
    /// No engine is to blame, and none can be asked.
    #[error("the request did not go out over the bus")]
    Plane { source: BusError },
    /// Nor is one to blame for this, and another may be asked once the bus is back.
    #[error("the bus went away under an answer")]
    CutPlane { source: BusError },
    #[error("a body of {bytes} bytes is over the bus' limit of {bytes_max}, and none can be lent")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("a body over the bus' limit is not lent")]
    NotLent(#[from] LendError),
}

/// By which codes an engine's gate says that there is no answer of the engine's own, for those who
/// cannot see its connections themselves: it broke off, and may have died of the request.
pub const GATE_BROKEN_OFF: &str = "engine_failed";

/// It does not run, and never got the request.
pub const GATE_REFUSED: &str = "engine_unavailable";

/// It did not get a body that it was to fetch: the engine never saw the request, and has no part in it.
pub const GATE_NOT_FETCHED: &str = "body_not_fetched";

/// What goes to an engine.
#[derive(Debug)]
pub struct EngineRequest<'a> {
    pub path: &'static str,
    pub id: &'a RequestId,
    /// `None` lets the engine choose.
    pub rank: Option<DpRank>,
    pub body: Bytes,
}

impl EngineRequest<'_> {
    /// The request as it goes to the engine, but for its URI.
    fn sent(self) -> Request<Bytes> {
        let mut sent = Request::new(self.body);
        *sent.method_mut() = Method::POST;
        let headers = sent.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // A request id has only characters that a header may have.
        if let Ok(id) = HeaderValue::from_str(self.id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(rank) = self.rank {
            headers.insert(RANK, rank.0.into());
        }
        sent
    }
}

/// An engine's answer, its head read. Dropped before its end, it closes the connection, which aborts
/// the request in the engine.
#[derive(Debug)]
pub struct EngineAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    address: String,
    body: AnswerBody,
}

/// A pool of connections to engines, whose addresses are `http://host:port` or `unix:/path`; workers'
/// engines may be reached over the bus instead.
#[derive(Clone, Debug)]
pub struct EngineClient {
    tcp: Client<HttpConnector, Full<Bytes>>,
    unix: Client<UnixConnector, Full<Bytes>>,
    /// Shown with every request, as agents and gates ask for it.
    key: Option<HeaderValue>,
    plane: Plane,
}

impl Default for EngineClient {
    fn default() -> Self {
        Self::new()
    }
}

impl EngineClient {
    /// A client with no connections yet.
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(QUIET_MAX));
        tcp.set_keepalive_interval(Some(SIGN_EVERY));
        tcp.set_keepalive_retries(Some(SIGNS_MAX));
        tcp.set_tcp_user_timeout(Some(UNTAKEN_MAX));
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_MAX);
        Self {
            tcp: builder.build(tcp),
            unix: builder.build(UnixConnector { connect: CONNECT }),
            key: None,
            plane: Plane::Http,
        }
    }

    /// A client that shows a bearer key. One that no header can carry is not shown.
    pub fn with_key(key: Option<&str>) -> Self {
        let shown = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
        Self {
            key: shown.map(|mut shown| {
                shown.set_sensitive(true);
                shown
            }),
            ..Self::new()
        }
    }

    /// Sends a request and returns when the answer's head is there. Dropping the future, or the
    /// answer, closes the connection, which aborts the request in the engine.
    ///
    /// # Errors
    /// When the engine cannot be reached or breaks off before its answer.
    pub async fn send(
        &self,
        address: &str,
        request: EngineRequest<'_>,
    ) -> Result<EngineAnswer, DispatchError> {
        let (path, sent) = (request.path, request.sent());
        self.forward(address, path, sent).await
    }

    /// Sends a request with the method and the headers it has, its URI aside, to `path` (and query)
    /// of the engine; otherwise as [`EngineClient::send`].
    ///
    /// # Errors
    /// When the engine cannot be reached or breaks off before its answer.
    pub async fn forward(
        &self,
        address: &str,
        path: &str,
        request: Request<Bytes>,
    ) -> Result<EngineAnswer, DispatchError> {
        let socket = unix::socket_path(address);
        let uri = match socket {
            Some(socket) => unix::uri(socket, path).parse(),
            None => format!("{address}{path}").parse(),
        };
        let mut request = request.map(Full::new);
        let key = self.key.iter().map(|key| (AUTHORIZATION, key.clone()));
        request.headers_mut().extend(key);
        *request.uri_mut() = uri.map_err(|source| DispatchError::Address {
            address: address.to_owned(),
            source,
        })?;
        let answered = match socket {
            Some(_) => {
                let host = HeaderValue::from_static("localhost");
                request.headers_mut().insert(HOST, host);
                self.unix.request(request).await
            }
            None => self.tcp.request(request).await,
        };
        let (head, body) = answered
            .map_err(|source| failed(address, source))?
            .into_parts();
        Ok(EngineAnswer {
            status: head.status,
            headers: head.headers,
            address: address.to_owned(),
            body: AnswerBody::Http(body),
        })
    }

    /// Asks an engine for a small page (`/health`, `/metrics`) and reads it whole.
    ///
    /// # Errors
    /// When the engine cannot be reached, breaks off, or takes longer than `deadline`.
    pub async fn get(
        &self,
        address: &str,
        path: &str,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), DispatchError> {
        let asked = async {
            let answer = self
                .forward(address, path, Request::new(Bytes::new()))
                .await?;
            Ok((answer.status, answer.whole().await?))
        };
        in_time(address, deadline, asked).await
    }

    /// Opens a page that need not end (an agent's feed), and returns when its head is there.
    ///
    /// # Errors
    /// When the server cannot be reached, breaks off, or takes longer than `deadline`.
    pub async fn open(
        &self,
        address: &str,
        path: &str,
        deadline: Duration,
    ) -> Result<EngineAnswer, DispatchError> {
        let asked = self.forward(address, path, Request::new(Bytes::new()));
        in_time(address, deadline, asked).await
    }
}

async fn in_time<T>(
    address: &str,
    deadline: Duration,
    asked: impl Future<Output = Result<T, DispatchError>>,
) -> Result<T, DispatchError> {
    let answered = tokio::time::timeout(deadline, asked).await;
    answered.unwrap_or_else(|_| {
        Err(DispatchError::Timeout {
            address: address.to_owned(),
            waited: deadline,
        })
    })
}

/// An engine that refused the connection never saw the request; any other failure may be the
/// request's own doing.
fn failed(address: &str, source: hyper_util::client::legacy::Error) -> DispatchError {
    let address = address.to_owned();
    let is_refused = source.is_connect();
    let source = Box::new(source);
    match is_refused {
        true => DispatchError::Refused { address, source },
        false => DispatchError::BrokenOff { address, source },
    }
}

impl EngineAnswer {
    /// The rest of the answer.
    ///
    /// # Errors
    /// When the engine breaks off, or the answer is over 64 MiB.
    pub async fn whole(self) -> Result<Bytes, DispatchError> {
        let whole = self.body.whole(ANSWER_BYTES_MAX).await;
        whole.map_err(|cut| cut.at(&self.address))
    }

    /// What comes next, as it came; `None` at the answer's proper end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, DispatchError>> {
        let chunk = self.body.chunk().await?;
        Some(chunk.map_err(|cut| cut.at(&self.address)))
    }
}

#[cfg(test)]
mod tests;
