//! A model's folder, read once: tokenizer, chat template, configuration, family.

pub mod archive;
mod cache;
pub mod chat;
mod files;
mod media_tokens;
pub mod named;
mod special;
mod tokenizer;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use serde_json::{Value, json};

use crate::model::archive::{Archive, ArchiveError, ModelDigest};
use crate::model::files::{Files, Source};
use crate::model::media_tokens::MediaTokens;
use crate::model::special::{context_tokens_max, eos_tokens, special_tokens};
use crate::model::tokenizer::Tokenizer;
use crate::prompt::PromptError;
use crate::prompt::content::ContentFormat;
use crate::prompt::normalise::{Dialect, normalise};
use crate::prompt::template::{Template, TemplateInput};
use crate::vision::{Family, VisionError};

/// Why a model's folder cannot be used, or what it was asked for cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} is missing")]
    Missing { path: String },
    #[error("{path} is over {bytes_max} bytes")]
    TooLarge { path: String, bytes_max: u64 },
    #[error("{path} is not JSON")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    #[error("{path} is not a tokenizer we can use: {reason}")]
    Tokenizer { path: String, reason: String },
    #[error("{path}: {source}")]
    Template { path: String, source: PromptError },
    #[error("model in {path}: {source}")]
    Vision { path: String, source: VisionError },
    #[error("model in {path} has no chat template")]
    NoChatTemplate { path: String },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error("cannot tokenise: {reason}")]
    Encode { reason: String },
    /// `index` counts from 0.
    #[error("image {index}: {source}")]
    Image { index: usize, source: VisionError },
    #[error(
        "model {model:?} is neither a folder nor in the Hugging Face cache (looked in {looked_in}); \
         download it with `hf download {model}` or name its folder"
    )]
    NotFound { model: String, looked_in: String },
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
pub struct Model {
    /// For errors: the folder, or what stands for the demo's.
    path: String,
    digest: ModelDigest,
    tokenizer: Tokenizer,
    template: Option<Template>,
    /// The template for requests with tools, where the model has one of its own for them.
    tool_template: Option<Template>,
    special_tokens: Value,
    family: Option<Family>,
    media_tokens: MediaTokens,
    context_tokens_max: Option<u32>,
    eos_tokens: Vec<u32>,
}

