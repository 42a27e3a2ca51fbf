//! Counts and times each request, from its handler's start to its answer's last byte.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use crate::http::reply::{Reply, ReplyBody};
use crate::openai::error::ApiError;
use crate::telemetry::labels::{Endpoint, EndpointLabels, RequestLabels};
use crate::telemetry::metrics::Metrics;

/// The status under which a client that left before its answer is counted, as nginx has it.
const CLIENT_CLOSED: u16 = 499;

/// A request in flight; its end, however it comes, is recorded by `Drop`.
#[derive(Debug)]
struct Watch {
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    started: Instant,
    is_answered: bool,
}

impl Watch {
    fn answered(&mut self, status: u16) {
        let labels = RequestLabels {
            endpoint: self.endpoint,
            status: u32::from(status),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        self.is_answered = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.is_answered {
            // Dropped by a panic, which is answered 500, or with its connection.
            self.answered(if std::thread::panicking() {
                500
            } else {
                CLIENT_CLOSED
            });
        }
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
    let mut watch = Watch {
        metrics,
        endpoint,
        started: Instant::now(),
        is_answered: false,
    };
    let reply = answer.await.unwrap_or_else(Reply::from);
    watch.answered(reply.status.as_u16());
    let body = match reply.body {
        ReplyBody::Full(bytes) => ReplyBody::Full(bytes),
        ReplyBody::Stream(stream) => ReplyBody::Stream(Box::pin(stream.inspect(move |_| {
            // The closure owns the watch: it ends with the stream.
            let _ = &watch;
        }))),
    };
    Reply { body, ..reply }
}
