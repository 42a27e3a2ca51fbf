//! Images by URL, against small servers on loopback that misbehave in one way each.

mod cache;
mod names;
pub(crate) mod server;

use std::time::{Duration, Instant};

use kvlens::config::media::MediaConfig;
use kvlens::media::{Media, MediaError, digest};
use kvlens::vision::ImageSize;
use tokio::net::TcpListener;

use server::{Answer, Server, golden, media, path_of, policy, redirect, refusal, respond};

fn data_uri(bytes: &[u8]) -> String {
    format!(
        "data:image/png;base64,{}",
        base64_simd::STANDARD.encode_to_string(bytes)
    )
}

#[tokio::test]
async fn the_same_bytes_are_the_same_image_however_they_come() {
    let png = golden("rgb8.png");
    let body = png.clone();
    let server = Server::start("127.0.0.1:0", move |_| {
        Answer::Bytes(respond("200 OK\r\ncontent-type: text/plain", &body))
    })
    .await;
    let media = media(&server);
    let fetched = media.load(&server.url("/a.png#x"), "s").await.unwrap();
    let inline = media.load(&data_uri(&png), "s").await.unwrap();
    let unpadded = data_uri(&png).trim_end_matches('=').to_owned();
    let unpadded = media.load(&unpadded, "s").await.unwrap();
    for image in [&fetched, &inline, &unpadded] {
        let size = Some(ImageSize {
            width: 123,
            height: 77,
        });
        assert_eq!(image.digest, digest("s", &png));
        assert_eq!((image.size, image.mime), (size, "image/png"));
        assert_eq!(image.bytes, png);
    }
    let other = media.load(&data_uri(&png), "t").await.unwrap();
    assert_ne!(other.digest, inline.digest);

    let request = server.requests().remove(0).to_lowercase();
    assert!(request.starts_with("get /a.png http/1.1\r\n"), "{request}");
    assert!(request.contains("user-agent: kvlens/"), "{request}");
    assert!(request.contains("accept-encoding: identity"), "{request}");
}

/// Requests for `/<name>` get the answer of that name.
fn misbehave(request: &str) -> Answer {
    let png = golden("rgb8.png");
    Answer::Bytes(match path_of(request) {
        "/404" => respond("404 Not Found", b"secret of the server"),
        "/500" => respond("500 Oh", b""),
        "/206" => respond("206 Partial Content", &png),
        "/304" => respond("304 Not Modified", b""),
        "/gzip" => respond("200 OK\r\ncontent-encoding: gzip", &png),
        "/identity" => respond("200 OK\r\ncontent-encoding: identity", &png),
        "/html" => respond("200 OK", b"<!doctype html><p>no image"),
        "/empty" => respond("200 OK", b""),
        "/bomb" => respond("200 OK", &golden("bomb_60000x60000.png")),
        "/tiff" => respond("200 OK", &golden("small.tiff")),
        "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nabc".to_vec(),
        "/http09" => png,
        "/nowhere" => respond("302 Found", b""),
        "/bad-location" => respond("302 Found\r\nlocation: http://[", b""),
        "/headers" => respond(&format!("200 OK{}", "\r\na: b".repeat(1000)), &png),
        "/large" => b"HTTP/1.1 200 OK\r\ncontent-length: 65537\r\n\r\n".to_vec(),
        "/endless" => return Answer::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        "/drip" => return Answer::Drip(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        "/drip-head" => return Answer::Drip(b"HTTP/1.1 200 OK\r\na: ".to_vec()),
        _ => return Answer::Silence,
    })
}

#[tokio::test]
async fn a_server_that_misbehaves_is_named_by_its_fault() {
    use MediaError::{BadRedirect, Empty, Encoded, TooManyBytes, Unreachable};
    let server = Server::start("127.0.0.1:0", misbehave).await;
    let media = media(&server);
    let status = |status| MediaError::Status { status };
    let rows = [
        ("/404", status(404), "image_fetch_failed"),
        ("/500", status(500), "image_fetch_failed"),
        ("/206", status(206), "image_fetch_failed"),
        ("/304", status(304), "image_fetch_failed"),
        ("/gzip", Encoded, "image_fetch_failed"),
        ("/html", MediaError::UnknownFormat, "invalid_image"),
        ("/empty", Empty, "invalid_image"),
        (
            "/tiff",
            MediaError::UnsupportedFormat { format: "TIFF" },
            "unsupported_image",
        ),
        (
            "/short",
            MediaError::BrokenOff { read_bytes: 3 },
            "image_fetch_failed",
        ),
        ("/http09", Unreachable, "image_fetch_failed"),
        ("/nowhere", BadRedirect, "image_fetch_failed"),
        ("/bad-location", BadRedirect, "image_fetch_failed"),
        ("/headers", Unreachable, "image_fetch_failed"),
        ("/large", TooManyBytes { max: 64 << 10 }, "image_too_large"),
        (
            "/endless",
            TooManyBytes { max: 64 << 10 },
            "image_too_large",
        ),
    ];
    for (path, expected, code) in rows {
        let error = refusal(&media, &server.url(path)).await;
        assert_eq!((&error, error.code()), (&expected, code), "{path}");
    }
    let bomb = refusal(&media, &server.url("/bomb")).await;
    assert_eq!(bomb.code(), "image_too_large");
    assert!(media.load(&server.url("/identity"), "").await.is_ok());
}

#[tokio::test]
async fn slow_servers_meet_their_deadlines() {
    let server = Server::start("127.0.0.1:0", misbehave).await;
    let media = media(&server);
    for (path, millis) in [("/silent", 300), ("/drip-head", 300), ("/drip", 600)] {
        let start = Instant::now();
        let waited = Duration::from_millis(millis);
        let error = refusal(&media, &server.url(path)).await;
        assert_eq!(error, MediaError::TimedOut { waited }, "{path}");
        assert!(start.elapsed() >= waited && start.elapsed() < waited * 3);
    }
}

#[tokio::test]
async fn nothing_listening_is_unreachable() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let media = Media::new(policy(&["127.0.0.1".to_owned()])).unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    // The entry has no port, so the policy's ports hold.
    assert_eq!(
        refusal(&media, &url).await,
        MediaError::PortNotAllowed { port }
    );
    let media = Media::new(policy(&[format!("127.0.0.1:{port}")])).unwrap();
    assert_eq!(refusal(&media, &url).await, MediaError::Unreachable);
}