impl Model {
    /// Reads a model from its folder.
    ///
    /// # Errors
    /// When a file is missing or unusable.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        Self::load_packed(folder).map(|(model, _)| model)
    }

    /// The same with the files that it was read from.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_packed(folder: &Path) -> Result<(Self, Archive), ModelError> {
        Self::read(&Source::Folder(folder))
    }

    /// The demo model inside the binary.
    ///
    /// # Errors
    /// Never in a tested build.
    pub fn demo() -> Result<Self, ModelError> {
        Self::demo_packed().map(|(model, _)| model)
    }

    /// The same with the files that it was read from.
    ///
    /// # Errors
    /// As [`Model::demo`].
    pub fn demo_packed() -> Result<(Self, Archive), ModelError> {
        Self::read(&Source::Demo)
    }

    /// The model whose files another host has sent.
    ///
    /// # Errors
    /// When a file is missing or unusable.
    pub fn unpack(archive: &Archive) -> Result<Self, ModelError> {
        let source = Source::Received {
            files: archive.files()?,
            digest: archive.digest(),
        };
        let (model, read) = Self::read(&source)?;
        // Files that a later release reads too: this one would render without them.
        if read.digest() != archive.digest() {
            let (wanted, found) = (archive.digest(), read.digest());
            return Err(ArchiveError::OtherBytes { wanted, found }.into());
        }
        Ok(model)
    }

    /// Finds a model's folder: `text` itself if it is one, else the newest snapshot of that id in
    /// the Hugging Face cache that `environment` (a look-up of variables) points to. Nothing is
    /// ever downloaded.
    ///
    /// # Errors
    /// When there is neither, with the places that were looked at.
    pub fn resolve(
        text: &str,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<PathBuf, ModelError> {
        cache::resolve(text, environment)
    }

    fn read(source: &Source<'_>) -> Result<(Self, Archive), ModelError> {
        let files = Files::read(source)?;
        let path = source.path("");
        let tokenizer = Tokenizer::new(files.tokenizer, &files.tokenizer_config);
        let tokenizer = tokenizer.map_err(|reason| ModelError::Tokenizer {
            path: source.path("tokenizer.json"),
            reason,
        })?;
        let family = Family::from_config(&files.config, &files.preprocessor);
        let family = family.map_err(|source| ModelError::Vision {
            path: path.clone(),
            source,
        })?;
        let special_tokens = special_tokens(&files.tokenizer_config);
        let mut model = Self {
            path,
            digest: files.archive.digest(),
            template: files.template.map(compile).transpose()?,
            tool_template: files.tool_template.map(compile).transpose()?,
            media_tokens: MediaTokens::new(family.as_ref(), &files.config, &tokenizer),
            context_tokens_max: context_tokens_max(&files.config),
            eos_tokens: eos_tokens(
                &special_tokens,
                &tokenizer,
                [&files.generation_config, &files.config],
            ),
            special_tokens,
            family,
            tokenizer,
        };
        if let Ok(tokens) = model.tokens_of_one_image() {
            model.media_tokens.learn(&tokens);
        }
        Ok((model, files.archive))
    }

    /// What names the files it was read from.
    pub fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// What the template writes around a lone image.
    fn tokens_of_one_image(&self) -> Result<Vec<u32>, ModelError> {
        let message = json!({"role": "user", "content": [{"type": "image_url"}]});
        let messages = Value::Array(self.normalise(&[message], false)?);
        let text = self.render(&ChatInput {
            messages: &messages,
            tools: None,
            variables: None,
            add_generation_prompt: false,
            continue_final_message: false,
        })?;
        self.encode(&text, false)
    }

    /// The text of a chat, rendered by the model's template.
    ///
    /// # Errors
    /// When the template refuses the messages.
    pub fn render(&self, chat: &ChatInput<'_>) -> Result<String, ModelError> {
        let template = self.template_for(chat.tools.is_some())?;
        let messages = chat.messages.as_array().map_or(&[][..], Vec::as_slice);
        Ok(template.render(&TemplateInput {
            messages,
            tools: chat.tools,
            variables: chat.variables,
            special_tokens: Some(&self.special_tokens),
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
            now: &Zoned::now(),
        })?)
    }

    /// OpenAI messages in the form that the template takes, by the engine's rules.
    ///
    /// # Errors
    /// When a message is malformed or has a part the model cannot take.
    pub fn normalise(&self, messages: &[Value], has_tools: bool) -> Result<Vec<Value>, ModelError> {
        let template = self.template_for(has_tools)?;
        let dialect = Dialect {
            content_format: template.content_format(),
            placeholder_text: self.placeholder_text(),
            knows_developer: template.knows_developer(),
        };
        Ok(normalise(messages, dialect)?)
    }

    fn template_for(&self, has_tools: bool) -> Result<&Template, ModelError> {
        let tool_template = self.tool_template.as_ref().filter(|_| has_tools);
        tool_template
            .or(self.template.as_ref())
            .ok_or_else(|| ModelError::NoChatTemplate {
                path: self.path.clone(),
            })
    }

    /// Token ids of a text; special tokens spelled in it become their ids, as the engine does.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        self.tokenizer
            .encode(text, add_special_tokens)
            .map_err(|reason| ModelError::Encode { reason })
    }

    /// The text of token ids.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens)
    }

    /// How images expand; `None` when the model takes none or the family is unknown.
    pub fn family(&self) -> Option<&Family> {
        self.family.as_ref()
    }

    /// What the engine writes for an image that its template does not write itself.
    pub fn placeholder_text(&self) -> Option<&'static str> {
        self.family.as_ref().map(Family::placeholder_text)
    }

    /// Spellings of the media tokens that no user's text may contain.
    pub fn media_tokens(&self) -> &[String] {
        self.media_tokens.spellings()
    }

    /// The first media token that `tokens` hold another number of times than `images` images make,
    /// before expansion: somebody spelled it, by whatever way round the check of texts.
    pub fn stray_media_token(&self, tokens: &[u32], images: usize) -> Option<&str> {
        self.media_tokens.stray(tokens, images)
    }

    /// The form of message content that the template takes; `None` without a template.
    pub fn content_format(&self) -> Option<ContentFormat> {
        self.template.as_ref().map(Template::content_format)
    }

    /// The longest prompt plus answer the model takes, in tokens.
    pub fn context_tokens_max(&self) -> Option<u32> {
        self.context_tokens_max
    }

    /// Ids that end an answer.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos_tokens
    }
}

fn compile((path, source): (String, String)) -> Result<Template, ModelError> {
    Template::new(&source).map_err(|source| ModelError::Template { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::ImageSize;

    #[test]
    fn the_demo_model_knows_its_tokens() {
        let model = Model::demo().unwrap();
        let ids = model
            .encode("<|im_start|>user\nhi<|im_end|>", false)
            .unwrap();
        let image = model.family().unwrap().placeholder();
        assert_eq!(model.encode("<|image_pad|>", true).unwrap(), [image]);
        assert_eq!(model.decode(&ids), "<|im_start|>user\nhi<|im_end|>");
        assert_eq!(model.eos_tokens()[0], ids[ids.len() - 1]);
        assert_eq!(model.eos_tokens().len(), 2);
        assert_eq!(model.context_tokens_max(), Some(32_768));
        assert_eq!(model.content_format(), Some(ContentFormat::OpenAi));
        assert_eq!(model.media_tokens().len(), 5);
        let text = model.placeholder_text().unwrap();
        assert_eq!(model.encode(text, false).unwrap().len(), 3);
        let size = ImageSize {
            width: 640,
            height: 480,
        };
        let expansion = model.family().unwrap().expand(size).unwrap();
        assert_eq!(expansion.token_count(), 300);
    }

    #[test]
    fn a_chat_becomes_text() {
        let model = Model::demo().unwrap();
        let url = json!({"url": "data:image/png;base64,AA=="});
        let messages = [
            json!({"role": "user", "content": [
                {"type": "image_url", "image_url": url},
                {"type": "text", "text": "What is this?"},
            ]}),
            json!({"role": "developer", "content": "Be brief."}),
        ];
        let messages = Value::Array(model.normalise(&messages, false).unwrap());
        let mut chat = ChatInput {
            messages: &messages,
            tools: None,
            variables: None,
            add_generation_prompt: true,
            continue_final_message: false,
        };
        let start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>\
                     <|image_pad|><|vision_end|>What is this?";
        let want = format!("{start}<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(model.render(&chat).unwrap(), want);
        chat.add_generation_prompt = false;
        chat.continue_final_message = true;
        assert_eq!(model.render(&chat).unwrap(), start);
    }
}
