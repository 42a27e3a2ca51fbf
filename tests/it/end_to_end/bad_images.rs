//! Images that cannot be used, and addresses that may not be asked.

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::end_to_end::client::{Answer, Told, assert_error};
use crate::end_to_end::pictures::{chat, data_uri, golden, image, png, text};
use crate::end_to_end::stack::{FAST, Stack};
use crate::media_fetch::server::{self, Server, redirect, respond};

/// What becomes of an image whose manifest entry says `error` or not: the error's code, where there
/// is one. Its size may be fine and the format none that is taken.
fn outcome(file: &str, undecodable: bool) -> Option<&'static str> {
    match file {
        "bomb_60000x60000.png" | "extreme_1x300.png" => Some("image_too_large"),
        "small.avif" | "small.tiff" | "vector.svg" => Some("unsupported_image"),
        // A header without pixels: within the limits, so the engine says it.
        "warn_12000x12000.png" => Some("invalid_image"),
        // The mock engine's decoder, unlike Pillow, fills up what is missing.
        "truncated.jpg" => None,
        _ => undecodable.then_some("invalid_image"),
    }
}

/// The field of the image in `chat(&[text, image])`.
const PARAM: &str = "messages[0].content[1].image_url.url";

fn about(url: &str) -> Value {
    chat(&[text("What is this?"), image(url)])
}

async fn post(stack: &Stack, body: &Value) -> Answer {
    stack
        .client
        .post(&stack.url("/v1/chat/completions"), body)
        .await
}

#[tokio::test]
async fn every_odd_image_has_its_answer() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let manifest: Value = serde_json::from_slice(&golden("manifest.json")).unwrap();
    let mut answered = 0;
    for entry in manifest["files"].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let body = about(&data_uri(&golden(file)));
        let answer = post(&stack, &body).await;
        let Some(code) = outcome(file, entry["error"].is_string()) else {
            assert_eq!(answer.status, 200, "{file}: {answer:?}");
            assert_eq!(answer.header("x-kvlens-mm"), "exact", "{file}");
            let Told {
                cached_tokens,
                overlap_blocks,
                ..
            } = stack.ask_settled(&body).await;
            assert_eq!(cached_tokens, overlap_blocks * 16, "{file}");
            assert!(overlap_blocks >= 4, "{file}");
            answered += 1;
            continue;
        };
        // The engine does not say which of the images it could not decode.
        let by_engine = answer.json()["error"]["param"].is_null();
        let param = if by_engine { json!(null) } else { json!(PARAM) };
        assert_error(&answer, (400, code, param), file);
    }
    assert_eq!(answered, 27, "fine ones");
    stack.end().await;
}

#[tokio::test]
async fn an_image_of_unreadable_size_is_routed_on_its_text() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    // Junk in front of a JPEG's frame: decoders skip it, and a size is looked for only so far.
    let jpeg = golden("baseline.jpg");
    let (head, rest) = jpeg.split_at(2);
    let junk = [0xff, 0xfe, 0, 2].repeat(20_000);
    let odd = [head, &junk, rest].concat();
    let words = "Many words stand before the picture, so that there are blocks. ".repeat(6);
    let body = chat(&[text(&words), image(&data_uri(&odd))]);
    for round in 0..2 {
        stack.settle().await;
        let answer = post(&stack, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.header("x-kvlens-mm"),
            "text_only; reason=size_unreadable"
        );
        let (overlap, blocks) = answer.header("x-kvlens-overlap").split_once('/').unwrap();
        assert_eq!(overlap == "0", round == 0, "{overlap}/{blocks}");
        let usage = &answer.json()["usage"];
        let all_blocks = usage["prompt_tokens"].as_u64().unwrap() / 16;
        assert!(
            blocks.parse::<u64>().unwrap() < all_blocks,
            "{blocks} of {all_blocks}"
        );
    }
    assert_eq!(stack.metric("kvlens_text_only_total").await, 2.0);
    stack.end().await;
}

/// Addresses inside somebody's network, and what else may not be asked; PORT is a canary's.
const INSIDE: &[&str] = &[
    "http://localhost:PORT/a.png",
    "http://127.1:PORT/",
    "http://2130706433:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http:\\\\127.0.0.1:PORT\\",
    "http://127.0.0.1/a.png",
    "http://[::1]/",
    "http://0.0.0.0/",
    "http://10.0.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://metadata.google.internal/",
    "https://example.com:22/",
    "https://user:secret@example.com/a.png",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
];

#[tokio::test]
async fn forbidden_addresses_are_never_dialled() {
    let canary = Server::start("127.0.0.1:0", |_| server::Answer::Silence).await;
    let inside = canary.url("/metadata");
    let allowed = Server::start("127.0.0.1:0", move |request| {
        match server::path_of(request) {
            "/inside" => redirect(&inside),
            "/file" => redirect("file:///etc/passwd"),
            "/text" => server::Answer::Bytes(respond("200 OK", b"<html></html>")),
            _ => server::Answer::Bytes(respond("404 Not Found", b"")),
        }
    })
    .await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let config = format!(
        "[media]\nallow = [\"127.0.0.1:{}\", \"127.0.0.1:{closed_port}\"]\n",
        allowed.port
    );
    let stack = Stack::configured(&format!("-- {FAST}"), &config).await;
    for url in INSIDE {
        let url = url.replace("PORT", &canary.port.to_string());
        let answer = post(&stack, &about(&url)).await;
        assert_error(&answer, (400, "url_not_allowed", json!(PARAM)), &url);
    }
    for (url, code) in [
        (canary.url("/a.png"), "url_not_allowed"),
        (allowed.url("/inside"), "url_not_allowed"),
        (allowed.url("/file"), "url_not_allowed"),
        (allowed.url("/missing"), "image_fetch_failed"),
        (allowed.url("/text"), "invalid_image"),
        (
            format!("http://127.0.0.1:{closed_port}/"),
            "image_fetch_failed",
        ),
        ("/etc/passwd".to_owned(), "invalid_url"),
        (String::new(), "invalid_url"),
        ("data:image/png;base64".to_owned(), "invalid_url"),
        ("data:image/png;base64,????".to_owned(), "invalid_image"),
        ("data:image/png;base64,".to_owned(), "invalid_image"),
        ("data:text/html;base64,aGVs".to_owned(), "unsupported_image"),
    ] {
        let answer = post(&stack, &about(&url)).await;
        assert_error(&answer, (400, code, json!(PARAM)), &url);
    }
    assert_eq!(canary.connections(), 0);
    let fine = about(&data_uri(&png(40, 40, 1)));
    assert_eq!(post(&stack, &fine).await.status, 200);
    stack.end().await;
}
