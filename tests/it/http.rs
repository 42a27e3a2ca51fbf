//! The HTTP layer against raw bytes: limits, ids, errors, streams, drain.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use kvlens::http::listener::bind;
use kvlens::http::reply::Reply;
use kvlens::http::serve::serve;
use kvlens::http::{Limits, Routes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

fn limits() -> Limits {
    Limits {
        body_bytes_max: 100,
        bodies_in_flight_bytes_max: 150,
        header_bytes_max: 1_000,
        header_read: Duration::from_millis(300),
        body_read: Duration::from_millis(300),
        connections_max: 8,
    }
}

/// Routes that echo, panic, hang until dropped, and stream three pieces.
fn routes(dropped: &mpsc::Sender<()>) -> Routes {
    let dropped = dropped.clone();
    Routes::default()
        .post("/echo", |call| {
            Box::pin(async { Reply::full(::http::StatusCode::OK, "text/plain", call.body) })
        })
        .post("/panic", |_| Box::pin(async { panic!("a test's own") }))
        .get("/hang", move |_| {
            let on_drop = SendOnDrop(dropped.clone());
            Box::pin(async move {
                let _held = on_drop;
                std::future::pending().await
            })
        })
        .get("/stream", |_| {
            let pieces = futures_util::stream::iter(["a\n\n", "b\n\n", "c\n\n"]);
            let pieces = pieces.then(|piece| async move {
                tokio::time::sleep(Duration::from_millis(60)).await;
                Ok(Bytes::from(piece))
            });
            Box::pin(async move { Reply::events(pieces.boxed()) })
        })
}

struct SendOnDrop(mpsc::Sender<()>);

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    _guard: DropGuard,
    task: JoinHandle<()>,
    dropped: mpsc::Receiver<()>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is its tasks' parent and waits for them"
)]
async fn server() -> Server {
    let listener = bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let (sender, dropped) = mpsc::channel(8);
    let task = tokio::spawn(serve(listener, routes(&sender), limits(), stop.clone()));
    Server {
        address,
        _guard: stop.clone().drop_guard(),
        stop,
        task,
        dropped,
    }
}

/// Sends raw bytes and reads until the server closes or `quiet` passes without a byte.
async fn exchange(address: SocketAddr, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(sent).await.expect("sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let quiet = Duration::from_millis(700);
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(quiet, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(answer).expect("text")
}

fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn every_refusal_has_a_status_an_id_and_a_body_that_says_why() {
    let server = server().await;
    let long_header = format!("x-long: {}\r\n", "y".repeat(2_000));
    let cases: [(Vec<u8>, u16, &str); 10] = [
        (post("/echo", "", "{}"), 200, "{}"),
        (post("/echo", "", &"x".repeat(101)), 413, "body_too_large"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n65\r\n".iter().copied().chain([b'x'; 101]).chain(*b"\r\n0\r\n\r\n").collect(), 413, "body_too_large"),
        (post("/echo", "content-type: text/plain\r\n", "{}"), 415, "unsupported_media_type"),
        (post("/echo", "content-encoding: gzip\r\n", "{}"), 415, "unsupported_media_type"),
        (post("/echo", &long_header, "{}"), 431, "headers_too_large"),
        (post("/nowhere", "", "{}"), 404, "not_found"),
        (b"GET /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), 405, "method_not_allowed"),
        (post("/panic", "", "{}"), 500, "internal_error"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{}".to_vec(), 408, "body_timeout"),
    ];
    for (sent, status, part) in cases {
        let answer = exchange(server.address, &sent).await;
        let shown = String::from_utf8_lossy(&sent[..sent.len().min(60)]).into_owned();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown}: {answer}"
        );
        assert!(answer.contains(part), "{shown}: {answer}");
        assert!(answer.contains("x-request-id: "), "{shown}: {answer}");
        assert_eq!(status == 405, answer.contains("allow: POST"), "{answer}");
    }
}

#[tokio::test]
async fn a_clients_id_is_echoed_unless_it_could_break_a_log() {
    let server = server().await;
    let answer = exchange(
        server.address,
        &post("/echo", "x-request-id: mine-1\r\n", "{}"),
    )
    .await;
    assert!(answer.contains("x-request-id: mine-1\r\n"), "{answer}");
    let answer = exchange(
        server.address,
        &post("/echo", "x-request-id: a b\r\n", "{}"),
    )
    .await;
    assert!(!answer.contains("a b"), "{answer}");
}

#[tokio::test]
async fn slow_headers_close_that_connection_alone() {
    let server = server().await;
    let slow = exchange(server.address, b"POST /echo HTTP/1.1\r\nhost:");
    let sent = post("/echo", "", "{}");
    let quick = exchange(server.address, &sent);
    let (slow, quick) = tokio::join!(slow, quick);
    assert!(!slow.contains("200"), "{slow}");
    assert!(quick.starts_with("HTTP/1.1 200"), "{quick}");
}

#[tokio::test]
async fn a_client_that_goes_away_drops_its_request() {
    let mut server = server().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(stream);
    let dropped = tokio::time::timeout(Duration::from_millis(100), server.dropped.recv()).await;
    assert_eq!(dropped, Ok(Some(())));
}

#[tokio::test]
async fn pieces_are_passed_as_they_come() {
    let server = server().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut reads = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        reads.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
    }
    // Three pieces and the end come apart, each when it was made.
    assert!(reads.len() >= 3, "{reads:?}");
    assert!(reads[0].contains("text/event-stream"), "{reads:?}");
    assert!(!reads[0].contains("b\n\n"), "{reads:?}");
}

#[tokio::test]
async fn a_stream_in_flight_is_not_cut_by_the_stop() {
    let server = server().await;
    let request = b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = exchange(server.address, request);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(90)).await;
        server.stop.cancel();
    };
    let (answer, ()) = tokio::join!(answer, stop);
    assert!(answer.contains("c\n\n"), "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    server.task.await.unwrap();
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "still listening"
    );
}

#[tokio::test]
async fn bodies_in_flight_share_one_room() {
    let server = server().await;
    let sent = |body: &str| post("/echo", "", body);
    // What is only announced holds nothing.
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let announced = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n";
    idle.write_all(announced).await.unwrap();
    let answer = exchange(server.address, &sent(&"y".repeat(80))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // 89 of 90 bytes hold their room until their deadline.
    let mut holder = TcpStream::connect(server.address).await.unwrap();
    holder
        .write_all(&[announced.as_slice(), &[b'x'; 89]].concat())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let answer = exchange(server.address, &sent(&"y".repeat(80))).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
    tokio::time::sleep(Duration::from_millis(400)).await;
    let answer = exchange(server.address, &sent(&"y".repeat(80))).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
