//! Images that the engine fetches: exactly the bytes that were hashed, while their request is in
//! flight, and carried where it cannot fetch them.

use std::net::SocketAddr;

use http::Request;
use kvlens::config::media::{MediaConfig, Transfer};
use kvlens::media::digest;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::bodies::{Answering, CHAT, Pair, answered};
use crate::end_to_end::client::{Answer, Client};
use crate::end_to_end::pictures::{chat, data_uri, image, png, text};

async fn start(http_bytes_max: usize, answering: Answering) -> Pair {
    start_at(http_bytes_max, None, answering).await
}

async fn start_at(http_bytes_max: usize, url: Option<&str>, answering: Answering) -> Pair {
    let media = MediaConfig {
        transfer: Transfer::Http,
        http_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        http_url: url.map(str::to_owned),
        http_bytes_max,
        ..MediaConfig::default()
    };
    Pair::start(media, answering).await
}

fn two_pictures() -> (Value, [Vec<u8>; 2]) {
    let pictures = [png(48, 32, 1), png(32, 48, 2)];
    let [a, b] = pictures.each_ref().map(|bytes| image(&data_uri(bytes)));
    (chat(&[a, text("Which one?"), b]), pictures)
}

fn url(body: &Value, part: usize) -> &str {
    let url = &body["messages"][0]["content"][part]["image_url"]["url"];
    url.as_str().expect("a URL")
}

fn asked(method: &str, url: &str) -> Answer {
    let request = Request::builder().method(method).uri(url);
    let request = request.body(Default::default()).expect("a request");
    // Its own client: a kept connection would outlive its request.
    block_in_place(|| Handle::current().block_on(Client::new().send(request)))
}

/// Answers as an engine that fetches its images while the request is in flight.
fn fetches(body: &Value) -> (u16, Value) {
    for part in [0, 2] {
        let url = url(body, part);
        let image = asked("GET", url);
        assert_eq!(image.status, 200, "{image:?}");
        assert_eq!(image.header("content-type"), "image/png");
        assert_eq!(image.header("cache-control"), "no-store");
        let part = &body["messages"][0]["content"][part];
        assert_eq!(part["uuid"], digest("", &image.body).to_string());
        let head = asked("HEAD", url);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), image.body.len().to_string());
        assert_eq!(asked("POST", url).status, 405);
        let (folder, token) = url.rsplit_once('/').expect("a path");
        assert_eq!(token.len(), 32, "{url}");
        // Whoever guesses, or knows all but the last digit, gets nothing.
        let last = if token.ends_with('0') { "1" } else { "0" };
        for wrong in [
            "",
            "/",
            "/00000000000000000000000000000000",
            &format!("/{}{last}", &token[..31]),
        ] {
            assert_eq!(
                asked("GET", &format!("{folder}{wrong}")).status,
                404,
                "{wrong}"
            );
        }
        assert_eq!(
            asked(
                "GET",
                url.trim_end_matches(token).trim_end_matches("media/")
            )
            .status,
            404
        );
    }
    answered(body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_fetches_what_was_hashed_while_its_request_is_in_flight() {
    let pair = start(1 << 20, fetches).await;
    let (body, _) = two_pictures();
    let sent = pair.sent(CHAT, &body).await;
    assert!(!sent.to_string().contains("base64"), "{sent}");
    assert_ne!(url(&sent, 0), url(&sent, 2));
    for part in [0, 2] {
        assert_eq!(asked("GET", url(&sent, part)).status, 404, "it has ended");
    }
    assert_ne!(url(&pair.sent(CHAT, &body).await, 0), url(&sent, 0));
    assert!(pair.counts("kvlens_media_transfers_total{way=\"http\"} 4"));
}

#[tokio::test]
async fn what_finds_no_room_goes_inside() {
    let (body, pictures) = two_pictures();
    let pair = start(pictures[0].len(), answered).await;
    let sent = pair.sent(CHAT, &body).await;
    assert!(url(&sent, 0).starts_with("http://127.0.0.1:"), "{sent}");
    assert_eq!(url(&sent, 2), data_uri(&pictures[1]));
    assert!(pair.counts("kvlens_media_transfers_total{way=\"http_full\"} 1"));
    // The room is free again.
    let sent = pair.sent(CHAT, &body).await;
    assert!(url(&sent, 0).starts_with("http://127.0.0.1:"), "{sent}");
}

fn cannot_fetch(body: &Value) -> (u16, Value) {
    let (status, message) = match body["max_tokens"].as_u64() {
        _ if !body.to_string().contains("/media/") => return answered(body),
        Some(1) => (500, "Cannot connect to host nowhere:9 ssl:default [x]"),
        Some(2) => (400, "cannot identify image file"),
        Some(3) => (400, "The URL must be from one of the allowed domains: []"),
        // It waited in vain.
        _ => (500, ""),
    };
    (status, json!({"error": {"message": message}}))
}

#[tokio::test]
async fn an_engine_that_cannot_fetch_gets_the_bytes() {
    for (max_tokens, unread) in [(1, true), (2, false), (3, true), (4, true)] {
        let pair = start_at(1 << 20, Some("http://nowhere:9"), cannot_fetch).await;
        let (mut body, pictures) = two_pictures();
        body["max_tokens"] = json!(max_tokens);
        let answer = pair.post(CHAT, &body).await;
        let sent = pair.taken();
        assert!(url(&sent[0], 0).starts_with("http://nowhere:9/media/"));
        assert_eq!(answer.status == 200, unread, "{answer:?}");
        if !unread {
            assert_eq!(answer.json()["error"]["code"], "invalid_image");
            assert_eq!(sent.len(), 1, "the image is at fault");
            continue;
        }
        assert_eq!(url(&sent[1], 0), data_uri(&pictures[0]));
        assert!(pair.counts("kvlens_media_transfers_total{way=\"http_unread\"} 2"));
        // The next one does not try.
        let sent = pair.sent(CHAT, &body).await;
        assert_eq!(url(&sent, 0), data_uri(&pictures[0]));
    }
}
