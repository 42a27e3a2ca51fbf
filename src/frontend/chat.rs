//! A chat request's story, from body to answer.

use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::dispatch::request::chat_body;
use crate::frontend::continuation::{Continuable, answer_tokens_max};
use crate::frontend::relay::Outgoing;
use crate::frontend::{Asked, Frontend, continuation, error, prompt};
use crate::http::Call;
use crate::http::reply::Reply;
use crate::media::Image;
use crate::openai::chat::{ChatRequest, ImagePart};
use crate::openai::error::ApiError;
use crate::prompt::ExpandedPrompt;
use crate::router::footprint::{Footprint, MediaShare};
use crate::telemetry::labels::{MediaLabels, MediaOutcome};

/// A chat that is ready to be placed.
#[derive(Debug)]
pub struct PreparedChat {
    pub request: ChatRequest,
    /// In the order of the request's own.
    pub images: Vec<Image>,
    pub(crate) exactness: prompt::Exactness,
    /// The prompt as far as it is known.
    pub prompt: ExpandedPrompt,
    pub footprint: Footprint,
    /// What the engine gets as `cache_salt`; empty for none.
    pub salt: String,
    pub(crate) asked: Asked,
}

impl Frontend {
    /// Answers `POST /v1/chat/completions`.
    pub(crate) async fn chat(self: Arc<Self>, call: Call) -> Result<Reply, ApiError> {
        let outgoing = self.prepared(call, Self::outgoing_chat).await?;
        self.relay(outgoing).await
    }

    async fn outgoing_chat(self: Arc<Self>, call: Call) -> Result<Outgoing, ApiError> {
        let tenant = self.tenants.of(&call.headers)?;
        let chat = self.prepare_chat(&call.body, &tenant).await?;
        let options = &chat.request.options;
        self.metrics
            .unknown_fields
            .inc_by(u64::from(options.dropped_fields));
        if chat.exactness != prompt::Exactness::Exact {
            self.metrics.text_only.inc();
        }
        let (stream, include_usage) = (options.stream, options.include_usage);
        let wants_choices = options.wants_choices();
        let nvext = options.nvext;
        let allowed = allows(&chat.request);
        let limit = answer_tokens_max(options);
        let reads_cache = !options.bypasses_cache;
        let body = chat_body(chat.request, &chat.images, &chat.salt);
        // Where all images go inside, they do so now: the fewer bytes wait for a worker.
        let body = match self.may_name_images() {
            true => body,
            false => body.inlined(),
        };
        let is_known = allowed && chat.exactness == prompt::Exactness::Exact;
        let held = is_known.then(|| self.hold(body.held_bytes()));
        let continuable = held.flatten().map(|held| Continuable {
            asked: chat.asked,
            prompt: chat.prompt,
            salt: chat.salt,
            reads_cache,
            answer_tokens_max: limit,
            _held: held,
        });
        Ok(Outgoing {
            id: call.id,
            received: call.received,
            path: "/v1/chat/completions",
            footprint: chat.footprint,
            exactness: chat.exactness,
            stream,
            include_usage,
            has_images: !chat.images.is_empty(),
            wants_choices,
            wish: self.wish(&call.headers)?,
            nvext,
            continuable,
            body: body.into(),
        })
    }

    /// Everything before the placement: parse, images, template, tokens, expansion, hashes.
    ///
    /// # Errors
    /// What the client is told: an illegal request, a model nobody serves, an unusable image.
    pub async fn prepare_chat(
        &self,
        body: &[u8],
        tenant: &Arc<str>,
    ) -> Result<PreparedChat, ApiError> {
        let request = ChatRequest::parse(body, self.limits)?;
        let asked = self.asked(&request.options.model)?;
        let tokens = prompt::chat_tokens(&asked.model, &request)?;
        let images = self.images(&request, tenant).await?;
        let known = prompt::expand(&asked.model, tokens, &images, &request)?;
        check_context(asked.context_tokens_max(), &known, "messages")?;
        let salt = salt(tenant, &request.options.cache_salt);
        let cached = !request.options.bypasses_cache;
        let footprint = Footprint {
            tenant: tenant.clone(),
            media: media(&images, &known.prompt),
            stream: request.options.stream,
            hints: prompt::hints(request.options.nvext.hints, &asked, &known),
            ..prompt::footprint(&asked, &known, &salt, cached)
        };
        Ok(PreparedChat {
            request,
            images,
            exactness: known.exactness,
            prompt: known.prompt,
            footprint,
            salt,
            asked,
        })
    }

    /// All images of a request at once; the first that cannot be used names its field.
    async fn images(&self, request: &ChatRequest, tenant: &str) -> Result<Vec<Image>, ApiError> {
        let Some(first) = request.images.first() else {
            return Ok(Vec::new());
        };
        let Some(media) = &self.media else {
            let message = "this server takes no images; media.enabled turns them on";
            return Err(ApiError::invalid("images_disabled", first.param(), message));
        };
        let load = async |part: &ImagePart| {
            let loaded = media.load(&part.url, tenant).await;
            let outcome = match &loaded {
                Ok(_) if part.is_inline() => MediaOutcome::Inline,
                Ok(_) => MediaOutcome::Fetched,
                Err(error) if error.is_fetch_failure() => MediaOutcome::Failed,
                Err(_) => MediaOutcome::Refused,
            };
            self.metrics
                .media
                .get_or_create(&MediaLabels { outcome })
                .inc();
            loaded.map_err(|failure| error::media(&failure, part.param()))
        };
        try_join_all(request.images.iter().map(load)).await
    }
}

/// The images whose tokens are known.
fn media(images: &[Image], prompt: &ExpandedPrompt) -> Arc<[MediaShare]> {
    let shares = images.iter().zip(&prompt.spans);
    let shares = shares.map(|(image, span)| MediaShare {
        start: span.start,
        digest: image.digest,
        tokens: span.token_count,
    });
    shares.collect()
}

/// Whether a chat's answer can be continued as it would have gone on. What a tool call would be is
/// not known as text; and behind a message of its own that an answer continues there is no place for
/// another, where only a chat can carry the images.
fn allows(request: &ChatRequest) -> bool {
    let is_plain = request.add_generation_prompt && !request.continue_final_message;
    request.tools.is_none()
        && (is_plain || request.images.is_empty())
        && continuation::allows(&request.options)
}

/// Refuses a prompt that leaves no room for a single token of answer, images counted.
pub(crate) fn check_context(
    context_tokens_max: Option<u32>,
    known: &prompt::Known,
    param: &str,
) -> Result<(), ApiError> {
    let prompt_tokens = known.prompt.tokens.len();
    match context_tokens_max {
        Some(most) if prompt_tokens >= most as usize => {
            let message = format!(
                "the prompt has {prompt_tokens} tokens, images included; the model takes {most} \
                 with its answer"
            );
            Err(ApiError::invalid("context_length_exceeded", param, message))
        }
        _ => Ok(()),
    }
}

/// The salt an engine sees for a tenant and a client's own: derived, because it appears in events,
/// and empty where there is neither. Tenants share no cache, lest one time what another has asked.
pub(crate) fn salt(tenant: &str, client_salt: &str) -> String {
    if tenant.is_empty() && client_salt.is_empty() {
        return String::new();
    }
    let mut hasher = blake3::Hasher::new_derive_key("kvlens 1 cache salt");
    // With its length, so that no name and salt are taken for another's.
    hasher.update(&(tenant.len() as u64).to_le_bytes());
    hasher.update(tenant.as_bytes());
    hasher.update(client_salt.as_bytes());
    hasher.finalize().to_hex().to_string()
}
