//! Pictures and the requests that carry them.

use std::io::Cursor;
use std::path::PathBuf;

use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

/// A PNG whose pixels, and so whose bytes, follow from `seed`.
pub(crate) fn png(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let pixels = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([seed, (x * 7) as u8, (y * 13) as u8])
    });
    let mut png = Cursor::new(Vec::new());
    let written = pixels.write_to(&mut png, ImageFormat::Png);
    written.expect("a PNG");
    png.into_inner()
}

/// One of the odd images that every part is tested with.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    std::fs::read(folder.join(name)).expect("a golden image")
}

pub(crate) fn data_uri(bytes: &[u8]) -> String {
    let data = base64_simd::STANDARD.encode_to_string(bytes);
    format!("data:image/png;base64,{data}")
}

pub(crate) fn image(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// A chat of one user message with these parts; its answer is short.
pub(crate) fn chat(parts: &[Value]) -> Value {
    json!({
        "model": "demo",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": parts}],
    })
}

pub(crate) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// The same request, answered as a stream with its token counts.
pub(crate) fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}
