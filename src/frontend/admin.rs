//! The admin listener's pages: metrics, workers, and why a request would go where.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::http::StatusCode;
use serde_json::{Value, json};

use crate::discovery::gpus;
use crate::frontend::Frontend;
use crate::frontend::chat::PreparedChat;
use crate::frontend::prompt::Exactness;
use crate::http::Call;
use crate::http::reply::Reply;
use crate::http::serve::panics_total;
use crate::media::Image;
use crate::openai::error::ApiError;
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};

/// The header that says for which tenant to explain: who reaches this listener has no tenants' keys.
pub const TENANT: &str = "x-kvlens-tenant";

impl Frontend {
    /// Answers `GET /metrics`.
    pub(crate) async fn metrics_page(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let Metrics {
            panics,
            media_cache_hits,
            media_cache,
            ..
        } = &*self.metrics;
        // Counted elsewhere: set, not added, so that two readers at once count nothing twice.
        panics.inner().store(panics_total(), Ordering::Relaxed);
        self.router.show();
        self.planes.show(&self.metrics);
        if let Some(media) = &self.media {
            let counts = media.cache_counts();
            media_cache_hits
                .inner()
                .store(counts.hits, Ordering::Relaxed);
            media_cache.set(counts.bytes as i64);
        }
        Ok(Reply::full(
            StatusCode::OK,
            CONTENT_TYPE,
            self.metrics.encode(),
        ))
    }

    /// Answers `GET /kvlens/v1/workers`; where routers elsewhere choose among them, those that are there
    /// too, in the order in which they are asked.
    pub(crate) async fn list_workers(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let mut body = json!({"workers": self.router.workers()});
        if let Some(remote) = &self.remote {
            body["routers"] = json!(remote.routers());
        }
        Ok(Reply::json(StatusCode::OK, &body))
    }

    /// Answers `GET /kvlens/v1/gpus`: how each GPU of each worker is.
    pub(crate) async fn list_gpus(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let workers = self.router.workers();
        let page = gpus::page(workers.iter().map(|worker| &worker.record));
        Ok(Reply::json(StatusCode::OK, &page))
    }

    /// Answers `POST /kvlens/v1/explain`: where a chat request would go now, and every term of
    /// every candidate's cost, for the tenant of [`TENANT`]; with `return_token_ids` the prompt as far as it is known, too.
    /// Nothing is placed or sent; image URLs are fetched.
    pub(crate) async fn explain(self: Arc<Self>, call: Call) -> Result<Reply, ApiError> {
        let wish = self.wish(&call.headers)?;
        let tenant = call.headers.get(TENANT).and_then(|name| name.to_str().ok());
        let tenant = tenant.unwrap_or_default().into();
        let chat = self.prepare_chat(&call.body, &tenant).await?;
        let exactness = match chat.exactness {
            Exactness::Exact => "exact",
            Exactness::TextOnly { .. } => "text_only",
        };
        let placed = match &self.remote {
            Some(remote) => remote.explain(&chat.footprint, &wish).await,
            None => None,
        };
        let placed = placed.and_then(|text| serde_json::from_str(&text).ok());
        let mut body = placed.unwrap_or_else(|| {
            json!({
                "mode": wish.mode.unwrap_or(self.router.mode()),
                "formula": self.router.formula(),
                "candidates": self.router.explain(&chat.footprint, &wish),
            })
        });
        let request = json!({
            "model": &*chat.footprint.model,
            "prompt_tokens": chat.footprint.prompt_tokens,
            "mm": exactness,
            "images": images(&chat),
        });
        if let (Value::Object(body), Value::Object(request)) = (&mut body, request) {
            body.extend(request);
        }
        if chat.request.options.passed.get("return_token_ids") == Some(&Value::Bool(true)) {
            body["prompt_token_ids"] = json!(chat.prompt.tokens);
        }
        Ok(Reply::json(StatusCode::OK, &body))
    }
}

/// Each image of a chat, and where its tokens lie in the prompt; null where that is not known.
fn images(chat: &PreparedChat) -> Vec<Value> {
    let image = |(index, image): (usize, &Image)| {
        let size = image.size.map(|size| [size.width, size.height]);
        let span = chat.prompt.spans.get(index);
        json!({
            "digest": image.digest.to_string(),
            "size": size,
            "mime": image.mime,
            "span": span.map(|span| [span.start, span.token_count]),
        })
    };
    chat.images.iter().enumerate().map(image).collect()
}
