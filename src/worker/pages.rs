//! What the agent's own listener answers: its feed, its record, its metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::StatusCode;
use ::http::header::CONTENT_TYPE;
use serde_json::json;

use crate::discovery::feed::FEED_PATH;
use crate::discovery::gpus::{self, GPUS_PATH};
use crate::discovery::model_files::{MODEL_FILES_PATH, MODEL_PATH};
use crate::discovery::plane::Planes;
use crate::http::keys::{Keys, guarded};
use crate::http::reply::Reply;
use crate::http::serve::panics_total;
use crate::http::{Answer, Call, Limits, Routes};
use crate::openai::error::{ApiError, ErrorKind};
use crate::telemetry::metrics::{self, Metrics};
use crate::worker::feed::{Feed, FollowError};
use crate::worker::model_files::Shelf;
use crate::worker::reset;

/// The media type of one JSON value a line.
const LINES: &str = "application/x-ndjson";

/// What the listener's pages show.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) feed: Arc<Feed>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) planes: Planes,
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) shelf: Arc<Shelf>,
}

/// Small bounds: routers and operators send next to nothing.
pub(crate) fn limits() -> Limits {
    Limits {
        body_bytes_max: 64 << 10,
        bodies_in_flight_bytes_max: 1 << 20,
        header_bytes_max: 16 << 10,
        header_read: Duration::from_secs(10),
        body_read: Duration::from_secs(10),
        connections_max: 256,
    }
}

impl Agent {
    /// The routes; all but the two that a supervisor asks need a key, where there are keys.
    pub(crate) fn routes(self: &Arc<Self>, resets: reset::Agents) -> Routes {
        let keyed = |handler| guarded(self.keys.clone(), handler);
        Routes::default()
            .get(FEED_PATH, keyed(self.page(Self::follow)))
            .get("/kvlens/v1/workers", keyed(self.page(Self::workers)))
            .get(GPUS_PATH, keyed(self.page(Self::gpus)))
            .get(MODEL_PATH, keyed(self.page(Self::model)))
            .get(MODEL_FILES_PATH, keyed(self.model_files()))
            .post("/kvlens/v1/deregister", keyed(self.page(Self::deregister)))
            .post(reset::PATH, keyed(resets.handler()))
            .get("/metrics", keyed(self.page(Self::metrics)))
            .get("/live", self.page(Self::live))
            .get("/ready", self.page(Self::ready))
    }

    fn page<F, A>(self: &Arc<Self>, handler: F) -> Box<dyn Fn(Call) -> Answer + Send + Sync>
    where
        F: Fn(Arc<Self>) -> A + Copy + Send + Sync + 'static,
        A: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        let agent = self.clone();
        Box::new(move |_| {
            let answer = handler(agent.clone());
            Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
        })
    }

    async fn follow(self: Arc<Self>) -> Result<Reply, ApiError> {
        let lines = self.feed.follow().await.map_err(|error| {
            let code = match error {
                FollowError::TooMany => "too_many_followers",
                FollowError::NoRecord => "nothing_known",
                FollowError::Closed => "stopping",
            };
            unavailable(code, &error.to_string())
        })?;
        Ok(Reply::events(lines).with_header(CONTENT_TYPE, LINES))
    }

    async fn workers(self: Arc<Self>) -> Result<Reply, ApiError> {
        let record = self.feed.record().borrow().clone();
        let workers: Vec<_> = record.into_iter().collect();
        Ok(Reply::json(StatusCode::OK, &json!({"workers": workers})))
    }

    async fn gpus(self: Arc<Self>) -> Result<Reply, ApiError> {
        let record = self.feed.record().borrow().clone();
        let page = gpus::page(record.as_deref());
        Ok(Reply::json(StatusCode::OK, &page))
    }

    async fn model(self: Arc<Self>) -> Result<Reply, ApiError> {
        self.shelf.list()
    }

    fn model_files(&self) -> Box<dyn Fn(Call) -> Answer + Send + Sync> {
        let shelf = self.shelf.clone();
        Box::new(move |call| {
            let reply = shelf
                .send(call.uri.query().unwrap_or_default())
                .unwrap_or_else(Reply::from);
            Box::pin(std::future::ready(reply))
        })
    }

    async fn deregister(self: Arc<Self>) -> Result<Reply, ApiError> {
        self.feed.deregister();
        let body = json!({"status": "deregistered"});
        Ok(Reply::json(StatusCode::OK, &body))
    }

    async fn metrics(self: Arc<Self>) -> Result<Reply, ApiError> {
        // Counted elsewhere: set, not added, so that two readers at once count nothing twice.
        let panics = self.metrics.panics.inner();
        panics.store(panics_total(), Ordering::Relaxed);
        self.planes.show(&self.metrics);
        let text = self.metrics.encode();
        Ok(Reply::full(StatusCode::OK, metrics::CONTENT_TYPE, text))
    }

    async fn live(self: Arc<Self>) -> Result<Reply, ApiError> {
        Ok(Reply::json(StatusCode::OK, &json!({"status": "live"})))
    }

    /// 200 while the engine takes requests.
    async fn ready(self: Arc<Self>) -> Result<Reply, ApiError> {
        if self.feed.is_deregistered() {
            return Err(unavailable("deregistered", "the worker is deregistered"));
        }
        let Some(record) = self.feed.record().borrow().clone() else {
            let message = FollowError::NoRecord.to_string();
            return Err(unavailable("not_ready", &message));
        };
        if !record.verdict.takes_requests() {
            let cause = record
                .cause
                .unwrap_or_else(|| format!("{:?}", record.verdict));
            return Err(unavailable("not_ready", &cause));
        }
        let body = json!({"status": "ready", "worker": record.worker});
        Ok(Reply::json(StatusCode::OK, &body))
    }
}

fn unavailable(code: &'static str, message: &str) -> ApiError {
    ApiError::new(503, ErrorKind::ServiceUnavailable, code, message).retry_after(1)
}
