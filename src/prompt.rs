//! The prompt as the engine sees it: token ids with every image expanded, and where the images lie.

pub mod placeholder;
pub mod template;

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
