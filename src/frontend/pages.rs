//! Models, and whether we are alive and ready.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::json;

use crate::frontend::{Asked, Frontend, error};
use crate::http::Call;
use crate::http::reply::Reply;
use crate::openai::error::ApiError;

impl Frontend {
    /// Answers `GET /v1/models`: every name a request may use.
    pub(crate) async fn list_models(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let entry = |name: String| {
            let asked = self.asked(&name).ok();
            let base = asked
                .as_ref()
                .map_or(name.as_str(), |asked| &*asked.view.base);
            let context_tokens_max = asked.as_ref().and_then(Asked::context_tokens_max);
            json!({
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "kvlens",
                "root": base,
                "max_model_len": context_tokens_max,
            })
        };
        let models: Vec<_> = self.router.model_names().into_iter().map(entry).collect();
        Ok(Reply::json(
            StatusCode::OK,
            &json!({"object": "list", "data": models}),
        ))
    }

    /// Answers `GET /live`: this process answers.
    pub(crate) async fn live(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        Ok(Reply::json(StatusCode::OK, &json!({"status": "live"})))
    }

    /// Answers `GET /ready` and `GET /health`: 200 while at least one worker takes requests.
    pub(crate) async fn ready(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let workers = self.router.workers();
        let ready = workers
            .iter()
            .filter(|view| view.record.verdict.takes_requests())
            .count();
        if ready == 0 {
            let message = format!("none of {} workers is ready", workers.len());
            return Err(error::unavailable("not_ready", message));
        }
        let body = json!({"status": "ready", "workers": workers.len(), "ready": ready});
        Ok(Reply::json(StatusCode::OK, &body))
    }
}
