//! What placing a chat costs before its engine is asked: 8,192 tokens of text and four images of
//! 300 kB as data URIs, no two requests alike, against 64 workers that hold a million blocks.
//!
//! CPU time of one thread, from the body in memory to the worker chosen, beside the least such a
//! body costs anybody: reading its JSON, decoding its base64 and hashing its images.

mod figures;
mod fleet;
mod samples;

use std::sync::Arc;
use std::time::Duration;

use kvlens::block::{self, BlockSize};
use kvlens::config::frontend::FrontendConfig;
use kvlens::config::media::MediaConfig;
use kvlens::discovery::plane::Planes;
use kvlens::dispatch::EngineClient;
use kvlens::dispatch::request::chat_body;
use kvlens::frontend::Frontend;
use kvlens::frontend::models::Models;
use kvlens::frontend::recovery::Recovery;
use kvlens::media::{Image, Media};
use kvlens::model::{ChatInput, Model};
use kvlens::openai::chat::ChatRequest;
use kvlens::openai::fields::UnknownFields;
use kvlens::openai::request::RequestLimits;
use kvlens::prompt::placeholder;
use kvlens::router::footprint::{Footprint, Wish};
use kvlens::telemetry::metrics::Metrics;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::figures::{row, table, target};
use crate::fleet::{Chance, MODEL, WORKERS, cpu_time};
use crate::samples::Samples;

const REQUESTS: u64 = 300;
const TEXT_TOKENS: usize = 8_192;
/// Tokens of text that every request begins with, and a quarter of the workers hold.
const SHARED_TOKENS: usize = 2_048;
const IMAGES: u64 = 4;
const IMAGE_BYTES: usize = 300_000;
const CPU_MAX: Duration = Duration::from_millis(1);

const LIMITS: RequestLimits = RequestLimits {
    messages_max: 4_096,
    images_max: 16,
    unknown_fields: UnknownFields::Drop,
};

/// Words that requests are made of.
const WORDS: &str = include_str!("../LICENSE");

