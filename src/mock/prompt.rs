//! From a request's body to the token ids the engine computes, as vLLM's front does it.

use serde_json::{Map, Value, json};

use crate::mock::hash::MediaSpan;
use crate::mock::images::{Images, Seen};
use crate::mock::refusal::Refusal;
use crate::model::{ChatInput, Model, ModelError};

/// A fault of the engine's own, for tests of those who must notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Every chat has one token more, in front of all others.
    Tokens,
    /// Every image expands to one token more.
    Expansion,
    /// The same, but not in what /tokenize answers.
    ServedExpansion,
}

impl Fault {
    /// The fault as it shows in the answers of /tokenize.
    pub fn of_tokenize(self) -> Option<Self> {
        (self != Self::ServedExpansion).then_some(self)
    }
}

/// A prompt in the engine's tokens.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    pub media: Vec<MediaSpan>,
    pub images: Vec<Seen>,
}

impl Prompt {
    /// A prompt without images.
    pub fn text(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }

    /// Renders, tokenises and expands a chat.
    ///
    /// # Errors
    /// When the messages are malformed, an image cannot be used or the template refuses.
    pub fn chat(
        model: &Model,
        images: &Images,
        body: &mut Map<String, Value>,
        fault: Option<Fault>,
    ) -> Result<Self, Refusal> {
        let Some(Value::Array(mut messages)) = body.remove("messages") else {
            return Err(Refusal::invalid("messages must be a list"));
        };
        let seen = take_images(&mut messages, images)?;
        let tools = body.get("tools").filter(|tools| tools.is_array());
        let refused = |error: ModelError| Refusal::invalid(error.to_string());
        let messages = model
            .normalise(&messages, tools.is_some())
            .map_err(refused)?;
        let flag =
            |key: &str, default: bool| body.get(key).and_then(Value::as_bool).unwrap_or(default);
        let input = ChatInput {
            messages: &Value::Array(messages),
            tools,
            variables: body
                .get("chat_template_kwargs")
                .filter(|kwargs| kwargs.is_object()),
            add_generation_prompt: flag("add_generation_prompt", true),
            continue_final_message: flag("continue_final_message", false),
        };
        let text = model
            .render(&input)
            .map_err(|error| Refusal::invalid(error.to_string()))?;
        let mut tokens = model
            .encode(&text, flag("add_special_tokens", false))
            .map_err(|error| Refusal::invalid(error.to_string()))?;
        if fault == Some(Fault::Tokens) {
            tokens.insert(0, tokens.first().copied().unwrap_or_default());
        }
        let is_longer = matches!(fault, Some(Fault::Expansion | Fault::ServedExpansion));
        expand(model, &tokens, seen, usize::from(is_longer))
    }

    /// What the answer says about the prompt.
    pub fn describe(&self) -> String {
        let image_tokens: usize = self.media.iter().map(|span| span.length).sum();
        let text_tokens = self.tokens.len() - image_tokens;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        if self.images.is_empty() {
            return format!(
                "no images and {text_tokens} text token{}",
                plural(text_tokens)
            );
        }
        let each = self.images.iter().map(|seen| {
            let id: String = seen.id.chars().take(6).collect();
            format!(
                "{}x{} {} {id}",
                seen.size.width, seen.size.height, seen.format
            )
        });
        let count = self.images.len();
        format!(
            "{count} image{} ({}) and {text_tokens} text token{}",
            plural(count),
            each.collect::<Vec<_>>().join(", "),
            plural(text_tokens)
        )
    }
}

/// Looks at every image in order of appearance, and leaves parts without their bytes behind.
fn take_images(messages: &mut [Value], images: &Images) -> Result<Vec<Seen>, Refusal> {
    if messages.is_empty() {
        return Err(Refusal::invalid("messages must not be empty"));
    }
    let mut seen = Vec::new();
    for message in messages {
        let parts = message.get_mut("content").and_then(Value::as_array_mut);
        for part in parts.into_iter().flatten() {
            if part["type"] == "image_url" || part.get("image_url").is_some() {
                seen.push(images.see(part, seen.len())?);
                *part = json!({ "type": "image_url" });
            }
        }
    }
    Ok(seen)
}

/// Puts each image's tokens, and so many more, in the place of its placeholder.
fn expand(
    model: &Model,
    tokens: &[u32],
    images: Vec<Seen>,
    more: usize,
) -> Result<Prompt, Refusal> {
    let Some(family) = model.family() else {
        if images.is_empty() {
            return Ok(Prompt::text(tokens.to_vec()));
        }
        return Err(Refusal::invalid(
            "At most 0 image(s) may be provided in one prompt.",
        ));
    };
    let placeholder = family.placeholder();
    let mut prompt = Prompt::default();
    for &token in tokens {
        let image = images
            .get(prompt.media.len())
            .filter(|_| token == placeholder);
        let Some(image) = image else {
            prompt.tokens.push(token);
            continue;
        };
        let expansion = family
            .expand(image.size)
            .map_err(|error| Refusal::invalid(format!("Failed to apply the processor: {error}")))?;
        let start = prompt.tokens.len();
        for run in &expansion.runs {
            let end = prompt.tokens.len() + run.count as usize;
            prompt.tokens.resize(end, run.token);
        }
        prompt.tokens.resize(prompt.tokens.len() + more, token);
        prompt.media.push(MediaSpan {
            id: std::sync::Arc::clone(&image.id),
            start,
            length: prompt.tokens.len() - start,
        });
    }
    if prompt.media.len() != images.len() {
        let (places, count) = (prompt.media.len(), images.len());
        return Err(Refusal::invalid(format!(
            "the prompt has {places} image placeholders for {count} images"
        )));
    }
    prompt.images = images;
    Ok(prompt)
}
