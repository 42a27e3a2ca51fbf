//! Sends requests to engines and takes their answers back. Nothing else names hyper's client.

pub mod request;
pub mod stream;

use std::time::Duration;

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use ::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::id::{DpRank, RequestId};

/// Pins a request to one data-parallel rank; vLLM reads it.
const RANK: HeaderName = HeaderName::from_static("x-data-parallel-rank");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An engine on loopback or in the next rack that has not accepted by then will not.
const CONNECT: Duration = Duration::from_secs(3);

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
    #[error("engine at {address} refused the connection")]
    Refused {
        address: String,
        source: hyper_util::client::legacy::Error,
    },
    /// The engine may have died of the request.
    #[error("engine at {address} broke off before its answer")]
    BrokenOff {
        address: String,
        source: hyper_util::client::legacy::Error,
    },
    #[error("engine at {address} broke off inside its answer")]
    CutAnswer {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("engine at {address} did not answer within {waited:?}")]
    Timeout { address: String, waited: Duration },
    #[error("{address} is not the address of an engine")]
    Address {
        address: String,
        source: ::http::Error,
    },
}

/// What goes to an engine.
#[derive(Debug)]
pub struct EngineRequest<'a> {
    pub path: &'static str,
    pub id: &'a RequestId,
    /// `None` lets the engine choose.
    pub rank: Option<DpRank>,
    pub body: Bytes,
}

/// An engine's answer, its head read. Dropped before its end, it closes the connection, which aborts
/// the request in the engine.
#[derive(Debug)]
pub struct EngineAnswer {
    pub status: StatusCode,
    address: String,
    body: Incoming,
}

/// A pool of connections to engines.
#[derive(Clone, Debug)]
pub struct EngineClient {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Default for EngineClient {
    fn default() -> Self {
        Self::new()
    }
}

impl EngineClient {
    /// A client with no connections yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Self { client }
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
        let mut builder = Request::post(format!("{address}{}", request.path))
            .header(CONTENT_TYPE, "application/json")
            .header(REQUEST_ID, request.id.as_str());
        if let Some(rank) = request.rank {
            builder = builder.header(RANK, rank.0);
        }
        let sent = builder.body(Full::new(request.body));
        let sent = sent.map_err(|source| DispatchError::Address {
            address: address.to_owned(),
            source,
        })?;
        let response = self.client.request(sent).await;
        let response = response.map_err(|source| failed(address, source))?;
        Ok(EngineAnswer {
            status: response.status(),
            address: address.to_owned(),
            body: response.into_body(),
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
        let request = Request::get(format!("{address}{path}")).body(Full::default());
        let request = request.map_err(|source| DispatchError::Address {
            address: address.to_owned(),
            source,
        })?;
        let asked = async {
            let response = self.client.request(request).await;
            let response = response.map_err(|source| failed(address, source))?;
            let status = response.status();
            let body = response.into_body();
            let answer = EngineAnswer {
                status,
                address: address.to_owned(),
                body,
            };
            Ok((status, answer.whole().await?))
        };
        tokio::time::timeout(deadline, asked)
            .await
            .unwrap_or_else(|_| {
                Err(DispatchError::Timeout {
                    address: address.to_owned(),
                    waited: deadline,
                })
            })
    }
}

impl EngineClient {
    /// Opens a page that need not end (an agent's feed), and returns when its head is there. `key`
    /// goes with it as a bearer key.
    ///
    /// # Errors
    /// When the server cannot be reached, breaks off, or takes longer than `deadline`.
    pub async fn open(
        &self,
        address: &str,
        path: &str,
        key: Option<&str>,
        deadline: Duration,
    ) -> Result<EngineAnswer, DispatchError> {
        let mut request = Request::get(format!("{address}{path}"));
        if let Some(key) = key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::default());
        let request = request.map_err(|source| DispatchError::Address {
            address: address.to_owned(),
            source,
        })?;
        let asked = tokio::time::timeout(deadline, self.client.request(request)).await;
        let Ok(response) = asked else {
            return Err(DispatchError::Timeout {
                address: address.to_owned(),
                waited: deadline,
            });
        };
        let response = response.map_err(|source| failed(address, source))?;
        Ok(EngineAnswer {
            status: response.status(),
            address: address.to_owned(),
            body: response.into_body(),
        })
    }
}

/// An engine that refused the connection never saw the request; any other failure may be the
/// request's own doing.
fn failed(address: &str, source: hyper_util::client::legacy::Error) -> DispatchError {
    let address = address.to_owned();
    match source.is_connect() {
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
        let collected = Limited::new(self.body, ANSWER_BYTES_MAX).collect().await;
        let collected = collected.map_err(|source| DispatchError::CutAnswer {
            address: self.address,
            source,
        })?;
        Ok(collected.to_bytes())
    }

    /// What comes next, as it came; `None` at the answer's proper end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, DispatchError>> {
        loop {
            match self.body.frame().await? {
                // Trailers say nothing that a client needs.
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(_) => continue,
                },
                Err(source) => {
                    let (address, source) = (self.address.clone(), source.into());
                    return Some(Err(DispatchError::CutAnswer { address, source }));
                }
            }
        }
    }
}