fn main() {
    let model = Arc::new(Model::demo().expect("the demo model is in the binary"));
    let shared_text = text(&model, &mut Chance(1), SHARED_TOKENS);
    let metrics = Arc::new(Metrics::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let media = Media::new(MediaConfig::default()).expect("the default policy");
    // The fleet holds what the frontend makes of the shared text.
    let bare = frontend(&model, &media, &metrics, &[]);
    let first = body(&model, &shared_text, 0);
    let prepared = runtime.block_on(bare.prepare_chat(&first, &Arc::default()));
    let footprint = prepared.expect("a legal chat").footprint;
    let shared_blocks = SHARED_TOKENS / 16;
    let shared = &footprint.hashes[0].1[..shared_blocks];
    let frontend = frontend(&model, &media, &metrics, shared);

    let mut parts = Parts::default();
    for number in 1..=REQUESTS {
        let body = body(&model, &shared_text, number);
        let started = cpu_time();
        let prepared = runtime.block_on(frontend.prepare_chat(&body, &Arc::default()));
        let prepared = prepared.expect("a legal chat");
        let placement = frontend.router.place(&prepared.footprint, &Wish::default());
        parts.whole.push(cpu_time() - started);
        let placement = placement.expect("a worker is there");
        assert!(
            placement.overlap_blocks as usize >= shared_blocks,
            "{placement:?}"
        );
        let footprint = prepared.footprint.clone();
        drop((prepared, placement));
        parts.split(&runtime, &frontend, &footprint, &body);
        parts.floor(&body);
    }
    parts.print();
}

fn frontend(
    model: &Arc<Model>,
    media: &Media,
    metrics: &Arc<Metrics>,
    shared: &[block::SequenceHash],
) -> Frontend {
    Frontend {
        sse_event_bytes_max: 1 << 20,
        limits: LIMITS,
        expose_routing: false,
        allow_overrides: false,
        recovery: Recovery::new(&FrontendConfig::default()),
        router: fleet::router(metrics.clone(), WORKERS, shared),
        remote: None,
        planes: Planes::default(),
        models: Models::of([(MODEL.to_owned(), model.clone())]),
        hash_key: None,
        media: Some(media.clone()),
        client: EngineClient::new(),
        metrics: metrics.clone(),
        tenants: Arc::default(),
        lending: None,
        listening: CancellationToken::new(),
        settling: CancellationToken::new(),
    }
}

/// The steps of a placement, each measured alone, in the order in which a request takes them.
#[derive(Default)]
struct Parts {
    whole: Samples,
    parse: Samples,
    media: Samples,
    template: Samples,
    tokenise: Samples,
    expand: Samples,
    hash: Samples,
    place: Samples,
    floor: Samples,
    /// Not part of a placement, but paid before the engine is asked.
    engine_body: Samples,
    body_bytes: usize,
    prompt_tokens: usize,
}

impl Parts {
    fn split(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        frontend: &Frontend,
        footprint: &Footprint,
        body: &[u8],
    ) {
        let model = &*frontend.models.get(MODEL).expect("it was put there");
        let request = timed(&mut self.parse, || ChatRequest::parse(body, LIMITS));
        let request = request.expect("a legal chat");
        let media = frontend.media.as_ref().expect("images are taken");
        let images: Vec<Image> = timed(&mut self.media, || {
            let load = |url| runtime.block_on(media.load(url, "")).expect("an image");
            request.images.iter().map(|part| load(&part.url)).collect()
        });
        let text = timed(&mut self.template, || render(model, &request));
        let tokens = timed(&mut self.tokenise, || model.encode(&text, false));
        let tokens = tokens.expect("text is tokens");
        let family = model.family().expect("the demo model takes images");
        let prompt = timed(&mut self.expand, || {
            let media: Vec<_> = images
                .iter()
                .map(|image| placeholder::Media {
                    id: image.digest.to_string().into(),
                    expansion: family.expand(image.size.expect("a size")).expect("sane"),
                })
                .collect();
            placeholder::expand(&tokens, family.placeholder(), &media)
        });
        let prompt = prompt.expect("as many placeholders as images");
        let size = BlockSize::new(16).expect("16 is not zero");
        let root = block::root(MODEL, "", "");
        let hashes = timed(&mut self.hash, || {
            block::sequence_hashes(root, &prompt, size)
        });
        assert_eq!(*hashes, *footprint.hashes[0].1);
        let placement = timed(&mut self.place, || {
            frontend.router.place(footprint, &Wish::default())
        });
        drop(placement.expect("a worker is there"));
        timed(&mut self.engine_body, || {
            chat_body(request, &images, "").inlined()
        });
        self.body_bytes = body.len();
        self.prompt_tokens = prompt.tokens.len();
    }

    /// The same bytes read, decoded and hashed, and nothing else.
    fn floor(&mut self, body: &[u8]) {
        let started = cpu_time();
        let chat: BareChat<'_> = serde_json::from_slice(body).expect("legal JSON");
        let parts = chat.messages.iter().flat_map(|message| &message.content);
        for url in parts.filter_map(|part| part.image_url.as_ref()) {
            let (_, base64) = url.url.split_once(',').expect("a data URI");
            let bytes = base64_simd::STANDARD.decode_to_vec(base64);
            std::hint::black_box(blake3::hash(&bytes.expect("base64")));
        }
        self.floor.push(cpu_time() - started);
    }

    fn print(&self) {
        let rows = [
            row(["CPU time", "p50 us", "p99 us"]),
            self.whole.row("body to worker"),
            self.parse.row("  parse"),
            self.media.row("  media"),
            self.template.row("  template"),
            self.tokenise.row("  tokenise"),
            self.expand.row("  expand"),
            self.hash.row("  hash"),
            self.place.row("  place"),
            self.floor.row("floor: JSON, base64, BLAKE3"),
            self.engine_body.row("afterwards: the engine's body"),
        ];
        let title = format!(
            "placement: {REQUESTS} chats of {} bytes, {} tokens with images",
            self.body_bytes, self.prompt_tokens
        );
        table(&title, &rows);
        let (whole, floor) = (self.whole.percentile(50), self.floor.percentile(50));
        let ratio = whole.as_secs_f64() / floor.as_secs_f64();
        println!("  p50 is {ratio:.2} times the floor");
        let most = format!("p50 <= {} us of CPU", CPU_MAX.as_micros());
        target(&most, whole <= CPU_MAX);
    }
}

/// A chat as little read as its images need.
#[derive(Deserialize)]
struct BareChat<'a> {
    #[serde(borrow)]
    messages: Vec<BareMessage<'a>>,
}

