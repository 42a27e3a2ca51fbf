//! The body an engine gets: the client's request, normalised, with our identities in it.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::media::Image;
use crate::openai::chat::ChatRequest;
use crate::openai::completion::{CompletionRequest, Prompt};
use crate::openai::embeddings::EmbeddingsRequest;
use crate::openai::request::Common;

/// The body of a chat: each image part carries its bytes and, as `uuid`, our digest of them, so
/// that the engine's identity of the image is ours.
pub fn chat_body(mut request: ChatRequest, images: &[Image], salt: &str) -> Bytes {
    for (part, image) in request.images.iter_mut().zip(images) {
        let url = match is_data_uri(&part.url) {
            true => std::mem::take(&mut part.url),
            false => data_uri(image),
        };
        let slot = &mut request.messages[part.message]["content"][part.part];
        slot["image_url"]["url"] = Value::String(url);
        slot["uuid"] = Value::String(image.digest.to_string());
    }
    let mut fields = engine_fields(request.common, salt);
    fields.insert("messages".to_owned(), Value::Array(request.messages));
    fields.extend(request.tools.map(|tools| ("tools".to_owned(), tools)));
    if !request.variables.is_empty() {
        fields.insert(
            "chat_template_kwargs".to_owned(),
            Value::Object(request.variables),
        );
    }
    fields.insert(
        "add_generation_prompt".to_owned(),
        request.add_generation_prompt.into(),
    );
    if request.continue_final_message {
        fields.insert("continue_final_message".to_owned(), true.into());
    }
    serialise(fields)
}

/// The body of a completion.
pub fn completion_body(request: CompletionRequest, salt: &str) -> Bytes {
    let mut fields = engine_fields(request.common, salt);
    let prompt = match request.prompt {
        Prompt::Text(text) => Value::String(text),
        Prompt::Tokens(tokens) => json!(tokens),
    };
    fields.insert("prompt".to_owned(), prompt);
    if !request.add_special_tokens {
        fields.insert("add_special_tokens".to_owned(), false.into());
    }
    serialise(fields)
}

/// The body of an embeddings request.
pub fn embeddings_body(request: EmbeddingsRequest) -> Bytes {
    let mut fields = request.passed;
    fields.insert("model".to_owned(), Value::String(request.model));
    serialise(fields)
}

/// What every request carries: the passed fields, the model, our salt, and, in a stream, the usage
/// chunk whether or not the client wants to see it.
fn engine_fields(common: Common, salt: &str) -> Map<String, Value> {
    let mut fields = common.passed;
    fields.insert("model".to_owned(), Value::String(common.model));
    if common.stream {
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    if !salt.is_empty() {
        fields.insert("cache_salt".to_owned(), salt.into());
    }
    fields
}

fn is_data_uri(url: &str) -> bool {
    url.get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// The bytes that were hashed, as the engine gets them; the engine never fetches anything itself.
fn data_uri(image: &Image) -> String {
    let encoded: Cow<'_, str> = base64_simd::STANDARD.encode_to_string(&image.bytes).into();
    format!("data:{};base64,{encoded}", image.mime)
}

fn serialise(fields: Map<String, Value>) -> Bytes {
    // A JSON value with text keys always serialises.
    serde_json::to_vec(&Value::Object(fields))
        .unwrap_or_default()
        .into()
}
