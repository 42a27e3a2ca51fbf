//! The body an engine gets: the client's request, normalised, with our identities in it.

use std::sync::OnceLock;

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

/// A request's body, serialised once and finished for each placement: engines differ in how they
/// get images, and in whether they are asked to report what they reuse.
#[derive(Debug)]
pub struct EngineBody {
    /// The whole, with `mark` in the place of each image.
    json: Bytes,
    mark: String,
    images: Vec<Image>,
    /// The whole with every image inside, made when it is first needed.
    inline: OnceLock<Bytes>,
    may_report: bool,
}

impl EngineBody {
    fn plain(json: Bytes) -> Self {
        Self {
            json,
            mark: String::new(),
            images: Vec::new(),
            inline: OnceLock::new(),
            may_report: true,
        }
    }

    /// The same with every image inside from now on, so that their own bytes can go.
    pub fn inlined(self) -> Self {
        match self.images[..] {
            [] => self,
            _ => Self::plain(self.finish(&[], None)),
        }
    }

    /// The images that are not inside yet, in the order of the request's own.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The body for one placement: each image by its URL where it has one in `urls`, and inside
    /// where it has none. With a session the engine is asked to report the blocks it reuses: the
    /// only `vllm_xargs` that ever reach one.
    pub fn finish(&self, urls: &[Option<&str>], report_session: Option<&str>) -> Bytes {
        let body = match urls.iter().any(Option::is_some) {
            true => self.with_images(urls),
            false => self.inline.get_or_init(|| self.with_images(&[])).clone(),
        };
        match report_session.filter(|_| self.may_report) {
            Some(session) => with_report(&body, session),
            None => body,
        }
    }

    /// Length of the body without the images that are not inside: the same for the same request.
    pub fn json_bytes(&self) -> usize {
        self.json.len()
    }

    /// Bytes that it holds, images included.
    pub fn held_bytes(&self) -> usize {
        let images = self.images.iter().map(|image| image.bytes.len());
        self.json.len() + images.sum::<usize>()
    }

    /// The same for the same request to a path, and for no other: images are in it by their digests,
    /// or their bytes.
    pub fn digest(&self, path: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("kvlens 1 request");
        hasher.update(path.as_bytes());
        hasher.update(&[0]);
        let mut rest = &self.json[..];
        // The marks are of this request alone.
        while let Some(at) = self.mark_in(rest) {
            hasher.update(&rest[..at]);
            rest = &rest[at + self.mark.len()..];
        }
        hasher.update(rest);
        *hasher.finalize().as_bytes()
    }

    fn mark_in(&self, json: &[u8]) -> Option<usize> {
        match self.mark.as_bytes() {
            b"" => None,
            mark => memmem::find(json, mark),
        }
    }

