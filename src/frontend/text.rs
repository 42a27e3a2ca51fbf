//! Completions and embeddings: requests without messages.

use std::sync::Arc;

use crate::dispatch::request::{completion_body, embeddings_body};
use crate::frontend::chat::{check_context, salt};
use crate::frontend::continuation::{Continuable, allows, answer_tokens_max};
use crate::frontend::prompt::Exactness;
use crate::frontend::relay::Outgoing;
use crate::frontend::{Frontend, prompt};
use crate::http::Call;
use crate::http::reply::Reply;
use crate::openai::completion::CompletionRequest;
use crate::openai::embeddings::EmbeddingsRequest;
use crate::openai::error::ApiError;
use crate::openai::nvext::Nvext;
use crate::router::footprint::Footprint;

impl Frontend {
    /// Answers `POST /v1/completions`.
    pub(crate) async fn completion(self: Arc<Self>, call: Call) -> Result<Reply, ApiError> {
        let outgoing = self.prepared(call, Self::outgoing_completion).await?;
        self.relay(outgoing).await
    }

    async fn outgoing_completion(self: Arc<Self>, call: Call) -> Result<Outgoing, ApiError> {
        let request = CompletionRequest::parse(&call.body, self.limits)?;
        self.metrics
            .unknown_fields
            .inc_by(u64::from(request.options.dropped_fields));
        let asked = self.asked(&request.options.model)?;
        let known = prompt::completion_prompt(&asked.model, &request)?;
        check_context(asked.context_tokens_max(), &known, "prompt")?;
        let tenant = self.tenants.of(&call.headers)?;
        let salt = salt(&tenant, &request.options.cache_salt);
        let options = &request.options;
        let footprint = Footprint {
            tenant,
            stream: options.stream,
            hints: prompt::hints(options.nvext.hints, &asked, &known),
            ..prompt::footprint(&asked, &known, &salt, !options.bypasses_cache)
        };
        let (stream, include_usage) = (options.stream, options.include_usage);
        let (wants_choices, nvext) = (options.wants_choices(), options.nvext);
        let reads_cache = !options.bypasses_cache;
        // Engines differ in how long a completion is that sets no limit.
        let limit = answer_tokens_max(options);
        let allowed = allows(options) && limit.is_some();
        let body = completion_body(request, &salt);
        let held = allowed.then(|| self.hold(body.held_bytes())).flatten();
        let continuable = held.map(|held| Continuable {
            asked,
            prompt: known.prompt,
            salt,
            reads_cache,
            answer_tokens_max: limit,
            _held: held,
        });
        Ok(Outgoing {
            id: call.id,
            received: call.received,
            path: "/v1/completions",
            footprint,
            exactness: known.exactness,
            stream,
            include_usage,
            has_images: false,
            wants_choices,
            body: body.into(),
            wish: self.wish(&call.headers)?,
            nvext,
            continuable,
        })
    }

    /// Answers `POST /v1/embeddings`: placed by load, for no cache answers it.
    pub(crate) async fn embeddings(self: Arc<Self>, call: Call) -> Result<Reply, ApiError> {
        let request = EmbeddingsRequest::parse(&call.body)?;
        let asked = self.asked(&request.model)?;
        let outgoing = Outgoing {
            id: call.id,
            received: call.received,
            path: "/v1/embeddings",
            footprint: Footprint {
                tenant: self.tenants.of(&call.headers)?,
                adapter: asked.view.adapter,
                // Four bytes a token, as in English.
                estimated_tokens: (call.body.len() / 4) as u32,
                ..Footprint::new(asked.view.base, 0)
            },
            exactness: Exactness::Exact,
            stream: false,
            include_usage: false,
            has_images: false,
            wants_choices: false,
            body: embeddings_body(request).into(),
            wish: self.wish(&call.headers)?,
            nvext: Nvext::default(),
            continuable: None,
        };
        self.relay(outgoing).await
    }
}
