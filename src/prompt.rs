//! The prompt as the engine sees it: token ids with every image expanded, and where the images lie.

pub mod content;
pub mod normalise;
pub mod placeholder;
mod syntax;
pub mod template;
mod tojson;

use std::sync::Arc;

/// The engine's placeholder range of one media item: the whole replacement, structural tokens
/// included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaSpan {
    /// Index of the first token of the replacement.
    pub start: u32,
    /// Length in tokens.
    pub token_count: u32,
    /// The item's id text, exactly as the engine sees it (our digest in hex).
    pub id: Arc<str>,
}

/// Token ids exactly as the engine puts them in its prompt, and the media spans in prompt order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpandedPrompt {
    pub tokens: Vec<u32>,
    pub spans: Vec<MediaSpan>,
}

impl ExpandedPrompt {
    /// Counts the tokens before the first media span.
    pub fn text_tokens(&self) -> u32 {
        let all = self.tokens.len() as u32;
        self.spans.first().map_or(all, |span| span.start)
    }
}

/// Why messages do not become a prompt. Every text but `Compile` may be shown to a client.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PromptError {
    #[error("prompt has {placeholders} image placeholders for {media} images")]
    PlaceholderCount { placeholders: usize, media: usize },
    #[error("prompt of {tokens} tokens is longer than any engine takes")]
    TooLong { tokens: u64 },
    #[error("chat template does not compile: {reason}")]
    Compile { reason: String },
    #[error("chat template refused the messages: {reason}")]
    Refused { reason: String },
    #[error("chat template failed on the messages: {reason}")]
    Render { reason: String },
    #[error("message {index}: {reason}")]
    Message { index: usize, reason: String },
    #[error("continue_final_message: {reason}")]
    Continue { reason: &'static str },
}
