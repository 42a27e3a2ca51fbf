//! What a client sees of routing: overlap, worker and cached tokens agree.

use serde_json::{Value, json};

use crate::end_to_end::client::Told;
use crate::end_to_end::pictures::{chat, data_uri, image, png, streamed, text};
use crate::end_to_end::stack::{FAST, Stack};
use crate::media_fetch::server::{Answer, Server, respond};

/// Tokens of a block of the mock engines.
const BLOCK: u64 = 16;

const QUESTION: &str = "Look closely at the picture below, count every house, tree and river in \
    it, and say which of them a painter would have left out, and why.";

/// The engine had cached exactly what was predicted, and that was all that can be cached.
fn assert_all_cached(told: &Told) {
    assert_eq!(
        told.overlap_blocks,
        (told.prompt_tokens - 1) / BLOCK,
        "{told:?}"
    );
    assert_eq!(told.prompt_blocks, told.prompt_tokens / BLOCK, "{told:?}");
    assert_eq!(told.cached_tokens, told.overlap_blocks * BLOCK, "{told:?}");
}

#[tokio::test]
async fn the_printed_request_sent_twice_is_answered_from_the_cache() {
    let stack = Stack::start("").await;
    for body in [stack.example.clone(), streamed(stack.example.clone())] {
        // A salt of its own keeps each form's first answer a first one.
        let mut body = body;
        body["cache_salt"] = json!(format!("streamed {}", body["stream"]));
        let first = stack.ask_settled(&body).await;
        assert_eq!((first.overlap_blocks, first.cached_tokens), (0, 0));
        assert_eq!(first.prompt_blocks, first.prompt_tokens / BLOCK);
        let second = stack.ask_settled(&body).await;
        assert_all_cached(&second);
        assert_eq!(second.worker, first.worker);
        assert!(second.overlap_blocks >= 4, "an image is at least 64 tokens");
    }
    stack.end().await;
}

#[tokio::test]
async fn another_image_of_the_same_size_shares_only_the_blocks_before_it() {
    let stack = Stack::start(&format!("-- {FAST}")).await;
    let with = |seed| chat(&[text(QUESTION), image(&data_uri(&png(96, 64, seed)))]);
    let first = stack.ask_settled(&with(1)).await;
    // Where the image starts is asked of the engine, which tokenises for itself.
    let engine = stack.engine(&first.worker).await;
    let url = format!("{engine}/tokenize");
    let tokens = stack.client.post(&url, &with(2)).await.json();
    let is_pad = |token: &Value| *token == PAD;
    let start = tokens["tokens"].as_array().unwrap().iter().position(is_pad);
    let before_blocks = start.unwrap() as u64 / BLOCK;
    assert!(before_blocks >= 2, "{tokens}");

    let other = stack.ask_settled(&with(2)).await;
    assert_eq!(other.prompt_tokens, first.prompt_tokens);
    assert_eq!(other.overlap_blocks, before_blocks);
    assert_eq!(other.cached_tokens, before_blocks * BLOCK);
    assert_eq!(other.worker, first.worker);
    assert_all_cached(&stack.ask_settled(&with(2)).await);
    assert_all_cached(&stack.ask_settled(&with(1)).await);
    stack.end().await;
}

/// The demo model's `<|image_pad|>`.
const PAD: u64 = 2460;

#[tokio::test]
async fn an_image_is_the_same_by_url_and_inline_in_any_spelling() {
    let picture = png(80, 80, 7);
    let body = picture.clone();
    let server = Server::start("127.0.0.1:0", move |_| {
        Answer::Bytes(respond("200 OK\r\ncontent-type: image/png", &body))
    })
    .await;
    let config = format!("[media]\nallow = [\"127.0.0.1:{}\"]\n", server.port);
    let stack = Stack::configured(&format!("-- {FAST}"), &config).await;
    let plain = data_uri(&picture);
    let data = plain.split_once(',').unwrap().1;
    let first = chat(&[text(QUESTION), image(&plain)]);
    assert_eq!(stack.ask_settled(&first).await.cached_tokens, 0);
    for url in [
        server.url("/a.png"),
        server.url("/another/name"),
        format!("DATA:image/jpeg;charset=utf-8;BASE64,{data}"),
        format!("data:;base64,{}", data.trim_end_matches('=')),
        format!("data:image/png;base64,{}\n{}", &data[..40], &data[40..]),
    ] {
        let told = stack
            .ask_settled(&chat(&[text(QUESTION), image(&url)]))
            .await;
        assert_all_cached(&told);
    }
    assert_eq!(server.connections(), 2, "one fetch for each request by URL");
    stack.end().await;
}

#[tokio::test]
async fn round_robin_takes_turns_and_the_caches_show_the_loss() {
    let stack = Stack::start(&format!("--router-mode round-robin -- {FAST}")).await;
    let body = chat(&[text(QUESTION), image(&data_uri(&png(64, 64, 3)))]);
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(stack.ask_settled(&body).await);
    }
    let workers: Vec<_> = told.iter().map(|told| told.worker.as_str()).collect();
    assert_ne!(workers[0], workers[1]);
    assert_eq!(workers[..2], workers[2..]);
    for cold in &told[..2] {
        assert_eq!(
            (cold.overlap_blocks, cold.cached_tokens),
            (0, 0),
            "{cold:?}"
        );
    }
    told[2..].iter().for_each(assert_all_cached);
    stack.end().await;
}
