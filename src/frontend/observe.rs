//! Counts and times each request, from its handler's start to its answer's last byte.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use crate::http::reply::{Reply, ReplyBody};
use crate::openai::error::ApiError;
use crate::telemetry::labels::{Endpoint, EndpointLabels, RequestLabels};
use crate::telemetry::metrics::Metrics;

/// A request in flight; its end, however it comes, is recorded by `Drop`.
#[derive(Debug)]
struct Watch {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    started: Instant,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let labels = EndpointLabels {
            endpoint: self.endpoint,
        };
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics
            .request_duration
            .get_or_create(&labels)
            .observe(seconds);
        self.metrics.in_flight_requests.dec();
    }
}

/// Runs a handler under watch; a stream carries the watch to its end.
pub(crate) async fn observed(
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    answer: impl Future<Output = Result<Reply, ApiError>>,
) -> Reply {
    metrics.in_flight_requests.inc();
    let watch = Watch {
        metrics: metrics.clone(),
        endpoint,
        started: Instant::now(),
    };
    let reply = answer.await.unwrap_or_else(Reply::from);
    let labels = RequestLabels {
        endpoint,
        status: u32::from(reply.status.as_u16()),
    };
    metrics.requests.get_or_create(&labels).inc();
    let body = match reply.body {
        ReplyBody::Full(bytes) => ReplyBody::Full(bytes),
        ReplyBody::Stream(stream) => ReplyBody::Stream(Box::pin(stream.inspect(move |_| {
            // The closure owns the watch: it ends with the stream.
            let _ = &watch;
        }))),
    };
    Reply { body, ..reply }
}
