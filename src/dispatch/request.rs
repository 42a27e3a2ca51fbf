//! The body an engine gets: the client's request, normalised, with our identities in it.

use base64_simd::STANDARD;
use bytes::Bytes;
use memchr::memmem;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::media::Image;
use crate::openai::chat::ChatRequest;
use crate::openai::completion::{CompletionRequest, Prompt};
use crate::openai::embeddings::EmbeddingsRequest;
use crate::openai::request::RequestOptions;

/// The body of a chat: each image part carries its bytes and, as `uuid`, our digest of them, so
/// that the engine's identity of the image is ours. Whatever spelling the client chose, the engine
/// gets the one that every decoder reads as the bytes that were hashed.
pub fn chat_body(mut request: ChatRequest, images: &[Image], salt: &str) -> Bytes {
    // Nobody can guess it, so no text of a client's holds it.
    let mark = match images {
        [] => String::new(),
        _ => Uuid::new_v4().to_string(),
    };
    for (part, image) in request.images.iter().zip(images) {
        let slot = &mut request.messages[part.message]["content"][part.part];
        slot["image_url"]["url"] = Value::String(mark.clone());
        slot["uuid"] = Value::String(image.digest.to_string());
    }
    let mut fields = engine_fields(request.options, salt);
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
    with_images(serialise(fields), &mark, images)
}

/// The body of a completion.
pub fn completion_body(request: CompletionRequest, salt: &str) -> Bytes {
    let mut fields = engine_fields(request.options, salt);
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
fn engine_fields(options: RequestOptions, salt: &str) -> Map<String, Value> {
    let mut fields = options.passed;
    fields.insert("model".to_owned(), Value::String(options.model));
    if options.stream {
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    if !salt.is_empty() {
        fields.insert("cache_salt".to_owned(), salt.into());
    }
    fields
}

/// Writes each image as a data URI in the place of its mark. The serialiser would search every byte
/// for what must be escaped, which base64 never has, and that costs more than all else in a body.
fn with_images(body: Bytes, mark: &str, images: &[Image]) -> Bytes {
    if images.is_empty() {
        return body;
    }
    let uri_bytes =
        |image: &Image| image.mime.len() + 16 + STANDARD.encoded_length(image.bytes.len());
    let room: usize = images.iter().map(uri_bytes).sum();
    let mut whole = Vec::with_capacity(body.len() + room);
    let mut rest = &body[..];
    for image in images {
        let Some(at) = memmem::find(rest, mark.as_bytes()) else {
            break;
        };
        whole.extend_from_slice(&rest[..at]);
        for text in ["data:", image.mime, ";base64,"] {
            whole.extend_from_slice(text.as_bytes());
        }
        STANDARD.encode_append(&image.bytes, &mut whole);
        rest = &rest[at + mark.len()..];
    }
    whole.extend_from_slice(rest);
    whole.into()
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
    use crate::openai::fields::UnknownFields;
    use crate::openai::request::RequestLimits;

    #[test]
    fn every_image_stands_in_its_place_in_the_one_spelling() {
        let part =
            |url: &str| json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}});
        let sent = json!({"model": "m", "messages": [
            {"role": "user", "content": [part("DATA:;BASE64,aGVs bG8"), {"type": "text", "text": "\"data:\""}]},
            {"role": "user", "content": [part("http://host/a.png"), part("data:image/jpg;base64,aGVs")]},
        ]});
        let limits = RequestLimits {
            messages_max: 9,
            images_max: 9,
            unknown_fields: UnknownFields::Drop,
        };
        let request = ChatRequest::parse(sent.to_string().as_bytes(), limits).unwrap();
        let image = |(number, bytes): (u8, &'static str)| Image {
            digest: MediaDigest([number; 32]),
            size: None,
            bytes: Bytes::from_static(bytes.as_bytes()),
            mime: "image/png",
        };
        let images: Vec<_> = (1..).zip(["hello", "", "hel"]).map(image).collect();
        let body: Value = serde_json::from_slice(&chat_body(request, &images, "")).unwrap();
        let part = |number: u8, url: &str| {
            let uuid = MediaDigest([number; 32]).to_string();
            json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}, "uuid": uuid})
        };
        assert_eq!(
            body["messages"][0]["content"][0],
            part(1, "data:image/png;base64,aGVsbG8=")
        );
        assert_eq!(body["messages"][0]["content"][1]["text"], "\"data:\"");
        assert_eq!(
            body["messages"][1]["content"][0],
            part(2, "data:image/png;base64,")
        );
        assert_eq!(
            body["messages"][1]["content"][1],
            part(3, "data:image/png;base64,aGVs")
        );
    }
}
