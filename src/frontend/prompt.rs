//! From a request to what the router needs of it: rendered, tokenised, expanded, hashed.

use std::sync::Arc;

use serde_json::Value;

use crate::block::{self, BlockSize};
use crate::frontend::Asked;
use crate::media::Image;
use crate::model::chat::{Chat, SizedImage};
use crate::model::{Model, ModelError};
use crate::openai::chat::{ChatRequest, ImagePart};
use crate::openai::completion::{CompletionRequest, Prompt};
use crate::openai::error::ApiError;
use crate::openai::nvext::AgentHints;
use crate::prompt::ExpandedPrompt;
use crate::prompt::placeholder::spelled_media;
use crate::router::footprint::{Footprint, Hints};
use crate::vision::VisionError;

/// Whether a prompt is known to the last token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exactness {
    Exact,
    /// Known up to its first image: an image's expansion is unknown, for this reason.
    TextOnly {
        reason: &'static str,
    },
}

/// What an image of unknown size is taken to weigh: the tokens of a megapixel picture.
const UNKNOWN_IMAGE_TOKENS: usize = 1_024;

/// The longest answer that is expected of a model that does not say how much it takes.
const OUTPUT_TOKENS_MAX: u32 = 1 << 17;

/// A prompt as far as it is known.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) prompt: ExpandedPrompt,
    pub(crate) exactness: Exactness,
    /// Tokens behind the known ones, estimated; 0 for an exact prompt.
    pub(crate) estimated_tokens: u32,
}

impl Known {
    fn exact(prompt: ExpandedPrompt) -> Self {
        Self {
            prompt,
            exactness: Exactness::Exact,
            estimated_tokens: 0,
        }
    }

    /// The first `known` of `tokens`, for the reason given; the rest and its images are estimated.
    fn text_only(mut tokens: Vec<u32>, known: usize, images: usize, reason: &'static str) -> Self {
        let rest = tokens.len() - known + images * UNKNOWN_IMAGE_TOKENS;
        tokens.truncate(known);
        Self {
            prompt: ExpandedPrompt {
                tokens,
                spans: Vec::new(),
            },
            exactness: Exactness::TextOnly { reason },
            estimated_tokens: u32::try_from(rest).unwrap_or(u32::MAX),
        }
    }
}

/// Renders and tokenises a chat, one placeholder for each image: all that can be known before an
/// image is fetched, and all that can be refused.
///
/// # Errors
/// When a message spells a media token, or the template refuses or leaves an image out.
pub(crate) fn chat_tokens(model: &Model, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    refuse_spelled_media(model, &request.messages, "messages")?;
    if let Some(tools) = &request.tools {
        refuse_spelled_media(model, tools.as_array().map_or(&[], Vec::as_slice), "tools")?;
    }
    let images = request.images.len();
    let tokens = model.chat_tokens(&Chat {
        messages: &request.messages,
        tools: request.tools.as_ref(),
        variables: Some(&Value::Object(request.variables.clone())),
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        images,
    })?;
    // A token spelled in pieces, or escaped in a tool call, shows only here.
    match model.stray_media_token(&tokens, images) {
        Some(name) => Err(spelled(name, "messages".to_owned())),
        None => Ok(tokens),
    }
}

/// Tokenises a completion's prompt.
///
/// # Errors
/// When the text spells a media token, or token ids hold one.
pub(crate) fn completion_prompt(
    model: &Model,
    request: &CompletionRequest,
) -> Result<Known, ApiError> {
    let tokens = match &request.prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::Text(text) => {
            if let Some(name) = spelled_media(text, model.media_tokens()) {
                return Err(spelled(name, "prompt".to_owned()));
            }
            model.encode(text, request.add_special_tokens)?
        }
    };
    if let Some(name) = model.stray_media_token(&tokens, 0) {
        return Err(spelled(name, "prompt".to_owned()));
    }
    Ok(Known::exact(ExpandedPrompt {
        tokens,
        spans: Vec::new(),
    }))
}

