//! An engine whose gate is on the bus, and one who asks there.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use kvlens::bus::Bus;
use kvlens::config::frontend::LimitsConfig;
use kvlens::config::network::Network;
use kvlens::dispatch::plane::BusPlane;
use kvlens::dispatch::{DispatchError, EngineAnswer, EngineClient, EngineRequest};
use kvlens::engine::gate::Gate;
use kvlens::engine::requests::Requests;
use kvlens::http::Limits;
use kvlens::http::lent::{self, Loans};
use kvlens::http::serve::serve;
use kvlens::id::{DpRank, RequestId, WorkerId};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bus::server::Server;
use crate::end_to_end::stack::until;

/// Longest wait for what comes at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const NOBODY: &str = "http://127.0.0.1:1";

/// An engine that answers as its request says.
pub(crate) struct Engine {
    pub(crate) address: String,
    /// Answers that are being given.
    pub(crate) open: Arc<AtomicUsize>,
    /// Pieces that they have given.
    pub(crate) given: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Engine {
    pub(crate) async fn start() -> Self {
        let (open, given) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let counts = (open.clone(), given.clone());
        let streams = move |body: Bytes| async move { streamed(&body, &counts) };
        let tells = |headers: HeaderMap, body: Bytes| async move {
            let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
            let told = json!({
                "id": header("x-request-id"), "rank": header("x-data-parallel-rank"),
                "type": header("content-type"), "digest": blake3::hash(&body).to_string(),
            });
            (StatusCode::ACCEPTED, [("x-mine", "kept")], told.to_string())
        };
        let routes = Router::new()
            .route("/v1/completions", post(streams))
            .route("/tokenize", post(tells))
            .route("/health", get(async || ""))
            .route("/reset_prefix_cache", post(async || "reset"))
            .layer(axum::extract::DefaultBodyLimit::max(64 << 20));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, routes).await.expect("serve") });
        Self {
            address,
            open,
            given,
            _tasks: tasks,
        }
    }
}

/// A stream of pieces as a request wants it.
pub(crate) fn streamed(body: &[u8], (open, given): &(Arc<AtomicUsize>, Arc<AtomicUsize>)) -> Body {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let wish: Value = serde_json::from_slice(body).expect("JSON");
    let number = |name: &str| wish[name].as_u64().unwrap_or(0);
    let (pieces, bytes, pause) = (number("pieces"), number("bytes"), number("pause_millis"));
    let breaks = wish["breaks"] == true;
    open.fetch_add(1, Ordering::SeqCst);
    let state = (Counted(open.clone()), given.clone());
    let pieces = stream::unfold((0, state), move |(at, state)| async move {
        sleep(Duration::from_millis(pause)).await;
        state.1.fetch_add(1, Ordering::SeqCst);
        let piece = Bytes::from(vec![at as u8; ((at * 7_919) % bytes + 1) as usize]);
        let item = match at {
            at if at == pieces && breaks => Err(std::io::Error::other("it died")),
            at if at >= pieces => return None,
            _ => Ok(piece),
        };
        Some((item, (at + 1, state)))
    });
    Body::from_stream(pieces)
}

pub(crate) fn worker() -> WorkerId {
    WorkerId::new("w").expect("a name")
}

pub(crate) fn request<'a>(
    path: &'static str,
    body: impl Into<Bytes>,
    id: &'a RequestId,
) -> EngineRequest<'a> {
    EngineRequest {
        path,
        id,
        rank: Some(DpRank(3)),
        body: body.into(),
    }
}

/// Asks for pieces.
pub(crate) async fn asked(
    client: &EngineClient,
    wish: &Value,
) -> Result<EngineAnswer, DispatchError> {
    let (worker, id) = (worker(), RequestId::from_client("r-1").expect("an id"));
    let request = request("/v1/completions", wish.to_string(), &id);
    let answer = client.ask((&worker, NOBODY), request);
    timeout(PATIENCE, answer).await.expect("an answer in time")
}

pub(crate) async fn told(
    client: &EngineClient,
    body: Bytes,
) -> Result<EngineAnswer, DispatchError> {
    let (worker, id) = (worker(), RequestId::from_client("r-1").expect("an id"));
    let answer = client.ask((&worker, NOBODY), request("/tokenize", body, &id));
    timeout(PATIENCE, answer).await.expect("an answer in time")
}

pub(crate) async fn json_of(answer: EngineAnswer) -> Value {
    let body = answer.whole().await.expect("a whole answer");
    serde_json::from_slice(&body).expect("JSON")
}

/// What an error and its causes say.
pub(crate) fn causes(error: &dyn Error) -> String {
    let source = error.source().map(causes).unwrap_or_default();
    format!("{error}: {source}")
}

/// An engine, its gate on the bus, and one who asks there.
pub(crate) struct Party {
    pub(crate) server: Server,
    pub(crate) engine: Engine,
    pub(crate) gate: Arc<Gate>,
    /// The gate on the bus.
    pub(crate) gate_tasks: JoinSet<()>,
    pub(crate) bus: Bus,
    pub(crate) client: EngineClient,
    pub(crate) tasks: JoinSet<()>,
}

impl Party {
    pub(crate) async fn start() -> Self {
        Self::within(&[]).await
    }

    pub(crate) async fn within(networks: &[Network]) -> Self {
        let server = Server::start().await;
        let buses = (server.bus("w").await, server.bus("frontend").await);
        Self::over(server, buses, networks).await
    }

    /// A gate and a frontend that are connected already.
    pub(crate) async fn over(
        server: Server,
        (of_gate, bus): (Bus, Bus),
        networks: &[Network],
    ) -> Self {
        let engine = Engine::start().await;
        let gate = Arc::new(Gate::new(engine.address.clone()));
        let limits = Limits::from(&LimitsConfig::default());
        let to = (of_gate, worker());
        let requests = Requests::new(gate.clone(), to, limits, networks);
        let mut gate_tasks = JoinSet::new();
        gate_tasks.spawn(requests.run(CancellationToken::new()));
        let (plane, telling) = BusPlane::new(bus.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(telling.run());
        let party = Self {
            server,
            engine,
            gate,
            gate_tasks,
            bus,
            client: EngineClient::new().over(plane),
            tasks,
        };
        until("the gate is asked", async || {
            told(&party.client, Bytes::new()).await.is_ok()
        })
        .await;
        party
    }

    pub(crate) async fn until_open(&self, answers: usize) {
        let open = || self.engine.open.load(Ordering::SeqCst);
        until("so many are open", async || open() == answers).await;
    }

    /// A client whose frontend lends.
    pub(crate) async fn lender(&mut self) -> EngineClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let origin = format!("http://{}", listener.local_addr().expect("bound"));
        let loans = Loans::new(&origin, 64 << 20);
        let (routes, stop) = (loans.routes(), CancellationToken::new());
        self.tasks
            .spawn(serve(listener, routes, lent::limits(), stop));
        self.client.clone().lending(Some(loans))
    }
}
