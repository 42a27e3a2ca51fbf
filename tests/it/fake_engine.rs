//! An engine's HTTP side, as an agent asks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use kvlens::events::zmq::Source;
use kvlens::id::WorkerId;
use kvlens::worker::spec::AgentSpec;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What an engine's HTTP side answers.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    /// The status of `/health`, which may change.
    pub(crate) health: Arc<AtomicU16>,
    pub(crate) models: &'static str,
    pub(crate) metrics: String,
    /// The status and body of `/reset_prefix_cache`; `None` where there is no such path.
    pub(crate) reset: Option<(StatusCode, &'static str)>,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            health: Arc::new(AtomicU16::new(200)),
            models: r#"{"data": [
                {"id": "tiny-vl", "parent": null, "max_model_len": 8192},
                {"id": "gpt-4o", "parent": null}, {"id": "tinylora", "parent": "tiny-vl"}]}"#,
            metrics: "# TYPE vllm:cache_config_info gauge\n\
                vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"5000\"} 1.0\n"
                .to_owned(),
            reset: None,
        }
    }
}

/// An engine's HTTP side on a free port.
pub(crate) struct Engine {
    pub(crate) address: String,
    tasks: JoinSet<()>,
}

impl Engine {
    pub(crate) async fn start(address: &str, pages: Pages) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (health, metrics) = (pages.health, pages.metrics);
        let status = move || StatusCode::from_u16(health.load(Ordering::Relaxed));
        let routes = Router::new()
            .route(
                "/health",
                get(async move || status().expect("a legal status")),
            )
            .route("/version", get(async || r#"{"version": "0.32.0"}"#))
            .route("/v1/models", get(async move || pages.models))
            .route("/metrics", get(async move || metrics));
        let routes = match pages.reset {
            Some(reset) => routes.route("/reset_prefix_cache", post(async move || reset)),
            None => routes,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, routes).await.expect("serve");
        });
        Self { address, tasks }
    }

    /// Kills the process: its listener and its connections close at once.
    pub(crate) async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(crate) fn spec(worker: WorkerId, address: &str, sources: &[Source]) -> AgentSpec {
    AgentSpec {
        aliases: vec!["demo".to_owned()],
        kind: "vllm".to_owned(),
        sources: sources.to_vec(),
        ..AgentSpec::new(worker, &format!("http://{address}"), "tiny-vl")
    }
}
