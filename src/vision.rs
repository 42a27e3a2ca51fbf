//! From an image's width and height to the tokens an engine puts in its place: one file per model
//! family.

pub mod qwen;

use serde_json::Value;

/// Width and height in pixels, orientation applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSize {
    pub width: u32,
    pub height: u32,
}

/// `count` times the same token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub token: u32,
    pub count: u32,
}

/// What replaces one placeholder token in the prompt: runs of tokens in order, the structural ones
/// included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expansion {
    pub runs: Vec<Run>,
}

impl Expansion {
    /// Length in tokens.
    pub fn token_count(&self) -> u32 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// Why an image has no expansion, or a model's configuration none for any image.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum VisionError {
    #[error("image of {width}x{height} pixels: the longer side is over {max} times the shorter")]
    AspectRatio { width: u32, height: u32, max: u32 },
    #[error("{file} has no usable {key:?}")]
    MissingKey {
        file: &'static str,
        key: &'static str,
    },
}

/// A model family whose expansions we know.
#[derive(Clone, Debug)]
pub enum Family {
    Qwen(qwen::Qwen),
}

impl Family {
    /// Reads the family from a model's `config.json` and `preprocessor_config.json`; `None` for a
    /// model that takes no images or whose family is not known.
    ///
    /// # Errors
    /// When the family is known but a key it needs is missing.
    pub fn from_config(
        _config: &Value,
        _preprocessor: &Value,
    ) -> Result<Option<Self>, VisionError> {
        unimplemented!()
    }

    /// The token that stands for one image before expansion.
    pub fn placeholder(&self) -> u32 {
        unimplemented!()
    }

    /// What replaces the placeholder of an image of this size.
    ///
    /// # Errors
    /// When the family's own processor refuses the size.
    pub fn expand(&self, _size: ImageSize) -> Result<Expansion, VisionError> {
        unimplemented!()
    }
}