/// The footprint of a prompt: hashed once for each block size its model's workers have.
pub(crate) fn footprint(asked: &Asked, known: &Known, salt: &str, cached: bool) -> Footprint {
    let view = &asked.view;
    let root = block::root(
        &view.base,
        view.adapter.as_deref().unwrap_or_default(),
        salt,
    );
    let hash = |size: &BlockSize| {
        let mut hashes = block::sequence_hashes(root, &known.prompt, *size);
        if let Some(key) = &asked.hash_key {
            key.seal_all(&mut hashes);
        }
        (*size, Arc::from(hashes))
    };
    let hashes = if cached {
        view.block_sizes.iter().map(hash).collect()
    } else {
        Vec::new()
    };
    Footprint {
        adapter: view.adapter.clone(),
        hashes,
        text_tokens: known.prompt.text_tokens(),
        estimated_tokens: known.estimated_tokens,
        ..Footprint::new(view.base.clone(), known.prompt.tokens.len() as u32)
    }
}

/// What a client says of its request, as the router takes it. An answer is expected to have no more
/// tokens than the model has left, lest one request repel all others from its worker.
pub(crate) fn hints(hints: AgentHints, asked: &Asked, known: &Known) -> Hints {
    let context_tokens = asked.context_tokens_max().unwrap_or(OUTPUT_TOKENS_MAX);
    let prompt_tokens = known.prompt.tokens.len() as u32;
    let output_tokens_max = context_tokens.saturating_sub(prompt_tokens);
    Hints {
        priority: hints.priority,
        strict_priority: hints.strict_priority,
        output_tokens: hints
            .output_tokens
            .map(|tokens| tokens.min(output_tokens_max)),
    }
}

/// Puts each image's expansion in its place, as far as all sizes and the family are known.
///
/// # Errors
/// When an image has no expansion.
pub(crate) fn expand(
    model: &Model,
    tokens: Vec<u32>,
    images: &[Image],
    request: &ChatRequest,
) -> Result<Known, ApiError> {
    let placeholder = match model.family() {
        Some(family) => family.placeholder(),
        // Without a family the placeholder is unknown too, so nothing of the prompt is sure.
        None if !images.is_empty() => {
            return Ok(Known::text_only(tokens, 0, images.len(), "family_unknown"));
        }
        None => return Ok(Known::exact(model.expand(tokens, &[])?)),
    };
    let sized = images.iter().map_while(sized).collect::<Vec<_>>();
    let media = model.expansions(&sized).map_err(|error| match error {
        ModelError::Image { index, source } => unusable(&source, &request.images[index]),
        error => error.into(),
    })?;
    if media.len() < images.len() {
        // All that is sure is the text before the first image.
        let first = tokens.iter().position(|token| *token == placeholder);
        let known = first.unwrap_or(tokens.len());
        let reason = "size_unreadable";
        return Ok(Known::text_only(tokens, known, images.len(), reason));
    }
    Ok(Known::exact(model.expand(tokens, &media)?))
}

fn sized(image: &Image) -> Option<SizedImage> {
    let size = image.size?;
    let id = image.digest.to_string().into();
    Some(SizedImage { id, size })
}

/// The 400 of an image that the model's family refuses.
fn unusable(error: &VisionError, part: &ImagePart) -> ApiError {
    let code = match error {
        VisionError::AspectRatio { .. } => "image_too_large",
        _ => "invalid_image",
    };
    ApiError::invalid(code, part.param(), error.to_string())
}

/// Refuses a text that spells a media token: the engine would take it for an image.
fn refuse_spelled_media(model: &Model, values: &[Value], field: &str) -> Result<(), ApiError> {
    let names = model.media_tokens();
    for (index, value) in values.iter().enumerate() {
        if let Some((path, name)) = find_spelled(value, names) {
            return Err(spelled(name, format!("{field}[{index}]{path}")));
        }
    }
    Ok(())
}

/// The path and name of the first media token spelled anywhere inside a value. JSON read from a
/// body is at most 128 deep, and so is this.
fn find_spelled<'a>(value: &Value, names: &'a [String]) -> Option<(String, &'a str)> {
    let inside = |(step, inner): (String, &Value)| {
        find_spelled(inner, names).map(|(path, name)| (format!("{step}{path}"), name))
    };
    match value {
        Value::String(text) => spelled_media(text, names).map(|name| (String::new(), name)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(at, inner)| inside((format!("[{at}]"), inner))),
        Value::Object(fields) => fields.iter().find_map(|(key, inner)| {
            let named = spelled_media(key, names).map(|name| (String::new(), name));
            named.or_else(|| inside((format!(".{key}"), inner)))
        }),
        _ => None,
    }
}

fn spelled(name: &str, param: String) -> ApiError {
    let message = format!("{param} spells the media token {name}; images come as image_url parts");
    ApiError::invalid("media_token_in_text", param, message)
}
