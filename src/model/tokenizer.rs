//! Text to token ids and back, with the model's own tokenizer.

use std::fmt;

use serde_json::{Value, json};
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

/// A tokenizer, shared by all requests: its buffers are pooled inside, per thread.
pub(super) struct Tokenizer {
    pipeline: PipelineTokenizer,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").finish_non_exhaustive()
    }
}

/// Bytes of text for one token, at the least: room for a prompt without growing on the way.
const BYTES_PER_TOKEN: usize = 3;

impl Tokenizer {
    /// Builds from the two JSON files, with the tokens that only the second one names.
    pub(super) fn new(mut tokenizer: Value, config: &Value) -> Result<Self, String> {
        add_tokens(&mut tokenizer, config);
        tokenizers::canonicalize_value(&mut tokenizer).map_err(|error| error.to_string())?;
        let pipeline = tokenizers::from_json(&tokenizer.to_string());
        Ok(Self {
            pipeline: pipeline.map_err(|error| error.to_string())?,
        })
    }

    pub(super) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        let options = EncodeOptions {
            add_special_tokens,
            encode_special_tokens: false,
            // The engine refuses a prompt that is too long; it neither cuts nor pads one.
            padding: Override::Off,
            truncation: Override::Off,
        };
        let mut tokens = Vec::with_capacity(text.len() / BYTES_PER_TOKEN + 8);
        self.pipeline
            .encode_into(text, &options, &mut tokens)
            .map_err(|error| error.to_string())?;
        Ok(PipelineToken::cast_slice(&tokens).to_vec())
    }

    /// The text of ids; one that is unknown leaves nothing.
    pub(super) fn decode(&self, tokens: &[u32]) -> String {
        self.pipeline.decode(tokens, false).unwrap_or_default()
    }

    /// The id of a token that is added to the vocabulary, such as `<|im_end|>`.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        match self.encode(token, false).ok()?.as_slice() {
            [id] => Some(*id),
            _ => None,
        }
    }

    /// The text of one id.
    pub(super) fn text(&self, id: u32) -> Option<String> {
        Some(self.decode(&[id])).filter(|text| !text.is_empty())
    }
}

/// A special token's text; configurations spell it as text or as an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Merges `added_tokens_decoder` and the special tokens that are in the vocabulary but not marked
/// as added into `tokenizer.json`, as loading the folder in `transformers` does.
fn add_tokens(tokenizer: &mut Value, config: &Value) {
    let mut added = match tokenizer["added_tokens"].take() {
        Value::Array(added) => added,
        _ => Vec::new(),
    };
    let declared = config["added_tokens_decoder"].as_object();
    for (id, token) in declared.into_iter().flatten() {
        if let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) {
            push(&mut added, token, (id, content));
        }
    }
    for content in special_texts(config) {
        if let Some(id) = tokenizer["model"]["vocab"][content].as_u64() {
            push(&mut added, &Value::Null, (id, content));
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    if let Some(root) = tokenizer.as_object_mut() {
        root.insert("added_tokens".to_owned(), Value::Array(added));
    }
}

fn push(added: &mut Vec<Value>, token: &Value, (id, content): (u64, &str)) {
    let is_there = |token: &Value| token["content"] == content || token["id"] == id;
    if added.iter().any(is_there) {
        return;
    }
    let flag = |key: &str| token[key].as_bool().unwrap_or(false);
    added.push(json!({
        "id": id,
        "content": content,
        "single_word": flag("single_word"),
        "lstrip": flag("lstrip"),
        "rstrip": flag("rstrip"),
        "normalized": flag("normalized"),
        "special": token["special"].as_bool().unwrap_or(true),
    }));
}

fn special_texts(config: &Value) -> impl Iterator<Item = &str> {
    const KEYS: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let listed = lists.into_iter().flat_map(|key| config[key].as_array());
    let named = KEYS.into_iter().map(|key| &config[key]);
    named.chain(listed.flatten()).filter_map(token_text)
}
