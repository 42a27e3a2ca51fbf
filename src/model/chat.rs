//! From a chat to its prompt: the one way that frontends and agents share.

use std::sync::Arc;

use serde_json::Value;

use crate::model::{ChatInput, Model, ModelError};
use crate::prompt::placeholder::{self, Media};
use crate::prompt::{ExpandedPrompt, PromptError};
use crate::vision::ImageSize;

/// A chat as a client sends it, its images taken out.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// OpenAI messages, not normalised yet.
    pub messages: &'a [Value],
    pub tools: Option<&'a Value>,
    /// See [`ChatInput::variables`].
    pub variables: Option<&'a Value>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    /// How many images the messages hold.
    pub images: usize,
}

/// An image as far as a prompt needs it.
#[derive(Clone, Debug)]
pub struct SizedImage {
    /// Its id, exactly as the engine sees it.
    pub id: Arc<str>,
    pub size: ImageSize,
}

impl Model {
    /// Normalises, renders and tokenises a chat: one placeholder for each image.
    ///
    /// # Errors
    /// When the template refuses the messages or leaves an image out.
    pub fn chat_tokens(&self, chat: &Chat<'_>) -> Result<Vec<u32>, ModelError> {
        let messages = Value::Array(self.normalise(chat.messages, chat.tools.is_some())?);
        let text = self.render(&ChatInput {
            messages: &messages,
            tools: chat.tools,
            variables: chat.variables,
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
        })?;
        // The template writes the special tokens itself, as vLLM expects of a chat.
        let tokens = self.encode(&text, false)?;
        if let Some(family) = self.family() {
            let placeholder = family.placeholder();
            let placeholders = tokens.iter().filter(|token| **token == placeholder).count();
            if placeholders < chat.images {
                return Err(PromptError::PlaceholderCount {
                    placeholders,
                    media: chat.images,
                }
                .into());
            }
        }
        Ok(tokens)
    }

    /// What replaces each image's placeholder; nothing for a model without a family.
    ///
    /// # Errors
    /// The first image that the family refuses.
    pub fn expansions(&self, images: &[SizedImage]) -> Result<Vec<Media>, ModelError> {
        let Some(family) = self.family() else {
            return Ok(Vec::new());
        };
        let expand = |(index, image): (usize, &SizedImage)| {
            let expansion = family.expand(image.size);
            let expansion = expansion.map_err(|source| ModelError::Image { index, source })?;
            let id = image.id.clone();
            Ok(Media { id, expansion })
        };
        images.iter().enumerate().map(expand).collect()
    }

    /// Puts each image's expansion in its place.
    ///
    /// # Errors
    /// When placeholders and images differ in number, or the prompt is longer than u32 counts.
    pub fn expand(&self, tokens: Vec<u32>, media: &[Media]) -> Result<ExpandedPrompt, ModelError> {
        let Some(family) = self.family() else {
            return Ok(ExpandedPrompt {
                tokens,
                spans: Vec::new(),
            });
        };
        Ok(placeholder::expand(&tokens, family.placeholder(), media)?)
    }

    /// The prompt of a chat with its images, as [`Model::chat_tokens`], [`Model::expansions`] and
    /// [`Model::expand`] make it one after the other.
    ///
    /// # Errors
    /// As theirs.
    pub fn chat_prompt(
        &self,
        chat: &Chat<'_>,
        images: &[SizedImage],
    ) -> Result<ExpandedPrompt, ModelError> {
        let tokens = self.chat_tokens(chat)?;
        self.expand(tokens, &self.expansions(images)?)
    }
}
