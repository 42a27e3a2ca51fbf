//! The admin listener's pages: metrics, workers, and why a request would go where.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::json;

use crate::frontend::Frontend;
use crate::frontend::prompt::Exactness;
use crate::http::Call;
use crate::http::reply::Reply;
use crate::http::serve::panics_total;
use crate::openai::error::ApiError;
use crate::telemetry::metrics::CONTENT_TYPE;

impl Frontend {
    /// Answers `GET /metrics`.
    pub(crate) async fn metrics_page(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let uncounted = panics_total().saturating_sub(self.metrics.panics.get());
        self.metrics.panics.inc_by(uncounted);
        if let Some(media) = &self.media {
            let counts = media.cache_counts();
            let uncounted = counts
                .hits
                .saturating_sub(self.metrics.media_cache_hits.get());
            self.metrics.media_cache_hits.inc_by(uncounted);
            self.metrics.media_cache.set(counts.bytes as i64);
        }
        Ok(Reply::full(
            StatusCode::OK,
            CONTENT_TYPE,
            self.metrics.encode(),
        ))
    }

    /// Answers `GET /kvlens/v1/workers`.
    pub(crate) async fn list_workers(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        Ok(Reply::json(
            StatusCode::OK,
            &json!({"workers": self.router.workers()}),
        ))
    }

    /// Answers `POST /kvlens/v1/explain`: where a chat request would go now, and every term of
    /// every candidate's cost. Nothing is placed or sent; image URLs are fetched.
    pub(crate) async fn explain(self: Arc<Self>, call: Call) -> Result<Reply, ApiError> {
        let chat = self.prepare_chat(&call.body).await?;
        let candidates = self.router.explain(&chat.footprint);
        let images = chat.images.iter().map(|image| {
            let size = image.size.map(|size| [size.width, size.height]);
            json!({"digest": image.digest.to_string(), "size": size, "mime": image.mime})
        });
        let exactness = match chat.exactness {
            Exactness::Exact => "exact",
            Exactness::TextOnly { .. } => "text_only",
        };
        let body = json!({
            "model": &*chat.footprint.model,
            "mode": self.router.mode(),
            "prompt_tokens": chat.footprint.prompt_tokens,
            "mm": exactness,
            "images": images.collect::<Vec<_>>(),
            "candidates": candidates,
        });
        Ok(Reply::json(StatusCode::OK, &body))
    }
}