#[tokio::test]
async fn no_redirect_reaches_what_the_first_url_may_not() {
    let canary = Server::start("127.0.0.1:0", |_| Answer::Silence).await;
    let port = canary.port;
    let targets = [
        format!("http://127.0.0.1:{port}/"),
        format!("//127.0.0.1:{port}/"),
        format!("http://127.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http:\\\\127.0.0.1:{port}\\"),
        format!("http://u@127.0.0.1:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://metadata.google.internal/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "data:image/png;base64,iVBORw0KGgo=".to_owned(),
        format!("gopher://127.0.0.1:{port}/"),
    ];
    let count = targets.len();
    let server = Server::start("127.0.0.1:0", move |request| {
        let index: usize = path_of(request)[1..].parse().expect("an index");
        redirect(&targets[index])
    })
    .await;
    let media = media(&server);
    for index in 0..count {
        let error = refusal(&media, &server.url(&format!("/{index}"))).await;
        assert_eq!(error.code(), "url_not_allowed", "target {index}");
    }
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://[::1]:{port}/"),
    ] {
        assert_eq!(refusal(&media, &url).await.code(), "url_not_allowed");
    }
    assert_eq!(server.connections(), count);
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_more() {
    let server = Server::start("127.0.0.1:0", |request| match path_of(request) {
        "/loop" => redirect("/loop"),
        "/0" => Answer::Bytes(respond("200 OK", &golden("one_pixel.png"))),
        path => {
            let hops: u32 = path[1..].parse().expect("a number of hops");
            redirect(&(hops - 1).to_string())
        }
    })
    .await;
    let media = media(&server);
    assert!(media.load(&server.url("/3"), "").await.is_ok());
    for path in ["/4", "/9", "/loop"] {
        assert_eq!(
            refusal(&media, &server.url(path)).await,
            MediaError::TooManyRedirects { max: 3 }
        );
    }
}

#[tokio::test]
async fn urls_are_judged_before_anything_is_sent() {
    let server = Server::start("127.0.0.1:0", |_| Answer::Silence).await;
    let media = media(&server);
    let long = server.url(&format!("/{}", "a".repeat(8 << 10)));
    let rows = [
        (long.as_str(), "invalid_url"),
        ("", "invalid_url"),
        ("/etc/passwd", "invalid_url"),
        ("data:image/png,x", "invalid_url"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,!", "invalid_image"),
        ("data:text/html;base64,aaaa", "unsupported_image"),
        ("file:///etc/passwd", "url_not_allowed"),
        ("http://localhost/", "url_not_allowed"),
        ("http://example.com:22/", "url_not_allowed"),
    ];
    for (url, code) in rows {
        assert_eq!(refusal(&media, url).await.code(), code, "{url}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn fetches_beyond_the_limit_wait_their_turn() {
    let server = Server::start("127.0.0.1:0", misbehave).await;
    let policy = MediaConfig {
        fetches_max: 1,
        first_byte_secs: 0.5,
        ..policy(&[format!("127.0.0.1:{}", server.port)])
    };
    let media = Media::new(policy).unwrap();
    let (silent, other) = (server.url("/silent"), server.url("/identity"));
    let (first, second) = tokio::join!(media.load(&silent, ""), media.load(&other, ""));
    assert_eq!(first.unwrap_err().code(), "image_fetch_failed");
    // The second was sent only when the first had ended.
    assert!(second.is_ok());
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_policy_that_cannot_be_followed_says_what_is_wrong() {
    let rows = [
        (
            MediaConfig {
                allow: vec!["http://a/".to_owned()],
                ..MediaConfig::default()
            },
            "media.allow entry \"http://a/\" is no name, *.suffix, address or network",
        ),
        (
            MediaConfig {
                total_secs: 0.0,
                ..MediaConfig::default()
            },
            "media.total_secs = 0 is no number of seconds above 0",
        ),
        (
            MediaConfig {
                connect_secs: f64::NAN,
                ..MediaConfig::default()
            },
            "media.connect_secs = NaN is no number of seconds above 0",
        ),
    ];
    for (policy, expected) in rows {
        let error = Media::new(policy).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
    let none = MediaConfig {
        fetches_max: 0,
        ..MediaConfig::default()
    };
    let error = Media::new(none).expect_err("no fetch at all").to_string();
    assert!(
        error.starts_with("media.fetches_max = 0 is not 1 to "),
        "{error}"
    );
}
