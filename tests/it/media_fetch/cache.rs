//! One fetch for all who ask at once, and none of the bytes when an image has not changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use kvlens::media::digest;

use super::server::{Answer, Server, golden, media, path_of, respond};

#[tokio::test]
async fn a_thousand_who_ask_at_once_make_one_fetch() {
    let server = Server::start("127.0.0.1:0", |_| {
        Answer::Bytes(respond("200 OK", &golden("rgb8.png")))
    })
    .await;
    let media = media(&server);
    let url = server.url("/hot.png");
    let images = join_all((0..1000).map(|_| media.load(&url, ""))).await;
    let first = images[0].as_ref().unwrap().digest;
    assert!(
        images
            .iter()
            .all(|image| image.as_ref().unwrap().digest == first)
    );
    assert_eq!(server.requests().len(), 1);
    // Without a validator nothing is kept, and another tenant shares nothing.
    media.load(&url, "").await.unwrap();
    join_all(["a", "b"].map(|salt| media.load(&url, salt))).await;
    assert_eq!(server.requests().len(), 4);
    assert_eq!(media.cache_counts().bytes, 0);
}

#[tokio::test]
async fn an_unchanged_image_is_not_sent_again() {
    let changed = Arc::new(AtomicUsize::new(0));
    let now = changed.clone();
    let server = Server::start("127.0.0.1:0", move |request| {
        let version = now.load(Ordering::SeqCst);
        let (tag, name) = [("\"v0\"", "rgb8.png"), ("\"v1\"", "gray8.png")][version];
        Answer::Bytes(match path_of(request) {
            "/moved" => respond("302 Found\r\netag: \"v0\"\r\nlocation: /etag", b""),
            "/etag" if request.contains(&format!("if-none-match: {tag}")) => {
                b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n".to_vec()
            }
            "/date" if request.contains("if-modified-since: then") => {
                b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n".to_vec()
            }
            "/date" => respond(
                "200 OK\r\ndate: now\r\nlast-modified: then",
                &golden("gray.jpg"),
            ),
            "/fresh-date" => respond(
                "200 OK\r\ndate: now\r\nlast-modified: now",
                &golden("gray.jpg"),
            ),
            _ => respond(&format!("200 OK\r\netag: {tag}"), &golden(name)),
        })
    })
    .await;
    let media = media(&server);
    let load = async |path: &str, salt: &str| media.load(&server.url(path), salt).await.unwrap();
    let counts = || {
        let counts = media.cache_counts();
        (counts.hits, counts.misses)
    };

    let first = load("/etag", "").await;
    assert_eq!(load("/etag", "").await.digest, first.digest);
    assert_eq!(counts(), (1, 1));
    load("/etag", "other tenant").await;
    assert_eq!(counts(), (1, 2));

    // The validator goes to the place that it came from, not to the one that redirects there.
    load("/moved", "").await;
    assert_eq!(load("/moved", "").await.digest, first.digest);
    assert_eq!(counts(), (2, 3));
    let asked = server.requests();
    let conditional = asked.iter().filter(|head| head.contains("if-none-match"));
    assert!(conditional.clone().all(|head| path_of(head) == "/etag"));
    assert_eq!(conditional.count(), 2);

    changed.store(1, Ordering::SeqCst);
    assert_eq!(
        load("/etag", "").await.digest,
        digest("", &golden("gray8.png"))
    );
    assert_eq!(counts(), (2, 4));

    for (path, expected) in [("/date", (3, 5)), ("/fresh-date", (3, 7))] {
        load(path, "").await;
        load(path, "").await;
        assert_eq!(counts(), expected, "{path}");
    }
}
