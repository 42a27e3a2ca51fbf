//! What an engine is sent: a frontend in this process before an engine that keeps what it gets.

mod fields;
mod files;
mod lent;
mod reports;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use kvlens::block::BlockSize;
use kvlens::config::frontend::FrontendConfig;
use kvlens::config::media::MediaConfig;
use kvlens::config::router::RouterConfig;
use kvlens::discovery::plane::Planes;
use kvlens::discovery::{Change, Completeness, Update, WorkerRecord};
use kvlens::dispatch::EngineClient;
use kvlens::frontend::Frontend;
use kvlens::frontend::lending::Lending;
use kvlens::frontend::models::Models;
use kvlens::frontend::recovery::Recovery;
use kvlens::health::Verdict;
use kvlens::http::lent::{Loans, limits as lent_limits};
use kvlens::http::listener::bind;
use kvlens::http::reply::Reply;
use kvlens::http::serve::serve;
use kvlens::http::{Call, Limits, Routes};
use kvlens::id::{Incarnation, WorkerId};
use kvlens::media::Media;
use kvlens::model::Model;
use kvlens::openai::fields::UnknownFields;
use kvlens::openai::request::RequestLimits;
use kvlens::router::Router;
use kvlens::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::end_to_end::client::{Answer, Client};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

/// A frontend and the engine behind it; both end when dropped.
struct Pair {
    client: Client,
    frontend: Arc<Frontend>,
    url: String,
    record: WorkerRecord,
    bodies: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

/// How an engine answers a body.
type Answering = fn(&Value) -> (u16, Value);

/// A plain answer, all of whose prompt was computed.
fn answered(_body: &Value) -> (u16, Value) {
    let usage = json!({
        "prompt_tokens": 100,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    });
    (200, json!({"choices": [], "usage": usage}))
}

fn limits() -> Limits {
    Limits {
        body_bytes_max: 64 << 20,
        bodies_in_flight_bytes_max: 256 << 20,
        header_bytes_max: 64 << 10,
        header_read: Duration::from_secs(10),
        body_read: Duration::from_secs(10),
        connections_max: 64,
    }
}

async fn listen(routes: Routes, tasks: &mut JoinSet<()>) -> String {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    tasks.spawn(serve(listener, routes, limits(), CancellationToken::new()));
    format!("http://{address}")
}

/// The images that the engine is to fetch, and their listener.
async fn lending(media: &MediaConfig, tasks: &mut JoinSet<()>) -> Option<Arc<Lending>> {
    let listener = bind(media.http_listen?).await.expect("a free port");
    let origin = media.http_origin(listener.local_addr().expect("bound"));
    let loans = Loans::new(&origin, media.http_bytes_max);
    let stop = CancellationToken::new();
    tasks.spawn(serve(listener, loans.routes(), lent_limits(), stop));
    Some(Arc::new(Lending::new(loans)))
}

impl Pair {
    async fn start(media: MediaConfig, answering: Answering) -> Self {
        let mut tasks = JoinSet::new();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let mut engine = Routes::default();
        for path in [CHAT, COMPLETION, EMBEDDINGS] {
            let bodies = bodies.clone();
            engine = engine.post(path, move |call: Call| {
                let body: Value = serde_json::from_slice(&call.body).expect("JSON");
                let (status, answer) = answering(&body);
                bodies.lock().expect("no test panics here").push(body);
                let status = StatusCode::from_u16(status).expect("a status");
                let reply = Reply::json(status, &answer);
                Box::pin(async move { reply })
            });
        }
        let engine = listen(engine, &mut tasks).await;
        let metrics = Arc::new(Metrics::default());
        let lending = lending(&media, &mut tasks).await;
        let frontend = Arc::new(Frontend {
            limits: RequestLimits {
                messages_max: 16,
                images_max: 16,
                unknown_fields: UnknownFields::Pass,
            },
            sse_event_bytes_max: 1 << 20,
            expose_routing: true,
            allow_overrides: true,
            recovery: Recovery::new(&FrontendConfig::default()),
            router: Router::new(&RouterConfig::default(), metrics.clone()),
            remote: None,
            planes: Planes::default(),
            models: Models::of([(
                "demo".to_owned(),
                Arc::new(Model::demo().expect("it is in the binary")),
            )]),
            hash_key: None,
            media: Some(Media::new(media).expect("a sound policy")),
            lending,
            client: EngineClient::new(),
            metrics,
            tenants: Arc::default(),
            listening: CancellationToken::new(),
            settling: CancellationToken::new(),
        });
        let url = listen(frontend.routes(), &mut tasks).await;
        let worker = WorkerId::new("w").expect("a legal name");
        let mut record = WorkerRecord::new(worker, &engine, "demo");
        record.incarnation = Incarnation(1);
        record.block_size = BlockSize::new(16);
        record.verdict = Verdict::Healthy;
        record.ledger.completeness = Completeness::Complete;
        let pair = Self {
            client: Client::new(),
            frontend,
            url,
            record,
            bodies,
            _tasks: tasks,
        };
        pair.up(|_| {});
        pair
    }

    /// The worker's record as it was first, but for a change.
    fn up(&self, change: impl Fn(&mut WorkerRecord)) {
        let mut record = self.record.clone();
        change(&mut record);
        let up = Update::Change(Change::Up(Box::new(record)));
        self.frontend.router.apply(up);
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.client.post(&format!("{}{path}", self.url), body).await
    }

    /// What the engine got since the last time.
    fn taken(&self) -> Vec<Value> {
        std::mem::take(&mut *self.bodies.lock().expect("no test panics here"))
    }

    /// Sends what must be answered; the one body that the engine got.
    async fn sent(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut taken = self.taken();
        assert_eq!(taken.len(), 1, "{taken:?}");
        taken.remove(0)
    }

    /// Whether the metrics have this line.
    fn counts(&self, line: &str) -> bool {
        let page = self.frontend.metrics.encode();
        page.lines().any(|found| found == line)
    }
}
