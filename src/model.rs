//! A model's folder, read once: tokenizer, chat template, configuration, family.

use std::path::Path;

use serde_json::Value;

use crate::vision::Family;

/// Why a model's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
}

/// What a chat request needs rendered: the normalised messages and what the template may see.
#[derive(Debug)]
pub struct ChatInput<'a> {
    /// OpenAI messages, as the template expects them (content a string or a list of parts).
    pub messages: &'a Value,
    pub tools: Option<&'a Value>,
    /// Extra variables for the template (`chat_template_kwargs`), after the allow-list.
    pub variables: Option<&'a Value>,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
}

/// A model's folder, read and checked.
#[derive(Debug)]
pub struct Model {}

impl Model {
    /// Reads a model from its folder.
    ///
    /// # Errors
    /// When a file is missing or unusable.
    pub fn load(_folder: &Path) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// The demo model inside the binary.
    ///
    /// # Errors
    /// Never in a tested build.
    pub fn demo() -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// The text of a chat, rendered by the model's template.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn render(&self, _chat: &ChatInput<'_>) -> Result<String, ModelError> {
        unimplemented!()
    }

    /// Token ids of a text; special tokens spelled in it become their ids, as the engine does.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, _text: &str, _add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        unimplemented!()
    }

    /// The text of token ids.
    pub fn decode(&self, _tokens: &[u32]) -> String {
        unimplemented!()
    }

    /// How images expand; `None` when the model takes none or the family is unknown.
    pub fn family(&self) -> Option<&Family> {
        unimplemented!()
    }

    /// The longest prompt plus answer the model takes, in tokens.
    pub fn context_tokens_max(&self) -> Option<u32> {
        unimplemented!()
    }

    /// Ids that end an answer.
    pub fn eos_tokens(&self) -> &[u32] {
        unimplemented!()
    }
}
