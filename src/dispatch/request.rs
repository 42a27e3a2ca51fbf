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
        let url = if is_plain(&part.url, image) {
            std::mem::take(&mut part.url)
        } else {
            data_uri(image)
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

/// Whether a client's `url` may go to the engine as it is: only in the one spelling that every
/// decoder reads as the bytes that were hashed. We take more spellings than engines do.
fn is_plain(url: &str, image: &Image) -> bool {
    let Some((head, encoded)) = url.split_once(',') else {
        return false;
    };
    let kind = head
        .strip_prefix("data:image/")
        .and_then(|head| head.strip_suffix(";base64"));
    let bytes = image.bytes.len();
    let padding = &"=="[..(3 - bytes % 3) % 3];
    // It was decoded to these bytes, so with this length and padding it has nothing else in it.
    kind.is_some_and(|kind| !kind.contains(';'))
        && encoded.len() == base64_simd::STANDARD.encoded_length(bytes)
        && encoded.ends_with(padding)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MediaDigest;

    #[test]
    fn only_the_plain_spelling_goes_on_as_it_came() {
        let image = |bytes: &'static [u8]| Image {
            digest: MediaDigest([0; 32]),
            size: None,
            bytes: Bytes::from_static(bytes),
            mime: "image/png",
        };
        for (url, bytes, plain) in [
            ("data:image/png;base64,aGVsbG8=", &b"hello"[..], true),
            ("data:image/jpg;base64,aGVsbG8=", b"hello", true),
            ("data:image/png;base64,aGVs", b"hel", true),
            ("data:image/png;base64,aGVsbG8", b"hello", false),
            ("data:image/png;base64,aGVsbG8\n", b"hello", false),
            ("data:image/png;base64,aGV sbG8=", b"hello", false),
            ("data:image/png;charset=x;base64,aGVsbG8=", b"hello", false),
            ("data:image/png;BASE64,aGVsbG8=", b"hello", false),
            ("DATA:image/png;base64,aGVsbG8=", b"hello", false),
            ("data:;base64,aGVsbG8=", b"hello", false),
            ("http://host/a.png", b"hello", false),
        ] {
            assert_eq!(is_plain(url, &image(bytes)), plain, "{url:?}");
        }
        assert_eq!(data_uri(&image(b"hello")), "data:image/png;base64,aGVsbG8=");
    }
}