#[derive(Deserialize)]
struct BareMessage<'a> {
    #[serde(borrow)]
    content: Vec<BarePart<'a>>,
}

#[derive(Deserialize)]
struct BarePart<'a> {
    #[serde(borrow)]
    image_url: Option<BareUrl<'a>>,
}

#[derive(Deserialize)]
struct BareUrl<'a> {
    url: &'a str,
}

fn timed<T>(samples: &mut Samples, step: impl FnOnce() -> T) -> T {
    let started = cpu_time();
    let outcome = step();
    samples.push(cpu_time() - started);
    outcome
}

fn render(model: &Model, request: &ChatRequest) -> String {
    let messages = model
        .normalise(&request.messages, false)
        .expect("legal messages");
    let rendered = model.render(&ChatInput {
        messages: &Value::Array(messages),
        tools: None,
        variables: None,
        add_generation_prompt: true,
        continue_final_message: false,
    });
    rendered.expect("the demo's template takes them")
}

/// A chat whose text and images no other chat has, but for the text all begin with.
fn body(model: &Model, shared_text: &str, number: u64) -> Vec<u8> {
    let mut chance = Chance(number << 40);
    let own_text = text(model, &mut chance, TEXT_TOKENS - SHARED_TOKENS);
    let image =
        |index| json!({"type": "image_url", "image_url": {"url": image(&mut chance, index)}});
    let mut parts: Vec<Value> = (0..IMAGES).map(image).collect();
    parts.push(json!({"type": "text", "text": own_text}));
    let rules = json!([{"type": "text", "text": shared_text}]);
    let chat = json!({"model": MODEL, "max_tokens": 64, "messages": [
        {"role": "system", "content": rules},
        {"role": "user", "content": parts},
    ]});
    chat.to_string().into_bytes()
}

/// Words drawn by chance that are just so many tokens.
fn text(model: &Model, chance: &mut Chance, tokens: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = String::new();
    // English words are a token or more each, so this is enough to cut from.
    for _ in 0..tokens {
        text.push_str(words[chance.next() as usize % words.len()]);
        text.push(' ');
    }
    let ids = model.encode(&text, false).expect("text is tokens");
    model.decode(&ids[..tokens])
}

/// A PNG or a JPEG of 1280 by 960 by its header; the rest is chance, for nobody looks at pixels.
fn image(chance: &mut Chance, index: u64) -> String {
    let (kind, mut bytes) = match index % 2 {
        0 => ("png", png_header()),
        _ => ("jpeg", jpeg_header()),
    };
    while bytes.len() < IMAGE_BYTES {
        bytes.extend_from_slice(&chance.next().to_le_bytes());
    }
    let encoded = base64_simd::STANDARD.encode_to_string(&bytes);
    format!("data:image/{kind};base64,{encoded}")
}

fn png_header() -> Vec<u8> {
    let head = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
    let size = [1280_u32.to_be_bytes(), 960_u32.to_be_bytes()].concat();
    let rest = b"\x08\x02\0\0\0\0\0\0\0\0\x04\x93\xe0IDAT";
    [head.as_slice(), &size, rest].concat()
}

fn jpeg_header() -> Vec<u8> {
    let head = b"\xff\xd8\xff\xc0\0\x11\x08";
    let size = [960_u16.to_be_bytes(), 1280_u16.to_be_bytes()].concat();
    let rest =
        b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0";
    [head.as_slice(), &size, rest].concat()
}