    /// Its fields.
    pub fn fields(&self) -> Map<String, Value> {
        // It was serialised from such a map.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The same chat with another list of messages whose last one is to be continued, and an answer
    /// of at most so many tokens.
    pub fn continued_chat(&self, messages: Vec<Value>, answer_tokens_max: Option<u32>) -> Self {
        let mut fields = self.fields();
        fields.insert("messages".to_owned(), Value::Array(messages));
        fields.insert("add_generation_prompt".to_owned(), false.into());
        fields.insert("continue_final_message".to_owned(), true.into());
        limit_answer(&mut fields, answer_tokens_max);
        Self {
            json: serialise(fields),
            mark: self.mark.clone(),
            images: self.images.clone(),
            inline: OnceLock::new(),
            may_report: self.may_report,
        }
    }

    /// A chat without images or tools, or a completion, as the completion of token ids.
    pub fn continued_tokens(&self, prompt: &[u32], answer_tokens_max: Option<u32>) -> Self {
        let mut fields = self.fields();
        fields.retain(|name, _| !CHAT_ONLY.contains(&name.as_str()));
        fields.insert("prompt".to_owned(), json!(prompt));
        limit_answer(&mut fields, answer_tokens_max);
        Self::plain(serialise(fields))
    }

    /// Writes each image in the place of its mark. The serialiser would search every byte for what
    /// must be escaped, which base64 never has, and that costs more than all else in a body.
    fn with_images(&self, urls: &[Option<&str>]) -> Bytes {
        if self.images.is_empty() {
            return self.json.clone();
        }
        let urls = || urls.iter().copied().chain(std::iter::repeat(None));
        let room = |(image, url): (&Image, Option<&str>)| match url {
            Some(url) => url.len(),
            None => image.mime.len() + 16 + STANDARD.encoded_length(image.bytes.len()),
        };
        let room: usize = self.images.iter().zip(urls()).map(room).sum();
        let mut whole = Vec::with_capacity(self.json.len() + room);
        let mut rest = &self.json[..];
        for (image, url) in self.images.iter().zip(urls()) {
            let Some(at) = memmem::find(rest, self.mark.as_bytes()) else {
                break;
            };
            whole.extend_from_slice(&rest[..at]);
            match url {
                Some(url) => whole.extend_from_slice(url.as_bytes()),
                None => append_data_uri(&mut whole, image),
            }
            rest = &rest[at + self.mark.len()..];
        }
        whole.extend_from_slice(rest);
        whole.into()
    }
}

/// What only a chat has: it is in the prompt already.
const CHAT_ONLY: &[&str] = &[
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template_kwargs",
    "continue_final_message",
    "include_reasoning",
    "messages",
    "parallel_tool_calls",
    "reasoning_effort",
];

fn limit_answer(fields: &mut Map<String, Value>, answer_tokens_max: Option<u32>) {
    fields.shift_remove("max_completion_tokens");
    fields.shift_remove("max_tokens");
    fields.extend(answer_tokens_max.map(|most| ("max_tokens".to_owned(), most.into())));
}

fn append_data_uri(whole: &mut Vec<u8>, image: &Image) {
    for text in ["data:", image.mime, ";base64,"] {
        whole.extend_from_slice(text.as_bytes());
    }
    STANDARD.encode_append(&image.bytes, whole);
}

/// The body with the request for a report in front: it is an object, and has fields.
fn with_report(body: &Bytes, session: &str) -> Bytes {
    let report = json!({"vllm_xargs": {"kv_cache_report_mode": "full"}, "session_id": session});
    let report = report.to_string();
    let front = report.trim_end_matches('}').len();
    let (front, rest) = (&report[..front], body.get(1..).unwrap_or_default());
    [front.as_bytes(), b",", rest].concat().into()
}

/// The body of a chat: each image part carries its bytes and, as `uuid`, our digest of them, so
/// that the engine's identity of the image is ours. Whatever spelling the client chose, the engine
/// gets the one that every decoder reads as the bytes that were hashed.
pub fn chat_body(mut request: ChatRequest, images: &[Image], salt: &str) -> EngineBody {
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
    EngineBody {
        mark,
        images: images.to_vec(),
        ..EngineBody::plain(serialise(fields))
    }
}

/// The body of a completion.
pub fn completion_body(request: CompletionRequest, salt: &str) -> EngineBody {
    let mut fields = engine_fields(request.options, salt);
    let prompt = match request.prompt {
        Prompt::Text(text) => Value::String(text),
        Prompt::Tokens(tokens) => json!(tokens),
    };
    fields.insert("prompt".to_owned(), prompt);
    if !request.add_special_tokens {
        fields.insert("add_special_tokens".to_owned(), false.into());
    }
    EngineBody::plain(serialise(fields))
}

/// The body of an embeddings request.
pub fn embeddings_body(request: EmbeddingsRequest) -> EngineBody {
    let mut fields = request.passed;
    fields.insert("model".to_owned(), Value::String(request.model));
    EngineBody {
        may_report: false,
        ..EngineBody::plain(serialise(fields))
    }
}

/// What every request carries: the passed fields, the model, our salt, and, in a stream, the usage
/// chunk whether or not the client wants to see it.
fn engine_fields(options: RequestOptions, salt: &str) -> Map<String, Value> {
    let mut fields = options.passed;
    // An agent takes what it hears under a session for what is there already: sessions are ours.
    fields.shift_remove("session_id");
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

    const LIMITS: RequestLimits = RequestLimits {
        messages_max: 9,
        images_max: 9,
        unknown_fields: UnknownFields::Drop,
    };

    #[test]
    fn every_image_stands_in_its_place_in_the_one_spelling() {
        let part =
            |url: &str| json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}});
        let sent = json!({"model": "m", "messages": [
            {"role": "user", "content": [part("DATA:;BASE64,aGVs bG8"), {"type": "text", "text": "\"data:\""}]},
            {"role": "user", "content": [part("http://host/a.png"), part("data:image/jpg;base64,aGVs")]},
        ]});
        let request = ChatRequest::parse(sent.to_string().as_bytes(), LIMITS).unwrap();
        let image = |(number, bytes): (u8, &'static str)| Image {
            digest: MediaDigest([number; 32]),
            size: None,
            bytes: Bytes::from_static(bytes.as_bytes()),
            mime: "image/png",
        };
        let images: Vec<_> = (1..).zip(["hello", "", "hel"]).map(image).collect();
        let body = chat_body(request, &images, "");
        let whole = body.finish(&[], None);
        assert_eq!(whole.as_ptr(), body.finish(&[None, None], None).as_ptr());
        let url = "file:///dev/shm/a.png";
        let mixed = body.finish(&[None, Some(url), None], Some("s"));
        let mixed: Value = serde_json::from_slice(&mixed).unwrap();
        assert_eq!(body.images().len(), 3);
        let inlined = body.inlined();
        assert!(inlined.images().is_empty());
        assert_eq!(inlined.finish(&[], None), whole);
        let body: Value = serde_json::from_slice(&whole).unwrap();
        let parts = |body: &Value, message: usize| body["messages"][message]["content"].clone();
        assert_eq!(parts(&mixed, 0), parts(&body, 0));
        assert_eq!(mixed["messages"][1]["content"][0]["image_url"]["url"], url);
        assert_eq!(parts(&mixed, 1)[1], parts(&body, 1)[1]);
        assert_eq!(mixed["session_id"], "s");
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

    #[test]
    fn a_digest_is_of_the_request_and_not_of_its_marks() {
        let body = |word: &str, number: u8| {
            let sent = json!({"model": "m", "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "http://host/"}},
                {"type": "text", "text": word}]}]});
            let request = ChatRequest::parse(sent.to_string().as_bytes(), LIMITS).unwrap();
            let image = Image {
                digest: MediaDigest([number; 32]),
                size: None,
                bytes: Bytes::from(vec![number]),
                mime: "image/png",
            };
            chat_body(request, &[image], "")
        };
        let digest = |word: &str, number: u8| body(word, number).digest("/p");
        assert_eq!(digest("a", 1), digest("a", 1));
        for other in [digest("b", 1), digest("a", 2), body("a", 1).digest("/q")] {
            assert_ne!(digest("a", 1), other);
        }
        let inlined = |word: &str| body(word, 1).inlined().digest("/p");
        assert_eq!(inlined("a"), inlined("a"));
        assert_ne!(inlined("a"), inlined("b"));
        assert_eq!(body("a", 1).json_bytes(), body("b", 2).json_bytes());
    }

    #[test]
    fn a_chat_goes_on_as_token_ids_or_as_a_chat() {
        let sent = json!({"model": "m", "max_completion_tokens": 9, "temperature": 0.5,
            "reasoning_effort": "none", "messages": [{"role": "user", "content": "a"}]});
        let request = ChatRequest::parse(sent.to_string().as_bytes(), LIMITS).unwrap();
        let body = chat_body(request, &[], "salt");
        let read = |body: &EngineBody| -> Value {
            serde_json::from_slice(&body.finish(&[], None)).unwrap()
        };
        assert_eq!(
            read(&body.continued_tokens(&[1, 2], Some(5))),
            json!({"temperature": 0.5, "model": "m", "cache_salt": "salt", "prompt": [1, 2],
                "max_tokens": 5})
        );
        let messages = vec![json!({"role": "assistant", "content": "so far"})];
        let chat = read(&body.continued_chat(messages.clone(), None));
        assert_eq!(chat["messages"], Value::Array(messages));
        assert_eq!(chat["continue_final_message"], true);
        assert_eq!(chat["add_generation_prompt"], false);
        assert_eq!(chat.get("max_completion_tokens"), None);
    }
}
