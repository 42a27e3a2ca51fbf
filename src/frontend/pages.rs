//! Models, and whether we are alive and ready.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::json;

use crate::frontend::{Frontend, error};
use crate::http::Call;
use crate::http::reply::Reply;
use crate::openai::error::ApiError;

impl Frontend {
    /// Answers `GET /v1/models`: every name a request may use.
    pub(crate) async fn list_models(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        let entry = |name: String| {
            // A worker of a model that is not ours is known too.
            let asked = self.asked(&name).ok()?;
            Some(json!({
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "kvlens",
                "root": &*asked.view.base,
                "max_model_len": asked.context_tokens_max(),
            }))
        };
        let names = self.router.model_names().into_iter();
        let models: Vec<_> = names.filter_map(entry).collect();
        Ok(Reply::json(
            StatusCode::OK,
            &json!({"object": "list", "data": models}),
        ))
    }

    /// Answers `GET /live`: this process answers.
    pub(crate) async fn live(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        Ok(Reply::json(StatusCode::OK, &json!({"status": "live"})))
    }

    /// Answers `GET /ready` and `GET /health`: 200 while at least one worker takes requests and new
    /// ones are wanted here.
    pub(crate) async fn ready(self: Arc<Self>, _call: Call) -> Result<Reply, ApiError> {
        if self.settling.is_cancelled() {
            let message = "this frontend is stopping and still answers".to_owned();
            return Err(error::unavailable("settling", message));
        }
        let workers = self.router.workers();
        let ready = workers
            .iter()
            .filter(|view| view.record.verdict.takes_requests())
            .count();
        if ready == 0 {
            let none = || format!("none of {} workers is ready", workers.len());
            let message = self.models.awaited_first().unwrap_or_else(none);
            let message = match self.planes.away() {
                Some(away) => format!("{message}; {away}"),
                None => message,
            };
            return Err(error::unavailable("not_ready", message));
        }
        let body = json!({"status": "ready", "workers": workers.len(), "ready": ready});
        Ok(Reply::json(StatusCode::OK, &body))
    }
}
